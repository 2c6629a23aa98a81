//! Checks on the way from damaged or unusual sources; whole conversions are in `checkpoint::tests`.

use std::fs;
use std::path::{Path, PathBuf};

use flm_checkpoint::Dtype;
use tempfile::TempDir;

use crate::convert::compare::compare;
use crate::convert::{ConvertOptions, TargetLayout, convert};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::CheckpointError;
use flm_checkpoint::Checksums;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_tests::files::{Saved, Zip, fixture, pytorch};

/// A copy of a fixture that may be changed.
/// A checkpoint in a folder of its own, with room beside it.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("src")
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn copy(name: &str) -> Folder {
    let dir = Folder::new();
    for entry in fs::read_dir(fixture("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn out(dir: &TempDir) -> PathBuf {
    dir.path().join("out")
}

fn run(
    src: &Path,
    dst: &Path,
    options: &ConvertOptions,
) -> Result<crate::convert::ConvertReport, CheckpointError> {
    convert(&Checkpoint::open(src)?, dst, options, &|_| ())
}

/// For the zeros that tests are made of.
fn of_zeros() -> ConvertOptions {
    ConvertOptions { allow_zero: true, ..ConvertOptions::default() }
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

fn checkpoint_of(config: &TeleFlmConfig, bin: &[u8]) -> Folder {
    let dir = Folder::new();
    fs::write(dir.path().join("config.json"), config.to_json()).unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), bin).unwrap();
    dir
}

#[test]
fn a_flipped_bit_in_a_storage_is_found_and_named() {
    let src = copy("teleflm-gqa-bf16-shbin");
    let checkpoint = Checkpoint::open(&src.path()).unwrap();
    let entry = checkpoint.entry("model.layers.1.mlp.up_proj.weight").unwrap();
    let path = checkpoint.files()[entry.file].path.clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[(entry.offset + entry.nbytes - 1) as usize] ^= 1;
    fs::write(&path, bytes).unwrap();
    let text = run(&src.path(), &src.beside("out"), &ConvertOptions::default()).unwrap_err().to_string();
    assert!(text.contains("(tensor model.layers.1.mlp.up_proj.weight)"), "{text}");
    assert!(text.contains("/data/") && text.ends_with("download the file again"), "{text}");
    assert!(!src.beside("out").exists() && !src.beside(".out.partial").exists());
}

#[test]
fn storages_that_no_tensor_covers_are_checked_too() {
    let config = tiny_config(serde_json::json!({}));
    let zip = one_storage(&config, 1);
    let src = checkpoint_of(&config, &zip.bytes);
    let report = run(&src.path(), &src.beside("out"), &ConvertOptions::default()).unwrap();
    // Every element once as part of its tensor, and the storage once more.
    assert_eq!(report.bytes_read, 2 * report.bytes_written + 4);
    let converted = Checkpoint::open(&src.beside("out")).unwrap();
    let norm = flm_candle::read_tensor(&converted, "model.norm.weight", &candle_core::Device::Cpu).unwrap();
    let last = (config.parameter_count() - 1) as f32;
    assert_eq!(norm.to_vec1::<f32>().unwrap(), [last, last + 1.0]);

    let first = zip.locals[2] + 30 + "archive/data/0".len();
    let src = checkpoint_of(&config, &zip.set(first, &[1]).bytes);
    let error = run(&src.path(), &src.beside("out"), &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Checksum { .. }), "{error}");
}

