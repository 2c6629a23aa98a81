use std::path::Path;

use flm_candle::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

use super::ExecuteOptions;
use crate::error::{GrowthError, Result};
use crate::operator::Operator;
use crate::placement::{LayerSource, Placement};
use crate::plan::{ConfigChange, GrowthPlan};
use crate::shape::Shape;

/// Name of the file in a checkpoint that tells where it came from.
pub const PROVENANCE_FILE: &str = "provenance.json";

/// Where a grown checkpoint came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// What made it: name and version of the program.
    pub tool: String,
    /// The command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What it was grown from: the directory's name.
    pub source: String,
    /// The growth.
    pub growth: GrowthProvenance,
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

impl Provenance {
    pub(super) fn new(plan: &GrowthPlan, source: &Checkpoint, options: &ExecuteOptions) -> Result<Self> {
        // only the last part: where it lay on this machine is nobody's business
        let name = source
            .dir()
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(source.dir())
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Self {
            tool: concat!("flm-growth ", env!("CARGO_PKG_VERSION")).into(),
            command: options.command.clone(),
            source: name,
            growth: GrowthProvenance {
                operator: plan.operator,
                placement: plan.placement.clone(),
                seed: plan.seed,
                plan_blake3: plan.digest()?,
                from: plan.source,
                to: plan.target,
                config: plan.config,
                layers: plan.layers.clone(),
            },
        })
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(PROVENANCE_FILE);
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&path, text)
            .map_err(|source| GrowthError::Write { path: path.display().to_string(), source })
    }

    /// Reads the provenance of the checkpoint in `dir`; `None` if it has none, or none of a growth.
    pub fn read(dir: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(dir.join(PROVENANCE_FILE)).ok()?;
        serde_json::from_str(&text).ok()
    }
}
