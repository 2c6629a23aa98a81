//! A tokenizer's folder: which files say what, and which of them has the last word.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tokenizer::added::AddedToken;
use crate::tokenizer::chat_template::ChatTemplate;
use crate::tokenizer::config::{DEFAULT, TokenizerConfig, added_tokens_file};
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::generation_config::GenerationDefaults;
use crate::tokenizer::{Backend, Tokenizer};

/// The most templates of a folder that are looked at.
const MAX_TEMPLATES: usize = 64;

/// A chat template that was found, not compiled.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub name: String,
    pub text: String,
    /// The file that it stands in.
    pub path: PathBuf,
}

impl Tokenizer {
    /// Opens a checkpoint's folder: tokenizer.json if there is one, else tokenizer.model; then, if there are
    /// such files,
    /// - special_tokens_map.json and tokenizer_config.json, which has the last word, for the names of special
    ///   tokens, for BOS and EOS around a text, and for `legacy` of SentencePiece models (true where it is
    ///   absent, as in transformers 4);
    /// - `added_tokens_decoder` of tokenizer_config.json, or else added_tokens.json, for tokens beside the
    ///   model's own;
    /// - generation_config.json for the tokens that end a text;
    /// - chat_template.jinja, which has precedence over chat_template.json and the template in
    ///   tokenizer_config.json, and additional_chat_templates/*.jinja for named templates.
    ///
    /// # Errors
    /// Every error names its file.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let json = dir.join("tokenizer.json");
        let model = dir.join("tokenizer.model");
        let mut around = (Vec::new(), Vec::new());
        let mut tokenizer = if let Some(bytes) = read(&json)? {
            // what the file itself puts around a text, unless tokenizer_config.json says otherwise
            around = post_processor(&bytes);
            Self::from_json(&bytes).map_err(|e| e.in_file(&json))?
        } else if let Some(bytes) = read(&model)? {
            Self::from_sentencepiece(&bytes).map_err(|e| e.in_file(&model))?
        } else {
            return Err(TokenizerError::NotFound { dir: dir.display().to_string() });
        };
        tokenizer.generation = GenerationDefaults::from_dir(dir)?;

        let config_path = dir.join("tokenizer_config.json");
        let own = parsed(&config_path, TokenizerConfig::from_json)?;
        let map_path = dir.join("special_tokens_map.json");
        let map = parsed(&map_path, TokenizerConfig::from_json)?;
        let settings_path = if own.is_some() || map.is_none() { &config_path } else { &map_path };
        let mut config = own.unwrap_or_default().with_map(map.unwrap_or_default());
        let mut added_path = config_path.clone();
        if config.added_tokens.is_empty() {
            let path = dir.join("added_tokens.json");
            config.added_tokens = parsed(&path, |text| added_tokens_file(text, &config))?.unwrap_or_default();
            added_path = path;
        }
        tokenizer.add_tokens(&config).map_err(|e| e.in_file(&added_path))?;
        tokenizer.configure(&config, around).map_err(|e| e.in_file(settings_path))?;
        tokenizer.parse_special = !config.split_special_tokens.unwrap_or(false);

        tokenizer.variables = config.tokens.clone();
        tokenizer.templates = templates(dir, &config, &config_path)?;
        if tokenizer.templates.iter().any(|source| source.name == DEFAULT) {
            tokenizer.choose_chat_template(DEFAULT)?;
        }
        Ok(tokenizer)
    }

    /// Tokens that the folder declares, and special tokens that it names; those that the model does not have get
    /// the ids after its last, as in transformers.
    fn add_tokens(&mut self, config: &TokenizerConfig) -> Result<(), TokenizerError> {
        let mut tokens = config.added_tokens.clone();
        match &mut self.backend {
            Backend::Json(model) => {
                model.add_tokens(&tokens)?;
                model.add_special(config.special_texts())
            }
            Backend::SentencePiece(model) => {
                let declared = tokens.iter().map(|token| token.id.saturating_add(1)).max().unwrap_or(0);
                let mut next = declared.max(u32::try_from(model.len()).unwrap_or(u32::MAX));
                for text in config.special_texts() {
                    let declared = tokens.iter_mut().find(|token| token.text == text);
                    match (declared, model.token_to_id(text)) {
                        (Some(token), _) => token.special = true,
                        (None, Some(id)) => tokens.push(AddedToken::new(id, text, true)),
                        (None, None) => {
                            tokens.push(AddedToken::new(next, text, true));
                            next = next.saturating_add(1);
                        }
                    }
                }
                model.configure(
                    tokens,
                    config.legacy.unwrap_or(true),
                    config.add_prefix_space.unwrap_or(true),
                )
            }
        }
    }

    /// The names of the folder's chat templates; the one that is taken by itself is named "default".
    pub fn chat_template_names(&self) -> impl Iterator<Item = &str> {
        self.templates.iter().map(|source| source.name.as_str())
    }

    /// Takes the folder's chat template of this name.
    ///
    /// # Errors
    /// [`TokenizerError::NamedTemplate`] where there is none, and those of [`ChatTemplate::with_tokens`].
    pub fn choose_chat_template(&mut self, name: &str) -> Result<(), TokenizerError> {
        let Some(source) = self.templates.iter().find(|source| source.name == name) else {
            return Err(self.no_template(name));
        };
        let template = self.compile_template(&source.text).map_err(|e| e.in_file(&source.path))?;
        self.chat_template = Some(template);
        Ok(())
    }

    /// That there is no chat template of this name, and which there are.
    pub(super) fn no_template(&self, name: &str) -> TokenizerError {
        let known: Vec<_> = self.chat_template_names().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        TokenizerError::NamedTemplate { name: name.to_owned(), known }
    }

    /// A chat template that knows this tokenizer's special tokens (`bos_token` and the like).
    ///
    /// # Errors
    /// Those of [`ChatTemplate::with_tokens`].
    pub fn compile_template(&self, source: &str) -> Result<ChatTemplate, TokenizerError> {
        let tokens = self.variables.iter().map(|(name, token)| (name.as_str(), token.as_str()));
        ChatTemplate::with_tokens(source, tokens)
    }
}

