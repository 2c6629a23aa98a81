//! Where each tensor of a new checkpoint will lie: shards, headers and offsets, from shapes alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dtype::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use crate::error::CheckpointError;
use crate::error::Result;
use crate::format::safetensors::MAX_HEADER;
use crate::ranges::Pieces;
use crate::tensor_id::{Names, TensorSpec};

/// The shards of a checkpoint.
#[derive(Debug)]
pub struct Layout {
    /// The files, in order.
    pub shards: Vec<Shard>,
    /// Bytes of all tensors.
    pub total_size: u64,
}

/// One file.
#[derive(Debug)]
pub struct Shard {
    pub file_name: String,
    /// Length, header, padding: the first bytes of the file.
    pub header: Vec<u8>,
    /// Names of the tensors that lie in it, in the order of the file.
    pub names: Vec<String>,
    /// In the order of the file.
    pub tensors: Vec<Placed>,
    /// Length in bytes.
    pub size: u64,
}

/// A tensor's place in its shard.
#[derive(Debug)]
pub struct Placed {
    pub spec: TensorSpec,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    pub nbytes: u64,
    /// How the bytes lie.
    pub pieces: Pieces,
}

/// What lies in a file as one tensor: one of the specs, or several whose rows follow each other.
struct Stored<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    parts: Vec<(&'a TensorSpec, u64)>,
    /// How often the order of the parts' rows repeats.
    groups: u64,
}

impl Stored<'_> {
    fn nbytes(&self) -> u64 {
        self.parts.iter().map(|(_, nbytes)| nbytes).sum()
    }
}

impl Layout {
    /// Lays out `specs` in their order, a new shard where `max_shard_size` bytes would be exceeded.
    ///
    /// Inside a shard the order is that of safetensors' own writer: dtypes descending, then names.
    pub fn new(specs: &[TensorSpec], max_shard_size: u64) -> Result<Self> {
        Self::named(specs, &Names::LLAMA, 1, max_shard_size)
    }

