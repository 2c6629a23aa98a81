//! The sizes that can grow, and whether one shape can grow to another.

use flm_checkpoint::TeleFlmConfig;
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};

/// The sizes of a model, by their names in config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; never grows.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the embedding, padding rows included.
    pub vocab_size: usize,
}

/// Sizes to change; `None` keeps the source's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShapeOverrides {
    /// Decoder blocks.
    pub num_hidden_layers: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Query heads.
    pub num_attention_heads: Option<usize>,
    /// Key/value heads; where only query heads are given, these follow in the source's ratio.
    pub num_key_value_heads: Option<usize>,
    /// Width of the feed-forward layer.
    pub intermediate_size: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: Option<usize>,
}

impl Shape {
    /// The shape of a model.
    pub fn of(config: &TeleFlmConfig) -> Self {
        Self {
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
        }
    }

    /// This shape with some sizes changed.
    ///
    /// Whichever of the two head counts is not given follows the other in the present ratio, where
    /// that is a whole number; [`Shape::check_growth_to`] refuses it otherwise.
    pub fn with(self, overrides: &ShapeOverrides) -> Self {
        let group = self.num_attention_heads / self.num_key_value_heads;
        let (heads, kv_heads) = match (overrides.num_attention_heads, overrides.num_key_value_heads) {
            (None, None) => (self.num_attention_heads, self.num_key_value_heads),
            (Some(heads), None) => (heads, (heads / group).max(1)),
            (None, Some(kv_heads)) => (kv_heads.saturating_mul(group), kv_heads),
            (Some(heads), Some(kv_heads)) => (heads, kv_heads),
        };
        Self {
            num_hidden_layers: overrides.num_hidden_layers.unwrap_or(self.num_hidden_layers),
            hidden_size: overrides.hidden_size.unwrap_or(self.hidden_size),
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: self.head_dim,
            intermediate_size: overrides.intermediate_size.unwrap_or(self.intermediate_size),
            vocab_size: overrides.vocab_size.unwrap_or(self.vocab_size),
        }
    }

    /// The keys of config.json besides sizes in which a source and the config of a target differ, each with
    /// what both have: a growth takes sizes alone, and the source's value stays.
    pub fn not_taken(source: &TeleFlmConfig, to: &TeleFlmConfig) -> Vec<(&'static str, String, String)> {
        let of = |c: &TeleFlmConfig| {
            [
                ("model_type", c.model_type.as_str().to_owned()),
                // in f32, as it is computed: a product of widths has digits of rounding
                ("rms_norm_eps", format!("{:e}", c.rms_norm_eps as f32)),
                ("rope_theta", c.rope_theta.to_string()),
                ("rope_scaling", format!("{:?}", c.rope_scaling)),
                ("max_position_embeddings", c.max_position_embeddings.to_string()),
                ("hidden_act", format!("{:?}", c.activation)),
                ("attention_bias", c.qkv_bias.to_string()),
                ("mlp_bias", c.mlp_bias.to_string()),
                ("qk_norm", format!("{:?}", c.qk_norm)),
                ("tie_word_embeddings", c.tie_word_embeddings.to_string()),
            ]
        };
        let pairs = of(source).into_iter().zip(of(to));
        pairs.filter(|(a, b)| a.1 != b.1).map(|((key, a), (_, b))| (key, a, b)).collect()
    }

