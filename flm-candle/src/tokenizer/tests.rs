//! The public interface: folders, both formats, streaming, chat templates.

use super::*;
use proptest::prelude::*;
use serde::Deserialize;
use std::path::PathBuf;

/// The models of `tests/fixtures/spm`: SentencePiece's defaults, a Llama-like one, one without prefix.
pub(super) const MODELS: [&str; 3] = ["tokenizer", "tokenizer_llama", "tokenizer_noprefix"];

/// One line of a golden file.
#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
    pub(super) pieces: Vec<String>,
    pub(super) decoded: String,
    pub(super) normalized: String,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

pub(super) fn model_bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(&format!("spm/{name}.model"))).unwrap()
}

pub(super) fn golden(name: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(fixture(&format!("spm/{name}.golden.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn open(name: &str) -> Tokenizer {
    Tokenizer::from_sentencepiece(&model_bytes(name)).unwrap()
}

/// The same model by way of tokenizer.json.
fn reopened(name: &str) -> Tokenizer {
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
fn a_megabyte_of_chinese_takes_seconds() {
    let tokenizer = open("tokenizer");
    let row = golden("tokenizer").into_iter().find(|row| row.text.starts_with("Rust 是")).unwrap();
    let text = row.text.repeat(1_000_000 / row.text.len());
    let start = std::time::Instant::now();
    let ids = tokenizer.encode(&text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

mod folders {
    use super::*;

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
        let files = [
            ("tokenizer.json", json.as_bytes()),
            ("tokenizer.model", b"broken"),
            ("tokenizer_config.json", eos),
        ];
        let tokenizer = Tokenizer::from_dir(folder(&files).path()).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (None, Some(2)));
        // The fixture's model has no <pad> at id 3, which the config claims.
        let message = error(&[("tokenizer.model", &model), ("tokenizer_config.json", &config)]);
        assert!(message.contains("\"<pad>\"") && message.contains("at id 3"), "{message}");
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
                with(br#"{"eos_token": "<|end|>"}"#),
                "tokenizer_config.json",
                "`eos_token` names the token \"<|end|>\"",
            ),
            (
                with(br#"{"add_bos_token": "yes"}"#),
                "tokenizer_config.json",
                "`add_bos_token` is not true or false",
            ),
            (with(br#"{"chat_template": 1}"#), "tokenizer_config.json", "`chat_template` is neither"),
            (with(br#"{"added_tokens_decoder": {"x": "a"}}"#), "tokenizer_config.json", "\"x\" is not an id"),
            (
                with(br#"{"chat_template": "{% for %}"}"#),
                "tokenizer_config.json",
                "chat template: syntax error",
            ),
        ] {
            assert!(message.contains(file) && message.contains(what), "{message}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tokenizer.model")).unwrap();
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("cannot read") && message.contains("tokenizer.model"), "{message}");
    }
}

mod chat {
    use super::*;

    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}";

    fn messages(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
        turns.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
    }

    fn render(source: &str, turns: &[(&str, &str)]) -> Result<String, TokenizerError> {
        ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(&messages(turns), true)
    }

    fn error(source: &str) -> String {
        render(source, &[("user", "hi")]).unwrap_err().to_string()
    }

    #[test]
    fn chatml() {
        let text = render(CHATML, &[("user", "What is 2+2?")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
        );
        let template = ChatTemplate::new(CHATML, None, None).unwrap();
        let turns = messages(&[("system", "Be brief."), ("user", "hi"), ("assistant", "hello")]);
        assert_eq!(
            template.render(&turns, false).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        );
        assert_eq!(template.source(), CHATML);
    }

    #[test]
    fn llama_2_strips_and_raises() {
        let turns = [("system", " Be brief. "), ("user", " hi\n"), ("assistant", " hello "), ("user", "bye")];
        assert_eq!(
            render(LLAMA2, &turns).unwrap(),
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n hi [/INST] hello </s><s>[INST] bye [/INST]"
        );
        let message = render(LLAMA2, &[("user", "a"), ("user", "b")]).unwrap_err().to_string();
        assert!(message.contains("Conversation roles must alternate"), "{message}");
    }

    #[test]
    fn tele_flm_renders_system_to_nothing_and_adds_no_generation_prompt() {
        let turns = messages(&[
            ("system", "Be brief."),
            ("user", " 你好 \n"),
            ("assistant", " Hi! "),
            ("user", "再见"),
        ]);
        let template = ChatTemplate::tele_flm();
        for add_generation_prompt in [true, false] {
            let text = template.render(&turns, add_generation_prompt).unwrap();
            assert_eq!(text, "<_user>你好<_bot> Hi! <_user>再见<_bot>");
        }
        let tokenizer = open("tokenizer");
        let ids = tokenizer.encode_special(&template.render(&turns[1..2], true).unwrap()).unwrap();
        let pieces: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
        assert_eq!((pieces[1].as_str(), pieces[pieces.len() - 1].as_str()), ("<_user>", "<_bot>"));
    }

    #[test]
    fn json_is_pythons() {
        let text = render("{{ messages | tojson }}", &[("user", "<a> & 'é'")]).unwrap();
        assert_eq!(text, r#"[{"role": "user", "content": "<a> & 'é'"}]"#);
        let text =
            render("{{ messages[0] | tojson(indent=2, ensure_ascii=False) }}", &[("user", "hi")]).unwrap();
        assert_eq!(text, "{\n  \"role\": \"user\",\n  \"content\": \"hi\"\n}");
        assert!(error("{{ messages | tojson(indent=1000000) }}").contains("indent is above 16"));
    }

    #[test]
    fn what_templates_of_the_hub_use() {
        let source = "{% if not tools is defined or tools is none %}{% set ns = namespace(n=0) %}{% endif %}
{% for m in messages %}
  {% if m.get('role') == 'tool' %}{% continue %}{% endif %}
  {% set ns.n = ns.n + 1 %}
{{ m['content'].upper().split(' ')[0] ~ ns.n }}
{% endfor %}
{{ 'x'.startswith('x') and bos_token is defined and pad_token is not defined }}";
        let text = render(source, &[("user", "a b"), ("tool", "x"), ("user", "c")]).unwrap();
        assert_eq!(text, "A1\nC2\nTrue");
    }

    #[test]
    fn hostile_templates_end_in_an_error() {
        let fuel = "chat template: ran out of fuel";
        let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(error(endless).starts_with(fuel), "{}", error(endless));
        let doubling = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}";
        assert!(error(doubling).starts_with(fuel), "{}", error(doubling));
        assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
        assert!(error("{{ 'x' * 100000000000 }}").starts_with(fuel));
        assert!(error("{{ messages | no_such_filter }}").contains("no_such_filter"));
        assert!(error("{{ no_such_function() }}").contains("no_such_function"));
        assert!(error("{{ messages[0].content.no_such_method() }}").contains("no_such_method"));
        assert!(error("{% if %}").contains("syntax error"));
        assert!(error("{% for m in messages %}").contains("syntax error"));
        assert!(error("{% include '/etc/passwd' %}").contains("/etc/passwd"));
        assert!(error("{{ raise_exception('no') }}").contains("no"));
    }
}
