//! Opening a checkpoint's folder.

use super::*;
use crate::ChatMessage;

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn error(files: &[(&str, &[u8])]) -> String {
    Tokenizer::from_dir(folder(files).path()).unwrap_err().to_string()
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let message = error(&[]);
    assert!(message.contains("tokenizer.json") && message.contains("tokenizer.model"), "{message}");
}

#[test]
fn a_model_with_its_config() {
    let model = model_bytes("tokenizer");
    let config = br#"{"bos_token": "<s>", "eos_token": {"content": "<_end>", "lstrip": false},
        "pad_token": null, "add_bos_token": true, "add_eos_token": false,
        "added_tokens_decoder": {"1": {"content": "<s>", "special": true}},
        "chat_template": [{"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}]}"#;
    let dir = folder(&[("tokenizer.model", &model), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), tokenizer.token_to_id("<_end>")));
    assert_eq!((tokenizer.add_bos(), tokenizer.add_eos()), (true, false));
    let hi = [ChatMessage::new("user", "hi")];
    let template = tokenizer.chat_template().unwrap();
    assert_eq!(template.render(&hi, true).unwrap(), "<s>hi<_end>");
    // A file of its own comes before the config's template.
    std::fs::write(dir.path().join("chat_template.jinja"), "[{{ messages[0]['content'] }}]\n").unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.chat_template().unwrap().render(&hi, true).unwrap(), "[hi]");
}

#[test]
fn tele_flms_own_config_and_tokenizer_json_before_tokenizer_model() {
    let config = std::fs::read(fixture("configs/tokenizer_config.json")).unwrap();
    let model = model_bytes("tokenizer");
    let json = reopened("tokenizer").save_json().unwrap();
    let eos = br#"{"eos_token": "</s>"}"#;
    let files =
        [("tokenizer.json", json.as_bytes()), ("tokenizer.model", b"broken"), ("tokenizer_config.json", eos)];
    let tokenizer = Tokenizer::from_dir(folder(&files).path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, Some(2)));
    // The fixture's model has no <pad> at id 3, which the config claims.
    let message = error(&[("tokenizer.model", &model), ("tokenizer_config.json", &config)]);
    assert!(message.contains("\"<pad>\"") && message.contains("cannot have the id 3"), "{message}");
}

/// transformers 5.23 gives the same ids to SmolLM2's tokenizer with the same names: eos_token before pad_token,
/// names of other kinds next, additional ones last.
#[test]
fn special_tokens_that_no_file_has_get_the_ids_after_the_last() {
    let config =
        br#"{"pad_token": "[PAD]", "additional_special_tokens": ["<a>", "</s>"], "image_token": "<i>",
        "eos_token": "<end>", "bos_token": "<s>"}"#;
    let model = model_bytes("tokenizer");
    let json = reopened("tokenizer").save_json().unwrap();
    for file in [("tokenizer.model", model.as_slice()), ("tokenizer.json", json.as_bytes())] {
        let plain = Tokenizer::from_dir(folder(&[file]).path()).unwrap();
        let next = plain.len() as u32;
        let tokenizer =
            Tokenizer::from_dir(folder(&[file, ("tokenizer_config.json", config)]).path()).unwrap();
        for (text, id) in [("<end>", next), ("[PAD]", next + 1), ("<i>", next + 2), ("<a>", next + 3)] {
            assert_eq!(tokenizer.token_to_id(text), Some(id), "{}: {text}", file.0);
        }
        assert_eq!((tokenizer.eos_id(), tokenizer.len()), (Some(next), plain.len() + 4), "{}", file.0);
        let ids = tokenizer.encode_prompt("one<a>[PAD]").unwrap();
        assert_eq!(ids[ids.len() - 2..], [next + 3, next + 1], "{}", file.0);
        let split = [config.strip_suffix(b"}").unwrap(), br#","split_special_tokens":true}"#].concat();
        let tokenizer =
            Tokenizer::from_dir(folder(&[file, ("tokenizer_config.json", &split)]).path()).unwrap();
        assert!(!tokenizer.encode_prompt("one<a>[PAD]").unwrap().contains(&(next + 1)), "{}", file.0);
    }
}

#[test]
fn a_sentencepiece_folder_can_do_without_the_space_before_texts() {
    let model = model_bytes("tokenizer");
    for (config, space) in [(&b"{}"[..], true), (br#"{"add_prefix_space": false}"#, false)] {
        let files = [("tokenizer.model", model.as_slice()), ("tokenizer_config.json", config)];
        let tokenizer = Tokenizer::from_dir(folder(&files).path()).unwrap();
        let first = tokenizer.encode("one two").unwrap()[0];
        assert_eq!(
            tokenizer.vocabulary().unwrap().tokens[first as usize].text.starts_with('\u{2581}'),
            space
        );
    }
}

#[test]
fn errors_name_their_file() {
    let model = model_bytes("tokenizer");
    let with = |config: &[u8]| error(&[("tokenizer.model", &model), ("tokenizer_config.json", config)]);
    for (message, file, what) in [
        (error(&[("tokenizer.model", b"\xff\xff")]), "tokenizer.model", "not a SentencePiece model"),
        (error(&[("tokenizer.json", b"{}")]), "tokenizer.json", "not a valid tokenizer.json"),
        (with(b"[]"), "tokenizer_config.json", "not a valid tokenizer_config.json"),
        (with(b"\xff"), "tokenizer_config.json", "not UTF-8"),
        (with(br#"{"eos_token": 2}"#), "tokenizer_config.json", "`eos_token` is neither"),
        (
            with(br#"{"add_bos_token": "yes"}"#),
            "tokenizer_config.json",
            "`add_bos_token` is not true or false",
        ),
        (with(br#"{"chat_template": 1}"#), "tokenizer_config.json", "`chat_template` is neither"),
        (with(br#"{"added_tokens_decoder": {"x": "a"}}"#), "tokenizer_config.json", "\"x\" is not an id"),
        (with(br#"{"chat_template": "{% for %}"}"#), "tokenizer_config.json", "chat template: syntax error"),
    ] {
        assert!(message.contains(file) && message.contains(what), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tokenizer.model")).unwrap();
    let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("tokenizer.model"), "{message}");
}

/// As editors of other systems save it. In a template the mark is text, as to transformers.
#[test]
fn json_with_a_byte_order_mark_is_read() {
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let json = marked(&reopened("tokenizer").save_json().unwrap());
    let (config, map) = (marked(r#"{"eos_token": "</s>"}"#), marked(r#"{"bos_token": "<s>"}"#));
    let (generation, template) = (marked(r#"{"eos_token_id": 7}"#), marked("x"));
    let dir = folder(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", &config),
        ("special_tokens_map.json", &map),
        ("generation_config.json", &generation),
        ("chat_template.jinja", &template),
    ]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.stop_tokens(&[]), [2, 7]);
    assert_eq!(tokenizer.chat_template().unwrap().source(), "\u{feff}x");
}

#[test]
fn links_that_lead_nowhere_are_named() {
    let model = model_bytes("tokenizer");
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let dir = folder(&[("tokenizer.model", &model)]);
        std::os::unix::fs::symlink("/nowhere/blob", dir.path().join(name)).unwrap();
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains(name) && message.contains("a link to a file that is not there"),
            "{message}"
        );
    }
}
