//! Opening a checkpoint: which files it has, and their headers put together.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, TeleFlmConfig};
use crate::error::CheckpointError;
use crate::error::Result;
use crate::format::Source;
use crate::format::index as weight_map;
use crate::format::index::WeightMap;
use crate::format::pytorch::PyTorchError;
use crate::format::{Contents, is_skipped, pytorch, safetensors as safetensors_header};
use crate::ranges::Pieces;
use crate::read::file::{OpenFile, names_in, read_json_file};
use crate::read::place::{GGUF, require_checkpoint, there};
use crate::read::{Checkpoint, Format, TensorEntry, WeightFile};
use crate::tensor_id::{EMBED_TOKENS, LAYERS, LM_HEAD, Names, Part, split_layer};

/// Bytes that are compared at a time.
const COMPARED: u64 = 1 << 20;

/// What a directory may hold, the preferred first.
const FORMATS: [(Format, &str); 4] = [
    (Format::Safetensors, "model.safetensors"),
    (Format::ShardedSafetensors, "model.safetensors.index.json"),
    (Format::PyTorch, "pytorch_model.bin"),
    (Format::ShardedPyTorch, "pytorch_model.bin.index.json"),
];

impl Checkpoint {
    /// Opens the directory `dir`: reads config.json and every header, and of the weights at most a head that
    /// is stored beside tied embeddings, to tell whether it is their copy.
    ///
    /// Of several forms of weights in one directory the first in the order of [`Format`] is taken.
    /// Files may be symbolic links, as in the Hub's cache.
    ///
    /// # Errors
    /// Anything malformed, named with file and tensor. Whether the tensors are those that config.json
    /// asks for is not an error here but in [`Checkpoint::check`].
    pub fn open(dir: &Path) -> Result<Self> {
        require_checkpoint(dir)?;
        Self::open_in(dir, &Directory)
    }

    /// The same wherever the files of `dir` are.
    pub(crate) fn open_in(dir: &Path, files: &dyn Files) -> Result<Self> {
        let config = parse_config(&files.json(&dir.join("config.json"))?)?;
        let mut found = FORMATS.into_iter().filter(|(_, name)| files.has(&dir.join(name)));
        let missing = || CheckpointError::NoWeights { dir: dir.into(), there: there(&files.names(dir)) };
        let (format, name) = found.next().ok_or_else(missing)?;
        let unread = found.map(|(_, name)| name).collect();
        let path = dir.join(name);
        let index = match format {
            Format::Safetensors | Format::PyTorch => None,
            Format::ShardedSafetensors | Format::ShardedPyTorch => {
                let parsed = weight_map::parse(&files.json(&path)?);
                Some(parsed.map_err(|source| CheckpointError::Index { path: path.clone(), source })?)
            }
        };
        let mut checkpoint = Self {
            dir: dir.into(),
            format,
            config,
            files: Vec::new(),
            handles: Vec::new(),
            entries: Vec::new(),
            storages: Vec::new(),
            prefix: None,
            ignored: Vec::new(),
            unread,
        };
        match index {
            None => checkpoint.add_file(files, path)?,
            Some(map) => checkpoint.add_shards(files, &path, &map)?,
        }
        checkpoint.ignored.sort();
        checkpoint.unwrap_names();
        checkpoint.take_own_names();
        // No name stands twice: each file's reader saw to that, and an index places a name in one file.
        checkpoint.entries.sort_by(|a, b| a.name.cmp(&b.name));
        checkpoint.use_stored_head()?;
        Ok(checkpoint)
    }

