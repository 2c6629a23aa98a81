//! Whose folders and files are whose.

use super::*;

/// Settings of a run with its parameters in `dir/scratch`, and others.
fn on_disk(dir: &Path, more: &[String]) -> Vec<String> {
    let scratch = format!("memory.work_dir={}", dir.join("scratch").display());
    [vec!["memory.placement=disk".into(), scratch], more.to_vec()].concat()
}

#[test]
fn a_working_folder_of_the_users_is_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    fs::create_dir(&scratch).unwrap();
    // the user's: a file of a name that the store uses, a folder that looks like one of its own
    fs::write(scratch.join("weights"), "mine").unwrap();
    fs::create_dir(scratch.join("flm-work-notes")).unwrap();
    let before = names(&scratch);
    let mut trainer = start(dir.path(), &LINES, &strs(&on_disk(dir.path(), &[]))).unwrap();
    assert_eq!(names(&scratch).len(), before.len() + 1);
    run(&mut trainer, Some(2)).0.unwrap();
    drop(trainer);
    assert_eq!(names(&scratch), before);
    // refused runs as well
    refusal(dir.path(), &LINES, &strs(&on_disk(dir.path(), &["train.seed=9".into()])));
    assert_eq!(names(&scratch), before);
    assert_eq!(fs::read_to_string(scratch.join("weights")).unwrap(), "mine");
}

#[test]
fn what_a_dead_run_left_in_its_working_folder_goes_and_nothing_of_another_run() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch");
    let output = format!("output={}", dir.path().join("other").display());
    let other =
        start(dir.path(), &LINES, &strs(&on_disk(dir.path(), std::slice::from_ref(&output)))).unwrap();
    let trainer = start(dir.path(), &LINES, &strs(&on_disk(dir.path(), &[]))).unwrap();
    assert_eq!(names(&scratch).len(), 2);
    // killed: no destructor ran, the lock is gone with the process
    let work = names(&scratch);
    let saved: Vec<(String, String)> = work
        .iter()
        .map(|name| (name.clone(), fs::read_to_string(scratch.join(name).join("owner")).unwrap()))
        .collect();
    drop(trainer);
    let ours = saved.iter().find(|(name, _)| !scratch.join(name).exists()).unwrap();
    fs::create_dir(scratch.join(&ours.0)).unwrap();
    fs::write(scratch.join(&ours.0).join("owner"), &ours.1).unwrap();
    let trainer = start(dir.path(), &LINES, &strs(&on_disk(dir.path(), &[]))).unwrap();
    assert!(!scratch.join(&ours.0).exists());
    assert_eq!(names(&scratch).len(), 2);
    drop((trainer, other));
    assert_eq!(names(&scratch), [""; 0]);
}

#[test]
fn a_result_of_another_run_is_never_returned() {
    let dir = tempfile::tempdir().unwrap();
    let first = run(&mut start(dir.path(), &LINES, &[]).unwrap(), None).0.unwrap();
    let trained = weights(&first.model);
    for name in names(&dir.path().join("out")) {
        if name.starts_with("step-") {
            fs::remove_dir_all(dir.path().join("out").join(name)).unwrap();
        }
    }
    // the same run is finished: nothing is trained again
    let (again, events) = run(&mut start(dir.path(), &LINES, &[]).unwrap(), None);
    assert_eq!(again.unwrap().model, first.model);
    assert_eq!(events, []);
    let said = refusal(dir.path(), &LINES[..3], &[]);
    assert!(said.contains("data_digest"), "{said}");
    assert_eq!(weights(&first.model), trained);
    // results without a marker: whose they are, nobody knows
    fs::remove_file(dir.path().join("out/run.json")).unwrap();
    let said = refusal(dir.path(), &LINES, &[]);
    assert!(said.contains("final") && said.contains("move it away"), "{said}");
}

#[test]
fn files_of_the_users_in_the_output_directory_stay() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir_all(out.join(".old-notes")).unwrap();
    fs::create_dir_all(out.join(".old-00000002")).unwrap();
    fs::create_dir_all(out.join("step-5")).unwrap();
    fs::create_dir_all(out.join("step-00000007")).unwrap();
    fs::write(out.join(".old-todo.txt"), "mine").unwrap();
    let changes = ["save.every_steps=1", "save.keep=1"];
    run(&mut start(dir.path(), &LINES, &changes).unwrap(), None).0.unwrap();
    for name in [".old-notes", ".old-00000002", ".old-todo.txt", "step-5", "step-00000007"] {
        assert!(out.join(name).exists(), "{name}");
    }
    // a file where the metrics would go
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("metrics.jsonl"), "mine\n").unwrap();
    let said = refusal(dir.path(), &LINES, &[&format!("output={}", other.display())]);
    assert!(said.contains("metrics.jsonl"), "{said}");
    assert_eq!(fs::read_to_string(other.join("metrics.jsonl")).unwrap(), "mine\n");
}

