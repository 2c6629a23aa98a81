use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::fill::NormalFill;
use crate::plan::{Block, SourceTensor};
use crate::reference::{Model, SMALL, config};
use crate::{GrowthOptions, Operator, Shape, SourceModel};

const LARGER: Shape = Shape {
    num_hidden_layers: 5,
    hidden_size: 17,
    num_attention_heads: 6,
    num_key_value_heads: 3,
    head_dim: 6,
    intermediate_size: 30,
    vocab_size: 31,
};

fn model() -> Model {
    Model::random(config(SMALL, false, true), Precision::Bf16, 4)
}

fn small_chunks(chunk_bytes: usize, max_shard_bytes: u64) -> ExecuteOptions {
    ExecuteOptions { chunk_bytes, max_shard_bytes, command: vec!["flm".into(), "grow".into()] }
}

#[test]
fn any_chunk_shard_and_thread_count_writes_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 3000);
    let options = GrowthOptions { seed: 5, ..Default::default() };
    let plan = GrowthPlan::new(&SourceModel::from_checkpoint(&source).unwrap(), &LARGER, &options).unwrap();
    let expected = model.grow(&plan, 1000);
    for (threads, chunk, shard) in [(1, 1 << 20, 1 << 20), (3, 1, 2000), (2, 100, 1 << 20), (4, 333, 5000)] {
        let dst = dir.path().join(format!("target-{threads}-{chunk}"));
        let done = AtomicU64::new(0);
        let progress = |n| {
            done.fetch_add(n, Ordering::Relaxed);
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let report =
            pool.install(|| execute(&plan, &source, &dst, &small_chunks(chunk, shard), &progress)).unwrap();
        let target = Checkpoint::open(&dst).unwrap();
        target.check().unwrap();
        let grown = Model::load(&target);
        assert_eq!(grown.tensors, expected.tensors, "{threads} {chunk} {shard}");
        assert_eq!(grown.config.to_json(), expected.config.to_json());
        assert_eq!(grown.config.raw().get("some_other_key").unwrap(), "kept");
        let summary = plan.summary();
        assert_eq!((report.output_bytes, done.into_inner()), (summary.output_bytes, summary.output_bytes));
        let provenance = Provenance::read(&dst).unwrap();
        assert_eq!((provenance.source.as_str(), provenance.growth.seed), ("source", 5));
        assert_eq!(provenance.growth.plan_blake3, plan.digest().unwrap());
        assert_eq!(provenance.growth.layers, plan.layers);
        let text = std::fs::read_to_string(dst.join(PROVENANCE_FILE)).unwrap();
        assert!(!text.contains(dir.path().to_str().unwrap()), "{text}");
    }
}

#[test]
fn zero_layers_stay_holes_of_the_file() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { hidden_size: 256, intermediate_size: 4096, ..SMALL };
    let model = Model::random(config(shape, false, true), Precision::Bf16, 4);
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let target = Shape { num_hidden_layers: 9, ..shape };
    let plan = model.plan(&target, &GrowthOptions::default()).unwrap();
    let report =
        execute(&plan, &source, &dir.path().join("grown"), &ExecuteOptions::default(), &|_| ()).unwrap();
    assert_eq!(report.hole_bytes, plan.summary().zero_bytes);
    assert_eq!(report.hole_bytes, 6 * 2 * (256 * 24 + 256 * 4096));
    let file = std::fs::metadata(dir.path().join("grown/model.safetensors")).unwrap();
    assert!(file.blocks() * 512 < file.len() - report.hole_bytes / 2, "{} {}", file.blocks(), file.len());
}

#[test]
fn a_plan_for_another_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = model().save(&dir.path().join("source"), 1 << 30);
    let dst = dir.path().join("grown");
    let run = |plan: &GrowthPlan| {
        let error = execute(plan, &source, &dst, &ExecuteOptions::default(), &|_| ()).expect_err("refused");
        assert!(!dst.exists());
        error.to_string()
    };
    let wide = Model::random(config(SMALL, false, true), Precision::F32, 4);
    let text = run(&wide.plan(&LARGER, &GrowthOptions::default()).unwrap());
    assert!(text.contains("stored as bf16, the plan was made for f32"), "{text}");
    let narrow = Model::random(config(Shape { vocab_size: 22, ..SMALL }, false, true), Precision::Bf16, 4);
    let text = run(&narrow.plan(&LARGER, &GrowthOptions::default()).unwrap());
    assert!(text.contains("shape [23, 12], expected [22, 12]"), "{text}");
}

#[test]
fn weights_that_are_not_finite_are_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = model();
    let (precision, bytes) = model.tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
    precision.encode(f64::NAN, &mut bytes[10..12]);
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let dst = dir.path().join("grown");
    let error = execute(&plan, &source, &dst, &ExecuteOptions::default(), &|_| ()).unwrap_err();
    assert!(
        matches!(&error, GrowthError::NotFinite(name) if name.contains("layers.1.mlp.up_proj")),
        "{error}"
    );
    assert!(!dst.exists());
}

