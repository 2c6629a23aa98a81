//! Execution: the same bytes for any chunks, shards and threads, and after any death.

use crate::DiskNeed;
use crate::execute::compose::Composer;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::record::PROVENANCE_FILE;
use super::*;
use crate::fill::NormalFill;
use crate::operator::Operator;
use crate::plan::GrowthOptions;
use crate::plan::source::SourceModel;
use crate::reference::{Model, SMALL, config};
use crate::shape::Shape;
use crate::tensor_plan::{Block, Fill, SourceTensor, Std};
use flm_checkpoint::Dtype;

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
    Model::random(config(SMALL, false, true), Dtype::BF16, 4)
}

fn small_chunks(chunk_bytes: usize, max_shard_bytes: u64) -> ExecuteOptions {
    let command = vec!["flm".into(), "grow".into()];
    ExecuteOptions { chunk_bytes, max_shard_bytes, command, ..Default::default() }
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
        let provenance = Provenance::read(&dst).unwrap().unwrap();
        let growth = provenance.growth.unwrap();
        assert_eq!((provenance.source.as_str(), growth.seed), ("source", 5));
        assert_eq!(growth.plan_blake3, plan.digest().unwrap());
        assert_eq!(growth.layers, plan.layers);
        let text = std::fs::read_to_string(dst.join(PROVENANCE_FILE)).unwrap();
        assert!(!text.contains(dir.path().to_str().unwrap()), "{text}");
    }
}

#[test]
fn zero_layers_stay_holes_of_the_file() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { hidden_size: 256, intermediate_size: 4096, ..SMALL };
    let model = Model::random(config(shape, false, true), Dtype::BF16, 4);
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
    let wide = Model::random(config(SMALL, false, true), Dtype::F32, 4);
    let text = run(&wide.plan(&LARGER, &GrowthOptions::default()).unwrap());
    assert!(text.contains("stored as bf16, the plan was made for f32"), "{text}");
    let narrow = Model::random(config(Shape { vocab_size: 22, ..SMALL }, false, true), Dtype::BF16, 4);
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

/// Runs until `stop` bytes are done, then dies as a killed process would: with its journal left.
fn interrupted(plan: &GrowthPlan, source: &Checkpoint, dst: &Path, options: &ExecuteOptions, stop: u64) {
    let done = AtomicU64::new(0);
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let progress = |n: u64| {
            if done.fetch_add(n, Ordering::Relaxed) + n > stop {
                std::panic::resume_unwind(Box::new("stop"));
            }
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| execute(plan, source, dst, options, &progress)).map(drop)
    }));
    assert!(run.is_err() && !dst.exists());
}

#[test]
fn a_run_that_died_goes_on_and_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 3000);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let options = small_chunks(200, 2500);
    let whole = dir.path().join("whole/grown");
    execute(&plan, &source, &whole, &options, &|_| ()).unwrap();
    let expected = Checksums::read(&whole).unwrap();
    let total = plan.summary().output_bytes;
    for part in 1..8 {
        let dst = dir.path().join(format!("{part}/grown"));
        interrupted(&plan, &source, &dst, &options, total * part / 8);
        let done = AtomicU64::new(0);
        let report = execute(&plan, &source, &dst, &small_chunks(64 << part, 2500), &|n| {
            done.fetch_add(n, Ordering::Relaxed);
        })
        .unwrap();
        assert!(part < 2 || report.resumed_bytes > 0, "{part}: {report:?}");
        assert_eq!(done.into_inner(), total);
        let got = Checksums::read(&dst).unwrap();
        assert_eq!(got.tensors, expected.tensors, "{part}");
        assert_eq!(got.weights, expected.weights);
        assert!(got.check(&dst, None, &|_| ()).unwrap().passed);
        assert!(!dst.join(".journal.jsonl").exists());
    }
}

