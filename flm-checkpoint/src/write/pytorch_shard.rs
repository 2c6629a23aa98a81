//! One PyTorch shard to one safetensors file, for conversions that cannot wait for the whole checkpoint.

use crate::format::Source;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checksums::{TensorSource, digest_of, file_name};
use crate::error::{Result, io};
use crate::format::pytorch::PyTorchError;
use crate::read::file::OpenFile;
use crate::write::shard_plan::Layout;

use crate::atomic;
use crate::error::CheckpointError;
use crate::format::zip::ZipEntry;
use crate::format::{RawTensor, pytorch};
use crate::tensor_id::TensorSpec;

/// Bytes moved at a time.
const CHUNK: u64 = 2 << 20;

/// A tensor that [`convert_shard`] wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardTensor {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
    /// Where it came from.
    pub source: TensorSource,
}

/// Writes the tensors of the PyTorch file `src` to the new safetensors file `dst`, in bounded memory.
///
/// Bytes are moved as they are; the CRC-32 of every storage is checked. The file is fsynced, then read
/// again and its tensors' digests compared with those of the source; only then does it get
/// its name, from `dst` with `.part` appended. `progress` is told the bytes done and may stop the work by
/// returning false: then the result is `None` and `dst` does not exist.
///
/// # Errors
/// Anything malformed in the source; a tensor that was not read back as it was written.
pub fn convert_shard(
    src: &Path,
    dst: &Path,
    progress: &dyn Fn(u64) -> bool,
) -> Result<Option<Vec<ShardTensor>>> {
    let source = OpenFile::open(src)?;
    let read = pytorch::read(&source).map_err(|error| match error {
        PyTorchError::Zip(source) => CheckpointError::Zip { path: src.into(), source },
        PyTorchError::Pickle(source) => CheckpointError::Pickle { path: src.into(), source },
    })?;
    let specs: Vec<TensorSpec> = read.tensors.iter().map(spec).collect();
    let shards = Layout::new(&specs, u64::MAX)?.shards;
    let Some(layout) = shards.into_iter().next() else { return Ok(Some(Vec::new())) };
    let mut part = dst.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let out = File::options().read(true).write(true).create(true).truncate(true).open(&part);
    let out = out.map_err(io("create", &part))?;
    out.set_len(layout.size).map_err(io("set the length of", &part))?;
    out.write_all_at(&layout.header, 0).map_err(io("write", &part))?;

    let offsets: BTreeMap<&str, u64> =
        layout.tensors.iter().map(|t| (t.spec.name.as_str(), t.offset)).collect();
    let place = |t: &RawTensor| offsets.get(t.name.as_str()).copied().unwrap_or_default();
    let mut written = BTreeMap::new();
    for storage in &read.storages {
        let inside = |t: &&RawTensor| {
            (storage.offset..=storage.offset + storage.size).contains(&t.offset)
                && t.offset + t.nbytes <= storage.offset + storage.size
                && !written.contains_key(&t.name)
        };
        let mut tensors: Vec<Moving<'_>> =
            read.tensors.iter().filter(inside).map(|t| Moving::new(t, place(t))).collect();
        if !move_storage(src, &source, storage, &out, &part, &mut tensors, progress)? {
            let _ = std::fs::remove_file(&part);
            return Ok(None);
        }
        for Moving { tensor, hash, .. } in tensors {
            let blake3 = hash.finalize().to_hex().to_string();
            let source = TensorSource::of_raw(file_name(src), Some(storage.name.clone()), tensor);
            written.insert(tensor.name.clone(), ShardTensor { name: tensor.name.clone(), blake3, source });
        }
    }
    out.sync_all().map_err(io("sync", &part))?;
    let mut tensors = Vec::with_capacity(layout.tensors.len());
    for tensor in &layout.tensors {
        let read = |offset, part: &mut [u8]| {
            out.read_exact_at(part, tensor.offset + offset).map_err(io("read", dst))
        };
        let blake3 = digest_of(tensor.nbytes, &|_| (), read)?;
        match written.remove(&tensor.spec.name).filter(|written| written.blake3 == blake3) {
            Some(written) => tensors.push(written),
            None => {
                let tensor = tensor.spec.name.clone();
                return Err(CheckpointError::NotAsWritten { tensor, path: part });
            }
        }
    }
    atomic::rename(&part, dst)?;
    Ok(Some(tensors))
}

fn spec(tensor: &RawTensor) -> TensorSpec {
    TensorSpec { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() }
}

/// A tensor on its way, and the hash of what has passed.
struct Moving<'a> {
    tensor: &'a RawTensor,
    /// Where it lies in the new file.
    to: u64,
    hash: blake3::Hasher,
}

impl<'a> Moving<'a> {
    fn new(tensor: &'a RawTensor, to: u64) -> Self {
        Self { tensor, to, hash: blake3::Hasher::new() }
    }
}

/// Reads a storage once from its start and writes what of it is tensors; false where it was stopped.
fn move_storage(
    path: &Path,
    source: &OpenFile,
    storage: &ZipEntry,
    out: &File,
    out_path: &Path,
    tensors: &mut [Moving<'_>],
    progress: &dyn Fn(u64) -> bool,
) -> Result<bool> {
    let name = tensors.first().map_or_else(|| "none".to_owned(), |t| t.tensor.name.clone());
    let mut crc = crc32fast::Hasher::new();
    let mut buf = vec![0; CHUNK.min(storage.size) as usize];
    let mut done = 0;
    while done < storage.size {
        let n = CHUNK.min(storage.size - done) as usize;
        let at = storage.offset + done;
        let read = source.read_exact_at(&mut buf[..n], at);
        read.map_err(|source| CheckpointError::Read { tensor: name.clone(), path: path.into(), source })?;
        crc.update(&buf[..n]);
        for moving in tensors.iter_mut() {
            let start = moving.tensor.offset.max(at);
            let end = (moving.tensor.offset + moving.tensor.nbytes).min(at + n as u64);
            if start < end {
                let bytes = &buf[(start - at) as usize..(end - at) as usize];
                moving.hash.update(bytes);
                let to = moving.to + (start - moving.tensor.offset);
                out.write_all_at(bytes, to).map_err(io("write", out_path))?;
            }
        }
        done += n as u64;
        if !progress(n as u64) {
            return Ok(false);
        }
    }
    let got = crc.finalize();
    if got == storage.crc32 || storage.crc32 == 0 {
        return Ok(true);
    }
    let (path, entry) = (path.into(), storage.name.clone());
    Err(CheckpointError::Checksum { path, entry, tensor: name, expected: storage.crc32, got })
}
