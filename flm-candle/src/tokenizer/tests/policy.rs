//! BOS, EOS and the tokens that end an answer, from whichever file of a folder says it.

use super::*;
use crate::tokenizer::chat_policy::ChatPolicy;
use crate::tokenizer::chat_template::ChatTemplate;

/// Words, a BOS, an EOS and an end of turn; `more` are further keys of the file.
fn words(more: &str) -> String {
    format!(
        r#"{{"version":"1.0",{more}"pre_tokenizer":{{"type":"Whitespace"}},
        "added_tokens":[{}],
        "model":{{"type":"WordLevel","unk_token":"?","vocab":{{"?":0,"one":1,"two":2,"<s>":3,"</s>":4,"<|end|>":5}}}}}}"#,
        [("<s>", 3), ("</s>", 4), ("<|end|>", 5)]
            .map(|(token, id)| format!(
                r#"{{"id":{id},"content":"{token}","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}"#
            ))
            .join(",")
    )
}

fn open(files: &[(&str, &str)]) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    Tokenizer::from_dir(dir.path()).unwrap()
}

const NAMES: &str = r#"{"bos_token":"<s>","eos_token":"</s>"}"#;
const BOS: &str = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
    "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}}"#;

#[test]
fn bos_is_added_to_plain_text_where_any_file_says_so() {
    let template = format!(r#""post_processor":{BOS},"#);
    let sequence = format!(
        r#""post_processor":{{"type":"Sequence","processors":[{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true}},{BOS}]}},"#
    );
    let twice = template
        .replace(r#""single":["#, r#""single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},"#)
        .replace(
            r#""special_tokens":{"#,
            r#""special_tokens":{"<|end|>":{"id":"<|end|>","ids":[5],"tokens":["<|end|>"]},"#,
        );
    let with = |more: &str| format!("{}{more}}}", NAMES.trim_end_matches('}'));
    for (json, config, expected) in [
        (words(""), NAMES.to_owned(), vec![1, 2]),
        (words(""), with(r#","add_bos_token":true"#), vec![3, 1, 2]),
        (words(""), with(r#","add_bos_token":true,"add_eos_token":true"#), vec![3, 1, 2, 4]),
        (words(&template), NAMES.to_owned(), vec![3, 1, 2]),
        (words(&sequence), NAMES.to_owned(), vec![3, 1, 2]),
        // no file names a token, the post-processor puts it there; and what it puts there counts, also where
        // it is more than the token that bos_token names
        (words(&template), "{}".to_owned(), vec![3, 1, 2]),
        (words(&twice), NAMES.to_owned(), vec![5, 3, 1, 2]),
        // the config has the last word
        (words(&template), with(r#","add_bos_token":false"#), vec![1, 2]),
    ] {
        let tokenizer = open(&[("tokenizer.json", &json), ("tokenizer_config.json", &config)]);
        assert_eq!(tokenizer.encode_text("one two").unwrap(), expected, "{config}");
        let prompt: Vec<u32> = expected.into_iter().filter(|&id| id != 4).collect();
        assert_eq!(tokenizer.encode_prompt("one two").unwrap(), prompt, "{config}");
        assert_eq!(tokenizer.encode("one two").unwrap(), [1, 2]);
    }
    // transformers' LlamaTokenizer of a SentencePiece model adds it, others do not
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), model_bytes("tokenizer")).unwrap();
    for (config, bos) in [
        ("{}", false),
        (r#"{"tokenizer_class":"LlamaTokenizer"}"#, true),
        (r#"{"tokenizer_class":"LlamaTokenizer","add_bos_token":false}"#, false),
        (r#"{"tokenizer_class":"TeleFLMTokenizer"}"#, false),
    ] {
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().add_bos(), bos, "{config}");
    }
}

#[test]
fn special_tokens_and_stop_tokens_come_from_every_file_that_names_them() {
    let json = words("");
    let tokenizer = open(&[("tokenizer.json", &json), ("special_tokens_map.json", NAMES)]);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(3), Some(4)));
    // without added_tokens_decoder special_tokens_map.json has the last word, as in transformers
    let other = r#"{"eos_token":"<|end|>"}"#;
    let config = ("tokenizer_config.json", other);
    let tokenizer = open(&[("tokenizer.json", &json), ("special_tokens_map.json", NAMES), config]);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(3), Some(4)));
    let other =
        r#"{"eos_token":"<|end|>","added_tokens_decoder":{"5":{"content":"<|end|>","special":true}}}"#;
    let files = [
        ("tokenizer.json", json.as_str()),
        ("special_tokens_map.json", NAMES),
        ("tokenizer_config.json", other),
    ];
    let tokenizer = open(&files);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(3), Some(5)));
    for (generation, stop) in [
        (r#"{"eos_token_id":[2,4]}"#, vec![1, 2, 4, 5]),
        (r#"{"eos_token_id":4}"#, vec![1, 4, 5]),
        (r#"{"eos_token_id":null}"#, vec![1, 5]),
        ("{}", vec![1, 5]),
    ] {
        let tokenizer = open(&[&files[..], &[("generation_config.json", generation)]].concat());
        assert_eq!(tokenizer.stop_tokens(&[1]), stop, "{generation}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), &json).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id":"</s>"}"#).unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn an_answer_ends_with_the_templates_own_token() {
    let tokenizer = open(&[("tokenizer.json", &words("")), ("tokenizer_config.json", NAMES)]);
    let policy = |source: &str| {
        ChatPolicy::new(&tokenizer, Some(ChatTemplate::new(source, None, None).unwrap()), &[]).unwrap()
    };
    let closing = policy("{% for m in messages %}{{ m.content }}<|end|>\n{% endfor %}");
    assert_eq!((closing.end_of_turn(), closing.stop_tokens()), (Some(5), &[4, 5][..]));
    let open_ended = policy("{% for m in messages %}{{ m.content }}\n{% endfor %}");
    assert_eq!((open_ended.end_of_turn(), open_ended.stop_tokens()), (None, &[4][..]));
    let error = ChatPolicy::new(&tokenizer, None, &[]).unwrap_err().to_string();
    assert!(error.contains("no chat template") && error.contains("<_user> and <_bot>"), "{error}");
}

#[test]
fn templates_are_read_as_text_not_as_bytes() {
    let hi = [crate::ChatMessage::new("user", "hi"), crate::ChatMessage::new("assistant", "ho")];
    let unix = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\nend";
    let rendered = |source: &str| ChatTemplate::new(source, None, None).unwrap().render(&hi, false).unwrap();
    for source in [unix.replace('\n', "\r\n"), unix.replace('\n', "\r")] {
        assert_eq!(rendered(&source), rendered(unix));
    }
    for (open, close) in
        [("{% generation %}", "{% endgeneration %}"), ("{%- generation -%}", "{%- endgeneration -%}")]
    {
        let source = format!("{{% for m in messages %}}{open}{{{{ m.content }}}}{close}{{% endfor %}}");
        assert_eq!(rendered(&source), "hiho", "{source}");
    }
}
