//! The rules that new weights follow, one module an operator.

mod clone;
mod msg;
mod stack;
mod zero;

use std::fmt;
use std::str::FromStr;

use flm_checkpoint::GrowthMasks;
use flm_checkpoint::{Axis, Part, TeleFlmConfig, TensorId};
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};
use crate::placement::LayerSource;
use crate::shape::Shape;
use crate::tensor_plan::{Fill, Std};
use flm_checkpoint::Dtype;

/// A way to fill what is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operator {
    /// Noise everywhere, behind masks of 0 that training raises to 1 (Masked Structural Growth,
    /// arXiv 2305.02869); any sizes.
    Msg,
    /// Zeros where new weights write, noise where they read; a plain checkpoint, any sizes.
    Zero,
    /// Features duplicated, consumers divided by the number of duplicates (HyperCloning,
    /// arXiv 2409.12903); widths must be multiples of the source's.
    Clone,
    /// The stack of layers repeated (G_stack, arXiv 2405.15319); depth only. Changes the function.
    Stack,
}

/// What the rows of new tokens are, in the embedding and in the head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NewRows {
    /// The mean of the rows that tokens have: its logit is their logits' mean, which never exceeds the
    /// largest, so the likeliest token stays.
    #[default]
    Mean,
    /// The mean with noise in the embedding, so that new tokens differ; the mean in a head of its own.
    Draw,
    /// Zeros: a logit of 0, which is the largest where all others are below, and an embedding at which
    /// RMSNorm's gradient is 1/√eps a layer.
    Zero,
}

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Embedding,
    /// The norm of what a sub-layer reads.
    Norm,
    /// The norm of what a sub-layer writes.
    OutputNorm,
    /// The norm before the head.
    FinalNorm,
    /// Value, gate, up: reads the normed residual stream.
    Reader,
    /// Query and key: reads it too, and some families normalise what comes out.
    HeadReader,
    /// Output projection: reads heads, writes the residual stream.
    AttentionWriter,
    /// Down projection: reads feed-forward units, writes the residual stream.
    FeedForwardWriter,
    /// Added to values or units.
    ReaderBias,
    /// Added to queries or keys.
    HeadReaderBias,
    /// Added to what is written to the residual stream.
    WriterBias,
    /// The norm of each query or key head, whose width never grows.
    HeadNorm,
    /// The norm of all query or key heads together.
    HeadsNorm,
    Head,
}

impl Role {
    /// Whether it is a norm's gain.
    pub fn is_gain(self) -> bool {
        matches!(self, Self::Norm | Self::OutputNorm | Self::FinalNorm | Self::HeadNorm | Self::HeadsNorm)
    }

    /// The role of a tensor of a model of `config`: what its axes say.
    pub fn of(id: TensorId, config: &TeleFlmConfig) -> Self {
        match id {
            TensorId::Embedding => Self::Embedding,
            TensorId::FinalNorm => Self::FinalNorm,
            TensorId::Head => Self::Head,
            TensorId::Block(_, part) => match (part.axes(), part.is_bias()) {
                _ if matches!(part, Part::QProj | Part::KProj) => Self::HeadReader,
                _ if matches!(part, Part::QBias | Part::KBias) => Self::HeadReaderBias,
                ([Axis::Hidden, Axis::Query], _) => Self::AttentionWriter,
                ([Axis::Hidden, _], _) => Self::FeedForwardWriter,
                ([_, _], _) => Self::Reader,
                ([Axis::Hidden], true) => Self::WriterBias,
                ([_], true) => Self::ReaderBias,
                ([Axis::HeadDim], false) => Self::HeadNorm,
                ([Axis::Query | Axis::KeyValue], false) => Self::HeadsNorm,
                _ if config.is_output_norm(part) => Self::OutputNorm,
                _ => Self::Norm,
            },
        }
    }
}

/// What an operator's rules depend on besides the tensor.
#[derive(Debug, Clone)]
pub struct Context {
    pub from: Shape,
    pub to: Shape,
    /// What a change of `input_mult` asks the embedding to be multiplied by.
    pub embed_scale: f64,
    /// What a change of the logit scale asks the head to be multiplied by, as far as the head takes it.
    pub head_scale: f64,
    /// What the final norm's gain takes of it: all, where the head is tied or would be rounded.
    pub final_norm_scale: f64,
    /// What new vocabulary rows are.
    pub new_rows: NewRows,
    /// The source's vocabulary rows that tokens have.
    pub token_rows: usize,
    pub std: Std,
    /// What cancels between copies.
    pub noise: Option<Std>,
    /// Whether query and key heads are normalised, with the eps of all norms.
    pub normed_heads: bool,
    /// Whether the residual stream is multiplied by the root of the widths' ratio, with weights as they are.
    pub stream_grows: bool,
}

impl Context {
    /// Fill of new vocabulary rows of the embedding (also where it is the head).
    fn embedding_rows(&self) -> Fill {
        let mean = |std| Fill::Mean { rows: self.token_rows, std };
        match self.new_rows {
            NewRows::Mean => mean(None),
            NewRows::Draw => mean(Some(self.std)),
            NewRows::Zero => Fill::Zero,
        }
    }

    /// Fill of new vocabulary rows of the head: never drawn, so that they stay behind the old ones.
    fn head_rows(&self) -> Fill {
        match self.new_rows {
            NewRows::Mean | NewRows::Draw => Fill::Mean { rows: self.token_rows, std: None },
            NewRows::Zero => Fill::Zero,
        }
    }
}

