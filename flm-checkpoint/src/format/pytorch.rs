//! A PyTorch file: a stored zip archive of one pickle and one entry per storage.
//!
//! Layout as `torch.save` writes it (torch/serialization.py, caffe2/serialize/inline_container.cc):
//! `NAME/data.pkl`, `NAME/data/KEY`, and small entries `NAME/version`, `NAME/byteorder`,
//! `NAME/.format_version`, `NAME/.storage_alignment`, `NAME/.data/serialization_id`.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;

use crate::format::Source;
use crate::format::pickle;
use crate::format::pickle::MAX_PICKLE;
use crate::format::pickle::error::PickleError;
use crate::format::zip;
use crate::format::zip::{ZipEntry, ZipError};
use crate::format::{Contents, RawTensor, is_skipped};

/// What can be wrong with a PyTorch file.
#[derive(Debug)]
pub(crate) enum PyTorchError {
    Zip(ZipError),
    Pickle(PickleError),
}

impl From<ZipError> for PyTorchError {
    fn from(error: ZipError) -> Self {
        Self::Zip(error)
    }
}

impl From<PickleError> for PyTorchError {
    fn from(error: PickleError) -> Self {
        Self::Pickle(error)
    }
}

/// Reads the archive's directory and the pickle.
pub(crate) fn read(source: &impl Source) -> Result<Contents, PyTorchError> {
    let entries = zip::read(source)?;
    let mut pickles = entries.iter().filter_map(|e| Some((e.name.strip_suffix("data.pkl")?, e)));
    let not = |reason| PyTorchError::Pickle(PickleError::Archive(reason));
    let (prefix, pickle) = match (pickles.next(), pickles.next()) {
        (Some((prefix, pickle)), None) if prefix.ends_with('/') => (prefix.to_string(), pickle.clone()),
        (Some(_), Some(_)) => return Err(not("the archive has more than one data.pkl")),
        _ => return Err(not("the archive has no data.pkl")),
    };
    let inside = |name: &str| entries.iter().any(|e| e.name.strip_prefix(&prefix) == Some(name));
    if inside("constants.pkl") {
        return Err(not("it is a TorchScript program; save model.state_dict()"));
    }
    check_byte_order(source, &entries, &prefix)?;
    if pickle.size > MAX_PICKLE {
        return Err(PickleError::TooLong(pickle.size).into());
    }
    let bytes = source.bytes_at(pickle.offset, pickle.size as usize).map_err(ZipError::Read)?;
    // A flipped bit in a storage's key would exchange two tensors of the same shape.
    let got = crc32fast::hash(&bytes);
    // 0: saved without checksums (torch.serialization.set_crc32_options)
    if got != pickle.crc32 && pickle.crc32 != 0 {
        return Err(ZipError::Checksum { entry: pickle.name, expected: pickle.crc32, got }.into());
    }
    let pickled = pickle::read(&bytes)?;

    let data = format!("{prefix}data/");
    let mut storages: Vec<ZipEntry> = entries.into_iter().filter(|e| e.name.starts_with(&data)).collect();
    storages.sort_by_key(|e| (e.offset, e.size));
    let by_name: HashMap<&str, usize> =
        storages.iter().enumerate().map(|(i, e)| (e.name.as_str(), i)).collect();
    let mut used = vec![false; storages.len()];
    let (mut tensors, mut ignored) = (Vec::with_capacity(pickled.len()), Vec::new());
    for tensor in pickled {
        let name = format!("{data}{}", tensor.storage);
        let Some(&index) = by_name.get(name.as_str()) else {
            return Err(PickleError::NoStorage { tensor: tensor.name, storage: name }.into());
        };
        let entry = &storages[index];
        if entry.size != tensor.storage_bytes {
            return Err(PickleError::StorageLength {
                tensor: tensor.name,
                storage: name,
                expected: tensor.storage_bytes,
                got: entry.size,
            }
            .into());
        }
        used[index] = true;
        if is_skipped(&tensor.name) {
            ignored.push(tensor.name);
            continue;
        }
        let dtype = match tensor.element.dtype {
            Some(dtype) => dtype,
            None => {
                let (tensor, storage) = (tensor.name, tensor.element.storage);
                return Err(PickleError::DType { tensor, storage }.into());
            }
        };
        // In range: the tensor lies in the storage, the storage in the file.
        let offset = entry.offset + tensor.offset;
        tensors.push(RawTensor {
            name: tensor.name,
            dtype,
            shape: tensor.shape,
            offset,
            nbytes: tensor.nbytes,
        });
    }
    match used.iter().position(|used| !used) {
        Some(unused) => Err(PickleError::UnusedStorage(storages[unused].name.clone()).into()),
        None => Ok(Contents { tensors, ignored, storages }),
    }
}

/// Files from before PyTorch 2.0 have no such entry; they were written on little-endian machines.
fn check_byte_order(source: &impl Source, entries: &[ZipEntry], prefix: &str) -> Result<(), PyTorchError> {
    let Some(entry) = entries.iter().find(|e| e.name.strip_prefix(prefix) == Some("byteorder")) else {
        return Ok(());
    };
    let text = source.bytes_at(entry.offset, entry.size.min(16) as usize).map_err(ZipError::Read)?;
    match text.as_slice() {
        b"little" => Ok(()),
        other => Err(PickleError::ByteOrder(String::from_utf8_lossy(other).into()).into()),
    }
}
