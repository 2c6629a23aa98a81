//! What shows that a file is no work of anybody: left unfinished, or a pointer to a file.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// The end of a zip archive: its signature, at most a comment of 64 KiB before the end of the file.
const ZIP_END: &[u8] = b"PK\x05\x06";
const ZIP_TAIL: u64 = (64 << 10) + 22;
const MAX_HEADER: u64 = 100_000_000;

/// Why a file is damaged, if that can be seen without its digest.
pub(crate) fn seen(path: &Path) -> Option<&'static str> {
    let meta = path.metadata().ok().filter(|meta| meta.is_file())?;
    let mut aria2 = path.as_os_str().to_owned();
    aria2.push(".aria2");
    if Path::new(&aria2).exists() {
        return Some("aria2 left it unfinished");
    }
    if meta.len() == 0 {
        return Some("it is empty");
    }
    let mut file = File::open(path).ok()?;
    let mut first = Vec::new();
    file.by_ref().take(64).read_to_end(&mut first).ok()?;
    if first.starts_with(flm_checkpoint::LFS_POINTER) && meta.len() < 1024 {
        return Some("it is a Git LFS pointer");
    }
    let cut_off = if path.extension().is_some_and(|e| e == "safetensors") {
        ends_early(&mut file, meta.len())
    } else {
        first.starts_with(b"PK\x03\x04") && !has_end(&mut file, meta.len())
    };
    cut_off.then_some("it is cut off")
}

/// Whether a safetensors file is shorter than its own header says.
fn ends_early(file: &mut File, bytes: u64) -> bool {
    let header = || -> Option<u64> {
        file.rewind().ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return None;
        }
        let mut header = Vec::new();
        file.take(length).read_to_end(&mut header).ok()?;
        if (header.len() as u64) < length {
            return header.starts_with(b"{").then_some(u64::MAX);
        }
        let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header).ok()?;
        let end = |tensor: &serde_json::Value| tensor["data_offsets"][1].as_u64();
        Some((8 + length).saturating_add(header.values().filter_map(end).max()?))
    };
    let mut header = header;
    header().is_some_and(|end| bytes < end)
}

fn has_end(file: &mut File, bytes: u64) -> bool {
    let mut tail = Vec::new();
    let read = file
        .seek(SeekFrom::Start(bytes.saturating_sub(ZIP_TAIL)))
        .and_then(|_| file.take(ZIP_TAIL).read_to_end(&mut tail));
    // what cannot be read is not known to be damaged
    read.is_err() || tail.windows(ZIP_END.len()).any(|four| four == ZIP_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_made_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            seen(&dir.path().join(name))
        };
        let header = br#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend(header);
        whole.extend([0; 4]);
        assert_eq!(of("a.safetensors", &whole), None);
        assert_eq!(of("a.safetensors", &whole[..whole.len() - 1]), Some("it is cut off"));
        assert_eq!(of("a.safetensors", &whole[..20]), Some("it is cut off"));
        let zip = [b"PK\x03\x04..".as_slice(), ZIP_END, &[0; 18]].concat();
        assert_eq!((of("a.bin", &zip), of("a.bin", &zip[..6])), (None, Some("it is cut off")));
        assert_eq!((of("config.json", b"{}\n"), of("config.json", b"")), (None, Some("it is empty")));
        assert_eq!(
            of("t.model", &[flm_checkpoint::LFS_POINTER, b"\noid x"].concat()),
            Some("it is a Git LFS pointer")
        );
        std::fs::write(dir.path().join("b.bin.aria2"), "").unwrap();
        assert_eq!(of("b.bin", b"x"), Some("aria2 left it unfinished"));
    }
}
