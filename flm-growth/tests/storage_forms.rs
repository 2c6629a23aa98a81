//! Whole checkpoints: the fixtures that PyTorch wrote, in every form.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use flm_candle::{candle_dtype, read_tensor};
use flm_checkpoint::Dtype;
use flm_checkpoint::{Checkpoint, Format};
use flm_growth::{ConvertOptions, convert};

fn fixture(name: &str) -> PathBuf {
    flm_tests::files::fixture("models").join(name)
}

fn open(dir: &Path) -> Checkpoint {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check().unwrap();
    checkpoint
}

fn assert_same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.entries().count(), b.entries().count());
    for (x, y) in a.entries().zip(b.entries()) {
        assert_eq!((&x.name, x.dtype, &x.shape), (&y.name, y.dtype, &y.shape));
        assert_eq!(a.read(x).unwrap(), b.read(y).unwrap(), "{}", x.name);
    }
}

#[test]
fn every_form_opens_and_fits_its_config() {
    for (name, format, files) in [
        ("teleflm-f32-st", Format::Safetensors, 1),
        ("teleflm-gqa-bf16-st", Format::Safetensors, 1),
        ("teleflm-gqa-f32-shst", Format::ShardedSafetensors, 4),
        ("teleflm-bf16-shbin", Format::ShardedPyTorch, 4),
        ("teleflm-gqa-bf16-shbin", Format::ShardedPyTorch, 4),
        ("teleflm-hd32-bf16-shbin", Format::ShardedPyTorch, 4),
    ] {
        let checkpoint = open(&fixture(name));
        assert_eq!(checkpoint.format(), format);
        assert_eq!(checkpoint.files().len(), files);
        assert_eq!(checkpoint.entries().count(), 39);
    }
}

#[test]
fn pytorch_and_safetensors_of_the_same_weights_are_bit_equal() {
    let [st, bin] = ["st", "shbin"].map(|kind| open(&fixture(&format!("teleflm-gqa-bf16-{kind}"))));
    assert_same_tensors(&st, &bin);
}

#[test]
fn converted_pytorch_is_bit_equal_and_has_the_bytes_of_safetensors_own_writer() {
    let dir = tempfile::tempdir().unwrap();
    let bin = open(&fixture("teleflm-gqa-bf16-shbin"));
    for (max_shard_size, files) in [(u64::MAX, 1), (200_000, 3), (1, 39)] {
        let dst = dir.path().join(format!("out-{files}"));
        let options = ConvertOptions { max_shard_size, ..Default::default() };
        let done = std::sync::atomic::AtomicU64::new(0);
        let add = |n| {
            done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        };
        let report = convert(&bin, &dst, &options, &add).unwrap();
        assert_eq!(
            (report.tensors, report.files, report.bytes_read, report.bytes_written, report.overflowed),
            (39, files, 461_952, 461_952, 0)
        );
        assert_eq!(done.into_inner(), 461_952);
        let converted = open(&dst);
        assert_eq!(converted.files().len(), files);
        assert_same_tensors(&bin, &converted);
        assert_eq!(converted.config().to_json(), bin.config().to_json_without_code());
    }
    let by_python = std::fs::read(fixture("teleflm-gqa-bf16-st/model.safetensors")).unwrap();
    assert!(std::fs::read(dir.path().join("out-1/model.safetensors")).unwrap() == by_python);
}

/// Files that transformers and the references wrote: fused, in pieces, under other names.
#[test]
fn tensors_of_other_names_and_fused_ones_are_written_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["phi3", "baichuan", "internlm2", "telechat"] {
        let from = flm_tests::files::fixture("families").join(name);
        let src = open(&from);
        assert!(src.contains("model.layers.1.self_attn.k_proj.weight"), "{name}");
        let convert = |max_shard_size: u64| {
            let dst = dir.path().join(format!("{name}-{max_shard_size}"));
            let options = ConvertOptions { max_shard_size, ..Default::default() };
            convert(&src, &dst, &options, &|_| ()).unwrap();
            dst
        };
        let whole = std::fs::read(convert(u64::MAX).join("model.safetensors")).unwrap();
        assert!(whole == std::fs::read(from.join("model.safetensors")).unwrap(), "{name}");
        let sharded = open(&convert(1));
        assert!(sharded.files().len() > 10, "{name}");
        assert_same_tensors(&src, &sharded);
    }
}

#[test]
fn conversion_to_another_dtype_rounds_as_candle_does_and_says_so_in_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let src = open(&fixture("teleflm-gqa-f32-shst"));
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F64] {
        let dst = dir.path().join(dtype.as_str());
        let options = ConvertOptions { dtype: Some(dtype), ..ConvertOptions::default() };
        let report = convert(&src, &dst, &options, &|_| ()).unwrap();
        assert_eq!(report.overflowed, 0);
        let converted = open(&dst);
        assert_eq!(converted.config().declared_dtype(), Some(dtype));
        for entry in converted.entries() {
            let got = read_tensor(&converted, &entry.name, &Device::Cpu).unwrap();
            let exact =
                read_tensor(&src, &entry.name, &Device::Cpu).unwrap().to_dtype(candle_dtype(dtype)).unwrap();
            let bits = |t: candle_core::Tensor| {
                t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(got.dtype(), candle_dtype(dtype));
            assert_eq!(bits(got), bits(exact), "{}", entry.name);
        }
    }
}