    /// Gives tensors of a family's own names Llama's, and the parts of fused tensors entries of their own: rows of
    /// one tensor lie one after another. What does not have the rows that the config asks for stays, for `check`
    /// to name.
    fn take_own_names(&mut self) {
        let Names { layers, outer, fused } = *self.config.names();
        for mut entry in std::mem::take(&mut self.entries) {
            if let Some(block) = entry.name.strip_prefix(layers) {
                entry.name = format!("{LAYERS}{block}");
            }
            if let Some((_, llamas)) = outer.iter().find(|(own, _)| *own == entry.name) {
                self.entries.push(TensorEntry { name: (*llamas).to_owned(), ..entry });
                continue;
            }
            let found = split_layer(&entry.name).and_then(|(layer, suffix)| {
                fused.iter().find(|fused| fused.suffix == suffix).map(|fused| (layer.to_owned(), fused))
            });
            let rows = |part: &Part| part.axes().first().map_or(0, |&axis| self.config.size(axis));
            let fits = found.as_ref().is_some_and(|(_, fused)| {
                let total = fused.parts.iter().map(rows).fold(0, usize::saturating_add);
                let axes = fused.parts.first().map_or(0, |part| part.axes().len());
                entry.shape.len() == axes && entry.shape[0] == total && total > 0
            });
            let Some((layer, fused)) = found.filter(|_| fits) else {
                self.entries.push(entry);
                continue;
            };
            let row_bytes = entry.nbytes / entry.shape[0] as u64;
            let groups = if fused.grouped { self.config.num_key_value_heads as u64 } else { 1 };
            let mut offset = entry.offset;
            for part in fused.parts {
                let nbytes = rows(part) as u64 * row_bytes;
                let mut shape = entry.shape.clone();
                shape[0] = rows(part);
                let name = format!("{layer}{}", part.suffix());
                let pieces = Pieces::of_groups(groups, nbytes, entry.nbytes);
                self.entries.push(TensorEntry { name, shape, offset, nbytes, pieces, ..entry.clone() });
                offset += nbytes / groups;
            }
        }
    }

    /// A head that is stored and differs from the embedding is the model's, whatever config.json says of
    /// tied weights: so does transformers 5. An equal copy stays tied.
    fn use_stored_head(&mut self) -> Result<()> {
        if !self.config.tie_word_embeddings || self.handles.len() < self.files.len() {
            return Ok(());
        }
        let (Some(head), Some(embedding)) = (self.find(LM_HEAD), self.find(EMBED_TOKENS)) else {
            return Ok(());
        };
        // a head of another shape is a problem that `check` names
        if head.shape == embedding.shape && !self.same_bytes(head, embedding)? {
            self.config.tie_word_embeddings = false;
        }
        Ok(())
    }

