//! Runs that go on, and those that must not.

use super::*;

#[test]
fn a_stopped_run_goes_on_bit_for_bit_on_every_placement() {
    let mut finals = Vec::new();
    for (placement, weights_in) in
        [("resident", "f32"), ("disk", "f32"), ("resident", "bf16"), ("disk", "bf16")]
    {
        let changes = [
            &format!("memory.placement={placement}")[..],
            &format!("optimizer.weights={weights_in}"),
            "memory.recompute=always",
            "data.validation=0.2",
        ];
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut trainer = start(whole.path(), &LINES, &changes).unwrap();
        run(&mut trainer, None).0.unwrap();
        drop(trainer);
        let mut made = 0;
        loop {
            let mut trainer = start(parts.path(), &LINES, &changes).unwrap();
            assert_eq!(trainer.resumed().unwrap_or(0), made);
            let outcome = run(&mut trainer, Some(2)).0.unwrap();
            made = outcome.step;
            if !outcome.stopped {
                break;
            }
            assert_eq!(weights(&outcome.model).len(), config().tensors().count());
        }
        assert_eq!(
            weights(&whole.path().join("out/final")),
            weights(&parts.path().join("out/final")),
            "{placement}"
        );
        assert!(!whole.path().join("out/.work").exists());
        finals.push(weights(&whole.path().join("out/final")));
        let state = Checkpoint::open(&whole.path().join(format!("out/step-{made:08}"))).unwrap();
        let head = state.entry("lm_head.weight").unwrap().dtype;
        assert_eq!(head, if weights_in == "bf16" { Dtype::BF16 } else { Dtype::F32 });
        let step = format!("out/step-{made:08}");
        for (name, bytes) in weights_of_optimizer(&whole.path().join(&step)) {
            let again = weights_of_optimizer(&parts.path().join(&step));
            assert!(again.iter().any(|(n, b)| *n == name && *b == bytes), "{name}");
        }
    }
    assert_eq!(finals[0], finals[1]);
    assert_eq!(finals[2], finals[3]);
    assert_ne!(finals[0], finals[2]);
}

#[test]
fn states_of_runs_that_knew_fewer_settings_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = start(dir.path(), &LINES, &[]).unwrap();
    let step = run(&mut trainer, Some(2)).0.unwrap().step;
    drop(trainer);
    let path = dir.path().join(format!("out/step-{step:08}/training_state.json"));
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("earlier_steps").unwrap();
    let identity = state["identity"].as_object_mut().unwrap();
    identity.remove("growth").unwrap();
    for key in ["clip", "weights", "rewind_step", "moments"] {
        identity["optimizer"].as_object_mut().unwrap().remove(key).unwrap();
    }
    fs::write(&path, state.to_string()).unwrap();
    // nor had they digests or a marker
    fs::remove_file(path.with_file_name("checksums.json")).unwrap();
    fs::remove_file(dir.path().join("out/run.json")).unwrap();
    assert_eq!(start(dir.path(), &LINES, &[]).unwrap().resumed(), Some(2));
    let error = start(dir.path(), &LINES, &["optimizer.clip=block"]).unwrap_err().to_string();
    assert!(error.contains("differs in optimizer"), "{error}");
}

#[test]
fn a_run_with_other_settings_does_not_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut trainer = start(dir.path(), &LINES, &[]).unwrap();
    run(&mut trainer, Some(1)).0.unwrap();
    drop(trainer);
    let error = start(dir.path(), &LINES[1..], &["train.seed=3"]).unwrap_err().to_string();
    assert!(error.contains("data_digest") && error.contains("seed"), "{error}");
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let changes = ["save.every_steps=1", "save.keep=2", "data.validation=0.3", "train.epochs=4"];
    let mut trainer = start(dir.path(), &LINES, &changes).unwrap();
    let (_, events) = run(&mut trainer, None);
    let losses: Vec<(f64, u64)> = events
        .iter()
        .filter_map(|e| if let Event::Validation { step, loss } = e { Some((*loss, *step)) } else { None })
        .collect();
    let steps = trainer.plan().steps;
    // the model as it came is validated too, and is no checkpoint
    assert!(losses.iter().map(|(_, step)| *step).eq(0..=steps));
    let best = losses[1..].iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap().1;
    let mut expected = vec![steps - 1, steps, best];
    expected.sort_unstable();
    expected.dedup();
    let names =
        fs::read_dir(dir.path().join("out")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut kept: Vec<u64> = names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
    kept.sort_unstable();
    assert_eq!(kept, expected);
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_run_goes_on_with_its_own_model_template_and_split_only() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(&mut start(dir.path(), &LINES, &[]).unwrap(), Some(2));
    assert!(outcome.unwrap().stopped);
    // the same shape, other weights
    fs::create_dir(dir.path().join("second")).unwrap();
    for name in names(&dir.path().join("model")) {
        fs::copy(dir.path().join("model").join(&name), dir.path().join("second").join(&name)).unwrap();
    }
    flip(&dir.path().join("second/model.safetensors"));
    let said = refusal(dir.path(), &LINES, &[&format!("model={}", dir.path().join("second").display())]);
    assert!(said.contains("differs in model"), "{said}");
    let template = "{% for m in messages %}<_user>{{ m.content }}<_bot>{% endfor %}";
    fs::write(dir.path().join("template.jinja"), template).unwrap();
    let said = refusal(
        dir.path(),
        &LINES,
        &[&format!("data.chat_template={}", dir.path().join("template.jinja").display())],
    );
    assert!(said.contains("chat_template"), "{said}");
    let said = refusal(dir.path(), &LINES, &["data.validation=0.34"]);
    assert!(said.contains("validation"), "{said}");
    assert!(run(&mut start(dir.path(), &LINES, &[]).unwrap(), None).0.is_ok());
}

