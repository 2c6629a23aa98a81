//! Typed access to the keys of a config.json.

use serde_json::{Map, Value};

use crate::config::ConfigError;

/// The largest size that a dimension may have; far above any model, far below overflow.
pub(crate) const MAX_DIMENSION: u64 = 1 << 32;

pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 80 { text.chars().take(80).chain("…".chars()).collect() } else { text }
}

pub(crate) fn invalid(key: &'static str, got: impl std::fmt::Display, expected: &'static str) -> ConfigError {
    ConfigError::Invalid { key, got: got.to_string(), expected }
}

/// Typed access to a JSON object; `null` counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a>(pub &'a Map<String, Value>);

impl Keys<'_> {
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn optional_size(&self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n > 0 && n <= MAX_DIMENSION => Ok(Some(n as usize)),
            _ => Err(invalid(key, short(value), "a positive size")),
        }
    }

    pub(crate) fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or(ConfigError::Missing(key))
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| invalid(key, short(value), "a number"))
    }

    pub(crate) fn boolean(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| invalid(key, short(value), "true or false"))
    }

    pub(crate) fn token(&self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        Ok(self.tokens(key)?.first().copied())
    }

    pub(crate) fn tokens(&self, key: &'static str) -> Result<Vec<u32>, ConfigError> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
            single => one(single).map(|id| vec![id]),
        };
        ids.ok_or_else(|| invalid(key, short(value), "a token id or a list of them"))
    }
}
