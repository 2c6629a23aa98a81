//! The manifest: checkpoints known by name, with the digests of their files.

use crate::digest::is_digest;
use crate::names::is_repository;

use std::{collections::HashSet, path::Path};

use flm_checkpoint::read_at_most;
use serde::{Deserialize, Serialize};

use crate::error::{HubError, Result, io};
use crate::names as file_name;

/// The manifest of the released checkpoints.
const EMBEDDED: &str = include_str!("../weights-manifest.toml");

/// The most bytes of a manifest.
const MAX_BYTES: u64 = 16 << 20;

/// Checkpoints known by name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// Every known checkpoint.
    #[serde(rename = "model", default)]
    pub models: Vec<Model>,
}

/// A checkpoint that flm knows by name.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name on the command line, or of the file.
    pub name: String,
    /// Title for people.
    #[serde(default)]
    pub title: String,
    /// `None` for a shape that was never released.
    pub repository: Option<String>,
    /// Commit, branch or tag.
    pub revision: Option<String>,
    /// SPDX name or title of the licence.
    pub licence: Option<String>,
    /// arXiv numbers.
    #[serde(default)]
    pub papers: Vec<String>,
    /// Number of parameters.
    pub parameters: Option<u64>,
    /// Bytes of the weights.
    pub bytes: Option<u64>,
    /// Sizes and multipliers, where they are published.
    pub shape: Option<Shape>,
    /// The files of the pinned revision.
    #[serde(default)]
    pub files: Vec<ManifestFile>,
}

/// The numbers of a config.json.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Decoder blocks.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the feed-forward layer.
    pub ffn: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// Longest context, in tokens.
    pub context: u64,
    /// Factor of the embedding's output.
    pub input_mult: f64,
    /// Numerator of the logits' factor.
    pub output_mult: f64,
    /// Denominator of the logits' factor.
    pub mup_scale_factor: f64,
}

/// A file of a checkpoint, with what is known of it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Name on the command line, or of the file.
    pub name: String,
    /// Length in bytes.
    pub bytes: Option<u64>,
    /// SHA-256 in hexadecimal.
    pub sha256: Option<String>,
}

impl Manifest {
    /// The user's manifest, or the embedded one.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        match path {
            None => Self::parse(EMBEDDED, "weights-manifest.toml"),
            Some(path) => {
                let bytes = read_at_most(path, MAX_BYTES)?;
                let text = String::from_utf8(bytes)
                    .map_err(|error| io("read", path)(std::io::Error::other(error)))?;
                Self::parse(&text, &path.display().to_string())
            }
        }
    }

    fn parse(text: &str, path: &str) -> Result<Self> {
        let fail = |reason: String| HubError::Malformed { path: path.into(), reason };
        let manifest: Self = toml::from_str(text).map_err(|e| fail(e.to_string()))?;
        if manifest.version != 1 {
            return Err(fail(format!("version is {}, this flm reads version 1", manifest.version)));
        }
        let mut names = HashSet::new();
        for model in &manifest.models {
            if !names.insert(model.name.as_str()) {
                return Err(fail(format!("two models are named {:?}", model.name)));
            }
            model.check().map_err(|reason| fail(format!("model {:?}: {reason}", model.name)))?;
        }
        Ok(manifest)
    }

    /// The model of that name or repository.
    pub fn find(&self, name: &str) -> Option<&Model> {
        let by_name = self.models.iter().find(|m| m.name == name);
        by_name.or_else(|| self.models.iter().find(|m| m.repository.as_deref() == Some(name)))
    }
}

