//! The writer: nothing half-written gets a name, nothing that exists is replaced.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::TensorView;

use crate::config::TeleFlmConfig;
use crate::dtype::Dtype;
use crate::error::CheckpointError;
use crate::read::Checkpoint;
use crate::tensor_id::TensorSpec;
use crate::write::sidecar::{Card, copy_side_files};
use crate::write::writer::Writer;

fn config() -> TeleFlmConfig {
    let path = flm_tests::files::fixture("models/teleflm-f32-st/config.json");
    TeleFlmConfig::from_file(&path).unwrap()
}

fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.into() }
}

/// A writer of one tensor `w` of eight bytes.
fn small(dst: &Path) -> Writer {
    Writer::create(dst, &[spec("w", Dtype::F32, &[2])], u64::MAX).unwrap()
}

#[test]
fn unwritten_bytes_are_found_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let writer = small(&dst);
    writer.write_at("w", 0, &[1; 3]).unwrap();
    writer.skip("w", 5, 3).unwrap();
    let error = writer.finish(&config()).unwrap_err();
    assert_eq!(error.to_string(), "2 of 8 bytes of w were never written");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn writes_outside_a_tensor_or_of_an_unknown_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = small(&dir.path().join("out"));
    for (offset, len) in [(7, 2), (9, 0), (u64::MAX, 2)] {
        assert!(matches!(
            writer.write_at("w", offset, &vec![0; len]),
            Err(CheckpointError::OutOfRange { .. })
        ));
        assert!(matches!(writer.skip("w", offset, len as u64), Err(CheckpointError::OutOfRange { .. })));
    }
    assert!(matches!(writer.write_at("v", 0, &[]), Err(CheckpointError::NotInOutput(name)) if name == "v"));
}

#[test]
fn skipped_bytes_are_zero_and_rewritten_bytes_are_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let writer = small(&dst);
    writer.skip("w", 0, 8).unwrap();
    writer.write_at("w", 2, &[1, 1, 1]).unwrap();
    writer.write_at("w", 3, &[2]).unwrap();
    writer.finish(&config()).unwrap();
    let checkpoint = Checkpoint::open(&dst).unwrap();
    assert_eq!(checkpoint.read(checkpoint.entry("w").unwrap()).unwrap(), [0, 0, 1, 2, 1, 0, 0, 0]);
}

#[test]
fn an_output_that_exists_is_refused_unless_it_is_an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    fs::create_dir(&dst).unwrap();
    let writer = small(&dst);
    fs::write(dst.join("x"), "").unwrap();
    let refused = |result: Result<_, _>| matches!(result, Err(CheckpointError::DestinationExists { .. }));
    // It was filled meanwhile.
    writer.skip("w", 0, 8).unwrap();
    assert!(refused(writer.finish(&config())));
    assert!(refused(Writer::create(&dst, &[], 1).map(drop)));
    fs::remove_file(dst.join("x")).unwrap();
    let writer = small(&dst);
    writer.skip("w", 0, 8).unwrap();
    writer.finish(&config()).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refused(Writer::create(&file, &[], 1).map(drop)));
    assert!(matches!(Writer::create(Path::new(".."), &[], 1), Err(CheckpointError::BadDestination { .. })));
}

#[test]
fn what_another_run_can_be_resumed_from_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let mut writer = small(&dst);
    writer.keep_staging();
    let journal = writer.staging_dir().join(".journal.jsonl");
    fs::write(&journal, "").unwrap();
    drop(writer);
    let again = Writer::create(&dst, &[spec("w", Dtype::F32, &[2])], u64::MAX);
    assert!(matches!(again, Err(CheckpointError::Unfinished { .. })));
    assert!(journal.exists());
}

#[test]
fn the_journal_is_gone_before_the_directory_gets_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let mut writer = small(&dst);
    writer.skip("w", 0, 8).unwrap();
    writer.keep_staging();
    let journal = writer.staging_dir().join(".journal.jsonl");
    fs::write(&journal, "").unwrap();
    // the last step fails, as if the process died there
    fs::create_dir(&dst).unwrap();
    fs::write(dst.join("x"), "").unwrap();
    assert!(matches!(writer.finish(&config()), Err(CheckpointError::DestinationExists { .. })));
    assert!(dir.path().join(".out.partial/model.safetensors").exists());
    assert!(!journal.exists());
}

