//! Tokenizer files for programs that know Llama and no code of a checkpoint's own.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::folder::{read, utf8};

const MODEL: &str = "tokenizer.model";
const JSON: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// Keys that only slow tokenizers and a checkpoint's own code read. The tokens of `added_tokens_decoder`
/// are in tokenizer.json.
const SLOW_KEYS: [&str; 5] = ["auto_map", "use_fast", "sp_model_kwargs", "legacy", "added_tokens_decoder"];

/// Makes the tokenizer in `dir` one that transformers and vLLM load without code of its own; returns the
/// names of the files written, none where the files are such already.
///
/// transformers' `LlamaTokenizer` takes pieces from a tokenizer.model but not its normaliser, whitespace
/// rules and dummy prefix (seen in 5.23), so a tokenizer.json that has them is written and
/// `PreTrainedTokenizerFast`, which takes it as it is, named.
///
/// # Errors
/// Where the files cannot be read, parsed or written.
pub fn write_llama_files(dir: &Path) -> Result<Vec<&'static str>, TokenizerError> {
    let path = dir.join(CONFIG);
    let mut config = match read(&path)? {
        Some(bytes) => serde_json::from_str(utf8(&bytes).map_err(|e| e.in_file(&path))?)
            .map_err(|e| TokenizerError::Config(e.to_string()).in_file(&path))?,
        None => Map::new(),
    };
    let class = config.get("tokenizer_class").and_then(Value::as_str);
    let own_code = config.contains_key("auto_map") || class == Some("TeleFLMTokenizer");
    let has_json = dir.join(JSON).exists();
    if !dir.join(MODEL).exists() && !has_json || has_json && !own_code {
        return Ok(Vec::new());
    }
    let tokenizer = Tokenizer::from_dir(dir)?;
    let text = tokenizer.save_json()?;
    let mut json: Value = serde_json::from_str(&text).map_err(|e| TokenizerError::Json(e.to_string()))?;
    if let Some(template) = tokenizer.template_processing() {
        json["post_processor"] = template;
    }
    write(&dir.join(JSON), &json.to_string())?;

    for key in SLOW_KEYS {
        config.shift_remove(key);
    }
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    for (key, id) in [("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos)] {
        if let (false, Some(token)) = (config.contains_key(key), id.and_then(|id| tokenizer.id_to_token(id)))
        {
            config.insert(key.into(), token.into());
        }
    }
    let jinja = dir.join("chat_template.jinja");
    if let (None, Some(template)) = (config.get("chat_template"), read(&jinja)?) {
        config.insert("chat_template".into(), utf8(&template).map_err(|e| e.in_file(&jinja))?.into());
    }
    write(&path, &format!("{:#}\n", Value::Object(config)))?;
    Ok(vec![JSON, CONFIG])
}

impl Tokenizer {
    /// What puts BOS and EOS around a text, where tokenizer_config.json asks for them.
    fn template_processing(&self) -> Option<Value> {
        let token = |wanted: bool, id: Option<u32>| {
            let id = id.filter(|_| wanted)?;
            Some((id, self.id_to_token(id)?))
        };
        let (bos, eos) = (token(self.add_bos, self.bos), token(self.add_eos, self.eos));
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let special = |t: &(u32, String), part: u8| json!({"SpecialToken": {"id": t.1, "type_id": part}});
        let around = |name: &str, part: u8| -> Vec<Value> {
            let text = json!({"Sequence": {"id": name, "type_id": part}});
            let (before, after) =
                (bos.iter().map(|t| special(t, part)), eos.iter().map(|t| special(t, part)));
            before.chain([text]).chain(after).collect()
        };
        let tokens: Map<String, Value> = [&bos, &eos]
            .into_iter()
            .flatten()
            .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        Some(json!({
            "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens,
        }))
    }
}

fn write(path: &Path, text: &str) -> Result<(), TokenizerError> {
    std::fs::write(path, text)
        .map_err(|source| TokenizerError::Write { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
    }

    /// A folder with the released tokenizer_config.json, changed, and a SentencePiece model.
    fn folder(change: impl Fn(&mut Map<String, Value>)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("spm/tokenizer.model"), dir.path().join(MODEL)).unwrap();
        let text = std::fs::read_to_string(fixture("configs/tokenizer_config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_str(&text).unwrap();
        // the released model's id 3, which the fixture's is not
        config.remove("pad_token");
        config["added_tokens_decoder"].as_object_mut().unwrap().remove("3");
        change(&mut config);
        std::fs::write(dir.path().join(CONFIG), Value::Object(config).to_string()).unwrap();
        dir
    }

    #[test]
    fn the_files_need_no_code_and_give_the_same_ids() {
        let dir = folder(|_| ());
        std::fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
        let before = Tokenizer::from_sentencepiece(&std::fs::read(dir.path().join(MODEL)).unwrap()).unwrap();
        assert_eq!(write_llama_files(dir.path()).unwrap(), [JSON, CONFIG]);
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join(CONFIG)).unwrap()).unwrap();
        assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(config["chat_template"], "{{ messages }}");
        assert_eq!((&config["bos_token"], &config["unk_token"]), (&"<s>".into(), &"<unk>".into()));
        for key in SLOW_KEYS {
            assert_eq!(config.get(key), None, "{key}");
        }
        let after = Tokenizer::from_dir(dir.path()).unwrap();
        assert!((after.add_bos(), after.bos_id(), after.eos_id()) == (false, Some(1), Some(2)));
        for text in ["Hello, world!", "  a  b ", "你好，世界！", "🦀\n\tx", "ﬁ é", "</s>"] {
            assert_eq!(after.encode(text).unwrap(), before.encode(text).unwrap(), "{text:?}");
        }
        // a second time there is nothing to do
        assert!(write_llama_files(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn bos_and_eos_are_added_where_the_config_asks() {
        let dir = folder(|config| {
            config.insert("add_bos_token".into(), true.into());
        });
        write_llama_files(dir.path()).unwrap();
        let json = std::fs::read(dir.path().join(JSON)).unwrap();
        let crate_tokenizer = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let plain = crate_tokenizer.encode("Hi", false).unwrap().get_ids().to_vec();
        assert_eq!(crate_tokenizer.encode("Hi", true).unwrap().get_ids(), [&[1], &plain[..]].concat());
    }

    #[test]
    fn a_folder_without_a_tokenizer_is_left_alone() {
        assert!(write_llama_files(tempfile::tempdir().unwrap().path()).unwrap().is_empty());
    }
}
