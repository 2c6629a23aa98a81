//! provenance.json: the source's digests, the growth, the growths before it.

use std::collections::BTreeMap;
use std::path::Path;

use flm_checkpoint::Checkpoint;
use flm_checkpoint::GrowthMasks;
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};
use crate::execute::ExecuteOptions;
use crate::operator::Operator;
use crate::placement::{LayerSource, Placement};
use crate::plan::{ConfigChange, GrowthPlan};
use crate::shape::Shape;
use flm_checkpoint::{FileDigest, atomic};

/// Name of the file in a checkpoint that tells where it came from.
pub(crate) const PROVENANCE_FILE: &str = "provenance.json";

/// Where a grown checkpoint came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the format.
    #[serde(default = "first")]
    pub version: u32,
    /// What made it: name and version of the program.
    pub tool: String,
    /// The command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What it was grown from: the directory's name.
    pub source: String,
    /// Digests of the source's files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_files: BTreeMap<String, FileDigest>,
    /// The growth; of a folded checkpoint, that of what was folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<GrowthProvenance>,
    /// The growths before it, the oldest first, as far as the source's provenance goes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<GrowthProvenance>,
    /// The masks that were folded into the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<GrowthMasks>,
}

/// What wrote no version wrote the first.
fn first() -> u32 {
    1
}

/// A growth, in so far as verification and reproduction need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GrowthProvenance {
    /// The rules for new weights.
    pub operator: Operator,
    /// Where new layers were placed.
    pub placement: Placement,
    /// Seed of the new weights.
    pub seed: u64,
    /// BLAKE3 of the plan.
    pub plan_blake3: String,
    /// The source's shape.
    pub from: Shape,
    /// The target's shape.
    pub to: Shape,
    /// What of config.json changed besides the shape.
    pub config: ConfigChange,
    /// The source of every target layer.
    pub layers: Vec<LayerSource>,
}

/// What made it.
pub(crate) const TOOL: &str = concat!("flm-growth ", env!("CARGO_PKG_VERSION"));

impl GrowthProvenance {
    pub fn new(plan: &GrowthPlan) -> Result<Self> {
        Ok(Self {
            operator: plan.operator,
            placement: plan.placement.clone(),
            seed: plan.seed,
            plan_blake3: plan.digest()?,
            from: plan.source,
            to: plan.target,
            config: plan.config,
            layers: plan.layers.clone(),
        })
    }
}

impl Provenance {
    /// Of something made from `source`, whatever it was.
    pub fn new(source: &Checkpoint, options: &ExecuteOptions) -> Self {
        // only the last part: where it lay on this machine is nobody's business
        let dir = source.dir().canonicalize();
        let name = dir.as_deref().unwrap_or(source.dir()).file_name();
        Self {
            version: first(),
            tool: TOOL.into(),
            command: options.command.clone(),
            source: name.map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            source_files: BTreeMap::new(),
            growth: None,
            earlier: Vec::new(),
            fold: None,
        }
    }

    /// Every growth, the oldest first.
    pub fn growths(&self) -> impl DoubleEndedIterator<Item = &GrowthProvenance> {
        self.earlier.iter().chain(&self.growth)
    }

    /// For each layer of a model of shape `from` the layer of this one that it became.
    pub fn layer_map(&self, from: &Shape, to: &Shape) -> Option<Vec<usize>> {
        let mut shape = *to;
        let mut map: Vec<usize> = (0..to.num_hidden_layers).collect();
        for growth in self.growths().rev() {
            if growth.to != shape {
                return None;
            }
            // the layers of the source that the ones in `map` are of
            let originals = (0..).zip(&growth.layers).filter(|(_, l)| !l.new).map(|(i, _)| i);
            map = originals.map(|i: usize| map.get(i).copied()).collect::<Option<_>>()?;
            shape = growth.from;
            if shape == *from {
                return Some(map);
            }
        }
        None
    }

    /// Writes `provenance.json` into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(PROVENANCE_FILE);
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(atomic::write(&path, text.as_bytes())?)
    }

    /// Reads the provenance of the checkpoint in `dir`; `None` if it has none.
    ///
    /// # Errors
    /// Where there is one that cannot be read or is not what flm writes.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(PROVENANCE_FILE);
        let failed = |source| GrowthError::Read { path: path.display().to_string(), source };
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed(e.into())),
        }
    }

    /// Whether the checkpoint was made from exactly these bytes, as far as its digests of the source tell.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub fn is_of(&self, source: &Checkpoint) -> Result<bool> {
        Ok(!self.source_files.is_empty() && self.source_files == crate::execute::source_files(source)?)
    }
}
