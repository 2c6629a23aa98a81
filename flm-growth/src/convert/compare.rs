//! A converted checkpoint against its source, bit for bit, without loading a model.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::convert::plan::{Plan, Planned};
use crate::convert::run::CHUNK;
use crate::convert::{ConvertOptions, TargetLayout};
use flm_checkpoint::LM_HEAD;
use flm_checkpoint::Result;
use flm_checkpoint::{Checkpoint, TensorEntry};
use flm_checkpoint::{ModelType, TeleFlmConfig};
use flm_checkpoint::{cast, scale};

/// What [`compare`] found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompareReport {
    /// Tensors compared.
    pub tensors: usize,
    /// Bytes of the converted checkpoint that were compared.
    pub bytes: u64,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Whether nothing does.
    pub passed: bool,
}

/// A tensor, or a key of config.json, that is not what a conversion makes of the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// What is wrong, in words.
    pub problem: String,
}

/// Compares every tensor of `dst` with what a conversion of `src` to the dtypes and the architecture of
/// `dst` gives. Both are read in chunks. `progress` is called, from several threads, with the bytes of
/// `dst` done since its last call.
///
/// # Errors
/// Where `src` cannot be converted to what `dst` is, or one of them cannot be read.
pub fn compare(src: &Checkpoint, dst: &Checkpoint, progress: &(dyn Fn(u64) + Sync)) -> Result<CompareReport> {
    let head = dst.find(LM_HEAD).or(dst.entries.first()).map(|e| e.dtype);
    let options = ConvertOptions { dtype: head, layout: layout(src, dst), ..ConvertOptions::default() };
    let plan = Plan::new(src, &options)?;
    let mut differences = config_differences(&plan.config, dst.config());
    let found: Vec<Option<Difference>> = plan
        .tensors
        .par_iter()
        .map(|planned| {
            let name = &planned.entry.name;
            let problem = match dst.find(name) {
                None => Some("is missing".to_owned()),
                Some(entry) => first_difference(src, dst, *planned, entry, progress)?,
            };
            Ok(problem.map(|problem| Difference { name: name.clone(), problem }))
        })
        .collect::<Result<_>>()?;
    differences.extend(found.into_iter().flatten());
    let unknown = dst.entries().filter(|e| src.find(&e.name).is_none());
    differences.extend(
        unknown
            .map(|e| Difference { name: e.name.clone(), problem: format!("is not in {}", shown(src.dir())) }),
    );
    let bytes = dst.entries().map(|e| e.nbytes).sum();
    Ok(CompareReport { tensors: plan.tensors.len(), bytes, passed: differences.is_empty(), differences })
}

/// The layout that makes the one of the other, where they differ.
fn layout(src: &Checkpoint, dst: &Checkpoint) -> Option<TargetLayout> {
    let (from, to) = (src.config(), dst.config());
    let same = |f: fn(&TeleFlmConfig) -> f64| f(from) == f(to);
    let equal = from.model_type == to.model_type
        && same(TeleFlmConfig::input_scale)
        && same(TeleFlmConfig::logit_scale);
    match to.model_type {
        _ if equal => None,
        ModelType::Llama => Some(TargetLayout::Llama),
        ModelType::TeleFlm => Some(TargetLayout::TeleFlm {
            input_mult: to.input_scale(),
            output_mult: to.logit_scale(),
            mup_scale_factor: 1.0,
        }),
        // the comparison of config.json tells the difference
        _ => None,
    }
}

/// Keys that decide the function.
fn config_differences(expected: &TeleFlmConfig, got: &TeleFlmConfig) -> Vec<Difference> {
    let keys = |c: &TeleFlmConfig| {
        [
            ("model_type", c.model_type.as_str().to_owned()),
            ("hidden_size", c.hidden_size.to_string()),
            ("intermediate_size", c.intermediate_size.to_string()),
            ("num_hidden_layers", c.num_hidden_layers.to_string()),
            ("num_attention_heads", c.num_attention_heads.to_string()),
            ("num_key_value_heads", c.num_key_value_heads.to_string()),
            ("head_dim", c.head_dim.to_string()),
            ("vocab_size", c.vocab_size.to_string()),
            ("rms_norm_eps", c.rms_norm_eps.to_string()),
            ("rope_theta", c.rope_theta.to_string()),
            ("rope_scaling", format!("{:?}", c.rope_scaling)),
            ("biases of attention, its output, the feed-forward layer", {
                format!("{}, {}, {}", c.qkv_bias, c.attention_output_bias, c.mlp_output_bias)
            }),
            ("norms, of queries and keys, and what is added to gains", {
                format!("{:?}, {:?}, {}", c.norms, c.qk_norm, c.gain_offset())
            }),
            ("activation", format!("{:?}", c.activation)),
            ("windows and positions of layers", {
                if c.layers.same(&expected.layers, c.num_hidden_layers) { "same" } else { "others" }
                    .to_owned()
            }),
            ("entries of a head that are turned, as neighbours", {
                format!("{}, {}", c.rotary_dim(), c.rotary_pairs())
            }),
            ("attention_multiplier", c.score_scale().to_string()),
            ("residual_multiplier", c.residual_multiplier.to_string()),
            ("bounds of scores and logits", format!("{:?}, {:?}", c.attention_softcap, c.logit_softcap)),
            ("tie_word_embeddings", c.tie_word_embeddings.to_string()),
            ("input_mult", c.input_scale().to_string()),
            ("output_mult / mup_scale_factor", c.logit_scale().to_string()),
            ("growth", if c.growth == expected.growth { "same" } else { "other masks" }.to_owned()),
        ]
    };
    let pairs = keys(expected).into_iter().zip(keys(got));
    let differ = pairs.filter(|((_, expected), (_, got))| expected != got);
    differ
        .map(|((key, expected), (_, got))| Difference {
            name: format!("config.json: {key}"),
            problem: format!("is {got}, expected {expected}"),
        })
        .collect()
}

/// The first element in which a tensor is not what was planned, in words.
fn first_difference(
    src: &Checkpoint,
    dst: &Checkpoint,
    planned: Planned<'_>,
    got: &TensorEntry,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Option<String>> {
    let (from, to) = (planned.entry, got.dtype);
    if from.shape != got.shape {
        return Ok(Some(format!("has shape {:?}, expected {:?}", got.shape, from.shape)));
    }
    let (from_width, to_width) = (from.dtype.size_in_bytes() as u64, to.size_in_bytes() as u64);
    let mut read = vec![0; CHUNK.min(from.nbytes) as usize];
    let mut written = Vec::new();
    let mut expected = Vec::new();
    for start in (0..from.nbytes).step_by(CHUNK as usize) {
        let bytes = &mut read[..CHUNK.min(from.nbytes - start) as usize];
        src.read_at(from, start, bytes)?;
        if planned.factor != 1.0 {
            scale(from.dtype, to, planned.factor, bytes, &mut expected);
        } else if to != from.dtype {
            cast(from.dtype, to, bytes, &mut expected);
        }
        let changed = planned.factor != 1.0 || to != from.dtype;
        let expected: &[u8] = if changed { &expected } else { bytes };
        written.resize(expected.len(), 0);
        let offset = start / from_width * to_width;
        dst.read_at(got, offset, &mut written)?;
        progress(written.len() as u64);
        if written != expected {
            let at = written.iter().zip(expected).take_while(|(a, b)| a == b).count() as u64;
            return Ok(Some(format!("differs from element {} on", (offset + at) / to_width)));
        }
    }
    Ok(None)
}

fn shown(dir: &Path) -> String {
    dir.display().to_string()
}