#[test]
fn another_plan_seed_or_source_does_not_go_on_where_a_run_died() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 3000);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let options = small_chunks(200, 2500);
    let dst = dir.path().join("grown");
    interrupted(&plan, &source, &dst, &options, 4000);
    let refused = |plan: &GrowthPlan, source: &Checkpoint, options: &ExecuteOptions| {
        let error = execute(plan, source, &dst, options, &|_| ()).expect_err("refused").to_string();
        assert!(error.contains("--restart") && error.contains(".grown.partial"), "{error}");
        error
    };
    let other = model.plan(&LARGER, &GrowthOptions { seed: 8, ..Default::default() }).unwrap();
    assert!(refused(&other, &source, &options).contains("another seed (0, now 8)"));
    let other =
        model.plan(&LARGER, &GrowthOptions { operator: Operator::Msg, ..Default::default() }).unwrap();
    assert!(refused(&other, &source, &options).contains("another plan"));
    assert!(refused(&plan, &source, &small_chunks(200, 9999)).contains("another largest file size"));
    let file = dir.path().join("source/config.json");
    let text = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&text[..], b" "].concat()).unwrap();
    let changed = Checkpoint::open(&dir.path().join("source")).unwrap();
    assert!(refused(&plan, &changed, &options).contains("another source (config.json has changed"));
    let report =
        execute(&plan, &changed, &dst, &ExecuteOptions { restart: true, ..options }, &|_| ()).unwrap();
    assert_eq!(report.resumed_bytes, 0);
}

#[test]
fn what_was_damaged_between_two_runs_is_found_and_written_anew() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let options = small_chunks(200, 1 << 30);
    let dst = dir.path().join("grown");
    interrupted(&plan, &source, &dst, &options, plan.summary().output_bytes / 2);
    let path = dir.path().join(".grown.partial/model.safetensors");
    let header = std::fs::read(&path).unwrap();
    let first = u64::from_le_bytes(header[..8].try_into().unwrap()) + 8;
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[0x77; 4], first).unwrap();
    let report = execute(&plan, &source, &dst, &options, &|_| ()).unwrap();
    let first = checkpoint_order(&dst).remove(0);
    let damaged = plan.tensors.iter().find(|t| t.name == first).unwrap().nbytes();
    assert!(report.resumed_bytes > 0 && report.resumed_bytes + damaged <= report.output_bytes);
    assert_eq!(Model::load(&Checkpoint::open(&dst).unwrap()).tensors, model.grow(&plan, 9).tensors);
}

#[test]
fn checksums_name_the_damaged_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let dst = dir.path().join("grown");
    execute(&plan, &source, &dst, &ExecuteOptions::default(), &|_| ()).unwrap();
    let checksums = Checksums::read(&dst).unwrap();
    assert_eq!(checksums.tensors.len(), plan.tensors.len());
    let provenance = Provenance::read(&dst).unwrap().unwrap();
    assert_eq!(provenance.source_files["config.json"], FileDigest::of(source.config().to_json().as_bytes()));
    assert_eq!(provenance.source_files.len(), 2);
    let path = dst.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::remove_file(dst.join(PROVENANCE_FILE)).unwrap();
    let problems = checksums.check(&dst, None, &|_| ()).unwrap().problems;
    let last = checkpoint_order(&dst).pop().unwrap();
    assert_eq!(problems, ["provenance.json is missing".to_owned(), format!("tensor {last} is damaged")]);
    // the header: another tensor by the same name
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == b"\"format\"").unwrap();
    bytes[at + 1] = b'F';
    std::fs::write(&path, &bytes).unwrap();
    let problems = checksums.check(&dst, None, &|_| ()).unwrap().problems;
    assert_eq!(problems[1], "model.safetensors has another header");
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let problems = checksums.check(&dst, None, &|_| ()).unwrap().problems;
    assert!(problems[1].contains(&format!("{} bytes, expected {}", bytes.len() - 1, bytes.len())));
}

/// The tensors in the order in which they lie in the files.
fn checkpoint_order(dir: &Path) -> Vec<String> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut entries: Vec<_> = checkpoint.entries().map(|e| (e.file, e.offset, e.name.clone())).collect();
    entries.sort();
    entries.into_iter().map(|e| e.2).collect()
}

