//! What is given for a checkpoint and is none: a file, a repository of the Hub's cache, a folder without weights.

use std::path::{Path, PathBuf};

use crate::error::{CheckpointError, Result, io};
use crate::format::index::is_weight_name;
use crate::read::file::names_in;

/// The snapshots of `dir`, where it is a repository of the Hub's cache (`models--OWNER--NAME`); that of the branch
/// `main` first, the others by name.
pub fn cached_snapshots(dir: &Path) -> Vec<PathBuf> {
    let snapshots = dir.join("snapshots");
    let Ok(mut names) = names_in(&snapshots) else { return Vec::new() };
    let main = std::fs::read_to_string(dir.join("refs/main")).unwrap_or_default();
    names.sort_by_key(|name| (name != main.trim(), name.clone()));
    let paths = names.into_iter().map(|name| snapshots.join(name));
    paths.filter(|path| path.join("config.json").exists()).collect()
}

/// Fails where `dir` is something that people take for a checkpoint's directory.
///
/// # Errors
/// [`CheckpointError::NotADirectory`], [`CheckpointError::CachedRepository`], [`CheckpointError::NoConfig`].
pub(crate) fn require_checkpoint(dir: &Path) -> Result<()> {
    if dir.is_file() {
        let mut head = [0; 4];
        let read =
            std::fs::File::open(dir).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head));
        let gguf = read.is_ok() && &head == b"GGUF";
        let what = if gguf { GGUF } else { "a file: give the directory that it lies in" };
        return Err(CheckpointError::NotADirectory { path: dir.into(), what });
    }
    // a link that leads nowhere has a name, and opening it says so
    if dir.join("config.json").symlink_metadata().is_ok() || !dir.is_dir() {
        return Ok(());
    }
    let snapshots = cached_snapshots(dir);
    if !snapshots.is_empty() {
        return Err(CheckpointError::CachedRepository { dir: dir.into(), snapshots });
    }
    match there(&names_in(dir)?) {
        Some(there) => Err(CheckpointError::NoConfig { dir: dir.into(), there }),
        None => Err(io("open", &dir.join("config.json"))(std::io::ErrorKind::NotFound.into())),
    }
}

/// What a GGUF file is to flm.
pub(crate) const GGUF: &str =
    "a GGUF file, which flm writes and does not read: get the directory of the model's safetensors";

/// What a directory without the weights that are looked for holds in their place, and what to do about it.
pub(crate) fn there(names: &[String]) -> Option<String> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let shards: Vec<&str> =
        names.iter().copied().filter(|name| is_weight_name(name) && name.contains("-of-")).collect();
    if let Some(first) = shards.first() {
        let index = if first.ends_with(".bin") { "pytorch_model.bin" } else { "model.safetensors" };
        let more = match shards.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let are = if shards.len() == 1 { "is a shard" } else { "are shards" };
        return Some(format!("{first}{more} {are} without an index: get {index}.index.json too"));
    }
    let first = |ends: &[&str]| names.iter().copied().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(adapter) = names.iter().find(|name| name.starts_with("adapter_model.")) {
        return Some(format!(
            "{adapter} is a PEFT adapter, not a model: merge it into its model (merge_and_unload) and save that"
        ));
    }
    if let Some(name) = first(&[".gguf"]) {
        return Some(format!("{name} is {GGUF}"));
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("consolidated.")) {
        return Some(format!(
            "{name} has the names of its maker's own code: get the model in Hugging Face's form"
        ));
    }
    if let Some(name) = first(&[".safetensors", ".bin", ".pt", ".pth"]) {
        return Some(format!(
            "{name} is not looked for: if it holds the whole model, rename it to model.safetensors or \
             pytorch_model.bin"
        ));
    }
    first(&[".h5", ".msgpack", ".onnx", ".ckpt"]).map(|name| {
        format!("{name} is another framework's: load it with transformers and save_pretrained as safetensors")
    })
}
