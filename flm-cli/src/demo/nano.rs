use std::path::Path;

use anyhow::Context;
use candle_core::DType;
use flm_candle::{
    checkpoint::{TensorSpec, write_pytorch_checkpoint},
    config::{EMBED_TOKENS, LM_HEAD, TeleFlmConfig, preset},
};
use flm_growth::{fill::NormalFill, precision::Precision};

/// Vocabulary rows that are tokens; the rest is padding, as in the released models.
pub(crate) const TOKENIZER_SIZE: usize = 4000;

/// Writes a nano-52b checkpoint with random weights to `dir`, as PyTorch shards with an index.
///
/// Widths of the weights are such that every layer changes the residual stream about as much as it is
/// large: a growth that disturbed any of them would show.
pub(crate) fn write(dir: &Path) -> anyhow::Result<TeleFlmConfig> {
    let config = preset("nano-52b").context("no preset nano-52b")?;
    let specs: Vec<TensorSpec> =
        config.tensors().map(|t| TensorSpec { name: t.name, dtype: DType::BF16, shape: t.shape }).collect();
    let mut failure = None;
    write_pytorch_checkpoint(dir, &config, &specs, 2 << 20, |spec, out| {
        out.resize(spec.shape.iter().product::<usize>() * 2, 0);
        match NormalFill::new(0, &spec.name, Precision::Bf16, std(&config, spec)) {
            Ok(fill) => fill.write(0, out),
            Err(error) => failure = Some(error),
        }
        if spec.shape.len() == 1 {
            // gains around 1
            for value in out.chunks_exact_mut(2) {
                let gain = half::bf16::from_le_bytes([value[0], value[1]]).to_f32() + 1.0;
                value.copy_from_slice(&half::bf16::from_f32(gain).to_le_bytes());
            }
        }
    })?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(config),
    }
}

fn std(config: &TeleFlmConfig, spec: &TensorSpec) -> f64 {
    match (spec.shape.as_slice(), spec.name.as_str()) {
        ([_], _) => 0.1,
        (_, EMBED_TOKENS) => 0.5,
        ([_, columns], LM_HEAD) => 2.0 / (*columns as f64).sqrt() / config.logit_scale(),
        ([_, columns], _) => 1.0 / (*columns as f64).sqrt(),
        _ => 0.02,
    }
}
