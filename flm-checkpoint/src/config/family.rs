//! What the families of models differ in: one line of a table each.

use serde_json::{Map, Value};

use crate::config::ModelType;

/// A family of models: what its name implies where config.json does not say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    model_type: ModelType,
    /// Value of `model_type` in config.json.
    pub name: &'static str,
    /// Value of `architectures` in config.json.
    pub architecture: &'static str,
    /// Whether queries, keys and values always have biases.
    pub qkv_bias: bool,
    /// Whether `attention_bias` is read: biases on queries, keys, values and the output projection.
    pub attention_bias_key: bool,
    /// Whether `mlp_bias` is read.
    pub mlp_bias_key: bool,
    /// Whether query and key heads are normalised.
    pub qk_norm: bool,
    /// Defaults of the family's configuration class in transformers, where they are not derived.
    pub head_dim: Option<usize>,
    pub num_key_value_heads: Option<usize>,
    pub max_position_embeddings: usize,
    sliding_window: Window,
}

/// How a family says that attention reaches back a number of tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Window {
    /// Not at all, or by `use_sliding_window`, which is refused where it is true.
    None,
    /// By `sliding_window` alone, which is this where it is absent and none where it is null.
    Key { absent: u64 },
}

const LLAMA: Family = Family {
    model_type: ModelType::Llama,
    name: "llama",
    architecture: "LlamaForCausalLM",
    qkv_bias: false,
    attention_bias_key: true,
    mlp_bias_key: true,
    qk_norm: false,
    head_dim: None,
    num_key_value_heads: None,
    max_position_embeddings: 2048,
    sliding_window: Window::None,
};

/// Defaults are those of transformers 5.
static FAMILIES: [Family; 5] = [
    Family {
        model_type: ModelType::TeleFlm,
        name: "TeleFLM",
        architecture: "TeleFLMForCausalLM",
        attention_bias_key: false,
        mlp_bias_key: false,
        ..LLAMA
    },
    LLAMA,
    Family {
        model_type: ModelType::Mistral,
        name: "mistral",
        architecture: "MistralForCausalLM",
        attention_bias_key: false,
        mlp_bias_key: false,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        sliding_window: Window::Key { absent: 4096 },
        ..LLAMA
    },
    Family {
        model_type: ModelType::Qwen2,
        name: "qwen2",
        architecture: "Qwen2ForCausalLM",
        qkv_bias: true,
        attention_bias_key: false,
        mlp_bias_key: false,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        ..LLAMA
    },
    Family {
        model_type: ModelType::Qwen3,
        name: "qwen3",
        architecture: "Qwen3ForCausalLM",
        mlp_bias_key: false,
        qk_norm: true,
        head_dim: Some(128),
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        ..LLAMA
    },
];

impl Family {
    /// How many tokens attention reaches back, where that is bounded.
    pub(crate) fn window(&self, raw: &Map<String, Value>) -> Option<u64> {
        let Window::Key { absent } = self.sliding_window else { return None };
        match raw.get("sliding_window") {
            None => Some(absent),
            // null, or nothing that a window could be
            Some(value) => value.as_u64(),
        }
    }
}

impl ModelType {
    /// The family of this value of `model_type`.
    pub(crate) fn of(name: &str) -> Option<Self> {
        FAMILIES.iter().find(|family| family.name == name).map(|family| family.model_type)
    }

    pub(crate) fn family(self) -> &'static Family {
        // every model type has its line: a test goes through them
        FAMILIES.iter().find(|family| family.model_type == self).unwrap_or(&LLAMA_FAMILY)
    }

    /// The value of `model_type` in config.json.
    pub fn as_str(self) -> &'static str {
        self.family().name
    }
}

static LLAMA_FAMILY: Family = LLAMA;

/// The names of all families, quoted.
pub(crate) fn names() -> String {
    let names: Vec<String> = FAMILIES.iter().map(|family| format!("{:?}", family.name)).collect();
    names.join(", ")
}