    /// The same under a family's names, where tensors may be several parts, in each of so many groups.
    pub(crate) fn named(
        specs: &[TensorSpec],
        family: &Names,
        groups: usize,
        max_shard_size: u64,
    ) -> Result<Self> {
        let mut names = HashSet::new();
        if let Some(spec) = specs.iter().find(|s| !names.insert(s.name.as_str())) {
            return Err(CheckpointError::DuplicateSpec(spec.name.clone()));
        }
        let mut stored: Vec<Stored<'_>> = Vec::new();
        let mut total_size = 0u64;
        for spec in specs {
            let nbytes = spec
                .dtype
                .byte_count(&spec.shape)
                .ok_or("it is larger than a file can be")
                .and_then(|n| {
                    total_size = total_size
                        .checked_add(n)
                        .filter(|&t| t <= i64::MAX as u64)
                        .ok_or("all tensors together are larger than a file can be")?;
                    Ok(n)
                })
                .and_then(|n| {
                    let clash = spec.name == "__metadata__";
                    if clash { Err("the name is that of the header's metadata") } else { Ok(n) }
                })
                .map_err(|reason| bad_spec(spec, reason))?;
            let (name, grouped) = family.own(&spec.name);
            let groups = if grouped { groups as u64 } else { 1 };
            match stored.last_mut().filter(|before| before.name == name) {
                Some(before)
                    if before.dtype != spec.dtype
                        || spec.shape.len() < 2
                        || before.shape.get(1..) != spec.shape.get(1..) =>
                {
                    return Err(bad_spec(spec, "it is stored with another of another dtype or width"));
                }
                Some(before) => {
                    before.shape[0] += spec.shape[0];
                    before.parts.push((spec, nbytes));
                }
                None => stored.push(Stored {
                    name,
                    shape: spec.shape.clone(),
                    dtype: spec.dtype,
                    parts: vec![(spec, nbytes)],
                    groups,
                }),
            }
        }
        let (mut groups, mut filled): (Vec<Vec<Stored<'_>>>, _) = (vec![Vec::new()], 0u64);
        for stored in stored {
            let full = filled.checked_add(stored.nbytes()).is_none_or(|n| n > max_shard_size);
            if full && groups.last().is_some_and(|g| !g.is_empty()) {
                groups.push(Vec::new());
                filled = 0;
            }
            filled = filled.saturating_add(stored.nbytes());
            if let Some(group) = groups.last_mut() {
                group.push(stored);
            }
        }
        let count = groups.len();
        let shards = groups.into_iter().enumerate().map(|(i, group)| Shard::new(file_name(i, count), group));
        Ok(Self { shards: shards.collect::<Result<_>>()?, total_size })
    }

    /// The text of `model.safetensors.index.json`; `None` where there is one file.
    pub fn index(&self) -> Option<String> {
        if self.shards.len() == 1 {
            return None;
        }
        let place = |shard: &Shard| {
            let names = shard.names.clone();
            let file_name = shard.file_name.clone();
            names.into_iter().map(move |name| (name, file_name.clone()))
        };
        let map: BTreeMap<String, String> = self.shards.iter().flat_map(place).collect();
        let index = json!({ "metadata": { "total_size": self.total_size }, "weight_map": map });
        let mut text = serde_json::to_string_pretty(&index).unwrap_or_default();
        text.push('\n');
        Some(text)
    }
}

fn bad_spec(spec: &TensorSpec, reason: &'static str) -> CheckpointError {
    let (tensor, dtype, shape) = (spec.name.clone(), spec.dtype, spec.shape.clone());
    CheckpointError::BadSpec { tensor, dtype, shape, reason }
}

fn file_name(index: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

impl Shard {
    fn new(file_name: String, mut group: Vec<Stored<'_>>) -> Result<Self> {
        group.sort_by(|a, b| {
            b.dtype.to_safetensors().cmp(&a.dtype.to_safetensors()).then(a.name.cmp(&b.name))
        });
        let mut end = 0;
        let mut infos = Vec::with_capacity(group.len());
        let mut tensors = Vec::with_capacity(group.len());
        let names = group.iter().map(|stored| stored.name.clone()).collect();
        for stored in group {
            let dtype = stored.dtype.to_safetensors();
            let (groups, bytes) = (stored.groups, stored.nbytes());
            let data_offsets = (end as usize, (end + bytes) as usize);
            infos.push((stored.name, TensorInfo { dtype, shape: stored.shape, data_offsets }));
            let mut offset = end;
            for (spec, nbytes) in stored.parts {
                let pieces = Pieces::of_groups(groups, nbytes, bytes);
                tensors.push(Placed { spec: spec.clone(), offset, nbytes, pieces });
                offset += nbytes / groups;
            }
            end += bytes;
        }
        let header = header(&file_name, infos)?;
        for tensor in &mut tensors {
            tensor.offset += header.len() as u64;
        }
        let size = header.len() as u64 + end;
        Ok(Self { file_name, header, names, tensors, size })
    }
}

/// Length, JSON and padding, the same bytes as `safetensors::serialize` makes.
fn header(file_name: &str, infos: Vec<(String, TensorInfo)>) -> Result<Vec<u8>> {
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let refused = |e: String| CheckpointError::Header {
        path: file_name.into(),
        source: crate::format::safetensors::HeaderError::Read(std::io::Error::other(e)),
    };
    let metadata = Metadata::new(Some(format), infos).map_err(|e| refused(e.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| refused(e.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let size = json.len() as u64;
    if size > MAX_HEADER {
        let file = file_name.into();
        return Err(CheckpointError::HeaderTooLarge { file, size, limit: MAX_HEADER });
    }
    let mut header = size.to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// The text of `model.safetensors.index.json` for tensors of these files and this many bytes in all.
pub fn index_text(weight_map: &BTreeMap<String, String>, total_size: u64) -> String {
    let index = serde_json::json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    format!("{index:#}\n")
}