impl Model {
    fn check(&self) -> std::result::Result<(), String> {
        if self.name.is_empty() || self.name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err("a name is one word without slashes".into());
        }
        match &self.repository {
            Some(repository) if !is_repository(repository) => {
                return Err(format!("repository {repository:?} is not of the form OWNER/NAME"));
            }
            None if !self.files.is_empty() => return Err("it has files but no repository".into()),
            _ => {}
        }
        let impossible =
            |s: &Shape| s.heads == 0 || !s.hidden.is_multiple_of(s.heads) || s.mup_scale_factor <= 0.0;
        if self.shape.as_ref().is_some_and(impossible) {
            return Err(
                "the shape is impossible: hidden is no multiple of heads, or mup_scale_factor ≤ 0".into()
            );
        }
        let mut names = HashSet::new();
        for file in &self.files {
            file_name::check(&file.name)
                .map_err(|_| format!("file name {:?} is not a plain relative path", file.name))?;
            if !names.insert(file.name.as_str()) {
                return Err(format!("file {:?} stands twice", file.name));
            }
            if file.sha256.as_deref().is_some_and(|digest| !is_digest(digest, 64)) {
                return Err(format!("the sha256 of {:?} is not 64 lower-case hexadecimal digits", file.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_manifest_has_the_released_checkpoints() {
        let manifest = Manifest::load(None).unwrap();
        let names: Vec<_> = manifest.models.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["tele-flm-52b", "flm-2-52b-instruct-2407", "tele-flm-102b", "tele-flm-1t"]);
        let known = |name: &str| {
            let model = manifest.find(name).unwrap();
            let shards = model.files.iter().filter(|f| f.name.ends_with(".bin"));
            (shards.clone().count(), shards.filter(|f| f.sha256.is_some()).count())
        };
        assert_eq!(known("CofeAI/Tele-FLM"), (9, 9));
        assert_eq!(known("flm-2-52b-instruct-2407"), (9, 8));
        assert_eq!(known("tele-flm-1t"), (75, 53));
        let stage = manifest.find("tele-flm-102b").unwrap();
        assert!(stage.repository.is_none() && stage.files.is_empty());
        for model in &manifest.models {
            assert_eq!(model.bytes, model.parameters.map(|p| 2 * p), "{}", model.name);
        }
    }

    #[test]
    fn shapes_are_those_of_the_presets() {
        for model in Manifest::load(None).unwrap().models {
            let Some(preset) = flm_checkpoint::preset(&model.name) else { continue };
            let shape = model.shape.unwrap();
            assert_eq!(
                [shape.layers, shape.heads, shape.hidden, shape.ffn, shape.vocab],
                [
                    preset.num_hidden_layers as u64,
                    preset.num_attention_heads as u64,
                    preset.hidden_size as u64,
                    preset.intermediate_size as u64,
                    preset.vocab_size as u64
                ]
            );
            assert_eq!(model.parameters, Some(preset.parameter_count()), "{}", model.name);
            assert_eq!(shape.output_mult / shape.mup_scale_factor, preset.logit_scale(), "{}", model.name);
        }
    }

    #[test]
    fn wrong_manifests_are_refused() {
        let digest = "0".repeat(64);
        let model = |files: &str| {
            format!("version = 1\n[[model]]\nname = \"a\"\nrepository = \"o/r\"\nfiles = [{files}]\n")
        };
        let cases = [
            ("version = 2\n".into(), "version is 2"),
            ("version = 1\nmodels = []\n".into(), "unknown field"),
            (
                "version = 1\n[[model]]\nname = \"a\"\n[[model]]\nname = \"a\"\n".into(),
                "two models are named \"a\"",
            ),
            ("version = 1\n[[model]]\nname = \"a/b\"\n".into(), "one word"),
            ("version = 1\n[[model]]\nname = \"a\"\nrepository = \"../x\"\n".into(), "OWNER/NAME"),
            (model("{ name = \"../x\" }"), "not a plain relative path"),
            (model("{ name = \"/x\" }"), "not a plain relative path"),
            (model("{ name = \"x\" }, { name = \"x\" }"), "stands twice"),
            (model("{ name = \"x\", sha256 = \"00\" }"), "64 lower-case"),
            (
                model(&format!("{{ name = \"x\", sha256 = \"{}\" }}", digest.replace('0', "A"))),
                "64 lower-case",
            ),
            (model("{ name = \"x\", bytes = -1 }"), "bytes"),
            ("version = 1\n[[model]]\nname = \"a\"\nfiles = [{ name = \"x\" }]\n".into(), "no repository"),
        ];
        for (text, expected) in cases {
            let error = Manifest::parse(&text, "m.toml").unwrap_err().to_string();
            assert!(error.starts_with("m.toml: ") && error.contains(expected), "{expected}: {error}");
        }
        assert!(Manifest::parse(&model(&format!("{{ name = \"x\", sha256 = \"{digest}\" }}")), "m").is_ok());
    }
}