#[test]
fn digests_are_those_of_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let source = model.save(&dir.path().join("source"), 1 << 30);
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    for file_digests in [false, true] {
        let dst = dir.path().join(format!("grown-{file_digests}"));
        execute(&plan, &source, &dst, &ExecuteOptions { file_digests, ..small_chunks(100, 2500) }, &|_| ())
            .unwrap();
        let (checksums, checkpoint) = (Checksums::read(&dst).unwrap(), Checkpoint::open(&dst).unwrap());
        assert!(checksums.weights.len() > 2 && checksums.check(&dst, None, &|_| ()).unwrap().passed);
        for (name, file) in &checksums.weights {
            let bytes = std::fs::read(dst.join(name)).unwrap();
            let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(file.bytes, bytes.len() as u64);
            assert_eq!(file.header_blake3, blake3::hash(&bytes[..header]).to_hex().as_str());
            let whole = file_digests.then(|| blake3::hash(&bytes).to_hex().to_string());
            assert_eq!(file.blake3, whole);
        }
        for entry in checkpoint.entries() {
            let digest = blake3::hash(&checkpoint.read(entry).unwrap()).to_hex().to_string();
            assert_eq!(checksums.tensors[&entry.name], digest);
        }
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_before_and_a_full_one_after() {
    let dir = tempfile::tempdir().unwrap();
    let need = DiskNeed { path: dir.path().into(), needed: 100, free: 99 };
    assert!(need.check().unwrap_err().to_string().contains("100 bytes are to be written"));
    let huge = Shape { intermediate_size: 1 << 32, ..LARGER };
    let plan = model().plan(&huge, &GrowthOptions::default()).unwrap();
    let source = model().save(&dir.path().join("source"), 1 << 30);
    // 3 layers of 2^32 units: 4 TB at 17 wide in bf16
    let need = disk_need(&plan.tensors, &dir.path().join("deep/er/grown")).unwrap();
    assert!(need.needed > 1 << 40 && need.path == dir.path(), "{need:?}");
    if need.needed > need.free {
        let error = execute(&plan, &source, &dir.path().join("grown"), &ExecuteOptions::default(), &|_| ());
        assert!(matches!(error, Err(GrowthError::DiskSpace { .. })));
    }
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = GrowthError::Write { path: "x".into(), source: full }.disk_full(7).to_string();
    assert!(error.contains("the disk is full") && error.contains("same command again"), "{error}");
}

/// The state of a training run: first moments of ½, second ones of 4.
fn save_moments(model: &Model, path: &Path) {
    let mut moments = Vec::new();
    for (prefix, value) in [("exp_avg.", 0.5), ("exp_avg_sq.", 4.0)] {
        for t in model.config.tensors() {
            moments.push((
                TensorSpec { name: format!("{prefix}{}", t.name), dtype: Dtype::F32, shape: t.shape },
                value,
            ));
        }
    }
    let specs: Vec<TensorSpec> = moments.iter().map(|(spec, _)| spec.clone()).collect();
    let writer = Writer::create(&path.join("optimizer"), &specs, 1 << 30).unwrap();
    for (spec, value) in &moments {
        let bytes = (*value as f32).to_le_bytes().repeat(spec.shape.iter().product());
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    writer.finish(&model.config).unwrap();
    std::fs::write(path.join("training_state.json"), "{\"step\": 12}").unwrap();
}

/// Values of a tensor in f32.
fn f32s(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.read(checkpoint.entry(name).unwrap()).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn optimizer_state_is_folded_with_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let small = Model::random(config(SMALL, false, true), Dtype::F32, 4);
    let options = GrowthOptions { operator: Operator::Msg, ..Default::default() };
    for mask in [0.0, 0.25] {
        let mut model = small.grow(&small.plan(&LARGER, &options).unwrap(), 7);
        model.config.growth = model.config.growth.map(|g| g.with_mask(mask));
        let path = dir.path().join(format!("masked-{mask}"));
        model.save(&path, 1 << 30);
        save_moments(&model, &path);
        let source = Checkpoint::open(&path).unwrap();
        let plan = crate::fold::FoldPlan::new(&SourceModel::from_checkpoint(&source).unwrap(), None).unwrap();
        let dst = dir.path().join(format!("folded-{mask}"));
        let options = ExecuteOptions { optimizer_state: true, ..Default::default() };
        plan.execute(&source, &dst, &options, &|_| ()).unwrap();
        assert_eq!(std::fs::read_to_string(dst.join("training_state.json")).unwrap(), "{\"step\": 12}");
        let folded = Checkpoint::open(&dst.join("optimizer")).unwrap();
        let share = ((12.0 + 5.0 * mask) / 17.0).sqrt();
        // what is stored as 0 has no history
        let of = |factor: f64, power: i32| if factor == 0.0 { 0.0 } else { factor.powi(-power) };
        for (prefix, value, power) in [("exp_avg.", 0.5, 1), ("exp_avg_sq.", 4.0, 2)] {
            let near = |got: f32, factor: f64, what: &str| {
                let expected = value * of(factor, power);
                assert!((f64::from(got) - expected).abs() <= expected * 1e-6, "{what}: {got} {expected}");
            };
            // 17 rows of the stream, 36 columns of heads: 24 old ones
            let o = f32s(&folded, &format!("{prefix}model.layers.0.self_attn.o_proj.weight"));
            let stream = mask * mask.sqrt();
            near(o[0], 1.0, "old");
            near(o[35], mask, "a new head's column");
            near(o[16 * 36], stream, "a new row");
            near(o[16 * 36 + 35], stream * mask, "both");
            let norm = f32s(&folded, &format!("{prefix}model.norm.weight"));
            near(norm[0], share, "gain");
            if mask > 0.0 {
                near(norm[16], share / mask.sqrt(), "new gain");
            }
        }
    }
}

#[test]
fn optimizer_state_grows_into_the_corner() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::random(config(SMALL, false, true), Dtype::F32, 4);
    let path = dir.path().join("source");
    model.save(&path, 1 << 30);
    save_moments(&model, &path);
    let source = Checkpoint::open(&path).unwrap();
    let plan = model.plan(&LARGER, &GrowthOptions::default()).unwrap();
    let options = ExecuteOptions { optimizer_state: true, ..Default::default() };
    let dst = dir.path().join("grown");
    execute(&plan, &source, &dst, &options, &|_| ()).unwrap();
    assert_eq!(std::fs::read_to_string(dst.join("training_state.json")).unwrap(), "{\"step\": 12}");
    let grown = Checkpoint::open(&dst.join("optimizer")).unwrap();
    let values = |name: &str| f32s(&grown, name);
    let gain = (12.0f64 / 17.0).sqrt();
    for (prefix, value, power) in [("exp_avg.", 0.5, -1), ("exp_avg_sq.", 4.0, -2)] {
        let up = values(&format!("{prefix}model.layers.0.mlp.up_proj.weight"));
        for (i, v) in up.iter().enumerate() {
            assert_eq!(*v, if i % 17 < 12 && i / 17 < 19 { value } else { 0.0 });
        }
        let norm = values(&format!("{prefix}model.norm.weight"));
        assert!(
            (f64::from(norm[0]) / (f64::from(value) * gain.powi(power)) - 1.0).abs() < 1e-6
                && norm[12] == 0.0
        );
    }
    for (i, layer) in plan.layers.iter().enumerate() {
        let any = values(&format!("exp_avg.model.layers.{i}.mlp.up_proj.weight")).iter().any(|v| *v != 0.0);
        assert_eq!(any, !layer.new, "{i}");
    }
    let without = Checkpoint::open(&dst).unwrap();
    std::fs::remove_dir_all(dst.join("optimizer")).unwrap();
    let plan = crate::plan::GrowthPlan::new(
        &SourceModel::from_checkpoint(&without).unwrap(),
        &LARGER,
        &GrowthOptions::default(),
    )
    .unwrap();
    let error = execute(&plan, &without, &dir.path().join("x"), &options, &|_| ()).unwrap_err();
    assert!(error.to_string().contains("--optimizer-state"), "{error}");
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
        Fill::Mean { rows, std } => {
            let mean = (0..rows).map(|r| source[r * width + c]).sum::<f64>() / rows as f64;
            let mut bytes = [0; 8];
            if let Some(Std::Value(std)) = std {
                let fill = NormalFill::new(seed, &plan.name, Dtype::F64, std).unwrap();
                fill.write((r * cols + c) as u64, &mut bytes);
            }
            let value = (mean + f64::from_le_bytes(bytes) * (1.0 / plan.scale)) * plan.scale;
            let stored = &mut bytes[..plan.dtype.size_in_bytes()];
            plan.dtype.encode(value, stored);
            plan.dtype.decode(stored)
        }
        Fill::Tile if block == Block::NewRows => copied(r % rows, c),
        Fill::Tile => element(plan, source, seed, r, c % width),
        Fill::Normal(Std::Match | Std::Times(_)) => unreachable!("the test gives numbers"),
        Fill::Normal(Std::Value(std)) => {
            let mut bytes = [0; 8];
            let fill = NormalFill::new(seed, &plan.name, plan.dtype, std).unwrap();
            fill.write((r * cols + c) as u64, &mut bytes[..plan.dtype.size_in_bytes()]);
            plan.dtype.decode(&bytes[..plan.dtype.size_in_bytes()])
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
    let mean = |std| Just(Fill::Mean { rows: 1, std });
    let repeated = (prop_oneof![mean(None), mean(Some(Std::Value(0.5))), Just(Fill::Tile)], cols.clone());
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
        let stored = Dtype::BF16;
        let plan = TensorPlan {
            name: "t".into(),
            dtype: if widen { Dtype::F32 } else { stored },
            shape: vec![rows + more_rows, cols + more_cols],
            new_layer: false,
            source: Some(SourceTensor { name: "s".into(), dtype: stored, shape: vec![rows, cols] }),
            scale,
            offset: 0.0,
            row_scale: None,
            col_scale: None,
            splits: false,
            noise: None,
            new_cols: (more_cols > 0).then_some(new_cols),
            new_rows: (more_rows > 0).then_some(new_rows),
            new_corner: (more_rows > 0 && more_cols > 0).then_some(new_corner),
        };
        // small whole numbers: the scales are exact in bf16
        let values: Vec<f64> = (0..rows * cols).map(|i| (i as f64 - 7.0) * 4.0).collect();
        let mut bytes = vec![0; values.len() * 2];
        bytes.chunks_mut(2).zip(&values).for_each(|(slot, v)| stored.encode(*v, slot));
        let composer = Composer::new(&plan, seed).unwrap().with_mean(Some(&values[..cols]));
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
            Ok(())
        };
        let size = plan.dtype.size_in_bytes();
        for start in (0..rows + more_rows).step_by(step) {
            let end = (start + step).min(rows + more_rows);
            let mut out = vec![0x55; (end - start) * composer.row_bytes()];
            composer.rows(start, end, &read, &mut Vec::new(), &mut out).unwrap();
            for (i, slot) in out.chunks(size).enumerate() {
                let (r, c) = (start + i / (cols + more_cols), i % (cols + more_cols));
                prop_assert_eq!(plan.dtype.decode(slot), element(&plan, &values, seed, r, c), "{} {}", r, c);
            }
            if plan.rows_are_zero(start, end) {
                prop_assert!(out.iter().all(|&b| b == 0));
            }
        }
    }
}

