//! What tensors a decoder has: their places, names and axes. Shapes, roles and export follow from these.

use crate::dtype::Dtype;

/// A tensor that a [`Writer`](crate::Writer) will write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// BF16, F16, F32 or F64.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
}

/// Name and shape of a tensor that a checkpoint of some config must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorShape {
    /// Place in the model.
    pub id: TensorId,
    /// Name in the checkpoint.
    pub name: String,
    /// Rows first: `[out_features, in_features]`, or `[hidden_size]` for norm gains.
    pub shape: Vec<usize>,
}

/// Name of the embedding, `[vocab_size, hidden_size]`.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";

/// Name of the final norm's gain, `[hidden_size]`.
pub const FINAL_NORM: &str = "model.norm.weight";

/// Name of the head, `[vocab_size, hidden_size]`; absent where it is tied to the embedding.
pub const LM_HEAD: &str = "lm_head.weight";

/// What the entries of a tensor's dimension are; its size is [`TeleFlmConfig::size`](crate::TeleFlmConfig::size).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Entries of the residual stream.
    Hidden,
    /// Query heads, each of `head_dim`.
    Query,
    /// Key/value heads, each of `head_dim`.
    KeyValue,
    /// Entries of one head, the same for all heads.
    HeadDim,
    /// Units of the feed-forward layer.
    Ffn,
    /// Tokens.
    Vocab,
}

/// A tensor of a block. Which of them a block has is the family's: [`TeleFlmConfig::block_parts`](crate::TeleFlmConfig::block_parts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Gain of the norm before attention.
    InputLayernorm,
    /// Projection to queries.
    QProj,
    /// Bias of the queries.
    QBias,
    /// Projection to keys.
    KProj,
    /// Bias of the keys.
    KBias,
    /// Projection to values.
    VProj,
    /// Bias of the values.
    VBias,
    /// Gain of the norm of each query head.
    QNorm,
    /// Gain of the norm of all queries.
    QNormWhole,
    /// Gain of the norm of each key head.
    KNorm,
    /// Gain of the norm of all keys.
    KNormWhole,
    /// Output projection of attention.
    OProj,
    /// Bias of the output projection.
    OBias,
    /// Gain of the norm before the feed-forward layer or, in blocks with norms after their parts, of what
    /// attention writes.
    PostAttentionLayernorm,
    /// Gain of the norm before the feed-forward layer, in blocks with norms around their parts.
    PreFeedforwardLayernorm,
    /// Projection to what gates the units.
    GateProj,
    /// Bias of the gates.
    GateBias,
    /// Projection to the units.
    UpProj,
    /// Bias of the units.
    UpBias,
    /// Projection back to the residual stream.
    DownProj,
    /// Bias of the projection back.
    DownBias,
    /// Gain of the norm of what the feed-forward layer writes.
    PostFeedforwardLayernorm,
}

impl Part {
    /// Every part, in the order of the forward pass.
    pub const ALL: [Self; 22] = [
        Self::InputLayernorm,
        Self::QProj,
        Self::QBias,
        Self::KProj,
        Self::KBias,
        Self::VProj,
        Self::VBias,
        Self::QNorm,
        Self::QNormWhole,
        Self::KNorm,
        Self::KNormWhole,
        Self::OProj,
        Self::OBias,
        Self::PostAttentionLayernorm,
        Self::PreFeedforwardLayernorm,
        Self::GateProj,
        Self::GateBias,
        Self::UpProj,
        Self::UpBias,
        Self::DownProj,
        Self::DownBias,
        Self::PostFeedforwardLayernorm,
    ];

