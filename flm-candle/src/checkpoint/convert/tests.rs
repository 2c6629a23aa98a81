//! Checks on the way from damaged or unusual sources; whole conversions are in `checkpoint::tests`.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::DType;
use tempfile::TempDir;

use super::{ConvertOptions, convert};
use crate::checkpoint::fixtures::{Saved, Zip, fixture, pytorch};
use crate::checkpoint::{Checkpoint, CheckpointError, TensorSpec, Writer};
use crate::config::TeleFlmConfig;

/// A copy of a fixture that may be changed.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn out(dir: &TempDir) -> PathBuf {
    dir.path().join("out")
}

fn run(src: &Path, dst: &Path, options: &ConvertOptions) -> Result<super::ConvertReport, CheckpointError> {
    convert(&Checkpoint::open(src)?, dst, options, &|_| ())
}

/// A model so small that it can be written by hand, its head tied to the embedding.
fn tiny_config(extra: serde_json::Value) -> TeleFlmConfig {
    let mut json = serde_json::json!({
        "model_type": "llama", "hidden_size": 2, "intermediate_size": 1, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 3, "max_position_embeddings": 4, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    TeleFlmConfig::from_json(&json.to_string()).unwrap()
}

/// The tensors of `config` in one PyTorch file, all parts of one storage of floats 0, 1, 2, …, with
/// `gap` elements before the first.
fn one_storage(config: &TeleFlmConfig, gap: usize) -> Zip {
    let shapes: Vec<_> = config.tensors().collect();
    let sizes: Vec<Vec<i64>> = shapes.iter().map(|t| t.shape.iter().map(|&n| n as i64).collect()).collect();
    let strides: Vec<Vec<i64>> =
        sizes.iter().map(|s| if s.len() == 2 { vec![s[1], 1] } else { vec![1] }).collect();
    let elements = gap as i64 + sizes.iter().map(|s| s.iter().product::<i64>()).sum::<i64>();
    let data: Vec<u8> = (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut offset = gap as i64;
    let mut saved = Vec::new();
    for ((tensor, shape), stride) in shapes.iter().zip(&sizes).zip(&strides) {
        saved.push(Saved { name: &tensor.name, elements, offset, shape, stride, ..Saved::default() });
        offset += shape.iter().product::<i64>();
    }
    pytorch(&saved, &[("0", &data)])
}

fn checkpoint_of(config: &TeleFlmConfig, bin: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), bin).unwrap();
    dir
}

#[test]
fn a_flipped_bit_in_a_storage_is_found_and_named() {
    let src = copy("teleflm-gqa-bf16-shbin");
    let checkpoint = Checkpoint::open(src.path()).unwrap();
    let entry = checkpoint.entry("model.layers.1.mlp.up_proj.weight").unwrap();
    let path = checkpoint.files()[entry.file].path.clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[(entry.offset + entry.nbytes - 1) as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let text = run(src.path(), &out(&src), &ConvertOptions::default()).unwrap_err().to_string();
    assert!(text.contains("(tensor model.layers.1.mlp.up_proj.weight)"), "{text}");
    assert!(text.contains("/data/") && text.ends_with("download the file again"), "{text}");
    assert!(!out(&src).exists() && !src.path().join(".out.partial").exists());
}

#[test]
fn storages_that_no_tensor_covers_are_checked_too() {
    let config = tiny_config(serde_json::json!({}));
    let zip = one_storage(&config, 1);
    let src = checkpoint_of(&config, &zip.bytes);
    let report = run(src.path(), &out(&src), &ConvertOptions::default()).unwrap();
    // Every element once as part of its tensor, and the storage once more.
    assert_eq!(report.bytes_read, 2 * report.bytes_written + 4);
    let converted = Checkpoint::open(&out(&src)).unwrap();
    let norm = converted.tensor("model.norm.weight", &candle_core::Device::Cpu).unwrap();
    let last = (config.parameter_count() - 1) as f32;
    assert_eq!(norm.to_vec1::<f32>().unwrap(), [last, last + 1.0]);

    let first = zip.locals[2] + 30 + "archive/data/0".len();
    let src = checkpoint_of(&config, &zip.set(first, &[1]).bytes);
    let error = run(src.path(), &out(&src), &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Checksum { .. }), "{error}");
}

#[test]
fn a_source_that_is_not_its_configs_model_is_refused() {
    let config = tiny_config(serde_json::json!({}));
    let bytes = one_storage(&config, 0).bytes;
    let check = |extra: serde_json::Value| {
        let src = checkpoint_of(&tiny_config(extra), &bytes);
        run(src.path(), &out(&src), &ConvertOptions::default()).unwrap_err()
    };
    assert!(matches!(check(serde_json::json!({"vocab_size": 4})), CheckpointError::ShapeMismatch { .. }));
    assert!(matches!(
        check(serde_json::json!({"num_hidden_layers": 2})),
        CheckpointError::MissingTensor { .. }
    ));
    assert!(matches!(
        check(serde_json::json!({"tie_word_embeddings": false})),
        CheckpointError::MissingTensor { .. }
    ));
}

/// Writes `config`'s tensors and `more`, all zero.
fn zeros(config: &TeleFlmConfig, dtype: DType, more: &[(&str, &[usize])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let own = config.tensors().map(|t| TensorSpec { name: t.name, dtype, shape: t.shape });
    let more = more.iter().map(|&(name, shape)| TensorSpec { name: name.into(), dtype, shape: shape.into() });
    let specs: Vec<_> = own.chain(more).collect();
    let writer = Writer::create(&dir.path().join("src"), &specs, u64::MAX).unwrap();
    for s in &specs {
        writer
            .skip(&s.name, 0, (s.shape.iter().product::<usize>() * s.dtype.size_in_bytes()) as u64)
            .unwrap();
    }
    writer.finish(config).unwrap();
    dir
}

#[test]
fn problems_lists_everything() {
    let config = tiny_config(serde_json::json!({}));
    let dir = zeros(&config, DType::F32, &[("model.extra", &[1])]);
    let mut other = config.clone();
    other.vocab_size = 4;
    other.num_hidden_layers = 2;
    other.set_raw("torch_dtype", "bfloat16".into());
    fs::write(dir.path().join("src/config.json"), other.to_json()).unwrap();
    let checkpoint = Checkpoint::open(&dir.path().join("src")).unwrap();
    let problems = checkpoint.problems();
    let count = |test: fn(&CheckpointError) -> bool| problems.iter().filter(|p| test(p)).count();
    assert_eq!(count(|p| matches!(p, CheckpointError::ShapeMismatch { .. })), 1);
    assert_eq!(count(|p| matches!(p, CheckpointError::MissingTensor { .. })), 9);
    assert_eq!(count(|p| matches!(p, CheckpointError::UnknownTensor { .. })), 1);
    assert_eq!(count(|p| matches!(p, CheckpointError::DTypeMismatch { .. })), 1);
    assert_eq!(problems.len(), 12);
    assert_eq!(checkpoint.check().unwrap_err().to_string(), problems[0].to_string());
}

#[test]
fn a_config_of_billions_of_layers_is_refused_in_a_moment() {
    let config = tiny_config(serde_json::json!({}));
    let dir = zeros(&config, DType::F32, &[]);
    let mut other = config.clone();
    other.num_hidden_layers = 1 << 32;
    fs::write(dir.path().join("src/config.json"), other.to_json()).unwrap();
    assert!(Checkpoint::open(&dir.path().join("src")).unwrap().problems().len() < 20);
}

#[test]
fn a_tied_head_that_is_stored_is_kept_and_must_have_the_right_shape() {
    let config = tiny_config(serde_json::json!({}));
    let dir = zeros(&config, DType::F32, &[("lm_head.weight", &[3, 2])]);
    run(&dir.path().join("src"), &out(&dir), &ConvertOptions::default()).unwrap();
    assert!(Checkpoint::open(&out(&dir)).unwrap().contains("lm_head.weight"));
    let dir = zeros(&config, DType::F32, &[("lm_head.weight", &[2, 3])]);
    let error = Checkpoint::open(&dir.path().join("src")).unwrap().check().unwrap_err();
    assert!(matches!(error, CheckpointError::ShapeMismatch { tensor, .. } if tensor == "lm_head.weight"));
}

#[test]
fn a_wrong_torch_dtype_is_a_problem_that_conversion_mends() {
    for (key, name) in [("torch_dtype", "float16"), ("dtype", "float16")] {
        let config = tiny_config(serde_json::json!({ key: name }));
        let dir = zeros(&config, DType::BF16, &[]);
        let src = dir.path().join("src");
        let error = Checkpoint::open(&src).unwrap().check().unwrap_err();
        assert!(matches!(
            error,
            CheckpointError::DTypeMismatch { declared: DType::F16, got: DType::BF16, .. }
        ));
        run(&src, &out(&dir), &ConvertOptions::default()).unwrap();
        let converted = Checkpoint::open(&out(&dir)).unwrap();
        converted.check().unwrap();
        assert_eq!(converted.config().raw()[key], "bfloat16");
    }
}

#[test]
fn overflow_to_infinity_is_counted() {
    let config = tiny_config(serde_json::json!({}));
    let dir = tempfile::tempdir().unwrap();
    let specs: Vec<_> =
        config.tensors().map(|t| TensorSpec { name: t.name, dtype: DType::F32, shape: t.shape }).collect();
    let writer = Writer::create(&dir.path().join("src"), &specs, u64::MAX).unwrap();
    for (i, s) in specs.iter().enumerate() {
        let value = if i == 0 { 1e6f32 } else { 1.0 };
        let bytes: Vec<u8> = (0..s.shape.iter().product()).flat_map(|_| value.to_le_bytes()).collect();
        writer.write_at(&s.name, 0, &bytes).unwrap();
    }
    writer.finish(&config).unwrap();
    let options = ConvertOptions { dtype: Some(DType::F16), ..ConvertOptions::default() };
    let report = run(&dir.path().join("src"), &out(&dir), &options).unwrap();
    assert_eq!(report.overflowed, 6);
}