/// Copies of one row of `values`, as a clone by `n` reads them.
fn parts(values: &[f64], n: usize, noise: Option<f64>) -> (Vec<f64>, u64) {
    let stored = Dtype::BF16;
    let cols = values.len();
    let plan = TensorPlan {
        name: "t".into(),
        dtype: stored,
        shape: vec![1, n * cols],
        new_layer: false,
        source: Some(SourceTensor { name: "s".into(), dtype: stored, shape: vec![1, cols] }),
        scale: 1.0 / n as f64,
        offset: 0.0,
        row_scale: None,
        col_scale: None,
        splits: true,
        noise: noise.map(Std::Value),
        new_cols: Some(Fill::Tile),
        new_rows: None,
        new_corner: None,
    };
    let mut bytes = vec![0; cols * 2];
    bytes.chunks_mut(2).zip(values).for_each(|(slot, v)| stored.encode(*v, slot));
    let composer = Composer::new(&plan, 1).unwrap();
    let read = |offset: u64, out: &mut [u8]| {
        out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
        Ok(())
    };
    let mut out = vec![0; composer.row_bytes()];
    composer.rows(0, 1, &read, &mut Vec::new(), &mut out).unwrap();
    (out.chunks(2).map(|b| stored.decode(b)).collect(), composer.take_inexact())
}

