//! What tokenizer_config.json says: the names of special tokens and the chat template.

use serde_json::{Map, Value};

use crate::tokenizer::error::TokenizerError;

/// The keys of tokenizer_config.json that this crate reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TokenizerConfig {
    /// `bos_token`, `eos_token`, `unk_token`, `pad_token` where given, with their texts.
    pub tokens: Vec<(&'static str, String)>,
    /// Whether texts begin with the BOS token.
    pub add_bos_token: Option<bool>,
    /// Whether texts end with the EOS token.
    pub add_eos_token: Option<bool>,
    /// Whether `tokenizer_class` is Llama's.
    pub is_llama: bool,
    /// The template named "default", or the only one.
    pub chat_template: Option<String>,
    /// `added_tokens_decoder`: id and text.
    pub added_tokens: Vec<(u32, String)>,
}

impl TokenizerConfig {
    pub(super) fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let raw: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| TokenizerError::Config(e.to_string()))?;
        let mut tokens = Vec::new();
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            match raw.get(key) {
                None | Some(Value::Null) => {}
                Some(value) => tokens.push((key, content(key, value)?)),
            }
        }
        let mut added_tokens = Vec::new();
        if let Some(Value::Object(decoder)) = raw.get("added_tokens_decoder") {
            for (id, token) in decoder {
                let number = id.parse().map_err(|_| {
                    TokenizerError::Config(format!("added_tokens_decoder: {id:?} is not an id"))
                })?;
                added_tokens.push((number, content("added_tokens_decoder", token)?));
            }
        }
        Ok(Self {
            tokens,
            add_bos_token: flag(&raw, "add_bos_token")?,
            add_eos_token: flag(&raw, "add_eos_token")?,
            is_llama: matches!(
                raw.get("tokenizer_class").and_then(Value::as_str),
                Some("LlamaTokenizer" | "LlamaTokenizerFast")
            ),
            chat_template: raw.get("chat_template").map(chat_template).transpose()?.flatten(),
            added_tokens,
        })
    }

    /// The same with tokens of another file, where this one names none.
    pub(super) fn with_tokens(mut self, others: Vec<(&'static str, String)>) -> Self {
        for (key, token) in others {
            if self.token(key).is_none() {
                self.tokens.push((key, token));
            }
        }
        self
    }

    /// The text of a special token.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| *name == key).map(|(_, token)| token.as_str())
    }
}

/// A token's text: a string, or an object that holds it as `content`.
fn content(key: &str, value: &Value) -> Result<String, TokenizerError> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(str::to_owned).ok_or_else(|| {
        TokenizerError::Config(format!("`{key}` is neither a string nor an object with `content`"))
    })
}

fn flag(raw: &Map<String, Value>, key: &str) -> Result<Option<bool>, TokenizerError> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(TokenizerError::Config(format!("`{key}` is not true or false"))),
    }
}

/// One template, or a list of named ones.
fn chat_template(value: &Value) -> Result<Option<String>, TokenizerError> {
    let bad = || {
        TokenizerError::Config("`chat_template` is neither a string nor a list of {name, template}".into())
    };
    match value {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        Value::Array(list) => {
            let mut default = None;
            for entry in list {
                let field = |key| entry.get(key).and_then(Value::as_str).ok_or_else(bad);
                let (name, template) = (field("name")?, field("template")?);
                if name == "default" {
                    default = Some(template.to_owned());
                }
            }
            Ok(default)
        }
        _ => Err(bad()),
    }
}
