//! The same decoder under another architecture's name.

use serde_json::{Value, json};

use crate::config::layers::LayerKinds;
use crate::config::{Activation, ModelType, NormPlacement, QkNorm, TeleFlmConfig};

/// Keys that only Tele-FLM's own code reads.
const TELE_FLM_KEYS: [&str; 5] = ["auto_map", "use_mup", "input_mult", "output_mult", "mup_scale_factor"];

impl TeleFlmConfig {
    /// Whether a block has the nine tensors of the first Llama, which do what they do there, and nothing else.
    pub fn is_plain_llama(&self) -> bool {
        let biased = self.qkv_bias || self.attention_output_bias || self.mlp_output_bias;
        let scaled = self.attention_multiplier.is_some() || self.residual_multiplier != 1.0;
        let capped = self.attention_softcap.is_some() || self.logit_softcap.is_some();
        !(biased || scaled || capped || !self.names().are_llamas())
            && (self.qk_norm, self.norms) == (QkNorm::None, NormPlacement::Before)
            && (self.activation, self.gain_offset()) == (Activation::Silu, 0.0)
            && self.layers == LayerKinds::default()
            && self.partial_rotary_factor == 1.0
            && !self.rotary_pairs()
    }

    /// The config of a `LlamaForCausalLM` of the same shape: no multipliers, no code of its own.
    ///
    /// It is the same function only where the weights have taken the multipliers over.
    pub fn to_llama(&self) -> Self {
        let mut config = Self {
            model_type: ModelType::Llama,
            use_mup: false,
            growth: None,
            ..self.with_multipliers([1.0; 3])
        };
        for key in TELE_FLM_KEYS {
            config.raw.shift_remove(key);
        }
        config.set_raw("architectures", json!([config.model_type.family().architecture]));
        config
    }

    /// The config of a `TeleFLMForCausalLM` of the same shape, with `input_mult`, `output_mult` and
    /// `mup_scale_factor`.
    pub fn to_tele_flm(&self, multipliers: [f64; 3]) -> Self {
        let mut config =
            Self { model_type: ModelType::TeleFlm, use_mup: true, ..self.with_multipliers(multipliers) };
        let architecture = config.model_type.family().architecture;
        let names = |v: &Value| v.as_array().is_some_and(|l| l.iter().any(|n| n == architecture));
        if !config.raw.get("architectures").is_some_and(names) {
            config.set_raw("architectures", json!([architecture]));
        }
        config
    }

    fn with_multipliers(&self, [input_mult, output_mult, mup_scale_factor]: [f64; 3]) -> Self {
        Self { input_mult, output_mult, mup_scale_factor, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::TeleFlmConfig;
    use crate::config::preset::preset;

    #[test]
    fn llama_and_back_is_the_same_model() {
        let source = preset("tele-flm-1t").unwrap();
        let llama = source.to_llama();
        let text = llama.to_json();
        for key in ["mult", "mup", "auto_map", "TeleFLM"] {
            assert!(!text.contains(key), "{key}: {text}");
        }
        let read = TeleFlmConfig::from_json(&text).unwrap();
        assert_eq!((read.input_scale(), read.logit_scale()), (1.0, 1.0));
        assert_eq!(read.parameter_count(), source.parameter_count());
        let back = read.to_tele_flm([1.0, 2.0, 80.0]);
        let back = TeleFlmConfig::from_json(&back.to_json()).unwrap();
        assert_eq!((back.input_scale(), back.logit_scale()), (1.0, 2.0 / 80.0));
        let keys = |config: &TeleFlmConfig| {
            let mut keys: Vec<_> = config.raw().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            keys
        };
        assert_eq!(keys(&back), keys(&TeleFlmConfig::from_json(&source.to_json()).unwrap()));
    }
}
