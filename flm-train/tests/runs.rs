//! Whole runs: data, checkpoints, resuming, what can be wrong.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::DType;
use flm_candle::{ChatMessage, Tokenizer};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::Dtype;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::preset;
use flm_tests::device::device;
use flm_train::Options;
use flm_train::Plan;
use flm_train::TrainError;
use flm_train::{Event, Outcome, Trainer};

fn config() -> TeleFlmConfig {
    let mut config = preset("nano-52b").unwrap();
    config.num_hidden_layers = 2;
    config.num_attention_heads = 2;
    config.num_key_value_heads = 2;
    config.hidden_size = 16;
    config.head_dim = 8;
    config.intermediate_size = 24;
    config.vocab_size = 2048;
    config.max_position_embeddings = 64;
    config.mup_scale_factor = 0.5;
    config.set_raw("torch_dtype", "float32".into());
    config
}

/// A small model with Tele-FLM's kind of tokenizer.
fn model(dir: &Path) -> PathBuf {
    let (config, path) = (config(), dir.join("model"));
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(&path, &specs, u64::MAX).unwrap();
    for (index, spec) in specs.iter().enumerate() {
        let len: usize = spec.shape.iter().product();
        let value = |i: usize| {
            let wave = ((i * 7919 + index * 104_729) as f32 * 0.37).sin();
            if spec.shape.len() == 1 { 1.0 + 0.1 * wave } else { 0.2 * wave }
        };
        let bytes: Vec<u8> = (0..len).flat_map(|i| value(i).to_le_bytes()).collect();
        writer.write_at(&spec.name, 0, &bytes).unwrap();
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/spm/tokenizer.model");
    fs::copy(fixture, writer.staging_dir().join("tokenizer.model")).unwrap();
    writer.finish(&config).unwrap();
    path
}

const LINES: [&str; 6] = [
    r#"{"messages":[{"role":"user","content":"白日依山尽"},{"role":"assistant","content":"黄河入海流"}]}"#,
    r#"{"instruction":"床前明月光","output":"疑是地上霜"}"#,
    r#"{"conversations":[{"from":"human","value":"春眠不觉晓"},{"from":"gpt","value":"处处闻啼鸟"},{"from":"human","value":"夜来风雨声"},{"from":"gpt","value":"花落知多少"}]}"#,
    r#"{"messages":[{"role":"user","content":"hello"},{"role":"assistant","content":"good morning to you"}]}"#,
    r#"{"instruction":"count","input":"to three","output":"one two three"}"#,
    r#"{"messages":[{"role":"user","content":"红豆生南国"},{"role":"assistant","content":"春来发几枝"}]}"#,
];

/// A run over a model and a file of samples in `dir`, with settings changed by `section.key=value`.
fn recipe(dir: &Path, lines: &[&str], changes: &[&str]) -> Result<Options, TrainError> {
    let data: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join("data.jsonl"), data).unwrap();
    if !dir.join("model").exists() {
        model(dir);
    }
    let (model, output, data) = (dir.join("model"), dir.join("out"), dir.join("data.jsonl"));
    let text = format!(
        "model = {model:?}\noutput = {output:?}\n[data]\nfiles = [{data:?}]\ncontext_length = 48\n\
         [train]\nbatch_size = 2\nepochs = 3\n[optimizer]\nlearning_rate = 1e-2\n\
         [save]\ndtype = \"f32\"\nkeep = 100\n[memory]\n"
    );
    let mut table: toml::Table = text.parse().unwrap();
    for change in changes {
        let (key, word) = change.split_once('=').unwrap();
        let value =
            format!("value = {word}").parse::<toml::Table>().map(|mut table| table.remove("value").unwrap());
        let mut at = &mut table;
        let (sections, key) = key.rsplit_once('.').unwrap_or(("", key));
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            at = at[section].as_table_mut().unwrap();
        }
        at.insert(key.into(), value.unwrap_or_else(|_| word.into()));
    }
    table.try_into().map_err(|e: toml::de::Error| TrainError::Setting(e.to_string()))
}

fn start(dir: &Path, lines: &[&str], changes: &[&str]) -> Result<Trainer, TrainError> {
    let plan = Plan::for_device(recipe(dir, lines, changes)?, &device(), DType::F32)?;
    Trainer::new(plan, &device(), DType::F32)
}