    /// The end of its name in a checkpoint, after `model.layers.N.`.
    pub fn suffix(self) -> &'static str {
        self.described().0
    }

    /// What its dimensions are, outputs first.
    pub fn axes(self) -> &'static [Axis] {
        self.described().1
    }

    /// Whether it is added to a projection's output.
    pub fn is_bias(self) -> bool {
        self.suffix().ends_with(".bias")
    }

    fn described(self) -> (&'static str, &'static [Axis]) {
        use Axis::{Ffn, HeadDim, Hidden, KeyValue, Query};
        match self {
            Self::InputLayernorm => ("input_layernorm.weight", &[Hidden]),
            Self::QProj => ("self_attn.q_proj.weight", &[Query, Hidden]),
            Self::QBias => ("self_attn.q_proj.bias", &[Query]),
            Self::KProj => ("self_attn.k_proj.weight", &[KeyValue, Hidden]),
            Self::KBias => ("self_attn.k_proj.bias", &[KeyValue]),
            Self::VProj => ("self_attn.v_proj.weight", &[KeyValue, Hidden]),
            Self::VBias => ("self_attn.v_proj.bias", &[KeyValue]),
            Self::QNorm => ("self_attn.q_norm.weight", &[HeadDim]),
            Self::QNormWhole => ("self_attn.q_norm.weight", &[Query]),
            Self::KNorm => ("self_attn.k_norm.weight", &[HeadDim]),
            Self::KNormWhole => ("self_attn.k_norm.weight", &[KeyValue]),
            Self::OProj => ("self_attn.o_proj.weight", &[Hidden, Query]),
            Self::OBias => ("self_attn.o_proj.bias", &[Hidden]),
            Self::PostAttentionLayernorm => ("post_attention_layernorm.weight", &[Hidden]),
            Self::PreFeedforwardLayernorm => ("pre_feedforward_layernorm.weight", &[Hidden]),
            Self::GateProj => ("mlp.gate_proj.weight", &[Ffn, Hidden]),
            Self::GateBias => ("mlp.gate_proj.bias", &[Ffn]),
            Self::UpProj => ("mlp.up_proj.weight", &[Ffn, Hidden]),
            Self::UpBias => ("mlp.up_proj.bias", &[Ffn]),
            Self::DownProj => ("mlp.down_proj.weight", &[Hidden, Ffn]),
            Self::DownBias => ("mlp.down_proj.bias", &[Hidden]),
            Self::PostFeedforwardLayernorm => ("post_feedforward_layernorm.weight", &[Hidden]),
        }
    }
}

/// A tensor of a family's files that is several parts, rows after rows, or one under another name.
#[derive(Debug)]
pub(crate) struct Fused {
    /// The end of its name in a checkpoint, after `model.layers.N.`.
    pub suffix: &'static str,
    /// In the order of their rows.
    pub parts: &'static [Part],
    /// Whether that order is the one of each key/value head and what belongs to it, head after head.
    pub grouped: bool,
}

impl Fused {
    const fn new(suffix: &'static str, parts: &'static [Part]) -> Self {
        Self { suffix, parts, grouped: false }
    }

    const fn grouped(suffix: &'static str, parts: &'static [Part]) -> Self {
        Self { suffix, parts, grouped: true }
    }
}

/// In what the names of a family's files differ from Llama's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// What a block's names begin with, before its number.
    pub layers: &'static str,
    /// Names outside the blocks: the family's, and Llama's.
    pub outer: &'static [(&'static str, &'static str)],
    /// Tensors of a block.
    pub fused: &'static [Fused],
}

