//! Names of files in a repository: what may be joined to a directory, what a glob selects, what a URL holds.

use crate::error::{HubError, Result};

/// Refuses a name that would leave the directory that it is joined to, or that the system cannot hold.
///
/// Allowed are relative paths of plain parts, as the Hub writes them: `onnx/model.onnx`.
pub(crate) fn check(name: &str) -> Result<()> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= 240
            && !part.contains(|c: char| c == '\\' || c.is_control())
    };
    let drive = name.as_bytes().get(1) == Some(&b':');
    if name.len() <= 1024 && !drive && name.split('/').all(plain) && !is_ours(name) {
        return Ok(());
    }
    Err(HubError::BadFileName(name.into()))
}

/// Whether a name is one that flm itself writes into a target.
fn is_ours(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    name == crate::names::NAME
        || last.starts_with(".flm-pull")
        || last.ends_with(".part")
        || last.ends_with(".part.ranges")
}

/// `name` as the path of a URL.
pub(crate) fn url_path(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A revision as one part of a URL's path; refuses what git allows in no name.
pub(crate) fn revision_path(revision: &str) -> Result<String> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
    if revision.is_empty() || revision.contains(strange) || revision.contains("..") {
        return Err(HubError::BadRevision(revision.into()));
    }
    Ok(url_path(revision).replace('/', "%2F"))
}

pub(crate) const NAME: &str = "flm.lock";

/// Whether `text` is `OWNER/NAME` as the Hub allows it.
pub(crate) fn is_repository(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.len() <= 96
            && !p.starts_with('.')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Whether a file holds weights in PyTorch's form.
pub(crate) fn is_shard(name: &str) -> bool {
    name.starts_with("pytorch_model") && name.ends_with(".bin")
}

/// Name of the index that a conversion writes.
pub(crate) const OUTPUT_INDEX: &str = "model.safetensors.index.json";

/// `pytorch_model-00001-of-00009.bin` → `model-00001-of-00009.safetensors`
pub(crate) fn output_name(shard: &str) -> Option<String> {
    let stem = shard.strip_prefix("pytorch_model")?.strip_suffix(".bin")?;
    Some(format!("model{stem}.safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["config.json", "a/b.bin", "..a", "a..", "模型.bin", "a b"] {
            assert!(check(name).is_ok(), "{name}");
        }
        let long = "x".repeat(300);
        let bad = [
            "",
            ".",
            "..",
            "../a",
            "a/../b",
            "/etc/passwd",
            "a//b",
            "a/",
            "a\\b",
            "a\0b",
            "a\nb",
            "C:a",
            &long,
            "flm.lock",
            ".flm-pull.lock",
            "a/.flm-pull.journal",
            "model.bin.part",
            "x.part.ranges",
        ];
        for name in bad {
            assert!(matches!(check(name), Err(HubError::BadFileName(n)) if n == name), "{name}");
        }
    }

    #[test]
    fn urls_are_escaped() {
        assert_eq!(url_path("a b/c?#%.bin"), "a%20b/c%3F%23%25.bin");
        assert_eq!(revision_path("refs/pr/1#é").unwrap(), "refs%2Fpr%2F1%23%C3%A9");
        for bad in ["", "a b", "x?y=1", "a\nb", "../x", "a~1"] {
            assert!(matches!(revision_path(bad), Err(HubError::BadRevision(_))), "{bad}");
        }
    }
}