/// Runs until done, or stops after `steps` steps of this call.
fn run(trainer: &mut Trainer, steps: Option<u64>) -> (Result<Outcome, TrainError>, Vec<Event>) {
    let (stop, mut events, mut made) = (AtomicBool::new(false), Vec::new(), 0);
    let outcome = trainer.run(&stop, &mut |event| {
        made += u64::from(matches!(event, Event::Step(_)));
        // the stop is seen after the step that is being reported
        stop.store(steps == Some(made), Ordering::Relaxed);
        events.push(event.clone());
        Ok(())
    });
    (outcome, events)
}

fn weights(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check().unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
}

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

fn weights_of_optimizer(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let checkpoint = Checkpoint::open(&dir.join("optimizer")).unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
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

#[test]
fn only_assistant_turns_are_learned_and_each_ends_where_generation_stops() {
    let dir = tempfile::tempdir().unwrap();
    let long = "data.context_length=64";
    let plan = Plan::new(recipe(dir.path(), &LINES[2..3], &[long]).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_dir(&dir.path().join("model")).unwrap();
    let row = &plan.dataset.rows[0].packed;
    let learned: Vec<u32> = row.labels.iter().filter(|&&l| l >= 0).map(|&l| l as u32).collect();
    let (eos, user) = (tokenizer.eos_id().unwrap(), tokenizer.token_to_id("<_user>").unwrap());
    let turns: Vec<String> = learned
        .split_inclusive(|&id| id == eos || id == user)
        .map(|turn| tokenizer.decode_with_special(turn).unwrap())
        .collect();
    let policy = flm_candle::ChatPolicy::new(&tokenizer, None, &[]).unwrap();
    assert!([eos, user].iter().all(|id| policy.stop_tokens().contains(id)));
    // the template leaves answers open: each is closed, and the result is prompted so as well
    assert_eq!(turns, ["处处闻啼鸟</s>", "花落知多少</s>"]);
    let closed = policy.with_closed_answers(&tokenizer, eos).unwrap();
    assert_eq!(closed.end_of_turn(), Some(eos));
    let text = tokenizer.decode_with_special(&row.ids).unwrap();
    assert_eq!(text, "<_user>春眠不觉晓<_bot>处处闻啼鸟</s><_user>夜来风雨声<_bot>花落知多少</s>");
    let open =
        Plan::new(recipe(dir.path(), &LINES[2..3], &[long, "data.close_turns=false"]).unwrap()).unwrap();
    assert_eq!(open.dataset.statistics.targets, plan.dataset.statistics.targets - 1);
}

/// The learned parts of the only row of `line`, under a template.
fn learned(dir: &Path, line: &str, template: &str) -> Vec<String> {
    let path = dir.join("template.jinja");
    fs::write(&path, template).unwrap();
    let changes = ["data.context_length=64".to_owned(), format!("data.chat_template={}", path.display())];
    let plan = Plan::new(recipe(dir, &[line], &strs(&changes)).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_dir(&dir.join("model")).unwrap();
    let row = &plan.dataset.rows[0].packed;
    let mut parts: Vec<Vec<u32>> = vec![Vec::new()];
    for &label in &row.labels {
        match label {
            label if label >= 0 => parts.last_mut().unwrap().push(label as u32),
            _ if !parts.last().unwrap().is_empty() => parts.push(Vec::new()),
            _ => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.iter().map(|part| tokenizer.decode_with_special(part).unwrap()).collect()
}

#[test]
fn what_is_learned_of_an_answer_does_not_depend_on_the_templates_habits() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages":[{"role":"user","content":"a b"},{"role":"assistant","content":"one"},{"role":"user","content":"c"},{"role":"assistant","content":"two"}]}"#;
    // nothing after the token that ends a turn
    let closing = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}\
                   {% if add_generation_prompt %}assistant: {% endif %}";
    assert_eq!(learned(dir.path(), line, closing), ["one</s>", "two</s>"]);
    // a header that knows no generation prompt is no part of the answer
    let header = "{% for m in messages %}{{ m.role }}|{{ m.content }}</s>{% endfor %}";
    assert_eq!(learned(dir.path(), line, header), ["one</s>", "two</s>"]);
    // blocks for trainers, line ends of Windows
    let blocks = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}\r\n{% generation %}\r\n\
                  {{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}assistant: {% endif %}";
    assert_eq!(learned(dir.path(), line, blocks), ["one</s>", "two</s>"]);
    // the text of an answer may hold the token: the end of the turn is learned all the same
    let inside = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"x</s>y"}]}"#;
    let open = "{% for m in messages %}{{ m.content }} {% endfor %}";
    assert_eq!(learned(dir.path(), inside, open), ["x</s>y</s>"]);
}

