//! Steps, their limits, and numbers that are none.

use super::*;

#[test]
fn the_loss_falls_and_the_result_is_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = start(dir.path(), &LINES, &["train.epochs=30", "save.every_steps=20"]).unwrap();
    let (outcome, events) = run(&mut trainer, None);
    let outcome = outcome.unwrap();
    let losses: Vec<f64> =
        events.iter().filter_map(|e| if let Event::Step(s) = e { Some(s.loss) } else { None }).collect();
    assert!(losses[losses.len() - 1] < losses[0] / 2.0, "{losses:?}");
    assert_eq!(losses.len() as u64, trainer.plan().steps);
    assert_eq!(outcome.model, dir.path().join("out/final"));
    assert_eq!(weights(&outcome.model).len(), config().tensors().count());
    assert!(outcome.model.join("tokenizer.model").exists());
    // answers are prompted as they were trained: closed, where Tele-FLM's own template leaves them open
    let trained = Tokenizer::from_dir(&outcome.model).unwrap();
    let said =
        [("user", "a"), ("assistant", "b"), ("user", "c")].map(|(role, text)| ChatMessage::new(role, text));
    let prompt = trained.chat_template().unwrap().render(&said, true).unwrap();
    assert_eq!(prompt, "<_user>a<_bot>b</s><_user>c<_bot>");
    let lines = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), losses.len());
}

#[test]
fn clipping_limits_the_norm_of_everything_or_of_each_block() {
    // the first moment after one step is 0.1 times the clipped gradient
    let norms = |clip: &str| {
        let dir = tempfile::tempdir().unwrap();
        let changes = [clip, "optimizer.clip_norm=1e-3", "train.max_steps=1"];
        let mut trainer = start(dir.path(), &LINES, &changes).unwrap();
        run(&mut trainer, None).0.unwrap();
        let mut squares = [0f64; 4];
        for (name, bytes) in weights_of_optimizer(&dir.path().join("out/step-00000001")) {
            let Some(name) = name.strip_prefix("exp_avg.") else { continue };
            let unit = match name.strip_prefix("model.layers.") {
                Some(rest) => 1 + rest[..1].parse::<usize>().unwrap(),
                None if name == "model.embed_tokens.weight" => 0,
                None => 3,
            };
            let values = bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b)));
            squares[unit] += values.map(|x| x * x).sum::<f64>();
        }
        squares.map(|sum| sum.sqrt() / 0.1)
    };
    let global = norms("optimizer.clip=global");
    let norm = global.iter().map(|n| n * n).sum::<f64>().sqrt();
    // the coefficient is max / (norm + 1e-6), a little below max / norm
    assert!((0.999e-3..1e-3 * (1.0 + 1e-6)).contains(&norm), "{norm}");
    for norm in norms("optimizer.clip=block") {
        assert!((0.999e-3..1e-3 * (1.0 + 1e-6)).contains(&norm), "{norm}");
    }
}

#[test]
fn utilisation_is_the_steps_arithmetic_against_the_peak_rate() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = start(dir.path(), &LINES, &["train.peak_flops=1e9", "train.batch_size=6"]).unwrap();
    let plan = trainer.plan();
    let operations = plan.operations_per_epoch();
    assert_eq!(plan.report().operations, 3.0 * operations);
    let seconds = plan.measure(&device(), DType::F32).unwrap().unwrap();
    let (outcome, events) = run(&mut trainer, None);
    outcome.unwrap();
    let mut measured = 0.0;
    for event in events {
        if let Event::Step(step) = event {
            measured += step.seconds;
            let expected = operations / step.seconds / 1e9;
            assert!((step.utilisation.unwrap() / expected - 1.0).abs() < 1e-9);
        }
    }
    assert!(seconds > measured / 50.0 && seconds < measured * 50.0, "{seconds} {measured}");
}

#[test]
fn a_loss_that_is_no_number_stops_and_names_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let changes =
        ["optimizer.learning_rate=1e30", "optimizer.clip_norm=0", "train.epochs=9", "save.every_steps=1"];
    let mut trainer = start(dir.path(), &LINES, &changes).unwrap();
    let (outcome, events) = run(&mut trainer, None);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("data.jsonl:") && error.contains("stopped before the update"), "{error}");
    let made = events.iter().filter(|e| matches!(e, Event::Step(_))).count();
    assert!(dir.path().join(format!("out/step-{made:08}/model.safetensors")).exists());
    assert!(!dir.path().join("out/final").exists());
}