#[test]
fn what_stands_where_a_checkpoint_would_go_is_told_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    // what is left of a checkpoint whose state was removed to save space
    run(&mut start(dir.path(), &LINES, &["save.every_steps=1"]).unwrap(), Some(2)).0.unwrap();
    fs::remove_file(out.join("step-00000002/training_state.json")).unwrap();
    let said = refusal(dir.path(), &LINES, &["save.every_steps=1"]);
    assert!(said.contains("step-00000002") && said.contains("move it away"), "{said}");
    assert!(out.join("step-00000002/model.safetensors").exists());
    fs::rename(out.join("step-00000002"), dir.path().join("kept")).unwrap();
    run(&mut start(dir.path(), &LINES, &["save.every_steps=1"]).unwrap(), None).0.unwrap();
}

#[test]
fn an_output_in_the_models_own_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let files = || fs::read_dir(&model).unwrap().count();
    let before = files();
    for output in [model.clone(), model.join("tuned"), model.join("new/tuned")] {
        let change = format!("output={output:?}");
        let said = Plan::new(recipe(dir.path(), &LINES, &[&change]).unwrap()).unwrap_err().to_string();
        assert!(said.contains("is or lies inside the source"), "{said}");
    }
    assert_eq!(files(), before);
}

#[test]
fn a_finished_model_of_another_dtype_is_not_passed_off_as_the_one_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = run(&mut start(dir.path(), &LINES, &[]).unwrap(), None).0.unwrap().model;
    let bf16 = ["save.dtype=bf16"];
    let again = || run(&mut start(dir.path(), &LINES, &bf16).unwrap(), None).0;
    let said = again().unwrap_err().to_string();
    assert!(said.contains("its weights are f32, save.dtype asks for bf16"), "{said}");
    // as the message says
    fs::rename(&model, dir.path().join("moved")).unwrap();
    let written = again().unwrap().model;
    assert!(Checkpoint::open(&written).unwrap().entries().all(|e| e.dtype == Dtype::BF16));
    assert_eq!(again().unwrap().model, written);
    // without the checkpoints of its steps too
    for step in fs::read_dir(dir.path().join("out")).unwrap().map(|entry| entry.unwrap().path()) {
        if step.file_name().unwrap().to_string_lossy().starts_with("step-") {
            fs::remove_dir_all(step).unwrap();
        }
    }
    assert!(run(&mut start(dir.path(), &LINES, &[]).unwrap(), None).0.is_err());
    assert_eq!(again().unwrap().model, written);
}

#[test]
fn what_becomes_of_the_models_folder_meanwhile_changes_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path());
    let tokenizer = fs::read(model.join("tokenizer.model")).unwrap();
    let mut trainer = start(dir.path(), &LINES, &[]).unwrap();
    // another model of that name, and then none
    fs::write(model.join("tokenizer.model"), "other").unwrap();
    let stopped = run(&mut trainer, Some(1)).0.unwrap().model;
    assert_eq!(fs::read(stopped.join("tokenizer.model")).unwrap(), tokenizer);
    fs::rename(&model, dir.path().join("away")).unwrap();
    let trained = run(&mut trainer, None).0.unwrap().model;
    assert_eq!(fs::read(trained.join("tokenizer.model")).unwrap(), tokenizer);
}

#[test]
fn two_runs_do_not_share_an_output_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), &LINES, &[]).unwrap();
    let said = refusal(dir.path(), &LINES, &[]);
    assert!(said.contains("in use"), "{said}");
    drop(first);
    assert!(start(dir.path(), &LINES, &[]).is_ok());
}

#[test]
fn results_have_digests_and_tell_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let growth = serde_json::json!({ "tool": "x", "source": "y", "growth": { "seed": 1 }, "earlier": [{ "seed": 0 }] });
    model(dir.path());
    fs::write(dir.path().join("model/provenance.json"), growth.to_string()).unwrap();
    let outcome = run(&mut start(dir.path(), &LINES, &["save.every_steps=2"]).unwrap(), None).0.unwrap();
    for path in [outcome.model.clone(), dir.path().join("out/step-00000002")] {
        let report = flm_checkpoint::Checksums::read(&path).unwrap().check(&path, None, &|_| ()).unwrap();
        assert!(report.passed && report.files >= 4, "{report:?}");
        let text = fs::read_to_string(path.join("provenance.json")).unwrap();
        let provenance: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(provenance["source"], "model");
        assert_eq!(provenance["earlier"], serde_json::json!([{ "seed": 0 }, { "seed": 1 }]));
        assert!(provenance["training"]["run"]["model"].is_string());
    }
}