#[test]
fn copies_of_a_clone_add_up_to_the_weight() {
    // bf16 values of a normal distribution's sizes
    let draw = NormalFill::new(7, "w", Dtype::BF16, 0.02).unwrap();
    let mut bytes = vec![0; 2 * 20_000];
    draw.write(0, &mut bytes);
    let values: Vec<f64> = bytes.chunks(2).map(|b| Dtype::BF16.decode(b)).collect();
    for n in [3, 5, 6, 7, 10] {
        for noise in [None, Some(0.002)] {
            let (copies, inexact) = parts(&values, n, noise);
            assert_eq!(inexact, 0, "{n} copies");
            for (i, value) in values.iter().enumerate() {
                let of_this = || copies.iter().skip(i).step_by(values.len());
                assert_eq!(of_this().sum::<f64>(), *value, "{n} copies of {value}");
                if noise.is_none() {
                    let equal = of_this().all(|c| (c * n as f64 - value).abs() <= 0.05 * value.abs());
                    assert!(equal, "{n} copies of {value}: {:?}", of_this().collect::<Vec<_>>());
                }
            }
        }
    }
    // where the rest has too many bits, it is counted
    let (copies, inexact) = parts(&values, 12, None);
    let wrong = (0..values.len())
        .filter(|&i| copies.iter().skip(i).step_by(values.len()).sum::<f64>() != values[i])
        .count();
    assert_eq!(wrong as u64, inexact);
    assert!(inexact > 0 && wrong < values.len() / 50, "{wrong} of {}", values.len());
}

