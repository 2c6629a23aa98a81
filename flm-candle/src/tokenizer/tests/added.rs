//! Tokens beside the model's own, and text between special tokens.

use super::*;
use crate::tokenizer::chat_policy::ChatPolicy;

const LLAMA: &str = "tokenizer_llama";

/// A SentencePiece folder with these files beside the model.
fn open(files: &[(&str, &str)]) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), model_bytes(LLAMA)).unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Tokenizer::from_dir(dir.path())
}

fn plain() -> Tokenizer {
    Tokenizer::from_sentencepiece(&model_bytes(LLAMA)).unwrap()
}

const ADDED: &str = r#"{"<|im_start|>": 2000, "<|im_end|>": 2001, "[X]": 2003}"#;
const SPECIAL: &str = r#"{"additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}]}"#;

#[test]
fn added_tokens_are_one_id_each_and_text_between_them_is_as_before() {
    let tokenizer = open(&[("added_tokens.json", ADDED), ("special_tokens_map.json", SPECIAL)]).unwrap();
    let piece = |text: &str| plain().encode(text).unwrap();
    let text = "<|im_start|>user\nhi<|im_end|>a[X] b";
    let expected = [&[2000][..], &piece("user\nhi"), &[2001], &piece("a"), &[2003], &piece(" b")].concat();
    assert_eq!(tokenizer.encode_special(text).unwrap(), expected);
    assert_eq!(tokenizer.encode_raw(text).unwrap(), expected);
    // what is left out is no border: as transformers 4's slow tokenizers decode
    assert_eq!(tokenizer.decode(&expected).unwrap(), "user\nhi a[X] b");
    assert_eq!(tokenizer.decode_with_special(&expected).unwrap(), text);
    // what is not special is a token in any text; special ones are text where that is asked for
    assert_eq!(tokenizer.encode("a[X]").unwrap(), [&piece("a")[..], &[2003]].concat());
    assert_eq!(tokenizer.encode("a<|im_end|>").unwrap(), piece("a<|im_end|>"));
    assert_eq!((tokenizer.len(), tokenizer.unused_ids()), (2004, vec![2002]));
    assert!(tokenizer.is_special(2001) && !tokenizer.is_special(2003) && tokenizer.is_special(1));
    let mut stream = tokenizer.stream();
    let mut streamed = String::new();
    for &id in &expected {
        streamed.extend(stream.push(id).unwrap());
    }
    assert_eq!(streamed + &stream.finish().unwrap(), "user\nhi a[X] b");
}

#[test]
fn added_tokens_survive_the_way_to_a_tokenizer_json() {
    let tokenizer = open(&[("added_tokens.json", ADDED), ("special_tokens_map.json", SPECIAL)]).unwrap();
    let json = Tokenizer::from_json(tokenizer.save_json().unwrap().as_bytes()).unwrap();
    for text in ["<|im_start|>user\nhi<|im_end|>a[X] b", "a [X]", " x<|im_end|> y", "é<|im_start|>"] {
        assert_eq!(json.encode_special(text).unwrap(), tokenizer.encode_special(text).unwrap(), "{text:?}");
    }
    let vocabulary = tokenizer.vocabulary().unwrap();
    let last: Vec<_> = vocabulary.tokens[2000..].iter().map(|t| (t.text.as_str(), t.kind)).collect();
    let [start, end] = [("<|im_start|>", TokenKind::Control), ("<|im_end|>", TokenKind::Control)];
    assert_eq!(last, [start, end, ("", TokenKind::Unused), ("[X]", TokenKind::UserDefined)]);
}

