//! Which files of a repository are the model: what would be opened, not whatever looks like weights.

use serde::Serialize;

use crate::client::RemoteFile;
use crate::error::{HubError, Result};

/// Names to fetch, sorted, and the weights that are not among them.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub names: Vec<String>,
    pub left_out: Vec<LeftOut>,
    /// Files that the repository lacks and without which nobody opens the model.
    pub lacking: Vec<String>,
}

/// Weights that are not of the model, or of a form that flm does not read.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// The file's name.
    pub name: String,
    /// Its size, where the Hub tells it.
    pub bytes: Option<u64>,
}

/// The forms of a checkpoint, in the order in which they are opened.
const FORMS: [(&str, &str); 2] = [("model", "safetensors"), ("pytorch_model", "bin")];

impl Selection {
    /// The model's weights with config, tokenizer and texts, all in the repository's root.
    ///
    /// The weights are one file, else the shards that the index names (`index` reads it), else numbered
    /// shards without an index; safetensors before PyTorch's.
    pub(crate) fn of_model(
        files: &[RemoteFile],
        repository: &str,
        index: &dyn Fn(&str) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let has = |name: &str| files.iter().any(|f| f.name == name);
        let (mut names, mut lacking) = (Vec::new(), Vec::new());
        for (stem, extension) in FORMS {
            let (one, index_name) = (format!("{stem}.{extension}"), format!("{stem}.{extension}.index.json"));
            if has(&one) {
                names.push(one);
            } else if has(&index_name) {
                names = index(&index_name)?;
                names.push(index_name);
            } else {
                let shards = files.iter().filter(|f| is_numbered(&f.name, stem, extension));
                names.extend(shards.map(|f| f.name.clone()));
                lacking.extend((!names.is_empty()).then_some(index_name));
            }
            if !names.is_empty() {
                break;
            }
        }
        let found = !names.is_empty();
        names.extend(files.iter().map(|f| f.name.clone()).filter(|name| is_text(name)));
        names.sort();
        names.dedup();
        let left = |f: &&RemoteFile| is_weights(&f.name) && names.binary_search(&f.name).is_err();
        let left_out: Vec<LeftOut> =
            files.iter().filter(left).map(|f| LeftOut { name: f.name.clone(), bytes: f.bytes }).collect();
        if !found {
            let there: Vec<&str> = left_out.iter().map(|f| f.name.as_str()).collect();
            let there = if there.is_empty() { String::new() } else { format!(", only {}", there.join(", ")) };
            return Err(HubError::NoWeights { repository: repository.into(), there });
        }
        lacking.extend((!has("config.json")).then(|| "config.json".to_owned()));
        Ok(Self { names, left_out, lacking })
    }
}

/// `STEM-00001-of-00002.EXTENSION`
fn is_numbered(name: &str, stem: &str, extension: &str) -> bool {
    let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let middle = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension)?.strip_suffix('.'));
    let numbers = middle.and_then(|middle| middle.strip_prefix('-')?.split_once("-of-"));
    numbers.is_some_and(|(one, all)| number(one) && number(all))
}

/// Config, tokenizer and texts; no code, and no index of weights.
fn is_text(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    !name.contains('/')
        && !name.starts_with('.')
        && !name.ends_with(".index.json")
        && (matches!(extension, "json" | "model" | "txt" | "md" | "jinja") || name.starts_with("LICENSE"))
}

fn is_weights(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    !name.contains('/') && matches!(extension, "safetensors" | "bin" | "gguf" | "pt" | "pth")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let file = |n: &&str| RemoteFile { name: (*n).into(), bytes: None, digest: None };
        let files: Vec<RemoteFile> = names.iter().map(file).collect();
        let index = |name: &str| -> Result<Vec<String>> {
            Ok(vec![name.replace(".index.json", "").replace('.', "-1-of-1."), "odd.safetensors".into()])
        };
        let selection = Selection::of_model(&files, "o/r", &index)?;
        Ok((selection.names, selection.left_out.into_iter().map(|f| f.name).collect()))
    }

    #[test]
    fn the_model_is_what_would_be_opened() {
        let (names, left) = of(&[
            ".gitattributes",
            "LICENSE",
            "modeling.py",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "onnx/model.json",
            "tokenizer.model",
            "training_args.bin",
        ])
        .unwrap();
        assert_eq!(names, ["LICENSE", "config.json", "model.safetensors", "tokenizer.model"]);
        assert_eq!(left, ["pytorch_model.bin", "training_args.bin"]);
        let (names, left) = of(&[
            "adapter_model.safetensors",
            "pytorch_model-1-of-1.bin",
            "pytorch_model.bin.index.json",
            "odd.safetensors",
        ])
        .unwrap();
        assert_eq!(names, ["odd.safetensors", "pytorch_model-1-of-1.bin", "pytorch_model.bin.index.json"]);
        assert_eq!(left, ["adapter_model.safetensors"]);
        let file = |n: &&str| RemoteFile { name: (*n).into(), bytes: None, digest: None };
        let lacking = |names: &[&str]| {
            let files: Vec<RemoteFile> = names.iter().map(file).collect();
            Selection::of_model(&files, "o/r", &|_| Ok(vec!["model-1-of-1.safetensors".into()]))
                .unwrap()
                .lacking
        };
        let shards = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
        assert_eq!(lacking(&shards), ["model.safetensors.index.json", "config.json"]);
        assert_eq!(lacking(&["config.json", shards[0]]), ["model.safetensors.index.json"]);
        assert_eq!(lacking(&["model.safetensors"]), ["config.json"]);
        assert!(lacking(&["config.json", "model.safetensors.index.json"]).is_empty());
        let (names, left) =
            of(&["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model-x.bin"]).unwrap();
        assert_eq!((names.len(), left), (2, vec!["model-x.bin".to_owned()]));
    }

    #[test]
    fn a_repository_without_a_model_says_what_is_there() {
        let error = of(&["config.json", "model-q4.gguf"]).unwrap_err().to_string();
        for words in ["o/r holds no model.safetensors", "only model-q4.gguf", "--files"] {
            assert!(error.contains(words), "{error}");
        }
    }
}
