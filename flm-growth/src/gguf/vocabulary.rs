//! `tokenizer.*` of a GGUF file.

use std::path::Path;

use candle_core::quantized::gguf_file::Value;

use crate::gguf::Result;
use crate::gguf::container::Metadata;
use crate::gguf::error::ExportError;
use flm_candle::Tokenizer;
use flm_candle::TokenizerError;
use flm_candle::{TokenKind, Vocabulary, VocabularyModel, VocabularyToken};
use flm_checkpoint::TeleFlmConfig;

/// The vocabulary of a checkpoint's folder.
///
/// Where its tokenizer.json was made from a SentencePiece model that lies beside it, scores and kinds of tokens
/// are that model's.
///
/// # Errors
/// Everything that [`Tokenizer::from_dir`] and [`Tokenizer::vocabulary`] raise.
pub fn vocabulary_of(dir: &Path) -> std::result::Result<Vocabulary, TokenizerError> {
    let mut vocabulary = Tokenizer::from_dir(dir)?.vocabulary()?;
    let spaces = matches!(vocabulary.model, VocabularyModel::SentencePiece { .. });
    if !spaces || !dir.join("tokenizer.json").exists() {
        return Ok(vocabulary);
    }
    let Ok(bytes) = std::fs::read(dir.join("tokenizer.model")) else { return Ok(vocabulary) };
    let model = Tokenizer::from_sentencepiece(&bytes)?.vocabulary()?;
    let same = |(a, b): (&VocabularyToken, &VocabularyToken)| a.text == b.text;
    if vocabulary.tokens.len() >= model.tokens.len() && vocabulary.tokens.iter().zip(&model.tokens).all(same)
    {
        for (token, piece) in vocabulary.tokens.iter_mut().zip(&model.tokens) {
            token.score = piece.score;
            if token.kind == TokenKind::Normal {
                token.kind = piece.kind;
            }
        }
        vocabulary.model = model.model;
    }
    Ok(vocabulary)
}

/// Keys and values, and what someone should know who runs the file.
pub(crate) fn metadata(
    vocabulary: &Vocabulary,
    config: &TeleFlmConfig,
    pre: Option<&str>,
) -> Result<(Metadata, Vec<String>)> {
    let (tokens, rows) = (vocabulary.tokens.len(), config.vocab_size);
    if tokens > rows {
        return Err(ExportError::Vocabulary { tokens, rows });
    }
    let mut notes = Vec::new();
    let mut out = Vec::new();
    let mut put = |key: &str, value| out.push((format!("tokenizer.{key}"), value));
    let string = |text: &str| Value::String(text.to_owned());
    let spaces = matches!(vocabulary.model, VocabularyModel::SentencePiece { .. });
    match &vocabulary.model {
        VocabularyModel::SentencePiece { add_dummy_prefix, .. } => {
            put("ggml.model", string("llama"));
            put("ggml.pre", string("default"));
            put("ggml.add_space_prefix", Value::Bool(*add_dummy_prefix));
            notes.extend(differences(&vocabulary.model));
        }
        VocabularyModel::ByteLevelBpe { merges, .. } => {
            let pre = match (pre, known_pre_tokenizer(&vocabulary.model)) {
                (Some(pre), known) => {
                    if known.is_none_or(|known| known != pre) {
                        notes.push(format!("the pre-tokenizer was taken to be {pre}, unchecked"));
                    }
                    pre
                }
                (None, Some(known)) => known,
                (None, None) => return Err(unknown_pre_tokenizer(&vocabulary.model)),
            };
            put("ggml.model", string("gpt2"));
            put("ggml.pre", string(pre));
            put("ggml.add_space_prefix", Value::Bool(false));
            put("ggml.merges", Value::Array(merges.iter().map(|m| string(m)).collect()));
        }
    }
    let (mut texts, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    let mut padding = 0;
    for id in 0..rows {
        let token = vocabulary.tokens.get(id).filter(|t| !t.text.is_empty());
        padding += usize::from(token.is_none());
        texts.push(match token {
            // It is looked for in the text as it is given, before spaces become U+2581.
            Some(t) if t.kind == TokenKind::UserDefined && spaces => string(&t.text.replace('\u{2581}', " ")),
            Some(t) => string(&t.text),
            None => Value::String(format!("[PAD{id}]")),
        });
        scores.push(Value::F32(token.map_or(0.0, |t| t.score)));
        kinds.push(Value::I32(token.map_or(5, |t| kind_id(t.kind))));
    }
    put("ggml.tokens", Value::Array(texts));
    if spaces {
        put("ggml.scores", Value::Array(scores));
    }
    put("ggml.token_type", Value::Array(kinds));
    let mut stop: Vec<u32> = Vec::new();
    for id in vocabulary.eos.iter().chain(&vocabulary.stop).chain(&config.eos_token_ids) {
        if !stop.contains(id) && (*id as usize) < rows {
            stop.push(*id);
        }
    }
    let text = |id: u32| vocabulary.tokens.get(id as usize).map_or("", |token| token.text.as_str());
    let mut others: Vec<u32> = stop.iter().copied().skip(1).collect();
    let mut take = |wanted: &dyn Fn(u32) -> bool| {
        let at = others.iter().position(|&id| wanted(id))?;
        Some(others.remove(at))
    };
    let eom = take(&|id| text(id).contains("eom"));
    let eot = take(&|_| true);
    let eom = eom.or_else(|| take(&|_| true));
    let raw_padding = config.raw().get("pad_token_id").and_then(serde_json::Value::as_u64);
    for (key, id) in [
        ("bos", vocabulary.bos.or(config.bos_token_id)),
        ("eos", stop.first().copied()),
        ("eot", eot),
        ("eom", eom),
        ("unknown", vocabulary.unknown),
        ("padding", vocabulary.padding.or(raw_padding.and_then(|id| u32::try_from(id).ok()))),
    ] {
        if let Some(id) = id.filter(|&id| (id as usize) < rows) {
            put(&format!("ggml.{key}_token_id"), Value::U32(id));
        }
    }
    if !others.is_empty() {
        notes.push(format!("tokens that end a text beside the first three are left out: {others:?}"));
    }
    if !vocabulary.with_flags.is_empty() {
        let (some, count) = (vocabulary.with_flags.iter().take(5), vocabulary.with_flags.len());
        notes.push(format!(
            "llama.cpp keeps the white space beside {count} added tokens that take it or stand between words: {}",
            some.map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
        ));
    }
    put("ggml.add_bos_token", Value::Bool(vocabulary.add_bos));
    put("ggml.add_eos_token", Value::Bool(vocabulary.add_eos));
    if let Some(template) = &vocabulary.chat_template {
        put("chat_template", string(template));
    }
    let named = vocabulary.named_templates.iter().filter(|(name, _)| name != "default");
    for (name, template) in named.clone() {
        put(&format!("chat_template.{name}"), string(template));
    }
    let names: Vec<Value> = named.map(|(name, _)| string(name)).collect();
    if !names.is_empty() {
        put("chat_templates", Value::Array(names));
    }
    if padding > 0 {
        notes.push(format!(
            "{padding} rows of the vocabulary are padding; llama.cpp does not keep them from being sampled"
        ));
    }
    Ok((out, notes))
}

/// `llama_token_type`.
fn kind_id(kind: TokenKind) -> i32 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
        TokenKind::Unused => 5,
        TokenKind::Byte => 6,
    }
}