#[test]
fn a_source_that_is_not_its_configs_model_is_refused() {
    let config = tiny_config(serde_json::json!({}));
    let bytes = one_storage(&config, 0).bytes;
    let check = |extra: serde_json::Value| {
        let src = checkpoint_of(&tiny_config(extra), &bytes);
        run(&src.path(), &src.beside("out"), &ConvertOptions::default()).unwrap_err()
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
fn zeros(config: &TeleFlmConfig, dtype: Dtype, more: &[(&str, &[usize])]) -> TempDir {
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
    let dir = zeros(&config, Dtype::F32, &[("model.extra", &[1])]);
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
    let dir = zeros(&config, Dtype::F32, &[]);
    let mut other = config.clone();
    other.num_hidden_layers = 1 << 32;
    fs::write(dir.path().join("src/config.json"), other.to_json()).unwrap();
    assert!(Checkpoint::open(&dir.path().join("src")).unwrap().problems().len() < 20);
}

#[test]
fn a_tied_head_that_is_stored_is_kept_and_must_have_the_right_shape() {
    let config = tiny_config(serde_json::json!({}));
    let dir = zeros(&config, Dtype::F32, &[("lm_head.weight", &[3, 2])]);
    run(&dir.path().join("src"), &out(&dir), &of_zeros()).unwrap();
    assert!(Checkpoint::open(&out(&dir)).unwrap().contains("lm_head.weight"));
    let dir = zeros(&config, Dtype::F32, &[("lm_head.weight", &[2, 3])]);
    let error = Checkpoint::open(&dir.path().join("src")).unwrap().check().unwrap_err();
    assert!(matches!(error, CheckpointError::ShapeMismatch { tensor, .. } if tensor == "lm_head.weight"));
}

#[test]
fn a_wrong_torch_dtype_is_a_problem_that_conversion_mends() {
    for (key, name) in [("torch_dtype", "float16"), ("dtype", "float16")] {
        let config = tiny_config(serde_json::json!({ key: name }));
        let dir = zeros(&config, Dtype::BF16, &[]);
        let src = dir.path().join("src");
        let error = Checkpoint::open(&src).unwrap().check().unwrap_err();
        assert!(matches!(
            error,
            CheckpointError::DTypeMismatch { declared: Dtype::F16, got: Dtype::BF16, .. }
        ));
        run(&src, &out(&dir), &of_zeros()).unwrap();
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
        config.tensors().map(|t| TensorSpec { name: t.name, dtype: Dtype::F32, shape: t.shape }).collect();
    let writer = Writer::create(&dir.path().join("src"), &specs, u64::MAX).unwrap();
    for (i, s) in specs.iter().enumerate() {
        let value = if i == 0 { 1e6f32 } else { 1.0 };
        let bytes: Vec<u8> = (0..s.shape.iter().product()).flat_map(|_| value.to_le_bytes()).collect();
        writer.write_at(&s.name, 0, &bytes).unwrap();
    }
    writer.finish(&config).unwrap();
    let options = ConvertOptions { dtype: Some(Dtype::F16), ..ConvertOptions::default() };
    let report = run(&dir.path().join("src"), &out(&dir), &options).unwrap();
    assert_eq!(report.overflowed, 6);
}

fn bytes_at(path: &Path, offset: u64, len: u64) -> Vec<u8> {
    fs::read(path).unwrap()[offset as usize..(offset + len) as usize].to_vec()
}

#[test]
fn the_manifest_ties_every_tensor_to_its_source() {
    let src = copy("teleflm-gqa-bf16-shbin");
    let source = Checkpoint::open(&src.path()).unwrap();
    let options = ConvertOptions { max_shard_size: 100_000, ..Default::default() };
    convert(&source, &src.beside("out"), &options, &|_| ()).unwrap();
    let checksums = Checksums::read(&src.beside("out")).unwrap();
    let converted = Checkpoint::open(&src.beside("out")).unwrap();
    assert_eq!(checksums.tensors.len(), 39);
    assert_eq!(checksums.weights.len(), converted.files().len());
    for entry in converted.entries() {
        let bytes = converted.read(entry).unwrap();
        assert_eq!(checksums.tensors[&entry.name], blake3::hash(&bytes).to_hex().as_str(), "{}", entry.name);
        let from = &checksums.sources[&entry.name];
        assert_eq!(bytes_at(&src.path().join(&from.file), from.offset, from.bytes), bytes);
        assert_eq!((from.dtype.as_str(), &from.shape, from.factor), ("bfloat16", &entry.shape, None));
        let number = from.entry.as_ref().unwrap().split_once("/data/").unwrap().1;
        assert!(number.parse::<u32>().is_ok(), "{number}");
    }
    let report = checksums.check(&src.beside("out"), None, &|_| ()).unwrap();
    let size: u64 =
        fs::read_dir(src.beside("out")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let own = fs::metadata(src.beside("out").join("checksums.json")).unwrap().len();
    assert!(
        report.passed && report.bytes == size - own && checksums.total_bytes() == size - own,
        "{report:?}"
    );

    // a bit of a tensor, of a header, of a text; a file that is cut
    let entry = converted.entry("model.layers.2.mlp.up_proj.weight").unwrap();
    let path = &converted.files()[entry.file].path;
    let damage = |path: &Path, at: usize, expected: &str| {
        let before = fs::read(path).unwrap();
        let mut bytes = before.clone();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
        let report = checksums.check(&src.beside("out"), None, &|_| ()).unwrap();
        assert!(!report.passed && report.problems[0].contains(expected), "{expected}: {report:?}");
        fs::write(path, before).unwrap();
    };
    damage(path, (entry.offset + entry.nbytes) as usize - 1, "model.layers.2.mlp.up_proj.weight is damaged");
    damage(path, 20, "another header");
    damage(&src.beside("out").join("config.json"), 5, "config.json has other contents");
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(fs::metadata(path).unwrap().len() - 1).unwrap();
    let report = checksums.check(&src.beside("out"), None, &|_| ()).unwrap();
    assert!(report.problems[0].contains("bytes, expected"), "{report:?}");
}

#[test]
fn digests_are_those_of_tensors_of_many_chunks_and_of_changed_dtypes() {
    // 5.2 MB of embedding: three chunks, the last of them short; gains are one
    let config = tiny_config(serde_json::json!({"vocab_size": 1_300_001, "hidden_size": 2}));
    let src = checkpoint_of(&config, &one_storage(&config, 0).bytes);
    for (dtype, width) in [(None, 4), (Some(Dtype::BF16), 2), (Some(Dtype::F64), 8)] {
        let dst = src.beside(&format!("out-{width}"));
        run(&src.path(), &dst, &ConvertOptions { dtype, ..Default::default() }).unwrap();
        let converted = Checkpoint::open(&dst).unwrap();
        let checksums = Checksums::read(&dst).unwrap();
        for entry in converted.entries() {
            let bytes = converted.read(entry).unwrap();
            assert_eq!(bytes.len(), entry.shape.iter().product::<usize>() * width);
            let digest = blake3::hash(&bytes).to_hex();
            assert_eq!(checksums.tensors[&entry.name], digest.as_str(), "{}", entry.name);
        }
        let same = compare(&Checkpoint::open(&src.path()).unwrap(), &converted, &|_| ()).unwrap();
        assert!(same.passed && same.tensors == converted.entries().count(), "{same:?}");
    }
}

#[test]
fn compare_names_what_differs() {
    let src = copy("teleflm-gqa-bf16-shbin");
    let source = Checkpoint::open(&src.path()).unwrap();
    for dtype in [None, Some(Dtype::F32), Some(Dtype::F16)] {
        let dst = src.beside(&format!("{dtype:?}"));
        convert(&source, &dst, &ConvertOptions { dtype, ..Default::default() }, &|_| ()).unwrap();
        let same = |dst: &Path| compare(&source, &Checkpoint::open(dst).unwrap(), &|_| ()).unwrap();
        assert!(same(&dst).passed, "{:?}", same(&dst));
        let converted = Checkpoint::open(&dst).unwrap();
        let entry = converted.entry("model.layers.3.self_attn.o_proj.weight").unwrap();
        let path = &converted.files()[entry.file].path;
        let mut bytes = fs::read(path).unwrap();
        bytes[(entry.offset + 100 * entry.dtype.size_in_bytes() as u64) as usize] ^= 1;
        fs::write(path, bytes).unwrap();
        let report = same(&dst);
        let [difference] = report.differences.as_slice() else { panic!("{report:?}") };
        assert_eq!(difference.name, entry.name);
        assert_eq!(difference.problem, "differs from element 100 on");
        // a constant that the weights do not show
        let config = dst.join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        json["rms_norm_eps"] = 1e-6.into();
        fs::write(&config, json.to_string()).unwrap();
        assert_eq!(same(&dst).differences[0].name, "config.json: rms_norm_eps");
    }
}

/// Converts until so many bytes are done, then dies as a killed process would.
fn interrupted(src: &Path, dst: &Path, options: &ConvertOptions, stop: u64) {
    let done = std::sync::atomic::AtomicU64::new(0);
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let progress = |n: u64| {
            if done.fetch_add(n, std::sync::atomic::Ordering::Relaxed) + n > stop {
                std::panic::resume_unwind(Box::new("stop"));
            }
        };
        convert(&Checkpoint::open(src).unwrap(), dst, options, &progress).map(drop)
    }));
    assert!(run.is_err() && !dst.exists());
}

/// All files of a directory.
fn contents(dir: &Path) -> std::collections::BTreeMap<std::ffi::OsString, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    files.map(|e| (e.file_name(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_run_that_died_goes_on_and_ends_in_the_same_bytes() {
    let src = copy("teleflm-gqa-bf16-shbin");
    for dtype in [None, Some(Dtype::F32)] {
        let options = ConvertOptions { dtype, max_shard_size: 100_000, ..Default::default() };
        let whole = src.beside(&format!("whole-{dtype:?}"));
        let total = run(&src.path(), &whole, &options).unwrap().bytes_written;
        for part in 1..8 {
            let dst = src.beside(&format!("out-{part}"));
            let read = Checkpoint::open(&src.path()).unwrap().entries().map(|e| e.nbytes).sum::<u64>();
            interrupted(&src.path(), &dst, &options, read * part / 8);
            // what a crash of the machine can leave: a tensor that the journal has and the disk lost
            let staging = src.beside(&format!(".out-{part}.partial"));
            if part == 7 {
                let journal = fs::read_to_string(staging.join(".journal.jsonl")).unwrap();
                let line: serde_json::Value = serde_json::from_str(journal.lines().nth(1).unwrap()).unwrap();
                let lost = line["tensor"].as_str().unwrap();
                let converted = Checkpoint::open(&whole).unwrap();
                let entry = converted.entry(lost).unwrap();
                let name = converted.files()[entry.file].path.file_name().unwrap().to_owned();
                let path = staging.join(name);
                let mut bytes = fs::read(&path).unwrap();
                bytes[entry.offset as usize] ^= 0x55;
                fs::write(&path, bytes).unwrap();
            }
            let report = run(&src.path(), &dst, &options).unwrap();
            assert!(part < 3 || report.resumed_bytes > 0, "{part}: {report:?}");
            assert!(report.resumed_bytes < total);
            assert_eq!(contents(&dst), contents(&whole), "{part}");
            assert!(!staging.exists());
            fs::remove_dir_all(&dst).unwrap();
        }
    }
}

#[test]
fn remains_of_another_run_are_refused_unless_thrown_away() {
    let src = copy("teleflm-gqa-bf16-shbin");
    let dst = src.beside("out");
    let options = ConvertOptions::default();
    interrupted(&src.path(), &dst, &options, 200_000);
    let others = [
        (
            ConvertOptions { dtype: Some(Dtype::F32), ..options.clone() },
            "another dtype (as stored, now float32)",
        ),
        (
            ConvertOptions { max_shard_size: 7, ..options.clone() },
            "another largest file size (5000000000, now 7)",
        ),
        (ConvertOptions { layout: Some(TargetLayout::Llama), ..options.clone() }, "another layout"),
    ];
    for (other, expected) in &others {
        let error = run(&src.path(), &dst, other).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("--restart"), "{error}");
    }
    let config = src.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    let error = run(&src.path(), &dst, &options).unwrap_err().to_string();
    assert!(error.contains("another source (config.json has changed since)"), "{error}");
    let report = run(&src.path(), &dst, &ConvertOptions { restart: true, ..options }).unwrap();
    assert_eq!(report.resumed_bytes, 0);
    assert!(dst.exists());
}

#[test]
fn zeros_stay_holes_also_when_a_run_goes_on() {
    use std::os::unix::fs::MetadataExt;
    let config = tiny_config(serde_json::json!({"vocab_size": 3_000_000}));
    let dir = zeros(&config, Dtype::F32, &[]);
    let (src, dst) = (dir.path().join("src"), out(&dir));
    let total = run(&src, &dst, &of_zeros()).unwrap().hole_bytes;
    let taken = |dst: &Path| fs::metadata(dst.join("model.safetensors")).unwrap().blocks() * 512;
    assert!(total > 24_000_000 && taken(&dst) < 1 << 20, "{total} {}", taken(&dst));
    let again = dir.path().join("again");
    interrupted(&src, &again, &of_zeros(), 9_000_000);
    // garbage where a hole should be
    let path = dir.path().join(".again.partial/model.safetensors");
    let size = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"garbage", size - 1000).unwrap();
    run(&src, &again, &of_zeros()).unwrap();
    assert!(taken(&again) < 4 << 20);
    assert_eq!(contents(&dst), contents(&again));
}