#[test]
fn a_damaged_state_is_named_with_the_whole_one_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, changes) = (dir.path().join("out"), ["save.every_steps=1"]);
    run(&mut start(dir.path(), &LINES, &changes).unwrap(), Some(3)).0.unwrap();
    let newest = out.join("step-00000003");
    for name in ["model.safetensors", "optimizer/model.safetensors", "training_state.json", "config.json"] {
        let whole = fs::read(newest.join(name)).unwrap();
        flip(&newest.join(name));
        let said = refusal(dir.path(), &LINES, &changes);
        assert!(said.contains("step-00000003") && said.contains("step-00000002 is whole"), "{name}: {said}");
        fs::write(newest.join(name), &whole[..whole.len() - 5]).unwrap();
        let said = refusal(dir.path(), &LINES, &changes);
        assert!(said.contains("step-00000002 is whole"), "{name}: {said}");
        fs::write(newest.join(name), whole).unwrap();
    }
    assert!(start(dir.path(), &LINES, &changes).is_ok());
}

#[test]
fn a_run_goes_on_under_another_plan_bit_for_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let common = ["data.packing=false", "train.batch_size=5", "save.every_steps=1"];
    let (outcome, _) = run(&mut start(whole.path(), &LINES, &common).unwrap(), None);
    let steps = outcome.unwrap().step;
    assert_eq!(steps, 6, "two steps an epoch: a run that stops after an odd one stops inside an epoch");
    let plans: [&[&str]; 3] = [
        &["memory.sweep_rows=1", "memory.recompute=always", "memory.inputs=disk"],
        &["memory.sweep_rows=2", "memory.placement=disk"],
        &["memory.sweep_rows=4", "memory.recompute=never"],
    ];
    let mut made = 0;
    for plan in plans.into_iter().cycle() {
        let mut trainer = start(parts.path(), &LINES, &[&common[..], plan].concat()).unwrap();
        assert_eq!(trainer.resumed().unwrap_or(0), made);
        let outcome = run(&mut trainer, Some(1)).0.unwrap();
        made = outcome.step;
        if !outcome.stopped {
            break;
        }
    }
    assert_eq!(made, steps);
    for step in 1..=steps {
        let dir = format!("out/step-{step:08}");
        assert!(weights(&whole.path().join(&dir)) == weights(&parts.path().join(&dir)), "{dir}");
        let moments = |run: &Path| weights_of_optimizer(&run.join(&dir));
        assert!(moments(whole.path()) == moments(parts.path()), "{dir}");
    }
    let losses = |run: &Path| {
        let text = fs::read_to_string(run.join("out/metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].clone();
        text.lines().map(loss).collect::<Vec<_>>()
    };
    assert_eq!(losses(whole.path()), losses(parts.path()));
}

#[test]
fn rows_of_the_validation_are_not_trained_on_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(&mut start(dir.path(), &LINES, &["data.validation=0.34"]).unwrap(), Some(1));
    assert!(outcome.unwrap().stopped);
    let said = refusal(dir.path(), &LINES, &["data.validation=0"]);
    assert!(said.contains("validation"), "{said}");
}

#[test]
fn metrics_of_steps_that_are_made_again_are_set_aside_and_those_of_a_finished_run_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (out, changes) = (
        dir.path().join("out"),
        ["save.every_steps=2", "data.validation=0.3", "data.packing=false", "train.epochs=4"],
    );
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_default();
    let steps = |text: &str| -> Vec<u64> {
        let step =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
        text.lines().map(step).collect()
    };
    // as after a kill: the newest state is of an earlier step than the last line
    run(&mut start(dir.path(), &LINES, &changes).unwrap(), Some(3)).0.unwrap();
    let all = read("metrics.jsonl");
    assert_eq!(steps(&all), [0, 1, 2, 2, 3]);
    fs::remove_dir_all(out.join("step-00000003")).unwrap();
    let mut trainer = start(dir.path(), &LINES, &changes).unwrap();
    assert_eq!((trainer.resumed(), trainer.undone()), (Some(2), 1));
    assert_eq!(format!("{}{}", read("metrics.jsonl"), read("metrics-undone.jsonl")), all);
    run(&mut trainer, None).0.unwrap();
    drop(trainer);
    let made = read("metrics.jsonl");
    let last = steps(&made).into_iter().max().unwrap();
    let mut trained: Vec<u64> =
        made.lines().filter(|line| line.contains("gradient_norm")).flat_map(&steps).collect();
    trained.dedup();
    assert_eq!(trained, (1..=last).collect::<Vec<_>>());
    // without its states the run is finished all the same
    for step in fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()) {
        if step.file_name().unwrap().to_string_lossy().starts_with("step-") {
            fs::remove_dir_all(step).unwrap();
        }
    }
    let outcome = run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap();
    assert_eq!((outcome.step, outcome.stopped, outcome.model), (last, false, out.join("final")));
    assert_eq!(read("metrics.jsonl"), made);
}
