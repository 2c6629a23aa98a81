//! What tokenizer_config.json says: the names of special tokens and the chat template.

use serde_json::{Map, Value};

use crate::tokenizer::added::AddedToken;
use crate::tokenizer::error::TokenizerError;

/// The keys of tokenizer_config.json that this crate reads. special_tokens_map.json has some of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TokenizerConfig {
    /// `bos_token`, `eos_token`, `unk_token`, `pad_token` and all other keys `*_token`, with their texts.
    pub tokens: Vec<(String, String)>,
    /// Which of them special_tokens_map.json names.
    pub from_map: Vec<String>,
    /// `additional_special_tokens`, in transformers 5 `extra_special_tokens`.
    pub additional: Vec<String>,
    /// Whether texts begin with the BOS token.
    pub add_bos_token: Option<bool>,
    /// Whether texts end with the EOS token.
    pub add_eos_token: Option<bool>,
    /// Whether texts begin with a space that they do not have.
    pub add_prefix_space: Option<bool>,
    /// Whether names of special tokens in a text are ordinary text.
    pub split_special_tokens: Option<bool>,
    /// Whether every part of a text between special tokens begins with the dummy prefix.
    pub legacy: Option<bool>,
    /// Whether `tokenizer_class` is Llama's.
    pub is_llama: bool,
    /// Templates by name; the only one is named "default".
    pub chat_templates: Vec<(String, String)>,
    /// `added_tokens_decoder`.
    pub added_tokens: Vec<AddedToken>,
}

/// The name of the template that is taken unless another one is asked for.
pub(super) const DEFAULT: &str = "default";

impl TokenizerConfig {
    pub(super) fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let raw: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| TokenizerError::Config(e.to_string()))?;
        let mut tokens = Vec::new();
        let mut additional = Vec::new();
        for (key, value) in &raw {
            let named = key.ends_with("_token") && !value.is_boolean();
            match value {
                Value::Null => {}
                Value::Array(list) if EXTRA_KEYS.contains(&key.as_str()) => {
                    for token in list {
                        additional.push(content(key, token)?);
                    }
                }
                // transformers 5 names model-specific tokens here
                Value::Object(named) if EXTRA_KEYS.contains(&key.as_str()) => {
                    for (name, token) in named {
                        tokens.push((name.clone(), content(key, token)?));
                    }
                }
                value if named => tokens.push((key.clone(), content(key, value)?)),
                _ => {}
            }
        }
        let mut added_tokens = Vec::new();
        if let Some(Value::Object(decoder)) = raw.get("added_tokens_decoder") {
            for (id, token) in decoder {
                let number = id.parse().map_err(|_| {
                    TokenizerError::Config(format!("added_tokens_decoder: {id:?} is not an id"))
                })?;
                added_tokens.push(added_token(number, token)?);
            }
        }
        Ok(Self {
            tokens,
            from_map: Vec::new(),
            additional,
            add_bos_token: flag(&raw, "add_bos_token")?,
            add_eos_token: flag(&raw, "add_eos_token")?,
            add_prefix_space: flag(&raw, "add_prefix_space")?,
            split_special_tokens: flag(&raw, "split_special_tokens")?,
            legacy: flag(&raw, "legacy")?,
            is_llama: matches!(
                raw.get("tokenizer_class").and_then(Value::as_str),
                Some("LlamaTokenizer" | "LlamaTokenizerFast")
            ),
            chat_templates: raw.get("chat_template").map(chat_templates).transpose()?.unwrap_or_default(),
            added_tokens,
        })
    }

    /// The same with the tokens of special_tokens_map.json. As in transformers, that file has the last word unless
    /// this one has `added_tokens_decoder`, which came with the habit of naming all tokens in one file.
    pub(super) fn with_map(mut self, map: Self) -> Self {
        let last_word = self.added_tokens.is_empty();
        for (key, token) in map.tokens {
            match self.tokens.iter_mut().find(|(name, _)| *name == key) {
                Some((_, own)) if last_word && *own != token => *own = token,
                Some(_) => continue,
                None => self.tokens.push((key.clone(), token)),
            }
            self.from_map.push(key);
        }
        if self.additional.is_empty() || (last_word && !map.additional.is_empty()) {
            self.additional = map.additional;
        }
        self
    }

    /// The text of a special token.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| *name == key).map(|(_, token)| token.as_str())
    }

    /// The file that names a special token.
    pub(super) fn origin(&self, key: &str) -> Option<&'static str> {
        self.token(key)?;
        let in_map = self.from_map.iter().any(|name| name == key);
        Some(if in_map { "special_tokens_map.json" } else { "tokenizer_config.json" })
    }

    /// The texts of all special tokens that have a name or are additional, in the order in which transformers
    /// numbers those that are new.
    pub(super) fn special_texts(&self) -> impl Iterator<Item = &str> {
        let usual = NAMES.iter().filter_map(|name| self.token(name));
        let others = self.tokens.iter().filter(|(name, _)| !NAMES.contains(&name.as_str()));
        usual.chain(others.map(|(_, text)| text.as_str())).chain(self.additional.iter().map(String::as_str))
    }
}

/// Special tokens with names of their own.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Keys under which special tokens without one of the usual names are listed.
const EXTRA_KEYS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// added_tokens.json: ids by text; those in `special` are special.
pub(super) fn added_tokens_file(
    text: &str,
    special: &TokenizerConfig,
) -> Result<Vec<AddedToken>, TokenizerError> {
    let raw: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| TokenizerError::Config(e.to_string()))?;
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    raw.iter()
        .map(|(text, value)| {
            let id =
                id(value).ok_or_else(|| TokenizerError::Config(format!("{text:?}: {value} is not an id")))?;
            Ok(AddedToken::new(id, text, special.special_texts().any(|special| special == text)))
        })
        .collect()
}

/// An entry of `added_tokens_decoder`.
fn added_token(id: u32, value: &Value) -> Result<AddedToken, TokenizerError> {
    let text = content("added_tokens_decoder", value)?;
    let flag = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => {
            Err(TokenizerError::Config(format!("added_tokens_decoder: `{key}` of {id} is not true or false")))
        }
    };
    let special = flag("special")?.unwrap_or(false);
    Ok(AddedToken {
        lstrip: flag("lstrip")?.unwrap_or(false),
        rstrip: flag("rstrip")?.unwrap_or(false),
        single_word: flag("single_word")?.unwrap_or(false),
        normalized: flag("normalized")?.unwrap_or(!special),
        ..AddedToken::new(id, text, special)
    })
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
fn chat_templates(value: &Value) -> Result<Vec<(String, String)>, TokenizerError> {
    let bad = || {
        TokenizerError::Config("`chat_template` is neither a string nor a list of {name, template}".into())
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(template) => Ok(vec![(DEFAULT.to_owned(), template.clone())]),
        Value::Array(list) => list
            .iter()
            .map(|entry| {
                let field = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(bad);
                Ok((field("name")?, field("template")?))
            })
            .collect(),
        // what transformers' processors write: templates by name
        Value::Object(named) => named
            .iter()
            .map(|(name, template)| Ok((name.clone(), template.as_str().ok_or_else(bad)?.to_owned())))
            .collect(),
        _ => Err(bad()),
    }
}
