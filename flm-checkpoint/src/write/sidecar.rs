//! The files of a checkpoint that are neither weights nor config, and the names that its files have.

use std::fs::{self, File};
use std::path::Path;

use crate::checksums::CHECKSUMS_FILE;
use crate::error::{Result, io};
use crate::format::index::{TEMPLATES, is_weight_name};
use crate::read::file::{OpenFile, names_in};

/// Tokenizers, chat templates and generation settings; code (`*.py`) is left behind.
const NAMES: [&str; 13] = [
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    README,
];
/// The model card.
const README: &str = "README.md";
/// What the model may be used for; in capitals, with any ending.
const TERMS: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// Whether the source's model card is true of the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Card {
    /// It is the same model.
    Keep,
    /// It is another model: its card has to be its own.
    Leave,
}

fn is_side_file(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    NAMES.contains(&name)
        || name.ends_with(".tiktoken")
        || TERMS.iter().any(|start| upper.starts_with(start)) && !name.ends_with(".py")
}

/// Copies tokenizer, chat templates, generation config, model card and licence files from `src` to `dst`,
/// where present.
///
/// Links are followed, anything that is not a regular file is an error. Returns the names, sorted; those of
/// named chat templates begin with their folder's.
///
/// # Errors
/// Where a file is none, or cannot be read or written.
pub fn copy_side_files(src: &Path, dst: &Path, card: Card) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in names_in(src)? {
        // a folder of licences is none of the model's terms
        let folder = !NAMES.contains(&name.as_str()) && src.join(&name).is_dir();
        if is_side_file(&name) && !folder && (card == Card::Keep || name != README) {
            names.push(name);
        }
    }
    names.extend(named_templates(src)?);
    names.sort();
    for name in &names {
        let (from, to) = (src.join(name), dst.join(name));
        let mut source = OpenFile::open(&from)?.file;
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).map_err(io("create", dir))?;
        }
        // Not fs::copy: it would carry over the mode of the Hub's read-only blobs.
        let mut target = File::create(&to).map_err(io("create", &to))?;
        std::io::copy(&mut source, &mut target).map_err(io("copy to", &to))?;
    }
    Ok(names)
}

/// The named chat templates in a checkpoint's directory, as paths relative to it.
pub(crate) fn named_templates(dir: &Path) -> Result<Vec<String>> {
    let templates = dir.join(TEMPLATES);
    if !templates.is_dir() {
        return Ok(Vec::new());
    }
    let inside = names_in(&templates)?.into_iter().filter(|name| name.ends_with(".jinja"));
    Ok(inside.map(|name| format!("{TEMPLATES}/{name}")).collect())
}

/// Whether `path` lies in a checkpoint's directory and has a name that readers of checkpoints look for
/// there, whether or not there is such a file yet: a result written there would be taken for a part of the
/// checkpoint, or replace one.
pub fn is_place_of_checkpoint(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(parent) = parent.canonicalize() else { return false };
    let reserved = is_side_file(name)
        || [
            "config.json",
            "provenance.json",
            "recipe.toml",
            "training_state.json",
            "flm.lock",
            CHECKSUMS_FILE,
        ]
        .contains(&name)
        || name.ends_with(".index.json")
        || is_weight_name(name);
    // the folder itself, or optimizer/ and the like in it
    reserved && parent.ancestors().take(2).any(|dir| dir.join("config.json").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::index::is_own_file_name;

    #[test]
    fn the_places_of_a_checkpoint_are_known_before_there_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir_all(model.join("optimizer")).unwrap();
        fs::create_dir_all(dir.path().join("free")).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        for name in [
            "model.safetensors",
            "model-00001-of-00003.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "config.json",
            "tokenizer.json",
            "checksums.json",
            "README.md",
            "NOTICE.txt",
        ] {
            assert!(is_place_of_checkpoint(&model.join(name)), "{name}");
            assert!(is_place_of_checkpoint(&model.join("optimizer").join(name)), "{name}");
            assert!(!is_place_of_checkpoint(&dir.path().join("free").join(name)), "{name}");
        }
        for name in ["logits.safetensors", "report.html", "distance.svg", "x.gguf"] {
            assert!(!is_place_of_checkpoint(&model.join(name)), "{name}");
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&model, &link).unwrap();
        assert!(is_place_of_checkpoint(&link.join("model.safetensors")));
    }

    #[test]
    fn all_that_goes_with_a_tokenizer_and_a_licence_is_copied() {
        let (src, dst) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(src.path().join(TEMPLATES)).unwrap();
        fs::create_dir(src.path().join("LICENSES")).unwrap();
        let names = [
            "LICENSE.txt",
            "NOTICE",
            "README.md",
            "USE_POLICY.md",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.json",
            "qwen.tiktoken",
            "tekken.json",
        ];
        for name in names.iter().chain(&["config.json", "modeling_x.py", "x.bin"]) {
            fs::write(src.path().join(name), name).unwrap();
        }
        assert_eq!(copy_side_files(src.path(), dst.path(), Card::Keep).unwrap(), names);
        for name in names {
            assert_eq!(fs::read_to_string(dst.path().join(name)).unwrap(), name);
            assert!(is_own_file_name(name), "{name}");
        }
        for name in ["../x", "additional_chat_templates/../x", "additional_chat_templates/", "a/b", "/etc/x"]
        {
            assert!(!is_own_file_name(name), "{name}");
        }
        let dst = tempfile::tempdir().unwrap();
        let without = copy_side_files(src.path(), dst.path(), Card::Leave).unwrap();
        assert!(!without.iter().any(|name| name == README) && without.len() == names.len() - 1);
    }
}
