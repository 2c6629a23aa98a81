//! The index of a sharded checkpoint: which file holds which tensor.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::format::{LFS_POINTER, without_bom};

/// What can be wrong with an index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is not JSON of the expected form.
    #[error("not an index: {0}")]
    Json(#[from] serde_json::Error),
    /// Git LFS has not fetched it.
    #[error("it is a Git LFS pointer, not the index itself: get the index from whoever has it whole")]
    LfsPointer,
    /// It has no `weight_map`.
    #[error("not an index: it has no weight_map")]
    NoWeightMap,
    /// It names a tensor twice.
    #[error("weight_map names {0} twice")]
    Duplicate(String),
    /// It names something that is not a file inside the checkpoint's directory.
    #[error("weight_map places {tensor} in {file:?}, which is not a plain file name")]
    BadFileName {
        /// Name that stands twice.
        tensor: String,
        /// What stands for the file.
        file: String,
    },
}

/// Tensor name → file name; every file name is plain: no directory, no `..`, no NUL.
pub(crate) type WeightMap = BTreeMap<String, String>;

/// Reads the text of an index.
pub(crate) fn parse(text: &[u8]) -> Result<WeightMap, IndexError> {
    if text.starts_with(LFS_POINTER) {
        return Err(IndexError::LfsPointer);
    }
    let index: Index = serde_json::from_slice(without_bom(text))?;
    let pairs = index.weight_map.ok_or(IndexError::NoWeightMap)?.0;
    let mut map = WeightMap::new();
    for (tensor, file) in pairs {
        if !is_plain_file_name(&file) {
            return Err(IndexError::BadFileName { tensor, file });
        }
        if map.contains_key(&tensor) {
            return Err(IndexError::Duplicate(tensor));
        }
        map.insert(tensor, file);
    }
    Ok(map)
}

/// Whether joining `name` to a directory names something directly in that directory.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= 255
        && !name.contains(|c: char| c.is_control() || c == '/' || c == '\\')
}

/// The folder of named chat templates, as transformers saves them beside the default one.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";

/// Whether joining `name` to a checkpoint's directory names a file of the checkpoint: one directly in it,
/// or a named chat template.
pub(crate) fn is_own_file_name(name: &str) -> bool {
    let plain = name.strip_prefix(TEMPLATES).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name);
    is_plain_file_name(plain)
}

/// Whether files of this name hold a checkpoint's weights.
pub(crate) fn is_weight_name(name: &str) -> bool {
    ["model", "pytorch_model"].iter().any(|start| name.starts_with(start))
        && [".safetensors", ".bin"].iter().any(|end| name.ends_with(end))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Option<Pairs>,
    // Sizes there are advice: files in the wild disagree with themselves.
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
}

/// A JSON object's pairs as they stand, duplicates included (a map would keep the last).
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}
