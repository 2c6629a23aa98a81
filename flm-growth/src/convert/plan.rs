//! What a conversion will write: every tensor's source, dtype and factor, and the new config.

use flm_checkpoint::{Dtype, is_power_of_two};

use flm_checkpoint::CheckpointError;
use flm_checkpoint::Result;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{EMBED_TOKENS, FINAL_NORM, LM_HEAD};

use crate::convert::{ConvertOptions, TargetLayout, stored_dtype_if_undeclared};

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
        let factors = Factors::new(src, &config, options.dtype)?;
        let tied_head = config.tie_word_embeddings.then(|| LM_HEAD.to_string());
        let names = config.tensors().map(|t| t.name).chain(tied_head);
        let tensors: Vec<Planned<'a>> = names
            .filter_map(|name| src.find(&name))
            .map(|entry| {
                let factor = factors.of(&entry.name);
                let held = if holds(entry.dtype, factor) { entry.dtype } else { Dtype::F32 };
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

/// What the weights take over from multipliers that go, and give up to multipliers that come.
///
/// logits = head · (gain ⊙ x̂) · logit_scale is linear in head and gain, and so is the residual stream's
/// first value in the embedding: a factor can move between a multiplier and a tensor.
struct Factors {
    embedding: f64,
    final_norm: f64,
    head: f64,
}

impl Factors {
    fn new(src: &Checkpoint, target: &TeleFlmConfig, to: Option<Dtype>) -> Result<Self> {
        let source = src.config();
        let ratio = |what, from: f64, to: f64| {
            let ratio = from / to;
            // 0 and NaN could not be undone
            if ratio.is_normal() { Ok(ratio) } else { Err(CheckpointError::Multiplier { what, from, to }) }
        };
        let same =
            (source.input_scale(), source.logit_scale()) == (target.input_scale(), target.logit_scale());
        if same {
            return Ok(Self { embedding: 1.0, final_norm: 1.0, head: 1.0 });
        }
        let embedding = ratio("input_mult", source.input_scale(), target.input_scale())?;
        let logits = ratio("output_mult / mup_scale_factor", source.logit_scale(), target.logit_scale())?;
        if target.tie_word_embeddings {
            // The head has the embedding's factor already.
            return Ok(Self { embedding, final_norm: logits / embedding, head: embedding });
        }
        let stored = src.find(LM_HEAD).map_or(Dtype::F32, |head| to.unwrap_or(head.dtype));
        // A head in f32 would be twice as large; the gain is a vector.
        let (final_norm, head) = if holds(stored, logits) { (1.0, logits) } else { (logits, 1.0) };
        Ok(Self { embedding, final_norm, head })
    }

    fn of(&self, tensor: &str) -> f64 {
        match tensor {
            EMBED_TOKENS => self.embedding,
            FINAL_NORM => self.final_norm,
            LM_HEAD => self.head,
            _ => 1.0,
        }
    }
}

/// Whether products with `factor` keep what the dtype stores: exactly for powers of two, to 2⁻²⁴ in f32.
///
/// f16 has so few exponents that weights are among its subnormals already.
fn holds(dtype: Dtype, factor: f64) -> bool {
    match dtype {
        Dtype::BF16 => is_power_of_two(factor),
        Dtype::F16 => factor == 1.0,
        _ => true,
    }
}
