//! Checkpoints with random weights, to pre-train from.

use std::collections::BTreeMap;
use std::path::Path;

use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::Writer;
use flm_checkpoint::{Card, copy_side_files, require_outside};
use flm_checkpoint::{EMBED_TOKENS, TensorSpec};

use crate::error::Result;
use crate::execute::record::PROVENANCE_FILE;
use crate::fill::NormalFill;
use flm_checkpoint::{Checksums, Dtype};

/// Standard deviation of the embedding's rows.
pub(crate) const EMBEDDING_STD: f64 = 0.2;

/// Bytes drawn at a time.
const CHUNK: usize = 4 << 20;

/// Writes a checkpoint of `config` to the new directory `dst`, with weights drawn for `seed` and the
/// tokenizer and other side files of `side_files`, where given.
///
/// Gains are 1 and biases 0; the embedding has the standard deviation `EMBEDDING_STD`; a matrix has 1/√(its
/// columns), so that an input of size 1 comes out at size 1, and the two that add to the residual stream
/// (`o_proj`, `down_proj`) have that over √(2 · layers), after GPT-2. Weights depend on seed, tensor name
/// and index only. `progress` hears the bytes that were written since its last call.
///
/// # Errors
/// When a file cannot be written, or `dst` is taken or lies inside `side_files`.
pub fn init(
    config: &TeleFlmConfig,
    dst: &Path,
    side_files: Option<&Path>,
    seed: u64,
    dtype: Dtype,
    max_shard_bytes: u64,
    progress: &dyn Fn(u64),
) -> Result<()> {
    side_files.map_or(Ok(()), |dir| require_outside(dir, dst))?;
    let specs: Vec<TensorSpec> =
        config.tensors().map(|tensor| TensorSpec { name: tensor.name, dtype, shape: tensor.shape }).collect();
    let writer = Writer::create_model(dst, config, &specs, max_shard_bytes)?;
    let (mut chunk, mut digests) = (Vec::new(), BTreeMap::new());
    for spec in &specs {
        let one = {
            let mut bytes = [0; 8];
            dtype.encode(1.0 - config.gain_offset(), &mut bytes[..dtype.size_in_bytes()]);
            bytes
        };
        let fill = NormalFill::new(seed, &spec.name, dtype, std(config, spec))?;
        let len = spec.shape.iter().product::<usize>() * dtype.size_in_bytes();
        let mut hasher = blake3::Hasher::new();
        for start in (0..len).step_by(CHUNK) {
            chunk.resize(CHUNK.min(len - start), 0);
            if spec.name.ends_with(".bias") {
                chunk.fill(0);
            } else if spec.shape.len() == 1 {
                chunk
                    .chunks_exact_mut(dtype.size_in_bytes())
                    .for_each(|v| v.copy_from_slice(&one[..v.len()]));
            } else {
                fill.write((start / dtype.size_in_bytes()) as u64, &mut chunk);
            }
            writer.write_at(&spec.name, start as u64, &chunk)?;
            hasher.update(&chunk);
            progress(chunk.len() as u64);
        }
        digests.insert(spec.name.clone(), hasher.finalize().to_hex().to_string());
    }
    if let Some(dir) = side_files {
        copy_side_files(dir, writer.staging_dir(), Card::Leave)?;
    }
    let mut config = config.clone();
    config.set_dtype(dtype);
    let provenance =
        serde_json::json!({ "tool": crate::execute::record::TOOL, "source": "", "init": { "seed": seed } });
    let path = writer.staging_dir().join(PROVENANCE_FILE);
    flm_checkpoint::atomic::write(&path, format!("{provenance:#}\n").as_bytes())?;
    writer.finish_with_checksums(&config, Checksums { tensors: digests, ..Checksums::default() })?;
    Ok(())
}

fn std(config: &TeleFlmConfig, spec: &TensorSpec) -> f64 {
    match spec.shape.as_slice() {
        _ if spec.name == EMBED_TOKENS => EMBEDDING_STD,
        [_, columns] => {
            let residual = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
            let layers = if residual { 2.0 * config.num_hidden_layers as f64 } else { 1.0 };
            1.0 / (*columns as f64 * layers).sqrt()
        }
        // gains are not drawn
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use flm_checkpoint::Checkpoint;
    use flm_checkpoint::Dtype;
    use flm_checkpoint::preset;

    use super::*;

    #[test]
    fn weights_have_their_width_and_depend_on_the_seed_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = preset("nano-52b").unwrap();
        let make = |name: &str, seed, dtype| {
            let path = dir.path().join(name);
            init(&config, &path, None, seed, dtype, 1 << 20, &|_| ()).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert!(checkpoint.problems().is_empty(), "{:?}", checkpoint.problems());
            checkpoint
        };
        let (a, b, c) = (make("a", 1, Dtype::F32), make("b", 1, Dtype::F32), make("c", 2, Dtype::BF16));
        assert_eq!(c.config().declared_dtype(), Some(Dtype::BF16));
        let (width, layers) = (96f64, 16f64);
        for (name, std) in [
            (EMBED_TOKENS, 0.2),
            ("lm_head.weight", width.powf(-0.5)),
            ("model.layers.3.self_attn.q_proj.weight", width.powf(-0.5)),
            ("model.layers.3.self_attn.o_proj.weight", (width * 2.0 * layers).powf(-0.5)),
            ("model.layers.3.mlp.down_proj.weight", (256.0 * 2.0 * layers).powf(-0.5)),
        ] {
            let values = |checkpoint: &Checkpoint| checkpoint.read(checkpoint.entry(name).unwrap()).unwrap();
            assert_eq!(values(&a), values(&b), "{name}");
            assert_ne!(values(&a)[..8], values(&c)[..8], "{name}");
            let values: Vec<f64> = values(&a).chunks_exact(4).map(|v| Dtype::F32.decode(v)).collect();
            let measured = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
            assert!((measured / std - 1.0).abs() < 0.03, "{name}: {measured}");
        }
        let gain = a.read(a.entry("model.norm.weight").unwrap()).unwrap();
        assert!(gain.chunks_exact(4).all(|v| Dtype::F32.decode(v) == 1.0));
    }
}
