//! What a conversion will write: every tensor's source, dtype and factor, and the new config.

use flm_checkpoint::CheckpointError;
use flm_checkpoint::Result;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{Dtype, LM_HEAD, TensorId};

use crate::convert::{ConvertOptions, TargetLayout, stored_dtype_if_undeclared};
use crate::mup::Folding;

/// A tensor of the output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned<'a> {
    pub entry: &'a TensorEntry,
    pub to: Dtype,
    /// What the elements are multiplied by; 1 nearly always.
    pub factor: f64,
}

impl Planned<'_> {
    /// Whether the bytes are moved as they are.
    pub(super) fn is_verbatim(&self) -> bool {
        self.to == self.entry.dtype && self.factor == 1.0
    }

    pub(super) fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.entry.name.clone(), dtype: self.to, shape: self.entry.shape.clone() }
    }

    /// Bytes of the output.
    pub(super) fn nbytes(&self) -> u64 {
        self.entry.nbytes / self.entry.dtype.size_in_bytes() as u64 * self.to.size_in_bytes() as u64
    }
}

/// The output of a conversion.
pub(super) struct Plan<'a> {
    /// In the order of the forward pass, so that a shard holds neighbours.
    pub tensors: Vec<Planned<'a>>,
    pub config: TeleFlmConfig,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// The source's tensors are not those of its config; its multipliers do not fit the layout.
    pub(super) fn new(src: &'a Checkpoint, options: &ConvertOptions) -> Result<Self> {
        if let Some(problem) = src.shape_problems().into_iter().next() {
            return Err(problem);
        }
        let mut config = target_config(src, options.layout)?;
        let folding = folding(src, &config, options.dtype)?;
        // a head that is stored though it is tied goes along
        let tied_head = config.tie_word_embeddings.then_some(TensorId::Head);
        let ids = config.tensors().map(|t| t.id).chain(tied_head);
        let tensors: Vec<Planned<'a>> = ids
            .filter_map(|id| Some((id, src.find(&id.name())?)))
            .map(|(id, entry)| {
                let factor = folding.of(id);
                let held = if entry.dtype.holds_scaled(factor) { entry.dtype } else { Dtype::F32 };
                Planned { entry, to: options.dtype.unwrap_or(held), factor }
            })
            .collect();
        let written = options.dtype.or_else(|| stored_dtype_if_undeclared(src));
        if let Some(written) = written.filter(|&d| config.declared_dtype() != Some(d)) {
            config.set_dtype(written);
        }
        Ok(Self { tensors, config })
    }
}

fn target_config(src: &Checkpoint, layout: Option<TargetLayout>) -> Result<TeleFlmConfig> {
    let Some(layout) = layout else { return Ok(src.config().clone()) };
    if src.config().growth.is_some() {
        return Err(CheckpointError::Masked { dir: src.dir().into() });
    }
    let config = src.config();
    if !config.is_plain_llama() {
        let layout = match layout {
            TargetLayout::Llama => "llama",
            TargetLayout::TeleFlm { .. } => "tele-flm",
        };
        return Err(CheckpointError::NoLayout { family: config.model_type.as_str(), layout });
    }
    let config = match layout {
        TargetLayout::Llama => config.to_llama(),
        TargetLayout::TeleFlm { input_mult, output_mult, mup_scale_factor } => {
            config.to_tele_flm([input_mult, output_mult, mup_scale_factor])
        }
    };
    config.validate()?;
    Ok(config)
}

/// What the source's weights are multiplied by for the target's multipliers.
fn folding(src: &Checkpoint, target: &TeleFlmConfig, to: Option<Dtype>) -> Result<Folding> {
    let source = src.config();
    let ratio = |what, from: f64, to: f64| {
        let ratio = from / to;
        // 0 and NaN could not be undone
        if ratio.is_normal() { Ok(ratio) } else { Err(CheckpointError::Multiplier { what, from, to }) }
    };
    let tied = target.tie_word_embeddings;
    if (source.input_scale(), source.logit_scale()) == (target.input_scale(), target.logit_scale()) {
        return Ok(Folding::new(1.0, 1.0, tied, None));
    }
    let embedding = ratio("input_mult", source.input_scale(), target.input_scale())?;
    let logits = ratio("output_mult / mup_scale_factor", source.logit_scale(), target.logit_scale())?;
    let stored = src.find(LM_HEAD).map_or(Dtype::F32, |head| to.unwrap_or(head.dtype));
    Ok(Folding::new(embedding, logits, tied, Some(stored)))
}
