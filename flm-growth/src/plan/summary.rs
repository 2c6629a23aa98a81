//! What a plan comes to: parameters, bytes, and how well the function is kept.

use flm_checkpoint::EMBED_TOKENS;
use serde::Serialize;

use crate::plan::GrowthPlan;
use crate::tensor_plan::{Block, Fill, TensorPlan};

/// What a plan comes to, in bytes of the output and parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlanSummary {
    /// Parameters of the source.
    pub source_parameters: u64,
    /// Parameters of the target.
    pub target_parameters: u64,
    /// Tensors of the target.
    pub tensors: u64,
    /// Layers added.
    pub new_layers: u64,
    /// Bytes of all tensors of the target.
    pub output_bytes: u64,
    /// Bytes read from the source.
    pub read_bytes: u64,
    /// Output bytes that are the source's, unchanged.
    pub copied_bytes: u64,
    /// Output bytes that are the source's, multiplied or stored in another dtype.
    pub scaled_bytes: u64,
    /// Output bytes that repeat the source's: tiles and means of vocabulary rows.
    pub repeated_bytes: u64,
    /// Output bytes that are zero.
    pub zero_bytes: u64,
    /// Output bytes that are drawn at random.
    pub drawn_bytes: u64,
    /// Output bytes that hold a constant other than zero.
    pub constant_bytes: u64,
}

/// How well a plan preserves the function.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preservation {
    /// Every stored weight is what exact arithmetic asks for.
    Exact,
    /// Some weights were multiplied and rounded on storing.
    Rounded {
        /// Number of tensors that were.
        tensors: usize,
        /// The largest relative error of a weight.
        relative: f64,
    },
    /// The grown model is another function.
    No,
}

impl GrowthPlan {
    /// What the plan comes to, in bytes and parameters.
    pub fn summary(&self) -> PlanSummary {
        let parameters = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
        let mut s = PlanSummary {
            source_parameters: self.source_parameters(),
            target_parameters: self.tensors.iter().map(|t| parameters(&t.shape)).sum(),
            tensors: self.tensors.len() as u64,
            new_layers: self.layers.iter().filter(|l| l.new).count() as u64,
            output_bytes: self.tensors.iter().map(TensorPlan::nbytes).sum(),
            read_bytes: 0,
            copied_bytes: 0,
            scaled_bytes: 0,
            repeated_bytes: 0,
            zero_bytes: 0,
            drawn_bytes: 0,
            constant_bytes: 0,
        };
        for tensor in &self.tensors {
            for (block, elements) in tensor.blocks() {
                let bytes = elements * tensor.dtype.size_in_bytes() as u64;
                let sum = match tensor.fill(block) {
                    None if block == Block::Copied => {
                        let size = tensor.source.as_ref().map_or(0, |s| s.dtype.size_in_bytes());
                        s.read_bytes += elements * size as u64;
                        if tensor.is_verbatim() { &mut s.copied_bytes } else { &mut s.scaled_bytes }
                    }
                    None | Some(Fill::Zero) => &mut s.zero_bytes,
                    Some(Fill::Constant(_)) => &mut s.constant_bytes,
                    Some(Fill::Normal(_)) => &mut s.drawn_bytes,
                    Some(Fill::Mean { std: Some(_), .. }) => &mut s.drawn_bytes,
                    Some(Fill::Mean { .. } | Fill::Tile) => &mut s.repeated_bytes,
                };
                *sum += bytes;
            }
        }
        s
    }

    fn source_parameters(&self) -> u64 {
        // a source tensor counts once, however many layers are copies of it
        let mut seen = std::collections::BTreeSet::new();
        let sources = self.tensors.iter().filter_map(|t| t.source.as_ref());
        sources
            .filter(|s| seen.insert(s.name.as_str()))
            .map(|s| s.shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// What new vocabulary rows are, in words; `None` where there are none.
    pub fn new_rows(&self) -> Option<String> {
        let count = self.target.vocab_size.checked_sub(self.source.vocab_size).filter(|&n| n > 0)?;
        let what = match self.tensor(EMBED_TOKENS).and_then(|t| t.new_rows) {
            Some(Fill::Mean { rows, std: None }) => format!("the mean of {rows}"),
            Some(Fill::Mean { rows, std: Some(_) }) => format!("the mean of {rows} and noise"),
            _ => "0, a logit that exceeds the others where they are negative".into(),
        };
        Some(format!("{count} new ones are {what}"))
    }

    /// How well the plan preserves the function.
    pub fn preservation(&self) -> Preservation {
        if !self.operator.preserves() {
            return Preservation::No;
        }
        let rounded: Vec<f64> = self.tensors.iter().filter_map(TensorPlan::rounding).collect();
        match rounded.iter().copied().reduce(f64::max) {
            None => Preservation::Exact,
            Some(relative) => Preservation::Rounded { tensors: rounded.len(), relative },
        }
    }
}