#[test]
fn what_overflows_a_narrow_dtype_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let source = model().save(&dir.path().join("source"), 1 << 30);
    let mut plan = model().plan(&SMALL, &GrowthOptions::default()).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let up = plan.tensors.iter_mut().find(|t| t.name == name).unwrap();
    (up.dtype, up.scale) = (Dtype::F16, 1e9);
    let dst = dir.path().join("grown");
    let report = execute(&plan, &source, &dst, &ExecuteOptions::default(), &|_| ()).unwrap();
    let target = Checkpoint::open(&dst).unwrap();
    let bytes = target.read(target.find(name).unwrap()).unwrap();
    let infinite = bytes.chunks(2).filter(|b| Dtype::F16.decode(b).is_infinite()).count();
    assert!(infinite > 0);
    assert_eq!(report.overflowed, infinite as u64);
}

#[test]
fn a_source_that_changes_meanwhile_is_noticed_and_nothing_published() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source");
    let source = model().save(&path, 1 << 30);
    let plan = model().plan(&LARGER, &GrowthOptions::default()).unwrap();
    let dst = dir.path().join("grown");
    // the same length and the same time of change, as `cp -p` leaves them
    let once = AtomicU64::new(0);
    let change = |_| {
        if once.fetch_add(1, Ordering::Relaxed) == 0 {
            let weights = path.join("model.safetensors");
            let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0x40], file.metadata().unwrap().len() - 1)
                .unwrap();
            file.set_modified(modified).unwrap();
        }
    };
    let error = execute(&plan, &source, &dst, &small_chunks(100, 1 << 20), &change).unwrap_err().to_string();
    assert!(error.contains("model.safetensors changed while it was read"), "{error}");
    assert!(!dst.exists());
    // what is copied beside the weights is theirs
    let (path, dst) = (dir.path().join("other"), dir.path().join("larger"));
    let source = model().save(&path, 1 << 30);
    let tokenizer = |_| std::fs::write(path.join("tokenizer_config.json"), "{}").unwrap();
    let error =
        execute(&plan, &source, &dst, &small_chunks(100, 1 << 20), &tokenizer).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json changed while it was read"), "{error}");
    assert!(!dst.exists());
}

