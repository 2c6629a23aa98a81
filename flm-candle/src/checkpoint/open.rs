//! Opening a checkpoint: which files it has, and their headers put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::Result;
use super::pytorch::PyTorchError;
use super::source::{OpenFile, read_json_file};
use super::weight_map::{self, WeightMap};
use super::zip::ZipEntry;
use super::{
    Checkpoint, CheckpointError, Format, RawTensor, TensorEntry, WeightFile, is_skipped, pytorch,
    safetensors_header,
};
use crate::config::{ConfigError, TeleFlmConfig};

/// What a directory may hold, the preferred first.
const FORMATS: [(Format, &str); 4] = [
    (Format::Safetensors, "model.safetensors"),
    (Format::ShardedSafetensors, "model.safetensors.index.json"),
    (Format::PyTorch, "pytorch_model.bin"),
    (Format::ShardedPyTorch, "pytorch_model.bin.index.json"),
];

impl Checkpoint {
    /// Opens the directory `dir`: reads config.json and every header, no weights.
    ///
    /// Of several forms of weights in one directory the first in the order of [`Format`] is taken.
    /// Files may be symbolic links, as in the Hub's cache.
    ///
    /// # Errors
    /// Anything malformed, named with file and tensor. Whether the tensors are those that config.json
    /// asks for is not an error here but in [`Checkpoint::check`].
    pub fn open(dir: &Path) -> Result<Self> {
        let config = read_config(&dir.join("config.json"))?;
        let found = FORMATS.iter().find(|(_, name)| dir.join(name).symlink_metadata().is_ok());
        let &(format, name) = found.ok_or_else(|| CheckpointError::NoWeights { dir: dir.into() })?;
        let path = dir.join(name);
        let index = match format {
            Format::Safetensors | Format::PyTorch => None,
            Format::ShardedSafetensors | Format::ShardedPyTorch => {
                let parsed = weight_map::parse(&read_json_file(&path)?);
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
        };
        match index {
            None => checkpoint.add_file(path)?,
            Some(map) => checkpoint.add_shards(&path, &map)?,
        }
        checkpoint.finish_entries()?;
        Ok(checkpoint)
    }

    fn add_shards(&mut self, index: &Path, map: &WeightMap) -> Result<()> {
        let mut expected: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (tensor, file) in map.iter().filter(|(tensor, _)| !is_skipped(tensor)) {
            expected.entry(file).or_default().insert(tensor);
        }
        for (file, mut tensors) in expected {
            let path = self.dir.join(file);
            if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                let tensor = tensors.pop_first().unwrap_or_default().into();
                return Err(CheckpointError::MissingFile { index: index.into(), tensor, file: file.into() });
            }
            let first = self.entries.len();
            self.add_file(path.clone())?;
            for entry in &self.entries[first..] {
                if !tensors.remove(entry.name.as_str()) {
                    let tensor = entry.name.clone();
                    return Err(CheckpointError::NotInIndex { index: index.into(), tensor, file: path });
                }
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

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let handle = OpenFile::open(&path)?;
        let (tensors, storages) = read_headers(self.format, &path, &handle)?;
        let file = self.files.len();
        self.files.push(WeightFile { path, size: handle.size });
        self.handles.push(handle);
        self.storages.push(storages);
        self.entries.extend(tensors.into_iter().map(|t| TensorEntry {
            name: t.name,
            dtype: t.dtype,
            shape: t.shape,
            file,
            offset: t.offset,
            nbytes: t.nbytes,
        }));
        Ok(())
    }

    fn finish_entries(&mut self) -> Result<()> {
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
        match self.entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            None => Ok(()),
            Some(pair) => Err(CheckpointError::DuplicateTensor {
                tensor: pair[0].name.clone(),
                first: self.files[pair[0].file].path.clone(),
                second: self.files[pair[1].file].path.clone(),
            }),
        }
    }
}

/// The tensors of a file and, for PyTorch, the archive's entries that hold them.
fn read_headers(format: Format, path: &Path, file: &OpenFile) -> Result<(Vec<RawTensor>, Vec<ZipEntry>)> {
    match format {
        Format::Safetensors | Format::ShardedSafetensors => match safetensors_header::read(file) {
            Ok(tensors) => Ok((tensors, Vec::new())),
            Err(source) => Err(CheckpointError::Header { path: path.into(), source }),
        },
        Format::PyTorch | Format::ShardedPyTorch => match pytorch::read(file) {
            Ok(file) => Ok((file.tensors, file.storages)),
            Err(PyTorchError::Zip(source)) => Err(CheckpointError::Zip { path: path.into(), source }),
            Err(PyTorchError::Pickle(source)) => Err(CheckpointError::Pickle { path: path.into(), source }),
        },
    }
}

/// Reads config.json if it is a regular file of sensible size.
fn read_config(path: &Path) -> Result<TeleFlmConfig> {
    let bytes = read_json_file(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| ConfigError::NotAnObject(e.to_string()))?;
    Ok(TeleFlmConfig::from_json(text)?)
}

#[cfg(test)]
mod tests;