/// The folder's chat templates, the one of each name that has precedence.
fn templates(
    dir: &Path,
    config: &TokenizerConfig,
    config_path: &Path,
) -> Result<Vec<Source>, TokenizerError> {
    let mut found: Vec<Source> = Vec::new();
    let mut add = |name: &str, text: String, path: &Path| {
        if found.iter().all(|source| source.name != name) && found.len() < MAX_TEMPLATES {
            found.push(Source { name: name.to_owned(), text, path: path.to_owned() });
        }
    };
    let jinja = dir.join("chat_template.jinja");
    if let Some(text) = parsed(&jinja, |text| Ok(text.to_owned()))? {
        add(DEFAULT, text, &jinja);
    }
    let json = dir.join("chat_template.json");
    if let Some(file) = parsed(&json, TokenizerConfig::from_json)? {
        file.chat_templates.into_iter().for_each(|(name, text)| add(&name, text, &json));
    }
    config.chat_templates.iter().for_each(|(name, text)| add(name, text.clone(), config_path));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir.join("additional_chat_templates"))
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).take(MAX_TEMPLATES).collect())
        .unwrap_or_default();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "jinja")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if let Some(text) = parsed(path, |text| Ok(text.to_owned()))? {
            add(&name, text, path);
        }
    }
    Ok(found)
}

/// What a text file says, if there is one.
fn parsed<T>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, TokenizerError>,
) -> Result<Option<T>, TokenizerError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    utf8(&bytes).and_then(parse).map(Some).map_err(|e| e.in_file(path))
}

/// The tokens that a tokenizer.json's post-processor puts before and after a single text.
fn post_processor(bytes: &[u8]) -> (Vec<u32>, Vec<u32>) {
    type Ids = Vec<u32>;
    fn ids(value: &Value) -> Ids {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        value.as_array().map_or_else(Vec::new, |list| list.iter().filter_map(id).collect())
    }
    fn around(processor: &Value) -> (Ids, Ids) {
        match processor["type"].as_str() {
            Some("TemplateProcessing") => {
                let single = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
                let special = |item: &Value| {
                    let name = item.get("SpecialToken")?["id"].as_str()?;
                    Some(ids(&processor["special_tokens"][name]["ids"]))
                };
                let before = single.iter().map_while(special).flatten().collect();
                let text = single.iter().rposition(|item| item.get("Sequence").is_some());
                let after = text.map_or(&[][..], |at| &single[at + 1..]);
                (before, after.iter().filter_map(special).flatten().collect())
            }
            // [token, id] each
            Some("BertProcessing" | "RobertaProcessing") => (ids(&processor["cls"]), ids(&processor["sep"])),
            Some("Sequence") => {
                let inner = processor["processors"].as_array().map_or(&[][..], Vec::as_slice);
                // each puts its own around what those before it have made
                inner.iter().map(around).fold((Vec::new(), Vec::new()), |(before, after), (b, a)| {
                    ([b, before].concat(), [after, a].concat())
                })
            }
            _ => (Vec::new(), Vec::new()),
        }
    }
    serde_json::from_slice::<Value>(bytes)
        .map_or_else(|_| (Vec::new(), Vec::new()), |file| around(&file["post_processor"]))
}

/// The largest file of a tokenizer that is read, in bytes; Gemma's tokenizer.json has 33 MB.
const MAX_FILE: u64 = 256 << 20;

/// The bytes of a file, if there is one; of JSON without the byte-order mark that some editors put before it. In
/// other files it is text, as to transformers.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |reason: &str| TokenizerError::Read {
        path: path.display().to_string(),
        source: std::io::Error::other(reason.to_owned()),
    };
    match path.metadata() {
        Ok(meta) if !meta.is_file() => return Err(failed("not a regular file")),
        Ok(meta) if meta.len() > MAX_FILE => return Err(failed("far larger than a tokenizer's files are")),
        _ => {}
    }
    match std::fs::read(path) {
        Ok(bytes) if bytes.starts_with(flm_checkpoint::LFS_POINTER) => {
            Err(failed("a Git LFS pointer, not the file itself: run `git lfs pull`"))
        }
        Ok(bytes) if path.extension().is_some_and(|e| e == "json") => {
            Ok(Some(flm_checkpoint::without_bom(&bytes).to_vec()))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match path.symlink_metadata() {
            Ok(_) => Err(failed("a link to a file that is not there: fetch it again")),
            Err(_) => Ok(None),
        },
        Err(source) => Err(TokenizerError::Read { path: path.display().to_string(), source }),
    }
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, TokenizerError> {
    std::str::from_utf8(bytes).map_err(|e| TokenizerError::Config(format!("not UTF-8: {e}")))
}
