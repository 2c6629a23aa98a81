//! `flm chat` through pipes: what a person types, what the model reads, what is kept; `flm tokenize` and the
//! sampling of `flm generate`, which show what such a prompt and its continuation are made of.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use flm_candle::ChatMessage;
use flm_tests::word_model::word_model;
use flm_train::{Content, Conversation, read_samples};
use serde_json::{Value, json};

/// Ids of `<_user>` and `<_bot>`.
const TURNS: [u32; 2] = [3, 4];

fn flm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A whole conversation whose lines are known before.
fn chat(model: &Path, lines: &str, more: &[&str]) -> Output {
    let mut child = flm(&["chat", model.to_str().unwrap()]).args(more).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn answers(out: &Output) -> Vec<Value> {
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

fn ids(words: &str) -> Vec<u32> {
    words.split_whitespace().map(|word| word[1..].parse().unwrap()).collect()
}

/// The model's answer to a prompt that another process reads from its beginning.
fn fresh(model: &Path, prompt: &[u32], more: &[&str]) -> String {
    let prompt: Vec<_> = prompt.iter().map(ToString::to_string).collect();
    let arguments = ["generate", model.to_str().unwrap(), "--json", "--max-new-tokens", "24", "--ids"];
    let out = flm(&arguments).arg(prompt.join(",")).args(more).output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let answer: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ids = answer["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
    // the token that opens a user's turn ends the answer; special tokens are no text
    ids.take_while(|&id| id != TURNS[0])
        .filter(|&id| id > 4)
        .map(|id| format!("w{id}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_turn_reads_the_whole_conversation_and_works_on_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let questions = ["w20 w21 w22", "w30 w31", "w40 w41 w42 w43"];
    for more in [&[][..], &["--stream"], &["--temperature", "0.9", "--top-k", "50", "--seed", "5"]] {
        let options = [&["--json", "--max-new-tokens", "24"], more].concat();
        let out = chat(&model, &questions.join("\n"), &options);
        assert!(out.status.success(), "{}", stderr(&out));
        let answers = answers(&out);
        assert_eq!(answers.len(), 3);
        let mut conversation = Vec::new();
        for (turn, (question, answer)) in questions.iter().zip(&answers).enumerate() {
            conversation.extend([&TURNS[..1], &ids(question), &TURNS[1..]].concat());
            assert_eq!(answer["prompt_tokens"], conversation.len(), "turn {turn}");
            // each answer is another draw
            let seed = (5 + turn).to_string();
            let more = if more.len() > 1 { [&more[..5], &[&seed]].concat() } else { more.to_vec() };
            assert_eq!(answer["answer"], fresh(&model, &conversation, &more), "turn {turn}");
            if turn > 0 {
                // the turns before were not run again; a special token in an answer is not read again
                let before = answers[turn - 1]["prompt_tokens"].as_u64().unwrap();
                assert!(answer["reused_tokens"].as_u64().unwrap() >= before, "turn {turn}: {answer}");
            }
            conversation.extend(ids(answer["answer"].as_str().unwrap()));
        }
    }
}

#[test]
fn a_saved_conversation_is_training_data() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let template = "{% for m in messages %}{{ {'system': '<s>', 'user': '<_user>', 'assistant': '<_bot>'}[m.role] }}\
                    {{ m.content }}{% endfor %}{% if add_generation_prompt %}<_bot>{% endif %}";
    std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    let file = dir.path().join("talk.jsonl");
    std::fs::write(&file, r#"{"text": "a line without its end"}"#).unwrap();
    let save = format!("/save {}\n", file.display());
    let lines = format!("/system w9 w8\nw20 w21\n{save}/reset\nw7 \\\nw6\n/system\nw5\n{save}");
    let out = chat(&model, &lines, &["--json", "--max-new-tokens", "5"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let answers = answers(&out);
    let prompt_tokens: Vec<_> = answers.iter().map(|a| a["prompt_tokens"].as_u64().unwrap()).collect();
    let said: Vec<&str> = answers.iter().map(|a| a["answer"].as_str().unwrap()).collect();
    // with the system message, with it after /reset, and without it
    let again = 4 + ids(said[1]).len() as u64 + 1 + 2;
    assert_eq!(prompt_tokens, [3 + 3 + 1, 3 + 3 + 1, again]);
    let samples = read_samples(&file).unwrap();
    let turn = |role: &str, text: &str| ChatMessage::new(role, text);
    let first = vec![turn("system", "w9 w8"), turn("user", "w20 w21"), turn("assistant", said[0])];
    let user = "w7 \nw6";
    let second =
        vec![turn("user", user), turn("assistant", said[1]), turn("user", "w5"), turn("assistant", said[2])];
    assert_eq!(samples.len(), 3);
    assert_eq!(samples[1].content, Content::Chat(Conversation::new(first)));
    assert_eq!(samples[2].content, Content::Chat(Conversation::new(second)));
}

#[test]
fn a_conversation_that_is_too_long_loses_its_oldest_turns() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let long = |first: usize, words: usize| -> String {
        (0..words).map(|i| format!("w{} ", 5 + (first + i * 7) % 370)).collect()
    };
    let options = ["--json", "--max-new-tokens", "24"];
    let lines: Vec<String> = (0..5).map(|i| long(i * 50, 140)).collect();
    let out = chat(&model, &lines.join("\n"), &options);
    let text = stderr(&out);
    assert!(out.status.success() && text.contains("longer than the model's context of 512 tokens"), "{text}");
    let told = answers(&out);
    let dropped: Vec<u64> = told.iter().map(|a| a["dropped_messages"].as_u64().unwrap()).collect();
    assert!(told.iter().all(|a| a["prompt_tokens"].as_u64().unwrap() <= 512 - 24));
    // two exchanges fit beside a question, three do not; the whole exchange goes
    assert_eq!(dropped[..3], [0, 0, 0]);
    assert!(dropped[3] > 0 && dropped[3].is_multiple_of(2), "{dropped:?}");
    // what is still read is answered as if nothing had been before
    let kept = (dropped[3] / 2) as usize;
    let mut prompt = Vec::new();
    for (turn, line) in lines.iter().enumerate().take(4).skip(kept) {
        prompt.extend([&TURNS[..1], &ids(line), &TURNS[1..]].concat());
        if turn < 3 {
            prompt.extend(ids(told[turn]["answer"].as_str().unwrap()));
        }
    }
    assert_eq!(told[3]["answer"], fresh(&model, &prompt, &[]));

    // a single message that does not fit is refused, and forgotten
    let out = chat(&model, &format!("{}\nw20 w21\n", long(0, 600)), &options);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        stderr(&out).contains("takes 602 tokens") && stderr(&out).contains("shorten it"),
        "{}",
        stderr(&out)
    );
    let told = answers(&out);
    assert_eq!((told.len(), &told[0]["prompt_tokens"]), (1, &json!(4)));
}

#[test]
fn mistakes_are_told_and_the_conversation_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let lines = "/sing\n/save\n/save x.jsonl\n/system w1\n/help\n\nw20\n/quit\nw21\n";
    let out = chat(&model, lines, &["--max-new-tokens", "3"]);
    let text = stderr(&out);
    for says in [
        "no command /sing",
        "/save needs a file name",
        "nothing to save yet",
        // Tele-FLM's template drops system messages
        "no place for a system message",
        "/reset        forget",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert_eq!(out.status.code(), Some(1), "a script is told");
    // one answer: what follows /quit is not read
    let answer = String::from_utf8(out.stdout).unwrap();
    assert_eq!((answer.lines().count(), answer.ends_with('\n')), (1, true), "{answer}");

    let tokenizer = std::fs::read_to_string(model.join("tokenizer.json")).unwrap();
    std::fs::write(model.join("tokenizer.json"), tokenizer.replace("<_bot>", "<bot>")).unwrap();
    for command in [&["chat"][..], &["generate", "--chat", "--prompt", "w5"]] {
        let out = flm(command).arg(&model).output().unwrap();
        let text = stderr(&out);
        assert_eq!(out.status.code(), Some(1));
        assert!(text.contains("no chat template") && text.contains("<_user> and <_bot>"), "{text}");
    }
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    // streamed, so that the answer takes its time
    let options = ["--stream", "--max-new-tokens", "400"];
    let whole = chat(&model, "w250", &options);
    let whole = String::from_utf8(whole.stdout).unwrap();
    assert!(whole.split_whitespace().count() > 300, "{whole}");

    let mut child = flm(&["chat", model.to_str().unwrap()]).args(options).spawn().unwrap();
    let (mut lines, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    lines.write_all(b"w250\n").unwrap();
    let mut first = [0; 8];
    out.read_exact(&mut first).unwrap();
    interrupt(&child);
    let mut rest = BufReader::new(out);
    let mut cut = String::from_utf8(first.to_vec()).unwrap();
    rest.read_line(&mut cut).unwrap();
    assert!(cut.len() < whole.len() && whole.starts_with(cut.trim_end()), "{cut}\n{whole}");
    // the conversation goes on with what was said
    let file = dir.path().join("talk.jsonl");
    lines.write_all(format!("w9\n/save {}\n", file.display()).as_bytes()).unwrap();
    let mut second = String::new();
    rest.read_line(&mut second).unwrap();
    assert!(!second.trim().is_empty());
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let samples = read_samples(&file).unwrap();
    let Content::Chat(Conversation { messages, .. }) = &samples[0].content else { panic!("{samples:?}") };
    assert_eq!(
        messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>(),
        ["user", "assistant", "user", "assistant"]
    );
    assert_eq!(messages[1].content, cut.trim_end_matches('\n'));
}

#[test]
fn an_interrupt_while_waiting_for_a_pipe_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let mut child = flm(&["chat", model.to_str().unwrap()]).spawn().unwrap();
    let mut lines = child.stdin.take().unwrap();
    lines.write_all(b"/help\n").unwrap();
    let mut help = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut help).unwrap();
    assert!(help.starts_with("/system"), "{help}");
    // the line after it is not there yet
    std::thread::sleep(std::time::Duration::from_millis(200));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(lines);
}

#[test]
fn tokenize_shows_ids_pieces_and_where_bos_and_eos_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    std::fs::write(model.join("generation_config.json"), r#"{"eos_token_id": [2, 7]}"#).unwrap();
    std::fs::write(model.join("special_tokens_map.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)
        .unwrap();
    std::fs::write(model.join("tokenizer_config.json"), r#"{"add_bos_token": true}"#).unwrap();
    let tokenize = |arguments: &[&str], input: &str| -> Value {
        let mut child = flm(&["tokenize", "--json", model.to_str().unwrap()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{arguments:?}");
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let text = tokenize(&["w10 </s> w11"], "");
    assert_eq!(text["ids"], json!([1, 10, 2, 11]));
    assert_eq!(text["tokens"][2], json!({"id": 2, "piece": "</s>", "special": true}));
    assert_eq!(text["bos"], json!({"id": 1, "piece": "<s>", "from": ["special_tokens_map.json"]}));
    assert_eq!(text["add_bos_from"], "add_bos_token of tokenizer_config.json");
    let stop: Vec<_> = text["stop"].as_array().unwrap().iter().map(|t| (&t["id"], &t["from"])).collect();
    assert_eq!(
        stop[0],
        (&json!(2), &json!(["special_tokens_map.json", "generation_config.json", "config.json"]))
    );
    assert_eq!(stop[1], (&json!(7), &json!(["generation_config.json"])));
    // text is text where that is asked for, and BOS is left out
    let plain = tokenize(&["--text-file", "-", "--no-bos", "--no-parse-special"], "w10 </s>");
    assert_ne!(plain["ids"], json!([10, 2]));
    assert_eq!(plain["ids"][0], 10);
    let chat = tokenize(&["--chat", "-"], r#"{"messages": [{"role": "user", "content": "w10"}]}"#);
    assert_eq!((&chat["rendered"], &chat["ids"]), (&json!("<_user>w10<_bot>"), &json!([3, 10, 4])));
    // what the template leaves out is said
    let file = model.join("m.json");
    std::fs::write(&file, r#"[{"role":"system","content":"s"},{"role":"user","content":"w10"}]"#).unwrap();
    let arguments = ["tokenize", model.to_str().unwrap(), "--chat", file.to_str().unwrap()];
    let said = stderr(&flm(&arguments).output().unwrap());
    assert!(said.contains("no place for a system message"), "{said}");
    // a variable that only a template can use is refused without one
    let refused =
        flm(&["tokenize", model.to_str().unwrap(), "w1", "--template-arg", "a=1"]).output().unwrap();
    assert!(!refused.status.success() && stderr(&refused).contains("--chat"), "{}", stderr(&refused));
}

#[test]
fn sampling_is_generation_configs_until_a_flag_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let generate = |more: &[&str]| -> Value {
        let arguments = ["generate", model.to_str().unwrap(), "--prompt", "w10 w11", "--json"];
        let out =
            flm(&arguments).args(["--max-new-tokens", "4", "--ignore-eos"]).args(more).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["sampling"].take()
    };
    let config = |text: &str| std::fs::write(model.join("generation_config.json"), text).unwrap();
    let none = json!({"temperature": 0.0, "top_k": null, "top_p": null, "min_p": null,
        "repetition_penalty": 1.0, "seed": 0});
    assert_eq!(generate(&[]), none);
    // without do_sample its other values mean nothing, as in transformers
    config(r#"{"temperature": 0.6, "top_p": 0.9}"#);
    assert_eq!(generate(&[]), none);
    config(
        r#"{"do_sample": true, "temperature": 0.5, "top_k": 20, "top_p": 0.75, "repetition_penalty": 1.5}"#,
    );
    let drawn = generate(&[]);
    assert_eq!(
        (&drawn["temperature"], &drawn["top_k"], &drawn["top_p"]),
        (&json!(0.5), &json!(20), &json!(0.75))
    );
    assert_eq!(drawn["repetition_penalty"], 1.5);
    // tokens that it suppresses are never drawn, and what is not followed is said
    let run = |text: &str| {
        config(text);
        let arguments =
            ["generate", model.to_str().unwrap(), "--ids", "10,11", "--max-new-tokens", "1", "--json"];
        let out = flm(&arguments).output().unwrap();
        (serde_json::from_slice::<Value>(&out.stdout).unwrap()["ids"][0].as_u64().unwrap(), stderr(&out))
    };
    let (first, _) = run("{}");
    let (second, said) = run(&format!(r#"{{"suppress_tokens": [{first}], "stop_strings": ["x"]}}"#));
    assert_ne!(first, second);
    assert!(said.contains("stop_strings not followed"), "{said}");
    config(
        r#"{"do_sample": true, "temperature": 0.5, "top_k": 20, "top_p": 0.75, "repetition_penalty": 1.5}"#,
    );
    let given = generate(&["--temperature", "0", "--top-k", "-1", "--top-p", "0.5"]);
    assert_eq!(
        (&given["temperature"], &given["top_k"], &given["top_p"]),
        (&json!(0.0), &json!(0), &json!(0.5))
    );
}

#[test]
fn conversations_and_histories_are_added_to_no_other_file() {
    let dir = tempfile::tempdir().unwrap();
    let model = word_model(dir.path());
    let notes = dir.path().join("notes.txt");
    std::fs::write(&notes, "mine\n".repeat(300)).unwrap();
    for file in [&notes, &model.join("config.json")] {
        let before = std::fs::read(file).unwrap();
        let lines = format!("w20\n/save {}\n", file.display());
        let said = stderr(&chat(&model, &lines, &["--max-new-tokens", "1"]));
        assert!(said.contains("choose another name"), "{said}");
        let history = chat(&model, "w20\n", &["--history", file.to_str().unwrap()]);
        assert_eq!(history.status.code(), Some(1), "{}", stderr(&history));
        assert_eq!(std::fs::read(file).unwrap(), before);
    }
}