#[test]
fn a_decoder_of_added_tokens_names_ids_flags_and_contradictions() {
    let config = |entry: &str| format!(r#"{{"added_tokens_decoder": {{{entry}}}}}"#);
    let entry = r#""2000": {"content": "<|end|>", "special": true, "rstrip": true}"#;
    let tokenizer = open(&[("tokenizer_config.json", &config(entry))]).unwrap();
    let expected = [&plain().encode("a").unwrap()[..], &[2000], &plain().encode("b").unwrap()].concat();
    assert_eq!(tokenizer.encode_special("a<|end|> \n b").unwrap(), expected);
    for (entry, named) in [
        (r#""5": {"content": "<|end|>"}"#, "the model's piece is"),
        (r#""2000": {"content": "</s>"}"#, "the model has it as 2"),
        (r#""4294967295": {"content": "<|end|>"}"#, "the model has 2000 tokens"),
        (r#""2000": {"content": "a!"}, "2001": {"content": "a!"}"#, "the same text has the id"),
        (r#""2000": {"content": "a!", "special": "yes"}"#, "`special` of 2000"),
    ] {
        let error = open(&[("tokenizer_config.json", &config(entry))]).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("tokenizer_config.json"), "{entry}: {error}");
    }
}

#[test]
fn a_tokenizer_json_takes_the_tokens_of_its_config() {
    let open = |id: u32| {
        let dir = tempfile::tempdir().unwrap();
        let json = plain().save_json().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        let config =
            format!(r#"{{"added_tokens_decoder": {{"{id}": {{"content": "<extra>", "special": true}}}}}}"#);
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::from_dir(dir.path())
    };
    let tokenizer = open(2000).unwrap();
    assert!(tokenizer.encode_special("a<extra>b").unwrap().contains(&2000));
    assert_eq!(tokenizer.decode(&[2000]).unwrap(), "");
    assert!(!tokenizer.encode("a<extra>b").unwrap().contains(&2000));
    let error = open(2007).unwrap_err().to_string();
    assert!(error.contains("\"<extra>\" cannot have the id 2007"), "{error}");
}

/// The right ids are those of transformers 5.23 and of transformers 4.44.2's slow tokenizer.
#[test]
fn without_legacy_only_the_start_of_a_text_has_a_prefix() {
    let legacy =
        |value: &str| open(&[("tokenizer_config.json", &format!(r#"{{"legacy": {value}}}"#))]).unwrap();
    let pieces = |tokenizer: &Tokenizer, text: &str| {
        let ids = tokenizer.encode_special(text).unwrap();
        ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>()
    };
    let (new, old) = (legacy("false"), legacy("true"));
    let second = |tokenizer: &Tokenizer, text: &str| pieces(tokenizer, text)[1].starts_with('▁');
    assert!(!second(&new, "<s>The boats") && second(&old, "<s>The boats") && second(&new, "<s> The boats"));
    assert_eq!(pieces(&new, "<s>The boats").concat(), "<s>The▁boats");
    for text in ["The boats", "The boats</s>", ""] {
        assert_eq!(new.encode_special(text).unwrap(), old.encode_special(text).unwrap(), "{text:?}");
    }
    let ids = new.encode_special("The boats<s> come<s>home").unwrap();
    assert_eq!(new.decode(&ids).unwrap(), "The boats comehome");
    let json = Tokenizer::from_json(new.save_json().unwrap().as_bytes()).unwrap();
    for text in ["<s>The boats", "<s> The", "The</s>boats", " The"] {
        assert_eq!(json.encode_special(text).unwrap(), new.encode_special(text).unwrap(), "{text:?}");
    }
}

#[test]
fn a_stream_after_a_prompt_keeps_the_space_of_the_first_word() {
    let sentencepiece = plain();
    let json = Tokenizer::from_json(sentencepiece.save_json().unwrap().as_bytes()).unwrap();
    for tokenizer in [&sentencepiece, &json] {
        let id = |piece: &str| tokenizer.token_to_id(piece).unwrap();
        let after = |prompt: &[u32], ids: &[u32]| {
            let mut stream = TextStream::after(tokenizer, prompt).unwrap();
            let mut text = String::new();
            for &id in ids {
                text.extend(stream.push(id).unwrap());
            }
            text + &stream.finish().unwrap()
        };
        let prompt = tokenizer.encode("It is").unwrap();
        assert_eq!(after(&prompt, &[id("▁the"), id("▁the")]), " the the");
        assert_eq!(after(&[&prompt[..], &[2]].concat(), &[id("▁the")]), "the");
        assert_eq!(after(&[], &[id("▁the")]), "the");
        // a prompt that ends in the bytes of a character has given them out
        let bytes = tokenizer.encode("It is 🦀").unwrap();
        assert_eq!(after(&bytes, &[id("▁the")]), " the");
    }
}

#[test]
fn named_templates_are_chosen_by_name_and_a_missing_default_is_told() {
    let config =
        r#"{"chat_template": [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]}"#;
    let extra = [("tokenizer_config.json", config), ("additional_chat_templates/short.jinja", "S")];
    let mut tokenizer = open(&extra).unwrap();
    let error = ChatPolicy::new(&tokenizer, None, &[]).unwrap_err().to_string();
    assert!(error.contains("rag, tool_use, short"), "{error}");
    for (name, text) in [("tool_use", "T"), ("short", "S")] {
        tokenizer.choose_chat_template(name).unwrap();
        assert_eq!(tokenizer.chat_template().unwrap().render(&[], true).unwrap(), text);
    }
    assert!(tokenizer.choose_chat_template("none").unwrap_err().to_string().contains("rag, tool_use, short"));
    let jinja = ("chat_template.jinja", "J");
    assert_eq!(open(&[extra[0], jinja]).unwrap().chat_template().unwrap().source(), "J");
}

#[test]
fn templates_see_every_named_token_the_callers_variables_and_the_date() {
    let config =
        r#"{"bos_token": "<s>", "sep_token": "|", "extra_special_tokens": {"image_token": "<img>"}}"#;
    let source =
        "{{ bos_token }}{{ sep_token }}{{ image_token }}{{ enable_thinking }}{{ strftime_now('%d %b %Y') }}";
    let tokenizer = open(&[("tokenizer_config.json", config), ("chat_template.jinja", source)]).unwrap();
    let arguments = serde_json::from_str(r#"{"enable_thinking": false, "messages": "mine"}"#).unwrap();
    let template = tokenizer.chat_template().unwrap().clone().with_arguments(arguments);
    let template = template.at("2024-07-26").unwrap();
    assert_eq!(template.render(&[], true).unwrap(), "<s>|<img>False26 Jul 2024");
    assert_ne!(template.identity(), source);
    assert!(tokenizer.chat_template().unwrap().clone().at("26.7.").is_err());
}