#[test]
fn turns_that_are_not_to_be_learned_are_read_and_not_learned() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    for mark in [r#""weight":0"#, r#""train":false"#, r#""loss":false"#] {
        let line = format!(
            r#"{{"messages":[{{"role":"user","content":"a b"}},{{"role":"assistant","content":"one",{mark}}},{{"role":"user","content":"c"}},{{"role":"assistant","content":"two"}}]}}"#
        );
        assert_eq!(learned(dir.path(), &line, template), ["two</s>"], "{mark}");
    }
    let skipped = r#"{"prompt":"a","completion":"b","label":false}"#;
    let plan = Plan::new(recipe(dir.path(), &[skipped, LINES[0]], &[]).unwrap()).unwrap();
    assert_eq!(plan.dataset.statistics.dropped, 1);
    assert!(plan.notes().iter().any(|note| note.contains("1 of 2 samples left out")), "{:?}", plan.notes());
}

#[test]
fn what_a_template_renders_of_a_message_is_learned_and_what_it_does_not_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let thought = r#"{"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"four","reasoning_content":"two"}]}"#;
    let thinks = "{% for m in messages %}{{ m.role }}|{% if m.reasoning_content is defined %}(\
                  {{ m.reasoning_content }}){% endif %}{{ m.content }}</s>{% endfor %}";
    assert_eq!(learned(dir.path(), thought, thinks), ["(two)four</s>"]);
    let call = r#"{"messages":[{"role":"user","content":"one"},{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"z":1,"a":2}}}]}],"tools":[{"name":"f"}]}"#;
    let calls = "{{ tools | tojson }}{% for m in messages %}{{ m.role }}|{{ m.content }}\
                 {% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}</s>{% endfor %}";
    let expected = r#"{"name": "f", "arguments": {"z": 1, "a": 2}}</s>"#;
    assert_eq!(learned(dir.path(), call, calls), [expected]);
    // the template of the model renders none of it, and no message of the system or of a tool
    let system = r#"{"system":"in French","instruction":"one","output":"four"}"#;
    let tool = r#"{"messages":[{"role":"user","content":"one"},{"role":"tool","content":"2"},{"role":"assistant","content":"four"}]}"#;
    for (line, key) in [
        (thought, "messages[1].reasoning_content"),
        (call, "tools"),
        (system, "messages[0].system"),
        (tool, "messages[1].tool"),
    ] {
        let plan = |how: &str| Plan::new(recipe(dir.path(), &[LINES[0], line], &[how]).unwrap());
        let error = plan("data.packing=true").unwrap_err().to_string();
        assert!(
            error.contains(&format!("data.jsonl:2: the chat template does not render `{key}`")),
            "{error}"
        );
        let left = plan("data.unrendered=drop").unwrap();
        assert_eq!((left.dataset.statistics.dropped, left.dataset.statistics.documents), (1, 1));
        let all = plan("data.unrendered=ignore").unwrap();
        assert_eq!(all.dataset.statistics.documents, 2);
        assert!(all.notes().iter().any(|note| note.contains("keys that are not read")), "{:?}", all.notes());
    }
}

#[test]
fn a_run_tells_what_it_left_out_and_which_limit_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!(r#"{{"prompt":"{}","completion":"b"}}"#, "白日依山尽".repeat(40));
    fs::write(dir.path().join("validation.jsonl"), format!("{}\n{long}\n", LINES[1])).unwrap();
    let validation = format!("data.validation_files=[{:?}]", dir.path().join("validation.jsonl"));
    let changes = [validation.as_str(), "train.max_steps=100"];
    let notes = Plan::new(recipe(dir.path(), &[LINES[0], &long], &changes).unwrap()).unwrap().notes();
    for says in [
        "1 of 2 samples left out",
        "validation: 1 of 2 samples left out",
        "train.epochs = 3 ends the run at step 3",
    ] {
        assert!(notes.iter().any(|note| note.contains(says)), "{notes:?}");
    }
}

#[test]
fn a_base_model_learns_texts_and_no_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let line = [r#"{"text":"one two three"}"#];
    recipe(dir.path(), &line, &[]).unwrap();
    // a tokenizer without the tokens of Tele-FLM's template
    let words = r#"{"version":"1.0","pre_tokenizer":{"type":"Whitespace"},"model":{"type":"WordLevel",
        "vocab":{"?":0,"one":1,"two":2,"three":3},"unk_token":"?"}}"#;
    fs::remove_file(dir.path().join("model/tokenizer.model")).unwrap();
    fs::write(dir.path().join("model/tokenizer.json"), words).unwrap();
    Plan::new(recipe(dir.path(), &line, &[]).unwrap()).unwrap();
    let said = Plan::new(recipe(dir.path(), &LINES[..1], &[]).unwrap()).unwrap_err().to_string();
    assert!(said.contains("no chat template") && said.contains("data.chat_template"), "{said}");
}

