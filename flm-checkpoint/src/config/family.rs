//! What the families of models differ in: one line of a table each.

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
    /// `sliding_window` where it is absent, of families that have windows by this key alone; null is none.
    pub sliding_window: Option<usize>,
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
    sliding_window: None,
};

/// In the order of [`ModelType`]; defaults are those of transformers 5.
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
        sliding_window: Some(4096),
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

impl ModelType {
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
        assert_eq!(FAMILIES.len(), ModelType::Qwen3 as usize + 1);
    }
}
