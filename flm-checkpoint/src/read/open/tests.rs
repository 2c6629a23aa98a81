//! Opening a directory: which form is taken, and what is refused with which words.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::error::CheckpointError;
use crate::format::index::IndexError;
use crate::format::pickle::error::PickleError;
use crate::format::safetensors::HeaderError;
use crate::format::zip::ZipError;
use crate::read::Checkpoint;
use flm_tests::files::{Saved, fixture, pytorch, safetensors};

/// A directory with the config of a small model and no weights.
fn empty() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("models/teleflm-f32-st/config.json"), dir.path().join("config.json")).unwrap();
    dir
}

fn one_tensor(name: &str) -> Vec<u8> {
    safetensors(
        &json!({ name: { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }).to_string(),
        &[0; 4],
    )
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(dir.join(name), bytes).unwrap();
}

/// Two shards of one tensor each, `a` and `b`, and the index `map`.
fn sharded(map: serde_json::Value) -> TempDir {
    let dir = empty();
    write(dir.path(), "1.safetensors", one_tensor("a"));
    write(dir.path(), "2.safetensors", one_tensor("b"));
    write(dir.path(), "model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    dir
}

fn error(dir: &TempDir) -> CheckpointError {
    Checkpoint::open(dir.path()).unwrap_err()
}

fn mkfifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_directory_without_weights_says_what_was_looked_for() {
    let text = error(&empty()).to_string();
    for name in [
        "model.safetensors,",
        "model.safetensors.index.json",
        "pytorch_model.bin ",
        "pytorch_model.bin.index.json",
    ] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_directory_without_config_or_with_a_broken_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(error(&dir), CheckpointError::Io { .. }));
    write(dir.path(), "config.json", "[]");
    assert!(matches!(error(&dir), CheckpointError::Config(_)));
    write(dir.path(), "config.json", [0xff, 0xfe]);
    assert!(matches!(error(&dir), CheckpointError::Config(_)));
    fs::File::create(dir.path().join("config.json")).unwrap().set_len(65 << 20).unwrap();
    assert!(matches!(error(&dir), CheckpointError::TooLarge { .. }));
}

#[test]
fn of_several_forms_the_first_is_taken() {
    let dir = empty();
    let bin = pytorch(&[Saved::default()], &[("0", &[0; 24])]).bytes;
    let mut steps = vec![];
    write(dir.path(), "shard.bin", &bin);
    write(dir.path(), "pytorch_model.bin.index.json", r#"{"weight_map":{"w":"shard.bin"}}"#);
    steps.push(Checkpoint::open(dir.path()).unwrap().format());
    write(dir.path(), "pytorch_model.bin", &bin);
    steps.push(Checkpoint::open(dir.path()).unwrap().format());
    write(dir.path(), "shard.safetensors", one_tensor("w"));
    write(dir.path(), "model.safetensors.index.json", r#"{"weight_map":{"w":"shard.safetensors"}}"#);
    steps.push(Checkpoint::open(dir.path()).unwrap().format());
    write(dir.path(), "model.safetensors", one_tensor("w"));
    steps.push(Checkpoint::open(dir.path()).unwrap().format());
    use crate::read::Format::{PyTorch, Safetensors, ShardedPyTorch, ShardedSafetensors};
    assert_eq!(steps, [ShardedPyTorch, PyTorch, ShardedSafetensors, Safetensors]);
    let others = ["model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];
    assert_eq!(Checkpoint::open(dir.path()).unwrap().unread(), others);
}

#[test]
fn errors_in_headers_name_their_file() {
    let dir = empty();
    write(dir.path(), "pytorch_model.bin", "PK");
    assert!(matches!(error(&dir), CheckpointError::Zip { source: ZipError::NotZip, .. }));
    write(dir.path(), "pytorch_model.bin", pytorch(&[Saved::default()], &[]).bytes);
    assert!(matches!(error(&dir), CheckpointError::Pickle { source: PickleError::NoStorage { .. }, .. }));
    write(dir.path(), "model.safetensors", "short");
    let error = error(&dir);
    assert!(error.to_string().contains("model.safetensors: not a safetensors file"), "{error}");
    assert!(matches!(error, CheckpointError::Header { source: HeaderError::Truncated { .. }, .. }));
}

#[test]
fn other_kinds_of_files_under_the_name_of_weights_are_named() {
    let dir = empty();
    for (bytes, says) in [
        (&b"GGUF\x03\0\0\0"[..], "a GGUF file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", "compressed with gzip"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
    ] {
        for name in ["pytorch_model.bin", "model.safetensors"] {
            write(dir.path(), name, bytes);
            let error = error(&dir).to_string();
            assert!(error.contains(&format!("{name} is {says}")), "{error}");
        }
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    }
}

#[test]
fn index_and_files_must_hold_the_same_names() {
    assert!(Checkpoint::open(sharded(json!({"a": "1.safetensors", "b": "2.safetensors"})).path()).is_ok());
    let dir = sharded(json!({"a": "1.safetensors", "c": "2.safetensors"}));
    assert!(matches!(error(&dir), CheckpointError::NotInIndex { tensor, .. } if tensor == "b"));
    let dir = sharded(json!({"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}));
    assert!(matches!(error(&dir), CheckpointError::NotInFile { tensor, .. } if tensor == "c"));
    let dir = sharded(json!({"a": "1.safetensors", "b": "3.safetensors"}));
    let error = error(&dir);
    assert!(error.to_string().ends_with("places b in 3.safetensors, which is not there: download that file"));
}

#[test]
fn a_name_in_two_files_is_refused() {
    let dir = sharded(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    write(dir.path(), "2.safetensors", one_tensor("a"));
    let error = error(&dir);
    assert!(matches!(&error, CheckpointError::DuplicateTensor { tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn rotary_buffers_in_index_and_files_are_skipped() {
    let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let dir = sharded(json!({"a": "1.safetensors", "b": "2.safetensors", buffer: "gone.safetensors"}));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().entries().count(), 2);
}

#[test]
fn an_index_that_leaves_the_directory_is_refused() {
    for file in ["../1.safetensors", "/etc/passwd", ".."] {
        let error = error(&sharded(json!({ "a": file })));
        assert!(
            matches!(error, CheckpointError::Index { source: IndexError::BadFileName { .. }, .. }),
            "{error}"
        );
    }
}

#[test]
fn links_of_the_hubs_cache_are_followed() {
    let dir = sharded(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let blobs = tempfile::tempdir().unwrap();
    for name in ["1.safetensors", "model.safetensors.index.json", "config.json"] {
        fs::rename(dir.path().join(name), blobs.path().join(name)).unwrap();
        symlink(blobs.path().join(name), dir.path().join(name)).unwrap();
    }
    assert_eq!(Checkpoint::open(dir.path()).unwrap().entries().count(), 2);
    fs::remove_file(blobs.path().join("1.safetensors")).unwrap();
    assert!(matches!(error(&dir), CheckpointError::Io { action: "open", .. }));
}

#[test]
fn fifos_devices_and_directories_are_refused_without_waiting() {
    let dir = empty();
    mkfifo(&dir.path().join("model.safetensors"));
    assert!(matches!(error(&dir), CheckpointError::NotARegularFile { .. }));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    symlink("/dev/zero", dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(error(&dir), CheckpointError::NotARegularFile { .. }));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(error(&dir), CheckpointError::NotARegularFile { .. }));
    fs::remove_dir(dir.path().join("model.safetensors")).unwrap();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    mkfifo(&dir.path().join("config.json"));
    assert!(matches!(error(&dir), CheckpointError::NotARegularFile { .. }));
}

#[test]
fn reads_stay_inside_their_tensor() {
    let dir = empty();
    write(dir.path(), "model.safetensors", one_tensor("a"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let entry = checkpoint.entry("a").unwrap();
    assert!(checkpoint.read_at(entry, 2, &mut [0; 2]).is_ok());
    for offset in [3, 4, u64::MAX] {
        let error = checkpoint.read_at(entry, offset, &mut [0; 2]).unwrap_err();
        assert!(matches!(error, CheckpointError::OutOfRange { nbytes: 4, .. }));
    }
    assert!(
        matches!(checkpoint.entry("b"), Err(CheckpointError::NoSuchTensor { tensor, .. }) if tensor == "b")
    );
}

#[test]
fn a_file_that_was_cut_after_opening_is_named() {
    let dir = empty();
    write(dir.path(), "model.safetensors", one_tensor("a"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    fs::File::options().write(true).open(dir.path().join("model.safetensors")).unwrap().set_len(20).unwrap();
    let text = checkpoint.read(checkpoint.entry("a").unwrap()).unwrap_err().to_string();
    assert!(text.contains("cannot read a from ") && text.contains("model.safetensors"), "{text}");
}

/// transformers 5 and vLLM (#51665) use a stored head that differs from the embedding.
#[test]
fn a_stored_head_is_the_models_unless_it_is_the_embeddings_copy() {
    let dir = empty();
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let tied = config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(tied, config);
    fs::write(&path, tied).unwrap();
    let entry =
        |from: usize, to: usize| json!({ "dtype": "F32", "shape": [2, 2], "data_offsets": [from, to] });
    let header = json!({ "lm_head.weight": entry(0, 16), "model.embed_tokens.weight": entry(16, 32) });
    for (last, is_tied) in [(7u8, true), (8, false)] {
        let mut data = [7u8; 32];
        data[31] = last;
        write(dir.path(), "model.safetensors", safetensors(&header.to_string(), &data));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.config().tie_word_embeddings, is_tied);
        let written: serde_json::Value = serde_json::from_str(&checkpoint.config().to_json()).unwrap();
        assert_eq!(written["tie_word_embeddings"], is_tied);
    }
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13476838\n";
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let dir = empty();
        write(dir.path(), name, pointer);
        let text = error(&dir).to_string();
        assert!(text.contains(name) && text.contains("Git LFS pointer"), "{text}");
    }
    let (source, target) = (empty(), empty());
    write(source.path(), "tokenizer.model", pointer);
    let text =
        crate::copy_side_files(source.path(), target.path(), crate::Card::Keep).unwrap_err().to_string();
    assert!(text.contains("tokenizer.model is a Git LFS pointer"), "{text}");
}

#[test]
fn weights_under_the_name_of_the_other_form_are_named() {
    let dir = empty();
    write(dir.path(), "pytorch_model.bin", one_tensor("a"));
    let text = error(&dir).to_string();
    assert!(text.contains("pytorch_model.bin is a safetensors file") && text.contains("rename"), "{text}");
    write(dir.path(), "model.safetensors", pytorch(&[Saved::default()], &[("0", &[0; 24])]).bytes);
    let text = error(&dir).to_string();
    assert!(text.contains("model.safetensors is a zip archive") && text.contains("rename"), "{text}");
}

#[test]
fn what_lies_in_the_place_of_weights_is_named() {
    for (names, says) in [
        (
            &["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "x.gguf"][..],
            "model-00001-of-00003.safetensors and 1 more are shards without an index: get \
             model.safetensors.index.json too",
        ),
        (
            &["pytorch_model-00002-of-00002.bin"],
            "pytorch_model-00002-of-00002.bin is a shard without an index: get pytorch_model.bin.index.json too",
        ),
        (&["adapter_model.safetensors"], "adapter_model.safetensors is a PEFT adapter"),
        (&["model-q4.gguf"], "model-q4.gguf is a GGUF file"),
        (&["consolidated.00.pth"], "consolidated.00.pth has the names of its maker's own code"),
        (&["weights.safetensors"], "rename it to model.safetensors"),
        (&["flax_model.msgpack"], "another framework's"),
    ] {
        let dir = empty();
        names.iter().for_each(|name| write(dir.path(), name, "x"));
        let text = error(&dir).to_string();
        assert!(text.contains("no weights in") && text.contains(says), "{text}");
        fs::remove_file(dir.path().join("config.json")).unwrap();
        let text = error(&dir).to_string();
        assert!(text.contains("no config.json in") && text.contains(says), "{text}");
    }
}

#[test]
fn files_and_repositories_of_the_hubs_cache_are_no_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    for (bytes, says) in [("GGUF\x03\0\0\0", "is a GGUF file"), ("{}", "is a file: give the directory")] {
        write(dir.path(), "m", bytes);
        let error = Checkpoint::open(&dir.path().join("m")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let root = dir.path().join("models--o--r");
    for name in ["b", "a", "unfinished"] {
        fs::create_dir_all(root.join("snapshots").join(name)).unwrap();
    }
    fs::create_dir(root.join("refs")).unwrap();
    write(&root, "refs/main", "b\n");
    assert!(crate::cached_snapshots(&root).is_empty());
    for name in ["b", "a"] {
        fs::copy(
            fixture("models/teleflm-f32-st/config.json"),
            root.join("snapshots").join(name).join("config.json"),
        )
        .unwrap();
    }
    let error = Checkpoint::open(&root).unwrap_err().to_string();
    let snapshots = root.join("snapshots");
    let both = format!("{}, {}", snapshots.join("b").display(), snapshots.join("a").display());
    assert!(error.ends_with(&format!("give one of its snapshots, {both}")), "{error}");
}

#[test]
fn an_index_with_a_byte_order_mark_is_read() {
    let dir = sharded(json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let index = dir.path().join("model.safetensors.index.json");
    write(
        dir.path(),
        "model.safetensors.index.json",
        [b"\xef\xbb\xbf", &fs::read(index).unwrap()[..]].concat(),
    );
    assert_eq!(Checkpoint::open(dir.path()).unwrap().entries().count(), 2);
}

#[test]
fn buffers_of_any_dtype_are_ignored_and_listed() {
    let dir = empty();
    let header = json!({
        "w": { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] },
        "model.position_ids": { "dtype": "I64", "shape": [1, 2], "data_offsets": [4, 20] },
        "model.layers.0.attn.masked_bias": { "dtype": "F32", "shape": [], "data_offsets": [20, 24] },
    });
    let names = ["model.layers.0.attn.masked_bias", "model.position_ids"];
    write(dir.path(), "model.safetensors", safetensors(&header.to_string(), &[0; 24]));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.entries().count(), checkpoint.ignored()), (1, &names.map(str::to_owned)[..]));

    let dir = empty();
    let long = |name| Saved {
        name,
        class: "LongStorage",
        storage: "1",
        elements: 2,
        shape: &[2],
        stride: &[1],
        offset: 0,
    };
    let bin = |name| pytorch(&[Saved::default(), long(name)], &[("0", &[0; 24]), ("1", &[0; 16])]).bytes;
    write(dir.path(), "pytorch_model.bin", bin("model.position_ids"));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((checkpoint.entries().count(), checkpoint.ignored()), (1, &names.map(str::to_owned)[1..]));
    write(dir.path(), "pytorch_model.bin", bin("model.ids"));
    let text = error(&dir).to_string();
    assert!(text.contains("tensor model.ids is in a torch.LongStorage; supported are BF16"), "{text}");
}

#[test]
fn what_stands_before_every_name_is_left_out() {
    let open = |names: &[&str]| {
        let dir = empty();
        let entry = |at: usize| json!({ "dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4] });
        let header: serde_json::Map<_, _> =
            names.iter().enumerate().map(|(at, name)| (name.to_string(), entry(at))).collect();
        let header = serde_json::Value::Object(header).to_string();
        write(dir.path(), "model.safetensors", safetensors(&header, &vec![0; 4 * names.len()]));
        Checkpoint::open(dir.path()).unwrap()
    };
    let names = |checkpoint: &Checkpoint| checkpoint.entries().map(|e| e.name.clone()).collect::<Vec<_>>();
    let whole = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"];
    for (prefix, by) in [
        ("module.", &["DistributedDataParallel"][..]),
        ("module._orig_mod.", &["DistributedDataParallel", "torch.compile"]),
        ("base_model.model.", &["PEFT"]),
        ("model.", &[]),
        ("language_model.", &[]),
    ] {
        let stored = whole.map(|name| format!("{prefix}{name}"));
        let checkpoint = open(&stored.each_ref().map(String::as_str));
        assert_eq!(
            (&names(&checkpoint)[..], checkpoint.prefix()),
            (&whole.map(str::to_owned)[..], Some((prefix, by.to_vec())))
        );
    }
    // a decoder saved by itself
    for stored in [
        ["lm_head.weight", "embed_tokens.weight", "norm.weight"],
        ["lm_head.weight", "_orig_mod.embed_tokens.weight", "_orig_mod.norm.weight"],
    ] {
        assert_eq!(names(&open(&stored)), whole);
    }
    // one of several models
    let several = open(&["language_model.model.embed_tokens.weight", "vision.norm.weight"]).problems();
    assert_eq!(several.len(), 1);
    assert!(
        several[0].to_string().contains("language_model.model.embed_tokens.weight, which"),
        "{}",
        several[0]
    );
    let adapter =
        open(&["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.lora_A.default.weight"]);
    assert!(adapter.problems()[0].to_string().contains("merge_and_unload"));
    assert_eq!(adapter.problems().len(), 1);
}
