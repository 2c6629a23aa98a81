//! Turning shards into safetensors one by one, as they arrive, and putting the index on top at the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::convert_shard;
use flm_checkpoint::index_text;
use flm_checkpoint::parse_index;
use flm_checkpoint::{CHECKSUMS_FILE, Checksums, FileDigest, WeightFileDigest};

use crate::error::{HubError, Result, io};
use crate::journal::Journal;
use crate::names::{OUTPUT_INDEX, output_name};
use crate::plan::PlannedFile;
use crate::progress::{Event, Progress, add};
use flm_checkpoint::atomic;

const SOURCE_INDEX: &str = "pytorch_model.bin.index.json";

/// Converts shards in a target directory.
pub(crate) struct Shards<'a> {
    pub dir: &'a Path,
    pub journal: &'a Journal,
    pub progress: &'a Progress,
    pub delete_source: bool,
}

impl Shards<'_> {
    /// Converts a verified shard, unless it is converted already; false where the pull was stopped.
    pub(crate) fn convert(&self, file: &PlannedFile) -> Result<bool> {
        let (name, digest) = (file.name.as_str(), file.digest.hex());
        let source = self.dir.join(name);
        if self.journal.converted(name, digest).is_none() {
            let Some(output) = output_name(name) else { return Ok(true) };
            let expected = self.expected(name)?;
            let progress = |bytes| {
                add(&self.progress.converted, bytes);
                !self.progress.is_stopped()
            };
            self.journal.begin_output(&output)?;
            let Some(tensors) = convert_shard(&source, &self.dir.join(&output), &progress)? else {
                return Ok(false);
            };
            if let Some(expected) = expected {
                let mut sorted: Vec<String> = tensors.iter().map(|t| t.name.clone()).collect();
                sorted.sort();
                if sorted != expected {
                    atomic::remove(&self.dir.join(&output))?;
                    let strange = sorted.iter().find(|n| !expected.contains(n));
                    let missing = expected.iter().find(|n| !sorted.contains(n));
                    let reason = match (strange, missing) {
                        (Some(tensor), _) => format!("holds {tensor}, which the index does not place there"),
                        (_, tensor) => format!(
                            "does not hold {}, which the index places there",
                            tensor.map_or("?", |t| t)
                        ),
                    };
                    return Err(HubError::Shard { file: name.into(), reason });
                }
            }
            let count = tensors.len();
            self.journal.add_converted(name, digest, &output, tensors)?;
            self.progress.tell(Event::Converted { file: name.into(), output, tensors: count });
        }
        // a file that was changed since is the user's
        if self.delete_source && self.journal.is_verified(name, digest) {
            atomic::remove(&source)?;
            atomic::sync(self.dir)?;
            self.progress.tell(Event::Removed { file: name.into() });
        }
        Ok(true)
    }

    /// The tensors that the index places in a shard, sorted; `None` where there is no index.
    fn expected(&self, shard: &str) -> Result<Option<Vec<String>>> {
        let Some(map) = self.source_index()? else { return Ok(None) };
        Ok(Some(map.into_iter().filter(|(_, file)| file == shard).map(|(tensor, _)| tensor).collect()))
    }

    fn source_index(&self) -> Result<Option<BTreeMap<String, String>>> {
        let path = self.dir.join(SOURCE_INDEX);
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(parse_index(&path, &read.map_err(io("read", &path))?)?)),
        }
    }

    /// Writes the index of the converted files, if all shards are converted, and checks the whole.
    pub(crate) fn finish(&self, files: &[PlannedFile]) -> Result<()> {
        let shards: Vec<&PlannedFile> = files.iter().filter(|f| f.convert).collect();
        if shards.is_empty() {
            return Ok(());
        }
        let mut map = BTreeMap::new();
        let mut outputs: Vec<PathBuf> = Vec::new();
        let mut checksums = Checksums::default();
        for shard in &shards {
            let Some(converted) = self.journal.converted(&shard.name, shard.digest.hex()) else {
                return Ok(());
            };
            let path = self.dir.join(&converted.output);
            checksums.weights.insert(converted.output.clone(), WeightFileDigest::of_file(&path)?);
            outputs.push(path);
            for tensor in converted.tensors {
                map.insert(tensor.name.clone(), converted.output.clone());
                checksums.tensors.insert(tensor.name.clone(), tensor.blake3);
                checksums.sources.insert(tensor.name, tensor.source);
            }
        }
        if let Some(index) = self.source_index()? {
            // a selection of shards is no checkpoint yet
            if index.keys().any(|tensor| !map.contains_key(tensor)) {
                return Ok(());
            }
            let total = outputs.iter().map(|path| data_bytes(path)).sum::<Result<u64>>()?;
            self.journal.begin_output(OUTPUT_INDEX)?;
            atomic::replace(&self.dir.join(OUTPUT_INDEX), index_text(&map, total).as_bytes())?;
        }
        if self.dir.join("config.json").exists() {
            Checkpoint::open(self.dir)?.check()?;
        }
        // what the output needs once its sources are gone
        let beside = files.iter().filter(|f| !f.convert && f.name != SOURCE_INDEX).map(|f| f.name.as_str());
        let index = Some(OUTPUT_INDEX).filter(|name| self.dir.join(name).exists());
        for name in beside.chain(index) {
            checksums.files.insert(name.into(), FileDigest::of_file(&self.dir.join(name), &|_| ())?);
        }
        self.journal.begin_output(CHECKSUMS_FILE)?;
        atomic::replace(&self.dir.join(CHECKSUMS_FILE), checksums.to_json().as_bytes())?;
        let index = files.iter().find(|f| f.name == SOURCE_INDEX);
        if let Some(index) = index.filter(|_| self.delete_source && self.dir.join(OUTPUT_INDEX).exists()) {
            self.journal.add_converted(&index.name, index.digest.hex(), OUTPUT_INDEX, Vec::new())?;
            atomic::remove(&self.dir.join(SOURCE_INDEX))?;
            atomic::sync(self.dir)?;
        }
        Ok(())
    }
}

/// Bytes of a safetensors file after its header.
fn data_bytes(path: &Path) -> Result<u64> {
    use std::io::Read;
    let mut length = [0; 8];
    let mut file = std::fs::File::open(path).map_err(io("open", path))?;
    file.read_exact(&mut length).map_err(io("read", path))?;
    let size = file.metadata().map_err(io("look at", path))?.len();
    Ok(size.saturating_sub(8).saturating_sub(u64::from_le_bytes(length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::is_shard;

    #[test]
    fn shards_keep_their_numbers() {
        assert_eq!(
            output_name("pytorch_model-00003-of-00009.bin").as_deref(),
            Some("model-00003-of-00009.safetensors")
        );
        assert_eq!(output_name("pytorch_model.bin").as_deref(), Some("model.safetensors"));
        assert!(
            is_shard("pytorch_model.bin") && !is_shard("pytorch_model.bin.index.json") && !is_shard("x.bin")
        );
    }
}
