//! Whether the sizes and scalars of a config fit each other.

use crate::config::keys::{MAX_DIMENSION, invalid};
use crate::config::rope::RopeScaling;
use crate::config::{ConfigError, TeleFlmConfig};
use crate::tensor_id::TensorId;

impl TeleFlmConfig {
    /// Checks that the sizes fit each other; every constructor and writer calls it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (h, kv) = (self.num_attention_heads, self.num_key_value_heads);
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", h),
            ("num_key_value_heads", kv),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 || size as u64 > MAX_DIMENSION {
                return Err(invalid(key, size, "a positive size"));
            }
        }
        if !h.is_multiple_of(kv) {
            return Err(ConfigError::Inconsistent(format!(
                "num_attention_heads {h} is not a multiple of num_key_value_heads {kv}"
            )));
        }
        if self.model_type.family().square_output && self.query_width() != self.hidden_size {
            return Err(ConfigError::Inconsistent(format!(
                "the output projection of a {} is square: {h} heads of {} are {} wide, hidden_size is {}",
                self.model_type.as_str(),
                self.head_dim,
                self.query_width(),
                self.hidden_size
            )));
        }
        let turned = self.rotary_dim();
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Inconsistent(format!(
                "head_dim {} is odd: rotary needs pairs",
                self.head_dim
            )));
        }
        if turned == 0 || !turned.is_multiple_of(2) || turned > self.head_dim {
            return Err(ConfigError::Inconsistent(format!(
                "`partial_rotary_factor` turns {turned} of {} entries of a head: rotary needs pairs",
                self.head_dim
            )));
        }
        if !self.rope_scaling.fits(turned / 2) {
            return Err(ConfigError::Inconsistent(format!(
                "`rope_scaling` must list {} factors, one for each frequency",
                turned / 2
            )));
        }
        for (key, value) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("input_mult", self.input_mult),
            ("output_mult", self.output_mult),
            ("mup_scale_factor", self.mup_scale_factor),
            ("attention_multiplier", self.attention_multiplier.unwrap_or(1.0)),
            ("residual_multiplier", self.residual_multiplier),
            ("embedding_multiplier", self.embedding_multiplier),
            ("logits_scaling", self.logits_scaling),
            ("attention_factor", self.rope_scaling.attention_factor(0)),
        ] {
            if !value.is_finite() {
                return Err(invalid(key, value, "a finite number"));
            }
        }
        if self.rms_norm_eps < 0.0 {
            return Err(invalid("rms_norm_eps", self.rms_norm_eps, "a number ≥ 0"));
        }
        if self.rope_theta <= 0.0 {
            return Err(invalid("rope_theta", self.rope_theta, "a number > 0"));
        }
        if self.mup_scale_factor == 0.0 {
            return Err(invalid("mup_scale_factor", 0.0, "a number other than 0 (it divides the logits)"));
        }
        if self.logits_scaling == 0.0 {
            return Err(invalid("logits_scaling", 0.0, "a number other than 0 (it divides the logits)"));
        }
        for (key, cap) in [
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
        ] {
            if let Some(cap) = cap.filter(|cap| !cap.is_finite() || *cap <= 0.0) {
                return Err(invalid(key, cap, "a number > 0, or null"));
            }
        }
        if matches!(self.rope_scaling, RopeScaling::Yarn { .. }) && self.rope_theta == 1.0 {
            return Err(invalid(
                "rope_theta",
                1.0,
                "a base other than 1 with yarn, which takes its logarithm",
            ));
        }
        if let Some(growth) = &self.growth {
            growth.validate(self)?;
        }
        self.checked_parameter_count().map(drop)
    }

    pub(super) fn checked_parameter_count(&self) -> Result<u64, ConfigError> {
        let count = || {
            self.num_attention_heads.checked_mul(self.head_dim)?;
            let product = |id: TensorId| {
                id.axes().iter().try_fold(1u64, |n, &axis| n.checked_mul(self.size(axis) as u64))
            };
            let mut total = self
                .block_parts()
                .try_fold(0u64, |n, part| n.checked_add(product(TensorId::Block(0, part))?))?
                .checked_mul(self.num_hidden_layers as u64)?;
            for id in [TensorId::Embedding, TensorId::FinalNorm] {
                total = total.checked_add(product(id)?)?;
            }
            if !self.tie_word_embeddings {
                total = total.checked_add(product(TensorId::Head)?)?;
            }
            // eight bytes a parameter, the widest dtype, must be a file size that systems can express
            (total < (i64::MAX / 8) as u64).then_some(total)
        };
        count().ok_or_else(|| {
            ConfigError::Inconsistent("the sizes multiply to more parameters than can exist".into())
        })
    }
}
