//! The memory that a step will take, by formula.

use crate::params::{Layout, Unit};
use crate::recipe::Placement;

/// The host memory that a step is expected to need, in bytes, for arithmetic in f32 on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Estimate {
    /// Weights, gradients and optimizer state.
    pub parameters: u64,
    /// What the forward pass keeps, and the block that runs backward.
    pub activations: u64,
    /// Logits, and what the program itself needs.
    pub workspace: u64,
    /// Sum of the above.
    pub total: u64,
    /// Space on disk for files of parameters.
    pub disk: u64,
}

/// The tokens of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepShape {
    /// Rows of a step.
    pub rows: usize,
    /// Rows of a micro-batch.
    pub micro_rows: usize,
    /// Tokens of a row.
    pub context: usize,
}

/// Code, tables, buffers of the allocator.
const PROGRAM: u64 = 48 << 20;

impl Estimate {
    /// What a step of `shape` needs.
    pub fn new(layout: &Layout, placement: Placement, recompute: bool, shape: StepShape) -> Self {
        let config = layout.config();
        let size = |unit: &Unit| unit.len() as u64 * 4;
        let all: u64 = layout.units().iter().map(size).sum();
        let block = layout.units().get(1).map_or(0, size);
        let (embedding, head) =
            (size(&layout.units()[layout.embedding()]), size(&layout.units()[layout.head()]));
        let tied = if config.tie_word_embeddings { embedding } else { 0 };
        let stored = layout.weight_bytes();
        // bf16 weights are widened for the unit in use, and stay so in graphs
        let blocks = all - embedding - head;
        let widened = match (stored < all, recompute) {
            (false, _) => 0,
            (true, true) => block.max(head + tied).max(embedding),
            (true, false) => blocks + head + tied,
        };
        let tokens = (shape.rows * shape.context) as u64;
        let micro = (shape.rows.min(shape.micro_rows) * shape.context) as u64;
        let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (q, kv) = (config.query_width() as u64, config.key_value_width() as u64);
        // products with masks are kept beside what they multiply
        let masked = if config.growth.is_some() { 2 * d + q + f } else { 0 };
        let graph = 4 * (7 * d + 2 * q + 2 * kv + 3 * f + masked);
        let layers = config.num_hidden_layers as u64;
        let kept = if recompute { 4 * d } else { graph } * layers * tokens + 2 * 4 * d * tokens;
        // the graph of the block in work, and its gradients
        let working = micro * (if recompute { graph } else { 0 } + 4 * (3 * f + 3 * d));
        let logits = (64u64 << 20).min(micro * config.vocab_size as u64 * 4);
        let workspace = PROGRAM + logits + micro * 4 * 4 * d;
        let (parameters, activations) = match placement {
            // gradients come as activations go: the most is needed at the one end or at the other
            Placement::Auto | Placement::Resident | Placement::Host => {
                let begin = stored + 2 * all + head + tied + widened;
                let end = stored + 3 * all + block + if recompute { widened } else { 0 };
                if begin + kept + working > end + working { (begin, kept + working) } else { (end, working) }
            }
            Placement::Disk => {
                // weights in use and read ahead, their gradient twice, the one before on its way to disk
                let ends = 2 * (head + tied) + 2 * block;
                // and what the update has on its way through memory
                let update = 5 * 4 * 4 * (1 << 18);
                let most = ends.max(5 * block).max(embedding + block).max(2 * embedding);
                (most.max(update), kept + working)
            }
        };
        let disk = if placement == Placement::Disk { stored + 3 * all } else { 0 };
        Self { parameters, activations, workspace, total: parameters + activations + workspace, disk }
    }
}

/// The fastest placement whose estimate is within the budget, with the choice to recompute.
pub(crate) fn choose(
    layout: &Layout,
    shape: StepShape,
    budget: u64,
    placement: Placement,
    recompute: Option<bool>,
) -> (Placement, bool) {
    let placements = match placement {
        Placement::Auto => vec![Placement::Resident, Placement::Disk],
        given => vec![given],
    };
    for &placement in &placements {
        for again in [false, true] {
            // graphs hold all weights, which files are there to avoid
            let possible =
                recompute.is_none_or(|wanted| wanted == again) && (again || placement != Placement::Disk);
            if possible && Estimate::new(layout, placement, again, shape).total <= budget {
                return (placement, again);
            }
        }
    }
    let last = placements.last().copied().unwrap_or(Placement::Disk);
    (last, recompute.unwrap_or(true) || last == Placement::Disk)
}