#[test]
fn a_staging_directory_in_use_is_refused_and_one_left_behind_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let mut writer = small(&dst);
    assert_eq!(writer.staging_dir(), dir.path().join(".out.partial"));
    let second = Writer::create(&dst, &[], 1);
    assert!(matches!(second, Err(CheckpointError::InUse { .. })));
    assert!(writer.staging_dir().join("model.safetensors").exists());
    writer.keep_staging();
    fs::create_dir(writer.staging_dir().join("sub")).unwrap();
    drop(writer);
    assert!(dir.path().join(".out.partial/model.safetensors").exists());
    let writer = Writer::create(&dst, &[], 1).unwrap();
    writer.finish(&config()).unwrap();
    let mut names: Vec<_> = fs::read_dir(&dst).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert!(!dir.path().join(".out.partial").exists());
}

#[test]
fn what_is_not_a_writers_under_the_staging_name_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (staging, elsewhere) = (dir.path().join(".out.partial"), dir.path().join("elsewhere"));
    let refused = || {
        let out = Writer::create(&dir.path().join("out"), &[], 1);
        assert!(matches!(out, Err(CheckpointError::DestinationExists { path }) if path == staging));
    };
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("mine"), "mine").unwrap();
    refused();
    assert!(staging.join("mine").exists());
    fs::rename(&staging, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &staging).unwrap();
    refused();
    assert!(elsewhere.join("mine").exists() && staging.is_symlink());
}

#[test]
fn files_have_the_usual_mode() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let writer = small(&dst);
    writer.skip("w", 0, 8).unwrap();
    writer.finish(&config()).unwrap();
    fs::write(dir.path().join("usual"), "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&dst.join("model.safetensors")), mode(&dir.path().join("usual")));
}

#[test]
fn specs_that_cannot_be_written_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let create =
        |specs: &[TensorSpec]| Writer::create(&dir.path().join("out"), specs, 10).map(drop).unwrap_err();
    let w = spec("w", Dtype::F32, &[1]);
    assert!(matches!(create(&[w.clone(), w]), CheckpointError::DuplicateSpec(name) if name == "w"));
    for bad in [
        spec("w", Dtype::F32, &[usize::MAX, 2]),
        spec("w", Dtype::F64, &[usize::MAX / 8]),
        spec("__metadata__", Dtype::F32, &[1]),
    ] {
        assert!(matches!(create(&[bad]), CheckpointError::BadSpec { .. }));
    }
    let half = spec("v", Dtype::F32, &[1 << 60]);
    assert!(matches!(
        create(&[half.clone(), TensorSpec { name: "w".into(), ..half }]),
        CheckpointError::BadSpec { .. }
    ));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn shards_break_where_the_size_would_be_exceeded_and_the_index_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("out");
    let specs =
        [("a", 2), ("d", 3), ("c", 1), ("b", 9), ("e", 1)].map(|(n, len)| spec(n, Dtype::F32, &[len]));
    let writer = Writer::create(&dst, &specs, 24).unwrap();
    assert_eq!(writer.disk_order(), ["a", "c", "d", "b", "e"]);
    for s in &specs {
        writer.skip(&s.name, 0, 4 * s.shape[0] as u64).unwrap();
    }
    writer.finish(&config()).unwrap();
    let index = fs::read_to_string(dst.join("model.safetensors.index.json")).unwrap();
    let file = |n| format!("model-0000{n}-of-00003.safetensors");
    let expected = serde_json::json!({
        "metadata": { "total_size": 64 },
        "weight_map": { "a": file(1), "b": file(2), "c": file(1), "d": file(1), "e": file(3) }
    });
    assert_eq!(index, serde_json::to_string_pretty(&expected).unwrap() + "\n");
    assert_eq!(Checkpoint::open(&dst).unwrap().files().len(), 3);
}

#[test]
fn side_files_are_copied_and_code_is_not() {
    let (src, dst) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["tokenizer.model", "LICENSE.txt", "modeling_teleflm.py", "config.json", "README.md", "x.bin"]
    {
        fs::write(src.path().join(name), name).unwrap();
    }
    let mut mode = fs::metadata(src.path().join("README.md")).unwrap().permissions();
    mode.set_mode(0o400);
    fs::set_permissions(src.path().join("README.md"), mode).unwrap();
    let copied = copy_side_files(src.path(), dst.path(), Card::Keep).unwrap();
    assert_eq!(copied, ["LICENSE.txt", "README.md", "tokenizer.model"]);
    assert_eq!(fs::read_to_string(dst.path().join("tokenizer.model")).unwrap(), "tokenizer.model");
    assert_ne!(fs::metadata(dst.path().join("README.md")).unwrap().permissions().mode() & 0o200, 0);
    fs::create_dir(src.path().join("vocab.json")).unwrap();
    let error = copy_side_files(src.path(), dst.path(), Card::Keep).unwrap_err();
    assert!(matches!(error, CheckpointError::NotARegularFile { .. }));
}