impl Names {
    /// Llama's own.
    pub(crate) const LLAMA: Self = Self { layers: LAYERS, outer: &[], fused: &[] };
    pub(crate) const PHI3: Self = Self {
        fused: &[
            Fused::new("self_attn.qkv_proj.weight", QKV),
            Fused::new("mlp.gate_up_proj.weight", &[Part::GateProj, Part::UpProj]),
        ],
        ..Self::LLAMA
    };
    pub(crate) const BAICHUAN: Self =
        Self { fused: &[Fused::new("self_attn.W_pack.weight", QKV)], ..Self::LLAMA };
    pub(crate) const INTERNLM2: Self = Self {
        outer: &[("model.tok_embeddings.weight", EMBED_TOKENS), ("output.weight", LM_HEAD)],
        fused: &[
            Fused::grouped("attention.wqkv.weight", QKV),
            Fused::new("attention.wo.weight", &[Part::OProj]),
            Fused::new("attention_norm.weight", &[Part::InputLayernorm]),
            Fused::new("feed_forward.w1.weight", &[Part::GateProj]),
            Fused::new("feed_forward.w2.weight", &[Part::DownProj]),
            Fused::new("feed_forward.w3.weight", &[Part::UpProj]),
            Fused::new("ffn_norm.weight", &[Part::PostAttentionLayernorm]),
        ],
        ..Self::LLAMA
    };
    pub(crate) const TELECHAT: Self = Self {
        layers: "transformer.h.",
        outer: &[
            ("transformer.word_embeddings.weight", EMBED_TOKENS),
            ("transformer.ln_f.weight", FINAL_NORM),
        ],
        fused: &[
            Fused::new("self_attention.query.weight", &[Part::QProj]),
            Fused::grouped("self_attention.key_value.weight", &[Part::KProj, Part::VProj]),
            Fused::new("self_attention.dense.weight", &[Part::OProj]),
            Fused::new("self_attention.dense.bias", &[Part::OBias]),
        ],
    };

    /// Whether they are Llama's.
    pub(crate) fn are_llamas(&self) -> bool {
        self.layers == LAYERS && self.outer.is_empty() && self.fused.is_empty()
    }

    /// The family's name of what Llama calls `name`, and how the rows of its parts are grouped, if they are.
    pub(crate) fn own(&self, name: &str) -> (String, bool) {
        let Some((layer, suffix)) = split_layer(name) else {
            let own = self.outer.iter().find(|(_, llamas)| *llamas == name);
            return (own.map_or(name, |(own, _)| own).to_owned(), false);
        };
        let fused = self.fused.iter().find(|fused| fused.parts.iter().any(|part| part.suffix() == suffix));
        let own = fused.map_or(suffix, |fused| fused.suffix);
        let number = layer.trim_start_matches(LAYERS);
        (format!("{}{number}{own}", self.layers), fused.is_some_and(|fused| fused.grouped))
    }
}

/// What the names of Llama's blocks begin with.
pub(crate) const LAYERS: &str = "model.layers.";

const QKV: &[Part] = &[Part::QProj, Part::KProj, Part::VProj];

/// The layer's prefix `model.layers.N.` of a tensor's name, and the rest.
pub(crate) fn split_layer(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix(LAYERS)?;
    let dot = name.len() - rest.len() + rest.find('.')? + 1;
    Some(name.split_at(dot))
}

/// A tensor's place in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorId {
    /// The embedding, also where it is the head.
    Embedding,
    /// A part of a block.
    Block(usize, Part),
    /// The norm before the head.
    FinalNorm,
    /// The head, where it is not tied to the embedding.
    Head,
}

impl TensorId {
    /// The layer that it is of.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Block(layer, _) => Some(layer),
            Self::Embedding | Self::FinalNorm | Self::Head => None,
        }
    }

    /// Its name in a checkpoint.
    pub fn name(self) -> String {
        match self {
            Self::Embedding => EMBED_TOKENS.into(),
            Self::Block(layer, part) => format!("model.layers.{layer}.{}", part.suffix()),
            Self::FinalNorm => FINAL_NORM.into(),
            Self::Head => LM_HEAD.into(),
        }
    }

    /// What its dimensions are, outputs first.
    pub fn axes(self) -> &'static [Axis] {
        match self {
            Self::Embedding | Self::Head => &[Axis::Vocab, Axis::Hidden],
            Self::FinalNorm => &[Axis::Hidden],
            Self::Block(_, part) => part.axes(),
        }
    }
}
