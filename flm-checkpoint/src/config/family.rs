//! What the families of models differ in: one line of a table each.

use crate::config::layers::{Positions, Windows};
use crate::config::{Activation, ModelType, NormPlacement, QkNorm};
use crate::tensor_id::Names;

/// A family of models: what its name implies where config.json does not say. Defaults are those of the family's
/// configuration class in transformers 5.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    model_type: ModelType,
    /// Value of `model_type` in config.json.
    pub name: &'static str,
    /// Value of `architectures` in config.json.
    pub architecture: &'static str,
    /// Whether queries, keys and values always have biases.
    pub qkv_bias: bool,
    /// The key that says whether there are biases on queries, keys, values and the output projection.
    pub attention_bias_key: Option<&'static str>,
    /// Whether the output projection of attention never has a bias and maps the width to itself.
    pub square_output: bool,
    /// The key that says whether the feed-forward layer has biases.
    pub mlp_bias_key: Option<&'static str>,
    /// Where a block's norms are.
    pub norms: NormPlacement,
    /// Whether and how queries and keys are normalised.
    pub qk_norm: QkNorm,
    /// The key that names the activation, and what it is where absent.
    pub activation: (&'static str, Activation),
    /// What is added to stored gains.
    pub gain_offset: f64,
    /// Whether the embedding is multiplied by the root of the width.
    pub embedding_by_width: bool,
    /// Whether `embedding_multiplier`, `attention_multiplier`, `residual_multiplier` and `logits_scaling` are read.
    pub scalars: bool,
    /// `query_pre_attn_scalar` where absent; `None` where it is not read.
    pub query_scalar: Option<f64>,
    /// `attn_logit_softcapping` and `final_logit_softcapping` where absent; `None` where they are not read.
    pub softcaps: Option<[Option<f64>; 2]>,
    /// Whether the projections back to the residual stream always have biases.
    pub output_biases: bool,
    /// What keys of config.json are called: the family's names, and Llama's.
    pub keys: &'static [(&'static str, &'static str)],
    /// What tensors are called, and which are stored as one.
    pub names: Names,
    /// Whether neighbours of a head are turned together, not entries of its halves.
    pub rotary_pairs: bool,
    /// Whether heads are turned in f32 whatever the dtype.
    pub rotary_in_f32: bool,
    /// Whether `partial_rotary_factor` is read.
    pub partial_rotary: bool,
    /// Which blocks have the window.
    pub windows: Windows,
    /// Which blocks have which positions.
    pub positions: Positions,
    pub head_dim: Option<usize>,
    pub num_key_value_heads: Option<usize>,
    pub max_position_embeddings: usize,
    /// `sliding_window` where it is absent; null is none.
    pub sliding_window: Option<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

const LLAMA: Family = Family {
    model_type: ModelType::Llama,
    name: "llama",
    architecture: "LlamaForCausalLM",
    qkv_bias: false,
    attention_bias_key: Some("attention_bias"),
    square_output: false,
    mlp_bias_key: Some("mlp_bias"),
    norms: NormPlacement::Before,
    qk_norm: QkNorm::None,
    activation: ("hidden_act", Activation::Silu),
    gain_offset: 0.0,
    embedding_by_width: false,
    scalars: false,
    query_scalar: None,
    softcaps: None,
    output_biases: false,
    keys: &[],
    names: Names::LLAMA,
    rotary_pairs: false,
    rotary_in_f32: false,
    partial_rotary: false,
    windows: Windows::None,
    positions: Positions::Alike,
    head_dim: None,
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    sliding_window: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
};

const MISTRAL: Family = Family {
    model_type: ModelType::Mistral,
    name: "mistral",
    architecture: "MistralForCausalLM",
    attention_bias_key: None,
    mlp_bias_key: None,
    windows: Windows::All,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_window: Some(4096),
    ..LLAMA
};

const QWEN2: Family = Family {
    model_type: ModelType::Qwen2,
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    qkv_bias: true,
    attention_bias_key: None,
    mlp_bias_key: None,
    windows: Windows::From,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    sliding_window: Some(4096),
    ..LLAMA
};

const OLMO2: Family = Family {
    model_type: ModelType::Olmo2,
    name: "olmo2",
    architecture: "Olmo2ForCausalLM",
    mlp_bias_key: None,
    norms: NormPlacement::After,
    qk_norm: QkNorm::Whole,
    rms_norm_eps: 1e-5,
    ..LLAMA
};

const GEMMA: Family = Family {
    model_type: ModelType::Gemma,
    name: "gemma",
    architecture: "GemmaForCausalLM",
    mlp_bias_key: None,
    activation: ("hidden_act", Activation::GeluTanh),
    gain_offset: 1.0,
    embedding_by_width: true,
    head_dim: Some(256),
    num_key_value_heads: Some(16),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: ModelType::Gemma2,
    name: "gemma2",
    architecture: "Gemma2ForCausalLM",
    norms: NormPlacement::Around,
    activation: ("hidden_activation", Activation::GeluTanh),
    query_scalar: Some(256.0),
    softcaps: Some([Some(50.0), Some(30.0)]),
    windows: Windows::AllBut { key: None, every: 2 },
    num_key_value_heads: Some(4),
    sliding_window: Some(4096),
    ..GEMMA
};

/// In the order of [`ModelType`].
static FAMILIES: [Family; 20] = [
    Family {
        model_type: ModelType::TeleFlm,
        name: "TeleFLM",
        architecture: "TeleFLMForCausalLM",
        attention_bias_key: None,
        mlp_bias_key: None,
        ..LLAMA
    },
    LLAMA,
    MISTRAL,
    Family {
        model_type: ModelType::Ministral,
        name: "ministral",
        architecture: "MinistralForCausalLM",
        ..MISTRAL
    },
    QWEN2,
    Family {
        model_type: ModelType::Qwen3,
        name: "qwen3",
        architecture: "Qwen3ForCausalLM",
        qkv_bias: false,
        attention_bias_key: LLAMA.attention_bias_key,
        qk_norm: QkNorm::Heads,
        head_dim: Some(128),
        ..QWEN2
    },
    Family {
        model_type: ModelType::Granite,
        name: "granite",
        architecture: "GraniteForCausalLM",
        scalars: true,
        ..LLAMA
    },
    Family {
        model_type: ModelType::SmolLm3,
        name: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        windows: Windows::WithoutPositions,
        positions: Positions::NoRopeLayers,
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2_000_000.0,
        tie_word_embeddings: true,
        ..LLAMA
    },
    OLMO2,
    Family {
        model_type: ModelType::Olmo3,
        name: "olmo3",
        architecture: "Olmo3ForCausalLM",
        windows: Windows::AllBut { key: None, every: 4 },
        positions: Positions::LocalInWindows { key: None, theta: 500_000.0 },
        sliding_window: Some(4096),
        rope_theta: 500_000.0,
        ..OLMO2
    },
    Family {
        model_type: ModelType::Exaone4,
        name: "exaone4",
        architecture: "Exaone4ForCausalLM",
        attention_bias_key: None,
        qk_norm: QkNorm::Heads,
        windows: Windows::AllBut { key: Some("sliding_window_pattern"), every: 4 },
        positions: Positions::OnlyInWindows,
        num_key_value_heads: Some(32),
        sliding_window: Some(4096),
        ..OLMO2
    },
    Family {
        model_type: ModelType::Phi3,
        name: "phi3",
        architecture: "Phi3ForCausalLM",
        attention_bias_key: None,
        mlp_bias_key: None,
        names: Names::PHI3,
        partial_rotary: true,
        windows: Windows::All,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        model_type: ModelType::Gemma3,
        name: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        qk_norm: QkNorm::Heads,
        softcaps: Some([None, None]),
        windows: Windows::AllBut { key: Some("sliding_window_pattern"), every: 6 },
        positions: Positions::LocalInWindows { key: Some("rope_local_base_freq"), theta: 10_000.0 },
        max_position_embeddings: 131_072,
        rope_theta: 1_000_000.0,
        ..GEMMA2
    },
    Family {
        model_type: ModelType::Helium,
        name: "helium",
        architecture: "HeliumForCausalLM",
        square_output: true,
        rotary_pairs: true,
        head_dim: Some(128),
        num_key_value_heads: Some(20),
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-8,
        rope_theta: 100_000.0,
        ..LLAMA
    },
    Family {
        model_type: ModelType::Ernie45,
        name: "ernie4_5",
        architecture: "Ernie4_5ForCausalLM",
        attention_bias_key: Some("use_bias"),
        mlp_bias_key: Some("use_bias"),
        rotary_pairs: true,
        rotary_in_f32: true,
        head_dim: Some(128),
        num_key_value_heads: Some(2),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        tie_word_embeddings: true,
        ..LLAMA
    },
    // these are not in transformers
    Family {
        model_type: ModelType::Baichuan,
        name: "baichuan",
        // of Baichuan 7B alone: those after it write a small c
        architecture: "BaiChuanForCausalLM",
        attention_bias_key: None,
        square_output: true,
        mlp_bias_key: None,
        names: Names::BAICHUAN,
        max_position_embeddings: 4096,
        ..LLAMA
    },
    Family {
        model_type: ModelType::InternLm2,
        name: "internlm2",
        architecture: "InternLM2ForCausalLM",
        attention_bias_key: None,
        square_output: true,
        mlp_bias_key: None,
        names: Names::INTERNLM2,
        ..LLAMA
    },
    Family {
        model_type: ModelType::TeleChat,
        name: "telechat",
        architecture: "TeleChat2ForCausalLM",
        attention_bias_key: None,
        square_output: true,
        mlp_bias_key: None,
        output_biases: true,
        keys: &[
            ("n_layer", "num_hidden_layers"),
            ("n_head", "num_attention_heads"),
            ("ffn_hidden_size", "intermediate_size"),
            ("layer_norm_epsilon", "rms_norm_eps"),
            ("training_seqlen", "max_position_embeddings"),
        ],
        names: Names::TELECHAT,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        // whoever has a head stores it
        tie_word_embeddings: true,
        ..LLAMA
    },
];

impl Family {
    pub(crate) fn model_type(&self) -> ModelType {
        self.model_type
    }
}

impl ModelType {
    /// Every family, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        FAMILIES.iter().map(|family| family.model_type)
    }

    /// The value of `architectures` in config.json.
    pub fn architecture(self) -> &'static str {
        self.family().architecture
    }

    /// In what the family differs from Llama, in words.
    pub fn differences(self) -> Vec<&'static str> {
        let family = self.family();
        let words = [
            (self == Self::TeleFlm, "multipliers of embedding and logits"),
            (family.qkv_bias, "biases on q, k, v"),
            (family.norms == NormPlacement::After, "norms after the sub-layers"),
            (family.norms == NormPlacement::Around, "norms around the sub-layers"),
            (family.qk_norm == QkNorm::Heads, "norms of heads"),
            (family.qk_norm == QkNorm::Whole, "norms of all queries and all keys"),
            (family.activation.1 == Activation::GeluTanh, "GeGLU"),
            (family.gain_offset != 0.0, "gains stored less 1"),
            (family.embedding_by_width, "embedding × √width"),
            (family.scalars, "four scalars"),
            (family.softcaps.is_some(), "bounded scores and logits"),
            (!family.names.fused.is_empty(), "fused matrices"),
            (!family.names.outer.is_empty(), "names of tensors"),
            (!family.keys.is_empty(), "names of keys"),
            (family.output_biases, "biases of what is written back"),
            (family.rotary_pairs, "neighbours turned together"),
            (family.partial_rotary, "part of a head turned"),
            (family.windows == Windows::All, "a window"),
            (!matches!(family.windows, Windows::None | Windows::All), "a window in some layers"),
            (
                matches!(family.positions, Positions::NoRopeLayers | Positions::OnlyInWindows),
                "layers without positions",
            ),
            (matches!(family.positions, Positions::LocalInWindows { .. }), "two rotary bases"),
        ];
        words.into_iter().filter_map(|(differs, word)| differs.then_some(word)).collect()
    }

    /// The family of this value of `model_type`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        FAMILIES.iter().find(|family| family.name == name).map(|family| family.model_type)
    }

    pub(crate) fn family(self) -> &'static Family {
        &FAMILIES[self as usize]
    }

    /// The value of `model_type` in config.json.
    pub fn as_str(self) -> &'static str {
        self.family().name
    }
}

/// The names of all families, quoted.
pub(crate) fn names() -> String {
    let names: Vec<String> = FAMILIES.iter().map(|family| format!("{:?}", family.name)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_order_of_the_enum() {
        for (index, family) in FAMILIES.iter().enumerate() {
            assert_eq!(family.model_type as usize, index, "{}", family.name);
            assert_eq!(ModelType::of(family.name), Some(family.model_type));
        }
        // the last of the enum
        assert_eq!(FAMILIES.len(), ModelType::TeleChat as usize + 1);
    }
}