fn tensor_sets() -> impl Strategy<Value = BTreeMap<String, (u8, Vec<usize>)>> {
    prop::collection::btree_map("[a-z.]{1,12}", (0u8..4, prop::collection::vec(0usize..5, 0..4)), 0..9)
}

#[test]
fn parts_that_a_family_stores_as_one_tensor_are_written_and_read_under_their_own_names() {
    let path = flm_tests::files::fixture("families/phi3-longrope");
    let source = Checkpoint::open(&path).unwrap();
    assert!(source.problems().is_empty(), "{:?}", source.problems());
    let specs: Vec<TensorSpec> =
        source.config().tensors().map(|t| spec(&t.name, Dtype::F32, &t.shape)).collect();
    for shard in [u64::MAX, 1] {
        let dir = tempfile::tempdir().unwrap();
        let dst = dir.path().join("out");
        let writer = Writer::create_model(&dst, source.config(), &specs, shard).unwrap();
        for spec in specs.iter().rev() {
            let bytes = source.read(source.entry(&spec.name).unwrap()).unwrap();
            writer.write_at(&spec.name, 0, &bytes).unwrap();
        }
        writer.finish(source.config()).unwrap();
        let checkpoint = Checkpoint::open(&dst).unwrap();
        assert!(checkpoint.problems().is_empty(), "{:?}", checkpoint.problems());
        // to others it is what the family's files are
        let mut stored: Vec<(String, Vec<usize>)> = Vec::new();
        for file in checkpoint.files() {
            let bytes = fs::read(&file.path).unwrap();
            let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            stored.extend(header.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone())));
        }
        stored.sort();
        let bytes = fs::read(path.join("model.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let mut expected: Vec<(String, Vec<usize>)> =
            header.tensors().iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect();
        expected.sort();
        assert_eq!(stored, expected);
        if shard == u64::MAX {
            assert_eq!(fs::read(dst.join("model.safetensors")).unwrap(), bytes);
        } else {
            let index = fs::read_to_string(dst.join("model.safetensors.index.json")).unwrap();
            assert!(
                index.contains("layers.0.self_attn.qkv_proj.weight") && !index.contains("self_attn.q_proj"),
                "{index}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_tensors_come_back_and_one_file_has_the_crates_bytes(
        tensors in tensor_sets(), max_shard_size in prop_oneof![Just(u64::MAX), 1u64..500], piece in 1usize..40,
    ) {
        let specs: Vec<_> =
            tensors.iter().map(|(name, (d, shape))| spec(name, Dtype::ALL[*d as usize], shape)).collect();
        let data: Vec<Vec<u8>> = specs.iter().enumerate().map(|(i, s)| {
            let nbytes = s.shape.iter().product::<usize>() * s.dtype.size_in_bytes();
            (0..nbytes).map(|j| (i * 31 + j) as u8).collect()
        }).collect();
        let dir = tempfile::tempdir().unwrap();
        let dst = dir.path().join("out");
        let writer = Writer::create(&dst, &specs, max_shard_size).unwrap();
        for (spec, data) in specs.iter().zip(&data) {
            for (i, chunk) in data.chunks(piece).enumerate().collect::<Vec<_>>().into_iter().rev() {
                writer.write_at(&spec.name, (i * piece) as u64, chunk).unwrap();
            }
        }
        writer.finish(&config()).unwrap();

        let checkpoint = Checkpoint::open(&dst).unwrap();
        prop_assert_eq!(checkpoint.entries().count(), specs.len());
        for (spec, data) in specs.iter().zip(&data) {
            let entry = checkpoint.entry(&spec.name).unwrap();
            prop_assert_eq!((entry.dtype, &entry.shape), (spec.dtype, &spec.shape));
            prop_assert_eq!(&checkpoint.read(entry).unwrap(), data);
        }
        if max_shard_size == u64::MAX {
            let views = tensors.iter().zip(&data).map(|((name, (d, shape)), data)| {
                (name, TensorView::new(Dtype::ALL[*d as usize].to_safetensors(), shape.clone(), data).unwrap())
            });
            let metadata = Some([("format".to_string(), "pt".to_string())].into());
            let expected = safetensors::serialize(views, metadata).unwrap();
            prop_assert_eq!(fs::read(dst.join("model.safetensors")).unwrap(), expected);
        }
    }
}