    fn same_bytes(&self, a: &TensorEntry, b: &TensorEntry) -> Result<bool> {
        if a.dtype != b.dtype || a.nbytes != b.nbytes {
            return Ok(false);
        }
        // PyTorch stores tied weights once
        if a.file == b.file && a.offset == b.offset {
            return Ok(true);
        }
        let len = COMPARED.min(a.nbytes);
        let (mut left, mut right) = (vec![0; len as usize], vec![0; len as usize]);
        for start in (0..a.nbytes).step_by(COMPARED as usize) {
            let len = COMPARED.min(a.nbytes - start) as usize;
            self.read_at(a, start, &mut left[..len])?;
            self.read_at(b, start, &mut right[..len])?;
            if left[..len] != right[..len] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn add_shards(&mut self, files: &dyn Files, index: &Path, map: &WeightMap) -> Result<()> {
        let mut expected: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in map.iter().filter(|(tensor, _)| !is_skipped(tensor)) {
            expected.entry(file).or_default().insert(tensor);
        }
        for (file, mut tensors) in expected {
            let path = self.dir.join(file);
            if !files.has(&path) {
                let tensor = tensors.pop_first().unwrap_or_default().into();
                return Err(CheckpointError::MissingFile { index: index.into(), tensor, file: file.into() });
            }
            let first = self.entries.len();
            self.add_file(files, path.clone())?;
            for entry in &self.entries[first..] {
                if !tensors.remove(entry.name.as_str()) {
                    let tensor = entry.name.clone();
                    return Err(match map.get(&tensor) {
                        None => CheckpointError::NotInIndex { index: index.into(), tensor, file: path },
                        Some(other) => {
                            let first = self.dir.join(other);
                            CheckpointError::DuplicateTensor { tensor, first, second: path }
                        }
                    });
                }
            }
            // tied weights are stored once, whatever the index says
            if self.config.tie_word_embeddings {
                tensors.remove(LM_HEAD);
            }
            if let Some(tensor) = tensors.pop_first() {
                return Err(CheckpointError::NotInFile {
                    index: index.into(),
                    tensor: tensor.into(),
                    file: path,
                });
            }
        }
        Ok(())
    }

    fn add_file(&mut self, files: &dyn Files, path: PathBuf) -> Result<()> {
        let Headers { size, contents, handle } = files.headers(self.format, &path)?;
        let file = self.files.len();
        self.files.push(WeightFile { path, size });
        self.handles.extend(handle);
        self.storages.push(contents.storages);
        self.ignored.extend(contents.ignored);
        self.entries.extend(contents.tensors.into_iter().map(|t| TensorEntry {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            file,
            offset: t.offset,
            nbytes: t.nbytes,
            pieces: Pieces::ONE,
        }));
        Ok(())
    }
}

/// Where the files of a checkpoint are.
pub(crate) trait Files {
    /// Whether there is something of that name, of whatever kind.
    fn has(&self, path: &Path) -> bool;
    /// The names of the files in `dir`, as far as they are known.
    fn names(&self, dir: &Path) -> Vec<String>;
    /// The bytes of a JSON file of sensible size.
    fn json(&self, path: &Path) -> Result<Vec<u8>>;
    /// What the headers of a weight file say.
    fn headers(&self, format: Format, path: &Path) -> Result<Headers>;
}

/// What is known of a weight file without its weights.
pub(crate) struct Headers {
    pub size: u64,
    pub contents: Contents,
    /// Where weights can be read.
    pub handle: Option<OpenFile>,
}

/// The files of this machine.
struct Directory;

impl Files for Directory {
    fn has(&self, path: &Path) -> bool {
        !path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    fn names(&self, dir: &Path) -> Vec<String> {
        names_in(dir).unwrap_or_default()
    }

    fn json(&self, path: &Path) -> Result<Vec<u8>> {
        read_json_file(path)
    }

    fn headers(&self, format: Format, path: &Path) -> Result<Headers> {
        let file = OpenFile::open(path)?;
        let contents = read_headers(format, path, &file)?;
        Ok(Headers { size: file.size, contents, handle: Some(file) })
    }
}

/// What the headers of a file say.
pub(crate) fn read_headers(format: Format, path: &Path, file: &impl Source) -> Result<Contents> {
    let (read, expected) = match format {
        Format::Safetensors | Format::ShardedSafetensors => {
            let header = |source| CheckpointError::Header { path: path.into(), source };
            (safetensors_header::read(file).map_err(header), ".safetensors")
        }
        Format::PyTorch | Format::ShardedPyTorch => {
            let archive = |error| match error {
                PyTorchError::Zip(source) => CheckpointError::Zip { path: path.into(), source },
                PyTorchError::Pickle(source) => CheckpointError::Pickle { path: path.into(), source },
            };
            (pytorch::read(file).map_err(archive), ".bin")
        }
    };
    read.map_err(|error| match other_kind(file, expected) {
        Some(what) => CheckpointError::OtherKind { path: path.into(), what },
        None => error,
    })
}

/// What a file that holds no weights in the form that its name's end says is by its first bytes, and what to do
/// about it.
fn other_kind(file: &impl Source, end: &str) -> Option<&'static str> {
    let head = file.bytes_at(0, 64.min(file.size()) as usize).ok()?;
    let text = head.trim_ascii_start().to_ascii_lowercase();
    if head.starts_with(b"GGUF") {
        Some(GGUF)
    } else if head.starts_with(b"PK\x03\x04") && end != ".bin" {
        Some(
            "a zip archive such as torch.save writes, not safetensors: rename it to pytorch_model.bin, or give \
             shards and their index the names of that form",
        )
    } else if head.starts_with(b"\x80\x02") && end != ".bin" {
        Some("a pickle such as torch.save writes, not safetensors: load it with torch and save it again")
    } else if head.get(8) == Some(&b'{') && head[3..8] == [0; 5] && end != ".safetensors" {
        Some(
            "a safetensors file, not PyTorch's: rename it to model.safetensors, or give shards and their index \
             the names of that form",
        )
    } else if head.starts_with(b"\x1f\x8b") {
        Some("compressed with gzip: unpack it")
    } else if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        Some("an HTML page, such as a server's error or login page: download the file again")
    } else {
        None
    }
}

fn parse_config(bytes: &[u8]) -> Result<TeleFlmConfig> {
    let text = std::str::from_utf8(bytes).map_err(|e| ConfigError::NotAnObject(e.to_string()))?;
    Ok(TeleFlmConfig::from_json(text)?)
}

/// Tensor name → file name by the text of an index; buffers that follow from the config are left out.
///
/// # Errors
/// [`CheckpointError::Index`]: not an index, a duplicate, or a file name that is not a plain one.
pub fn parse_index(path: &Path, text: &[u8]) -> Result<BTreeMap<String, String>> {
    let map = weight_map::parse(text);
    let mut map: WeightMap = map.map_err(|source| CheckpointError::Index { path: path.into(), source })?;
    map.retain(|tensor, _| !is_skipped(tensor));
    Ok(map)
}
