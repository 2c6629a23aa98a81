//! generation_config.json: how a model's authors mean it to be sampled, and what ends its texts.

use std::path::Path;

use serde_json::Value;

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::folder::{read, utf8};

/// What generation_config.json says; all of it is empty where there is no such file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether tokens are drawn at all; where not, the likeliest is taken, whatever the other values are.
    pub do_sample: bool,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Number of likeliest tokens that are drawn from; 0 is all.
    pub top_k: Option<usize>,
    /// Share of the probability that is drawn from.
    pub top_p: Option<f64>,
    /// Least probability beside the likeliest token's.
    pub min_p: Option<f64>,
    /// Divisor of the logits of tokens seen before.
    pub repetition_penalty: Option<f64>,
    /// Tokens that are never drawn.
    pub suppress_tokens: Vec<u32>,
    /// Other keys that would change what is generated, with values that do, and that are not followed.
    pub not_followed: Vec<&'static str>,
}

/// Keys that change what transformers generates and that are not followed, with the number that changes nothing.
const NOT_FOLLOWED: [(&str, f64); 16] = [
    ("stop_strings", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("bad_words_ids", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_eos_token_id", -1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("num_beams", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("guidance_scale", 1.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
];

impl GenerationDefaults {
    /// Reads the file of a checkpoint's folder.
    ///
    /// # Errors
    /// [`TokenizerError`] of a file that cannot be read or is not JSON, and of a value of another kind.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("generation_config.json");
        match read(&path)? {
            Some(bytes) => utf8(&bytes).and_then(Self::from_json).map_err(|e| e.in_file(&path)),
            None => Ok(Self::default()),
        }
    }

    fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let bad = |message: String| TokenizerError::GenerationConfig(message);
        let file: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let eos = match &file["eos_token_id"] {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        };
        let ids = |key: &str| match &file[key] {
            Value::Null => Ok(Vec::new()),
            value => value
                .as_array()
                .and_then(|list| list.iter().map(id).collect())
                .ok_or_else(|| bad(format!("`{key}` is not a list of ids"))),
        };
        let changes = |key: &str, nothing: f64| match &file[key] {
            Value::Null | Value::Bool(false) => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            value => value.as_f64() != Some(nothing),
        };
        let number = |key: &str| match &file[key] {
            Value::Null => Ok(None),
            value => value.as_f64().map(Some).ok_or_else(|| bad(format!("`{key}` is not a number"))),
        };
        let top_k = match &file["top_k"] {
            Value::Null => None,
            value => Some(value.as_i64().ok_or_else(|| bad("`top_k` is not a whole number".into()))?),
        };
        Ok(Self {
            eos_token_ids: eos
                .ok_or_else(|| bad("`eos_token_id` is neither an id nor a list of ids".into()))?,
            do_sample: file["do_sample"].as_bool().unwrap_or(false),
            temperature: number("temperature")?,
            top_k: top_k.map(|k| usize::try_from(k).unwrap_or(0)),
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            suppress_tokens: ids("suppress_tokens")?,
            not_followed: NOT_FOLLOWED
                .into_iter()
                .filter_map(|(key, nothing)| changes(key, nothing).then_some(key))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_those_of_another_kind_are_named() {
        let read = |text: &str| GenerationDefaults::from_json(text);
        let all = r#"{"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":0,
            "repetition_penalty":1.05,"eos_token_id":[7,9],"suppress_tokens":[3],"num_beams":1,
            "no_repeat_ngram_size":0,"stop_strings":["\n\n"],"min_new_tokens":2,"typical_p":1.0}"#;
        let expected = GenerationDefaults {
            eos_token_ids: vec![7, 9],
            do_sample: true,
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.0),
            repetition_penalty: Some(1.05),
            suppress_tokens: vec![3],
            not_followed: vec!["stop_strings", "min_new_tokens"],
        };
        assert_eq!(read(all).unwrap(), expected);
        assert_eq!(read("{}").unwrap(), GenerationDefaults::default());
        assert_eq!(read(r#"{"eos_token_id":3,"top_k":-1}"#).unwrap().top_k, Some(0));
        for (text, named) in [
            (r#"{"temperature":"0.6"}"#, "temperature"),
            (r#"{"top_k":0.5}"#, "top_k"),
            (r#"{"suppress_tokens":[-1]}"#, "suppress_tokens"),
            (r#"{"eos_token_id":"</s>"}"#, "eos_token_id"),
            ("[", "EOF"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("generation_config.json"), "{error}");
        }
    }
}