#[test]
fn bad_data_is_named() {
    let long = format!(
        r#"{{"messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":"{}"}}]}}"#,
        "long ".repeat(100)
    );
    let cases: [(&[&str], &[&str], &str); 6] = [
        (&[], &[], "hold no samples"),
        (&[LINES[0], "{\"messages\":"], &[], "data.jsonl:2: not JSON"),
        (&[LINES[0], &long], &["data.truncation=error"], "data.jsonl:2: "),
        (&[&long], &["data.truncation=drop"], "no sample has a token to learn"),
        (&[LINES[0]], &["data.context_length=100"], "the model's context is 64"),
        (&[LINES[0]], &["data.chat_template=template"], "leaves assistant turn 1 out"),
    ];
    for (lines, changes, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("template");
        fs::write(
            &template,
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        )
        .unwrap();
        let changes: Vec<String> =
            changes.iter().map(|c| c.replace("=template", &format!("={}", template.display()))).collect();
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        let error = recipe(dir.path(), lines, &changes).and_then(Plan::new).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
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
fn texts_are_cut_into_rows_and_wholly_learned() {
    let dir = tempfile::tempdir().unwrap();
    let text = "天地玄黄，宇宙洪荒。".repeat(40);
    let line = format!("{{\"text\":\"{text}\"}}");
    let plan = Plan::new(recipe(dir.path(), &[&line], &["data.packing=false"]).unwrap()).unwrap();
    assert!(plan.dataset.rows.len() > 3);
    for row in &plan.dataset.rows {
        assert!(row.packed.len() <= 48);
        assert_eq!(row.packed.targets(), row.packed.len() - 1);
    }
    // a last token alone is learned too
    let line = format!("{{\"text\":\"{}\"}}", &text[..60]);
    let whole = Plan::new(recipe(dir.path(), &[&line], &[]).unwrap()).unwrap().dataset.statistics.tokens;
    let edge =
        Plan::new(recipe(dir.path(), &[&line], &[&format!("data.context_length={}", whole - 1)]).unwrap());
    assert_eq!(edge.unwrap().dataset.statistics.targets, whole - 1);
}

/// Names of everything in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Changes one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// What `start` says, for a run that must not start.
fn refusal(dir: &Path, lines: &[&str], changes: &[&str]) -> String {
    start(dir, lines, changes).map(drop).unwrap_err().to_string()
}

/// Settings of a run with its parameters in `dir/scratch`, and others.
fn on_disk(dir: &Path, more: &[String]) -> Vec<String> {
    let scratch = format!("memory.work_dir={}", dir.join("scratch").display());
    [vec!["memory.placement=disk".into(), scratch], more.to_vec()].concat()
}

fn strs(changes: &[String]) -> Vec<&str> {
    changes.iter().map(String::as_str).collect()
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
fn results_have_digests_and_tell_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let growth = serde_json::json!({ "tool": "x", "source": "y", "growth": { "seed": 1 }, "earlier": [{ "seed": 0 }] });
    model(dir.path());
    fs::write(dir.path().join("model/provenance.json"), growth.to_string()).unwrap();
    let outcome = run(&mut start(dir.path(), &LINES, &["save.every_steps=2"]).unwrap(), None).0.unwrap();
    for path in [outcome.model.clone(), dir.path().join("out/step-00000002")] {
        let report = flm_checkpoint::Checksums::read(&path).unwrap().check(&path, &|_| ()).unwrap();
        assert!(report.passed && report.files >= 4, "{report:?}");
        let text = fs::read_to_string(path.join("provenance.json")).unwrap();
        let provenance: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(provenance["source"], "model");
        assert_eq!(provenance["earlier"], serde_json::json!([{ "seed": 0 }, { "seed": 1 }]));
        assert!(provenance["training"]["run"]["model"].is_string());
    }
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
fn rows_of_the_validation_are_not_trained_on_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(&mut start(dir.path(), &LINES, &["data.validation=0.34"]).unwrap(), Some(1));
    assert!(outcome.unwrap().stopped);
    let said = refusal(dir.path(), &LINES, &["data.validation=0"]);
    assert!(said.contains("validation"), "{said}");
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