    /// What can grow, by the names that people use, in this shape and in `other`.
    pub fn beside(&self, other: &Self) -> [(&'static str, usize, usize); 6] {
        [
            ("layers", self.num_hidden_layers, other.num_hidden_layers),
            ("hidden", self.hidden_size, other.hidden_size),
            ("heads", self.num_attention_heads, other.num_attention_heads),
            ("key/value heads", self.num_key_value_heads, other.num_key_value_heads),
            ("ffn", self.intermediate_size, other.intermediate_size),
            ("vocabulary rows", self.vocab_size, other.vocab_size),
        ]
    }

    /// Checks that this shape can grow to `target`: nothing shrinks, heads keep their width and
    /// come in whole groups of query heads with their key/value head.
    pub fn check_growth_to(&self, target: &Self) -> Result<()> {
        for (dimension, from, to) in [
            ("num_hidden_layers", self.num_hidden_layers, target.num_hidden_layers),
            ("hidden_size", self.hidden_size, target.hidden_size),
            ("num_attention_heads", self.num_attention_heads, target.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads, target.num_key_value_heads),
            ("intermediate_size", self.intermediate_size, target.intermediate_size),
            ("vocab_size", self.vocab_size, target.vocab_size),
        ] {
            if to < from {
                return Err(GrowthError::Shrinks { dimension, from, to });
            }
        }
        if target.head_dim != self.head_dim {
            return Err(GrowthError::HeadDim { from: self.head_dim, to: target.head_dim });
        }
        let (heads, kv_heads) = (target.num_attention_heads, target.num_key_value_heads);
        let group = self.num_attention_heads / self.num_key_value_heads;
        if kv_heads.checked_mul(group) != Some(heads) {
            return Err(GrowthError::HeadGroups { heads, kv_heads, group });
        }
        Ok(())
    }

    /// `config` with these sizes; multipliers and constants unchanged.
    pub fn apply_to(&self, config: &TeleFlmConfig) -> Result<TeleFlmConfig> {
        let mut config = config.clone();
        config.num_hidden_layers = self.num_hidden_layers;
        config.hidden_size = self.hidden_size;
        config.num_attention_heads = self.num_attention_heads;
        config.num_key_value_heads = self.num_key_value_heads;
        config.head_dim = self.head_dim;
        config.intermediate_size = self.intermediate_size;
        config.vocab_size = self.vocab_size;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flm_checkpoint::preset;

    /// SmolLM2-135M, grouped queries: three query heads for each key/value head.
    const SMOL: Shape = Shape {
        num_hidden_layers: 30,
        hidden_size: 576,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        intermediate_size: 1536,
        vocab_size: 49152,
    };

    #[test]
    fn the_published_stages_grow_to_each_other() {
        for (from, to) in
            [("tele-flm-52b", "tele-flm-102b"), ("tele-flm-102b", "tele-flm-1t"), ("nano-52b", "nano-1t")]
        {
            let (from, to) = (Shape::of(&preset(from).unwrap()), Shape::of(&preset(to).unwrap()));
            from.check_growth_to(&to).unwrap();
            assert!(matches!(to.check_growth_to(&from), Err(GrowthError::Shrinks { .. })));
        }
    }

    #[test]
    fn key_value_heads_follow_query_heads_and_back() {
        let wider =
            ShapeOverrides { num_attention_heads: Some(12), hidden_size: Some(768), ..Default::default() };
        let target = SMOL.with(&wider);
        assert_eq!((target.num_key_value_heads, target.vocab_size), (4, 49152));
        SMOL.check_growth_to(&target).unwrap();
        let by_kv = SMOL.with(&ShapeOverrides { num_key_value_heads: Some(4), ..Default::default() });
        assert_eq!(by_kv.num_attention_heads, 12);
    }

    #[test]
    fn each_refusal_names_the_numbers() {
        let says = |overrides: ShapeOverrides| {
            SMOL.check_growth_to(&SMOL.with(&overrides)).expect_err("must be refused").to_string()
        };
        let text = says(ShapeOverrides { num_attention_heads: Some(10), ..Default::default() });
        assert!(text.contains("10 query heads on 3 key/value heads"), "{text}");
        let text = says(ShapeOverrides {
            num_attention_heads: Some(12),
            num_key_value_heads: Some(6),
            ..Default::default()
        });
        assert!(text.contains("12 query heads on 6"), "{text}");
        let text = says(ShapeOverrides { vocab_size: Some(49000), ..Default::default() });
        assert!(text.contains("vocab_size would shrink from 49152 to 49000"), "{text}");
        let text = SMOL.check_growth_to(&Shape { head_dim: 128, ..SMOL }).unwrap_err().to_string();
        assert!(text.contains("head_dim would change from 64 to 128"), "{text}");
    }
}
