//! What of the data is learned.

use super::*;

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

/// `count` questions and answers, with a message of the system before them.
fn long_conversation(count: usize) -> String {
    let turns = (0..count).map(|i| {
        format!(r#",{{"role":"user","content":"q {i}"}},{{"role":"assistant","content":"answer {}"}}"#, i * i)
    });
    format!(r#"{{"messages":[{{"role":"system","content":"s"}}{}]}}"#, turns.collect::<String>())
}

#[test]
fn all_of_a_long_conversation_is_learned_as_its_parts_are() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    let plan = |line: &str| {
        let path = dir.path().join("template.jinja");
        fs::write(&path, template).unwrap();
        let template = format!("data.chat_template={}", path.display());
        let changes = [template.as_str(), "data.truncation=\"right\""];
        Plan::new(recipe(dir.path(), &[line], &changes).unwrap()).unwrap()
    };
    // rows hold 48 tokens: the first turns of a long conversation are a short one's
    let (short, long) = (plan(&long_conversation(5)), plan(&long_conversation(40)));
    assert!(short.dataset.statistics.longest == 48 && long.dataset.statistics.longest == 48);
    assert_eq!(short.dataset.rows[0].packed, long.dataset.rows[0].packed);
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
fn the_memory_of_the_data_is_counted_in_every_plan() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!(r#"{{"text":"{}"}}"#, "天地玄黄，宇宙洪荒。".repeat(400));
    let plan = Plan::new(recipe(dir.path(), &[LINES[0], &long], &["data.validation=0.3"]).unwrap()).unwrap();
    let (rows, data) = (plan.dataset.rows.iter().chain(&plan.dataset.validation), plan.dataset.memory());
    let tokens: usize = rows.map(|row| row.packed.len()).sum();
    assert!(!plan.dataset.validation.is_empty() && data >= 12 * tokens as u64, "{data} for {tokens}");
    assert_eq!(plan.report().data_memory, data);
    for considered in &plan.considered {
        let host = considered.estimate.host;
        assert_eq!(host.data, data);
        assert_eq!(host.total, host.parameters + host.activations + host.workspace + data);
    }
    // a budget without it is too small
    let least = plan.considered.iter().map(|plan| plan.estimate.host.total).min().unwrap();
    for (budget, fits) in [(least, true), (least - data / 2, false)] {
        let budget = format!("memory.budget={budget}");
        let changes = ["data.validation=0.3", budget.as_str()];
        let plan = recipe(dir.path(), &[LINES[0], &long], &changes).and_then(Plan::new);
        assert_eq!(plan.is_ok(), fits, "{budget}");
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