#[test]
fn a_destination_that_exists_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let plan =
        model.plan(&LARGER, &GrowthOptions { operator: Operator::Zero, ..Default::default() }).unwrap();
    let before = std::fs::read(dir.path().join("source/model.safetensors")).unwrap();
    assert!(
        execute(&plan, &source, &dir.path().join("source"), &ExecuteOptions::default(), &|_| ()).is_err()
    );
    assert_eq!(std::fs::read(dir.path().join("source/model.safetensors")).unwrap(), before);
}

/// One element by the words of [`TensorPlan`]'s documentation.
fn element(plan: &TensorPlan, source: &[f64], seed: u64, r: usize, c: usize) -> f64 {
    let (cols, (rows, width)) = (plan.size().1, plan.copied());
    let copied = |r: usize, c: usize| source[r * width + c] * plan.scale;
    let block = match (r < rows, c < width) {
        (true, true) => return copied(r, c),
        (true, false) => Block::NewCols,
        (false, true) => Block::NewRows,
        (false, false) => Block::NewCorner,
    };
    match plan.fill(block).unwrap() {
        Fill::Zero => 0.0,
        Fill::Constant(value) => value,
        Fill::Row(row) => copied(row, c),
        Fill::Tile if block == Block::NewRows => copied(r % rows, c),
        Fill::Tile => element(plan, source, seed, r, c % width),
        Fill::Normal(Std::Match) => unreachable!("the test gives numbers"),
        Fill::Normal(Std::Value(std)) => {
            let mut bytes = [0; 8];
            let fill = NormalFill::new(seed, &plan.name, plan.dtype, std).unwrap();
            fill.write((r * cols + c) as u64, &mut bytes[..plan.dtype.bytes()]);
            plan.dtype.decode(&bytes[..plan.dtype.bytes()])
        }
    }
}

fn fills() -> impl Strategy<Value = (Fill, Fill, Fill)> {
    let plain = prop_oneof![
        Just(Fill::Zero),
        Just(Fill::Constant(0.75)),
        Just(Fill::Normal(Std::Value(0.1))),
        Just(Fill::Normal(Std::Value(2.0))),
    ];
    let cols = prop_oneof![plain.clone(), Just(Fill::Tile)];
    let repeated = (prop_oneof![Just(Fill::Row(0)), Just(Fill::Tile)], cols.clone());
    let rows = prop_oneof![(plain.clone(), plain), repeated];
    (cols, rows).prop_map(|(cols, (rows, corner))| (cols, rows, corner))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..Default::default() })]

    #[test]
    fn every_element_is_what_the_plan_says(
        (rows, cols, more_rows, more_cols) in (1usize..5, 1usize..6, 0usize..8, 0usize..9),
        (new_cols, new_rows, new_corner) in fills(),
        widen: bool, scale in prop_oneof![Just(1.0), Just(0.5), Just(1.25)], step in 1usize..6, seed: u64,
    ) {
        let stored = Precision::Bf16;
        let plan = TensorPlan {
            name: "t".into(),
            dtype: if widen { Precision::F32 } else { stored },
            shape: vec![rows + more_rows, cols + more_cols],
            source: Some(SourceTensor { name: "s".into(), dtype: stored, shape: vec![rows, cols] }),
            scale,
            new_cols: (more_cols > 0).then_some(new_cols),
            new_rows: (more_rows > 0).then_some(new_rows),
            new_corner: (more_rows > 0 && more_cols > 0).then_some(new_corner),
        };
        // small whole numbers: the scales are exact in bf16
        let values: Vec<f64> = (0..rows * cols).map(|i| (i as f64 - 7.0) * 4.0).collect();
        let mut bytes = vec![0; values.len() * 2];
        bytes.chunks_mut(2).zip(&values).for_each(|(slot, v)| stored.encode(*v, slot));
        let composer = Composer::new(&plan, seed).unwrap();
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
            Ok(())
        };
        let size = plan.dtype.bytes();
        for start in (0..rows + more_rows).step_by(step) {
            let end = (start + step).min(rows + more_rows);
            let mut out = vec![0x55; (end - start) * composer.row_bytes()];
            composer.rows(start, end, &read, &mut Vec::new(), &mut out).unwrap();
            for (i, slot) in out.chunks(size).enumerate() {
                let (r, c) = (start + i / (cols + more_cols), i % (cols + more_cols));
                prop_assert_eq!(plan.dtype.decode(slot), element(&plan, &values, seed, r, c), "{} {}", r, c);
            }
            if composer.is_zero(start, end) {
                prop_assert!(out.iter().all(|&b| b == 0));
            }
        }
    }
}