#[test]
fn tokens_of_zeros_in_a_batch_without_a_loss_are_named() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let ids = Tokenizer::from_dir(&model).unwrap().encode("春眠不觉晓").unwrap();
    let set = |name: &str, value: usize, bytes: &[u8]| {
        let checkpoint = Checkpoint::open(&model).unwrap();
        let entry = checkpoint.entry(name).unwrap();
        let file = fs::File::options().write(true).open(&checkpoint.files()[entry.file].path).unwrap();
        file.write_all_at(bytes, entry.offset + 4 * value as u64).unwrap();
    };
    set("model.norm.weight", 0, &f32::NAN.to_le_bytes());
    let (zero, width) = (*ids.last().unwrap(), config().hidden_size);
    set("model.embed_tokens.weight", zero as usize * width, &vec![0; 4 * width]);
    let line = [r#"{"text":"春眠不觉晓"}"#];
    let said = |lines: &[&str]| {
        let mut trainer = start(dir.path(), lines, &["data.packing=false"]).unwrap();
        run(&mut trainer, None).0.unwrap_err().to_string()
    };
    assert!(said(&line).contains(&format!("zeros, which can be the cause: ids {zero};")), "{}", said(&line));
    // another batch has no such token
    fs::remove_dir_all(dir.path().join("out")).unwrap();
    let other = said(&[r#"{"text":"hello"}"#]);
    assert!(other.contains("is NaN: stopped") && !other.contains("zeros"), "{other}");
}

#[test]
fn weights_that_half_precision_cannot_hold_are_refused_and_the_states_stay() {
    let dir = tempfile::tempdir().unwrap();
    let changes = [
        "save.dtype=f16",
        "optimizer.learning_rate=1e5",
        "optimizer.final_learning_rate=1e5",
        "optimizer.warmup_steps=0",
        "train.max_steps=1",
    ];
    let said = run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap_err().to_string();
    assert!(said.contains("beyond f16"), "{said}");
    assert!(!dir.path().join("out/final").exists());
    assert!(dir.path().join("out/step-00000001").exists());
}

/// Puts f32 values at the beginning of a stored tensor, from its value `at` on.
fn set(model: &Path, name: &str, at: usize, values: &[f32]) {
    use std::os::unix::fs::FileExt;
    let checkpoint = Checkpoint::open(model).unwrap();
    let entry = checkpoint.entry(name).unwrap();
    let file = fs::File::options().write(true).open(&checkpoint.files()[entry.file].path).unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    file.write_all_at(&bytes, entry.offset + 4 * at as u64).unwrap();
}

#[test]
fn a_validation_that_is_no_number_is_told_and_weights_that_are_none_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    // a token that the validation alone has
    let id = *Tokenizer::from_dir(&model).unwrap().encode("红豆生南国").unwrap().last().unwrap() as usize;
    let width = config().hidden_size;
    set(&model, "model.embed_tokens.weight", id * width, &vec![f32::NAN; width]);
    let validation = dir.path().join("validation.jsonl");
    fs::write(&validation, LINES[5]).unwrap();
    let changes = [format!("data.validation_files=[{validation:?}]"), "train.max_steps=1".into()];
    let (outcome, events) = run(&mut start(dir.path(), &LINES[3..4], &strs(&changes)).unwrap(), None);
    let said = outcome.unwrap_err().to_string();
    assert!(said.contains("model.embed_tokens.weight has a value that is not finite"), "{said}");
    assert!(
        events.iter().any(|e| matches!(e, Event::Validation { loss, .. } if loss.is_nan())),
        "{events:?}"
    );
    let kept = names(&dir.path().join("out"));
    assert!(!kept.iter().any(|name| name.starts_with("step-") || name == "final"), "{kept:?}");
}

#[test]
fn a_run_that_diverges_leaves_no_state_of_weights_that_are_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let changes = [
        "data.packing=false",
        "train.batch_size=1",
        "optimizer.learning_rate=3e38",
        "optimizer.schedule=constant",
        "optimizer.clip_norm=0",
        "save.every_steps=1",
        "save.keep=1",
    ];
    run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap_err();
    let finite = |bytes: &[u8]| {
        bytes.chunks_exact(4).all(|value| f32::from_le_bytes(value.try_into().unwrap()).is_finite())
    };
    let out = dir.path().join("out");
    for name in names(&out).iter().filter(|name| name.starts_with("step-")) {
        assert!(weights(&out.join(name)).iter().all(|(_, bytes)| finite(bytes)), "{name}");
    }
}

#[test]
fn the_result_has_the_sources_dtype_and_small_updates_stay() {
    let dir = tempfile::tempdir().unwrap();
    let changes = ["save.dtype=source", "optimizer.learning_rate=1e-6", "train.max_steps=1"];
    let outcome = run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap();
    assert!(Checkpoint::open(&outcome.model).unwrap().entries().all(|entry| entry.dtype == Dtype::F32));
    let (before, after) = (weights(&dir.path().join("model")), weights(&outcome.model));
    assert!(before.iter().all(|tensor| !after.contains(tensor)), "a tensor has not moved");
}

#[test]
fn a_stored_weight_that_half_precision_cannot_hold_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    set(&model, "model.layers.0.mlp.down_proj.weight", 0, &[70_000.0]);
    let changes = ["save.dtype=f16", "optimizer.learning_rate=1e-6", "train.max_steps=1"];
    let said = run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap_err().to_string();
    assert!(said.contains("model.layers.0.mlp.down_proj.weight") && said.contains("beyond f16"), "{said}");
}
