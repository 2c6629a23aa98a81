//! The public interface: folders, both formats, streaming, chat templates.

mod added;
mod chat;
mod folders;
mod policy;

use super::*;
use crate::tokenizer::vocabulary::TokenKind;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;
use std::path::PathBuf;

/// The models of `tests/fixtures/spm`: SentencePiece's defaults, a Llama-like one, one without prefix.
pub(crate) const MODELS: [&str; 3] = ["tokenizer", "tokenizer_llama", "tokenizer_noprefix"];

/// One line of a golden file.
#[derive(Deserialize)]
pub(crate) struct Row {
    pub text: String,
    pub ids: Vec<u32>,
    pub pieces: Vec<String>,
    pub decoded: String,
    pub normalized: String,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

pub(crate) fn model_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("spm/{name}.model"))).unwrap()
}

pub(crate) fn golden(name: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(fixture(&format!("spm/{name}.golden.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn open(name: &str) -> Tokenizer {
    Tokenizer::from_sentencepiece(&model_bytes(name)).unwrap()
}

/// The same model by way of tokenizer.json.
pub(crate) fn reopened(name: &str) -> Tokenizer {
    Tokenizer::from_json(open(name).save_json().unwrap().as_bytes()).unwrap()
}

/// The text of ids pushed one by one; no part may hold half a character.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in ids {
        let part = stream.push(id).unwrap();
        assert_ne!(part.as_deref(), Some(""));
        text.extend(part);
    }
    text + &stream.finish().unwrap()
}

const fn send_and_sync<T: Send + Sync>() {}
const _: () = send_and_sync::<Tokenizer>();
const _: () = send_and_sync::<ChatTemplate>();

#[test]
fn streaming_every_golden_row_gives_the_whole_text() {
    for name in MODELS {
        let (direct, json) = (open(name), reopened(name));
        for row in golden(name) {
            assert_eq!(streamed(&direct, &row.ids), row.decoded, "{name} {:?}", row.text);
            assert_eq!(streamed(&json, &row.ids), json.decode(&row.ids).unwrap(), "{name} {:?}", row.text);
        }
    }
}

#[test]
fn a_character_of_bytes_comes_out_with_its_last_byte() {
    let tokenizer = open("tokenizer");
    let byte = |b: u8| tokenizer.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let mut stream = tokenizer.stream();
    let parts: Vec<_> = "😀".bytes().map(|b| stream.push(byte(b)).unwrap()).collect();
    assert_eq!(parts, [None, None, None, Some("😀".to_owned())]);
    // A byte that cannot go on is given up as soon as that is known.
    assert_eq!(stream.push(byte(0xe4)).unwrap(), None);
    assert_eq!(stream.push(byte(b'A')).unwrap().as_deref(), Some("\u{fffd}A"));
    assert_eq!(stream.push(byte(0xe4)).unwrap(), None);
    assert_eq!(stream.push(byte(0xbd)).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}\u{fffd}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn streaming_any_ids_gives_the_whole_text(ids in prop::collection::vec(prop_oneof![0..2000u32, 0..300u32], 0..40)) {
        for name in MODELS {
            let tokenizer = open(name);
            prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }
}

#[test]
fn streaming_a_tokenizer_json_gives_the_whole_text_of_any_ids() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(256));
    for name in MODELS {
        let tokenizer = reopened(name);
        let ids = prop::collection::vec(prop_oneof![0..2000u32, 0..300u32], 0..40);
        runner
            .run(&ids, |ids| {
                prop_assert_eq!(streamed(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    for tokenizer in [open("tokenizer"), reopened("tokenizer")] {
        assert_eq!(tokenizer.len(), 2000);
        assert!(!tokenizer.is_empty());
        let message = "token id 2000 is outside the vocabulary of 2000 pieces";
        assert_eq!(tokenizer.decode(&[5, 2000]).unwrap_err().to_string(), message);
        assert_eq!(tokenizer.stream().push(2000).unwrap_err().to_string(), message);
        assert_eq!(tokenizer.id_to_token(2000), None);
        assert_eq!(tokenizer.token_to_id("no such piece"), None);
    }
}

#[test]
fn control_pieces_in_text_are_text_unless_asked_for() {
    for tokenizer in [open("tokenizer_llama"), reopened("tokenizer_llama")] {
        let plain = tokenizer.encode("<s>a</s>").unwrap();
        assert!(!plain.contains(&1) && !plain.contains(&2), "{plain:?}");
        assert_eq!(tokenizer.decode(&plain).unwrap(), "<s>a</s>");
        let a = tokenizer.encode("a").unwrap();
        let parsed = tokenizer.encode_special("<s>a</s>").unwrap();
        assert_eq!(parsed, [&[1], a.as_slice(), &[2]].concat());
        assert_eq!(tokenizer.decode(&parsed).unwrap(), "a");
        assert_eq!(tokenizer.decode_with_special(&[1, 2]).unwrap(), "<s></s>");
    }
    let tokenizer = open("tokenizer_llama");
    let ids = tokenizer.encode_special("<s>Hello world</s><s>你好").unwrap();
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), "<s>Hello world</s><s>你好");
}

#[test]
fn an_exported_tokenizer_json_encodes_equally_where_the_rules_are_expressible() {
    // Rows beyond: user-defined pieces, a leading U+2581, rules for several characters.
    let beyond = |name: &str, row: &Row| {
        let user_defined = ["<_system>", "<_user>", "<_bot>", "<_end>"].iter().any(|s| row.text.contains(s));
        match name {
            "tokenizer" => user_defined || row.text.starts_with('\u{2581}'),
            "tokenizer_llama" => user_defined,
            _ => false,
        }
    };
    for name in MODELS {
        let json = reopened(name);
        let mut equal = 0;
        for row in golden(name).iter().filter(|row| !beyond(name, row)) {
            let ids = json.encode(&row.text).unwrap();
            assert_eq!(ids, row.ids, "{name} {:?}", row.text);
            equal += 1;
        }
        assert!(equal > 140, "{name}: {equal}");
        assert_eq!(json.save_json().unwrap(), reopened(name).save_json().unwrap());
    }
}

#[test]
fn a_byte_level_tokenizer_json() {
    // GPT-2's alphabet: one printable character for each byte.
    let alphabet: std::collections::BTreeSet<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    assert_eq!(alphabet.len(), 256);
    let mut vocab: serde_json::Map<_, _> =
        (0..).zip(alphabet).map(|(id, c)| (c.to_string(), json!(id))).collect();
    vocab.insert("<|im_end|>".into(), json!(300));
    vocab.insert("<|im_start|>".into(), json!(301));
    let special = |id, content| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let mut file = json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
            "pad_token": "!", "pad_to_multiple_of": null},
        "added_tokens": [special(300, "<|im_end|>"), special(301, "<|im_start|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
    assert_eq!(tokenizer.len(), 302);
    let text = "<|im_start|>é😀 中<|im_end|>";
    let parsed = tokenizer.encode_special(text).unwrap();
    assert_eq!((parsed.len(), parsed[0], parsed[11]), (12, 301, 300));
    assert_eq!(tokenizer.decode(&parsed).unwrap(), "é😀 中");
    assert_eq!(tokenizer.decode_with_special(&parsed).unwrap(), text);
    let plain = tokenizer.encode(text).unwrap();
    assert_eq!(plain.len(), text.len());
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
    let mut stream = tokenizer.stream();
    let parts: Vec<_> = parsed.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(parts, ["é", "😀", " ", "中"]);
    // Ends in half a character, and one that is broken off by another.
    for cut in [&parsed[..5], &[parsed[3], parsed[4], parsed[7]]] {
        assert_eq!(streamed(&tokenizer, cut), tokenizer.decode(cut).unwrap());
    }
    // Id 280 is a hole.
    assert!(matches!(tokenizer.decode(&[280]), Err(TokenizerError::UnknownId { id: 280, len: 302 })));
    file["added_tokens"][0]["id"] = json!(400);
    let message = Tokenizer::from_json(file.to_string().as_bytes()).unwrap_err().to_string();
    assert!(
        message.contains("\"<|im_end|>\" has the id 400, but the `tokenizers` crate gives it"),
        "{message}"
    );
}

#[test]
fn a_megabyte_of_chinese_takes_seconds() {
    let tokenizer = open("tokenizer");
    let row = golden("tokenizer").into_iter().find(|row| row.text.starts_with("Rust 是")).unwrap();
    let text = row.text.repeat(1_000_000 / row.text.len());
    let start = std::time::Instant::now();
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