/// What of a SentencePiece model llama.cpp does otherwise.
fn differences(model: &VocabularyModel) -> Vec<String> {
    let VocabularyModel::SentencePiece { normalizes, escape_whitespaces, byte_fallback, .. } = model else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    if *normalizes {
        notes.push(
            "the tokenizer normalises text (by rules, or its spaces), llama.cpp does not: give it normalised text"
                .to_owned(),
        );
    }
    if !escape_whitespaces {
        notes.push(
            "the tokenizer does not escape spaces, llama.cpp does: texts with spaces differ".to_owned(),
        );
    }
    if !byte_fallback {
        notes.push(
            "the tokenizer has no byte pieces: llama.cpp fails on characters that are no piece".to_owned(),
        );
    }
    notes
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name for the rules that cut text into words, where they are the same.
fn known_pre_tokenizer(model: &VocabularyModel) -> Option<&'static str> {
    let VocabularyModel::ByteLevelBpe { pre_tokenizer, normalizer, ignore_merges, .. } = model else {
        return None;
    };
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre_tokenizer],
    };
    let (bytes, words) = steps.split_last()?;
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] == true {
        return None;
    }
    // The field came later: without it the regular expression applies.
    let gpt_2 = bytes["use_regex"] != false;
    let known = match words {
        [] if gpt_2 => "gpt-2",
        [digits] if gpt_2 && digits["type"] == "Digits" && digits["individual_digits"] == true => "smollm",
        [split] if !gpt_2 && split["type"] == "Split" && split["behavior"] == "Isolated" => {
            match split["pattern"]["Regex"].as_str()? {
                LLAMA_3 if split["invert"] != true => "llama-bpe",
                QWEN_2 if split["invert"] != true => "qwen2",
                _ => return None,
            }
        }
        _ => return None,
    };
    let same_text = normalizer.is_null() || (known == "qwen2" && normalizer["type"] == "NFC");
    (same_text && *ignore_merges == (known == "llama-bpe")).then_some(known)
}

fn unknown_pre_tokenizer(model: &VocabularyModel) -> ExportError {
    let found = match model {
        VocabularyModel::ByteLevelBpe { pre_tokenizer, normalizer, ignore_merges, .. } => format!(
            "pre_tokenizer {}, normalizer {}, ignore_merges {ignore_merges}",
            shortened(pre_tokenizer),
            shortened(normalizer)
        ),
        VocabularyModel::SentencePiece { .. } => String::new(),
    };
    ExportError::PreTokenizer { found }
}

fn shortened(value: &serde_json::Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 200 { text.chars().take(200).chain("…".chars()).collect() } else { text }
}