/// What queries and keys are multiplied by, where their norms' eps is multiplied by the square of `root`: then
/// the norm's result is the same. A 16-bit dtype would round every weight, which costs more than the eps: it is
/// left as it is, an error of at most eps / (2 · mean square of a head).
pub(crate) fn normed_head_scale(normed_heads: bool, root: f64, dtype: Dtype) -> f64 {
    let wide = matches!(dtype, Dtype::F32 | Dtype::F64);
    if normed_heads && (wide || dtype.holds_scaled(root)) { root } else { 1.0 }
}

/// What fills the blocks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Whether the source's tensor fills the leading corner; else all is `new_corner`.
    pub copy: bool,
    pub scale: f64,
    pub new_cols: Fill,
    pub new_rows: Fill,
    pub new_corner: Fill,
    pub noise: Option<Std>,
    /// Whether repeated columns are parts of one column, whose sum counts.
    pub splits: bool,
    pub dtype: Dtype,
}

impl Rule {
    /// A copy times `scale`, with everything new filled alike.
    fn copy(dtype: Dtype, scale: f64, fill: Fill) -> Self {
        Self {
            copy: true,
            scale,
            new_cols: fill,
            new_rows: fill,
            new_corner: fill,
            noise: None,
            splits: false,
            dtype,
        }
    }

    /// The rule for values that are stored less `offset`.
    pub(crate) fn with_offset(self, offset: f64) -> Self {
        if offset == 0.0 {
            return self;
        }
        let stored = |fill| match fill {
            Fill::Constant(value) => Fill::Constant(value - offset),
            other => other,
        };
        // a sum with what is scaled is on no dtype's grid
        let wide = self.scale == 1.0 || self.dtype == Dtype::F64;
        let dtype = if wide { self.dtype } else { Dtype::F32 };
        Self {
            new_cols: stored(self.new_cols),
            new_rows: stored(self.new_rows),
            new_corner: stored(self.new_corner),
            dtype,
            ..self
        }
    }

    /// All zeros, nothing copied: a projection that writes nothing.
    fn silent(dtype: Dtype) -> Self {
        Self { copy: false, ..Self::copy(dtype, 1.0, Fill::Zero) }
    }

    /// A norm's gain, times `scale`, with what is new filled by `fill(scale)`.
    ///
    /// Gains are few, and rounding them to 8 bits would be the only error of the growth: those that a
    /// factor moves off the dtype's grid are stored as f32.
    fn gain(dtype: Dtype, scale: f64, fill: impl Fn(f64) -> Fill) -> Self {
        let dtype = if dtype.holds_scaled(scale) { dtype } else { Dtype::F32 };
        Self::copy(dtype, scale, fill(scale))
    }
}

impl Operator {
    /// Every operator.
    pub const ALL: [Self; 4] = [Self::Msg, Self::Zero, Self::Clone, Self::Stack];

    /// Name, as in a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msg => "msg",
            Self::Zero => "zero",
            Self::Clone => "clone",
            Self::Stack => "stack",
        }
    }

    /// Whether the grown model computes the source's function.
    pub fn preserves(self) -> bool {
        match self {
            Self::Msg | Self::Zero | Self::Clone => true,
            Self::Stack => false,
        }
    }

    /// Checks that the operator can make `to` of `from`.
    pub fn check(self, from: &Shape, to: &Shape) -> Result<()> {
        let refused = |problem| GrowthError::Operator { operator: self.name(), problem };
        match self {
            Self::Msg | Self::Zero => Ok(()),
            Self::Clone => crate::operator::clone::check(from, to).map_err(refused),
            Self::Stack => crate::operator::stack::check(from, to).map_err(refused),
        }
    }

    /// The target's `rms_norm_eps`.
    pub fn rms_norm_eps(self, eps: f64, from: &Shape, to: &Shape) -> f64 {
        match self {
            Self::Zero => crate::operator::zero::rms_norm_eps(eps, from, to),
            Self::Msg | Self::Clone | Self::Stack => eps,
        }
    }

    /// What the source's embedding is multiplied by.
    pub fn embed_scale(self, context: &Context) -> f64 {
        context.embed_scale
    }

    /// What the source's head is multiplied by.
    pub fn head_scale(self, context: &Context) -> f64 {
        match self {
            Self::Msg | Self::Zero | Self::Stack => context.head_scale,
            Self::Clone => crate::operator::clone::head_scale(context),
        }
    }

    /// The masks that keep the grown model's function.
    pub fn masks(self, from: &Shape, to: &Shape, layers: &[LayerSource], steps: u64) -> Option<GrowthMasks> {
        match self {
            Self::Msg => crate::operator::msg::masks(from, to, layers, steps),
            Self::Zero | Self::Clone | Self::Stack => None,
        }
    }

    /// What fills a tensor of `role` that the source stores as `dtype`.
    pub fn rule(self, role: Role, new_layer: bool, dtype: Dtype, context: &Context) -> Rule {
        match self {
            Self::Msg => crate::operator::msg::rule(role, dtype, context),
            Self::Zero => crate::operator::zero::rule(role, new_layer, dtype, context),
            Self::Clone => crate::operator::clone::rule(role, new_layer, dtype, context),
            Self::Stack => crate::operator::stack::rule(role, dtype, context),
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operator {
    type Err = GrowthError;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|o| o.name() == text)
            .ok_or_else(|| GrowthError::UnknownOperator(text.into()))
    }
}