#[test]
fn a_damaged_source_is_not_grown() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let source = model().save(&dir.path().join("source"), 1 << 30);
    let plan = model().plan(&SMALL, &GrowthOptions::default()).unwrap();
    execute(&plan, &source, &first, &ExecuteOptions::default(), &|_| ()).unwrap();
    let weights = first.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let damaged = Checkpoint::open(&first).unwrap();
    let dst = dir.path().join("second");
    let error = execute(&plan, &damaged, &dst, &ExecuteOptions::default(), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("is damaged: tensor "), "{error}");
    assert!(!dst.exists());
    let error = convert_to(&damaged, &dst, true).unwrap_err().to_string();
    assert!(error.contains("is damaged: tensor "), "{error}");
    // on request it is taken as it is
    let options = ExecuteOptions { source_digests: false, ..Default::default() };
    execute(&plan, &damaged, &dst, &options, &|_| ()).unwrap();
    convert_to(&damaged, &dir.path().join("third"), false).unwrap();
    // of several files as of one
    let sharded = dir.path().join("sharded");
    let options = ExecuteOptions { max_shard_bytes: 4000, ..Default::default() };
    execute(&plan, &source, &sharded, &options, &|_| ()).unwrap();
    let shards = std::fs::read_dir(&sharded).unwrap().map(|entry| entry.unwrap().path());
    let weights = shards.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).max().unwrap();
    assert!(weights.to_string_lossy().contains("-of-"), "{weights:?}");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error =
        convert_to(&Checkpoint::open(&sharded).unwrap(), &dir.path().join("fourth"), true).unwrap_err();
    assert!(error.to_string().contains("is damaged: tensor "), "{error}");
}

fn convert_to(source: &Checkpoint, dst: &Path, digests: bool) -> flm_checkpoint::Result<()> {
    let options = crate::ConvertOptions { source_digests: digests, ..Default::default() };
    crate::convert(source, dst, &options, &|_| ()).map(drop)
}

#[test]
fn an_output_inside_its_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = model().save(&dir.path().join("source"), 1 << 30);
    let plan = model().plan(&LARGER, &GrowthOptions::default()).unwrap();
    let before = std::fs::read_dir(source.dir()).unwrap().count();
    std::os::unix::fs::symlink(source.dir(), dir.path().join("link")).unwrap();
    for dst in ["source", "source/grown", "source/new/grown", "link", "link/grown"] {
        let dst = dir.path().join(dst);
        let error =
            execute(&plan, &source, &dst, &ExecuteOptions::default(), &|_| ()).unwrap_err().to_string();
        assert!(error.contains("lies inside the source"), "{error}");
        assert!(convert_to(&source, &dst, true).unwrap_err().to_string().contains("lies inside the source"));
        let config = source.config();
        let init = crate::init(config, &dst, Some(source.dir()), 0, Dtype::F32, 1 << 30, &|_| ());
        assert!(init.unwrap_err().to_string().contains("lies inside the source"));
    }
    assert_eq!(std::fs::read_dir(source.dir()).unwrap().count(), before);
}
