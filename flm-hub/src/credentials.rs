//! Where the Hub's token and cache are on this machine: the variables and files of the Python client.

use std::{fmt, path::PathBuf};

use hf_hub::Cache;

use crate::error::{HubError, Result};

/// A token of the Hub, and where it was found, for messages.
#[derive(Clone)]
pub(crate) struct Token {
    secret: String,
    /// The variable or the file.
    pub source: String,
}

// the secret is in no message
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.source)
    }
}

impl Token {
    fn new(text: &str, source: String) -> Result<Option<Self>> {
        let secret = text.trim().to_owned();
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::NoToken { source_name: source });
        }
        Ok((!secret.is_empty()).then_some(Self { secret, source }))
    }

    /// The value of an Authorization header.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

/// The environment as the Python client reads it.
pub(crate) struct Environment<'a> {
    /// A variable's value.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

impl Environment<'_> {
    fn set(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// A path with a leading `~`, which no shell has replaced in `HF_HOME="~/x"`.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.set(name)?;
        let below_home = if value == "~" { Some("") } else { value.strip_prefix("~/") };
        match (below_home, &self.home) {
            (Some(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(value.into()),
        }
    }

    /// HF_HOME, else `huggingface` in XDG_CACHE_HOME, else in ~/.cache.
    fn hf_home(&self) -> PathBuf {
        let cache = || {
            let xdg = self.path("XDG_CACHE_HOME");
            let home = || self.home.clone().unwrap_or_default().join(".cache");
            xdg.unwrap_or_else(home).join("huggingface")
        };
        self.path("HF_HOME").unwrap_or_else(cache)
    }

    /// The directory of downloaded blobs.
    pub(crate) fn cache(&self) -> Cache {
        let named = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        Cache::new(named.unwrap_or_else(|| self.hf_home().join("hub")))
    }

    /// HF_TOKEN or HUGGING_FACE_HUB_TOKEN, else the token file.
    pub(crate) fn token(&self) -> Result<Option<Token>> {
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            let value = self.set(name).unwrap_or_default();
            if let Some(token) = Token::new(&value, name.into())? {
                return Ok(Some(token));
            }
        }
        let off = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
        if self.set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(off) {
            return Ok(None);
        }
        let path = self.path("HF_TOKEN_PATH").unwrap_or_else(|| self.hf_home().join("token"));
        match std::fs::read_to_string(&path) {
            Ok(text) => Token::new(&text, path.display().to_string()),
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)], home: &std::path::Path) -> Result<Option<(String, String)>> {
        let variable =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let environment = Environment { variable: &variable, home: Some(home.into()) };
        Ok(environment.token()?.map(|token| (token.authorization(), token.source)))
    }

    #[test]
    fn tokens_are_found_where_the_python_client_finds_them() {
        let home = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "hf_file\r\n").unwrap();
            path.display().to_string()
        };
        let bearer = |secret: &str, source: &str| Some((format!("Bearer {secret}"), source.to_owned()));
        let of = |variables: &[(&str, &str)]| found(variables, home.path()).unwrap();
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("HF_TOKEN", " hf_a\n")]), bearer("hf_a", "HF_TOKEN"));
        let both = [("HUGGING_FACE_HUB_TOKEN", "hf_b"), ("HF_TOKEN", "")];
        assert_eq!(of(&both), bearer("hf_b", "HUGGING_FACE_HUB_TOKEN"));
        let path = file("hf/token");
        assert_eq!(of(&[("HF_HOME", "~/hf")]), bearer("hf_file", &path));
        assert_eq!(of(&[("HF_TOKEN_PATH", "~/hf/token")]), bearer("hf_file", &path));
        let path = file("xdg/huggingface/token");
        assert_eq!(of(&[("XDG_CACHE_HOME", "~/xdg")]), bearer("hf_file", &path));
        let path = file(".cache/huggingface/token");
        assert_eq!(of(&[]), bearer("hf_file", &path));
        assert_eq!(of(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }

    #[test]
    fn a_token_that_is_no_header_is_refused_and_not_shown() {
        for bad in ["hf_é", "hf_a b", "hf_a\nHost: x"] {
            let error = found(&[("HF_TOKEN", bad)], std::path::Path::new("/")).unwrap_err().to_string();
            assert!(error.contains("HF_TOKEN") && !error.contains("hf_"), "{error}");
        }
    }
}
