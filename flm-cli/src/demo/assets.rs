//! The built-in model and its data, as they are in the repository.

use std::path::Path;

use anyhow::Context;
use flm_checkpoint::atomic;

/// A file of the binary.
type Asset = (&'static str, &'static [u8]);

macro_rules! assets {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/", $folder, $name)).as_slice())),+]
    };
}

/// PyTorch shards with an index, as the released models have them.
const NANO_52B: [Asset; 11] = assets!["nano-52b/":
    "NOTICE",
    "README.md",
    "config.json",
    "pytorch_model-00001-of-00004.bin",
    "pytorch_model-00002-of-00004.bin",
    "pytorch_model-00003-of-00004.bin",
    "pytorch_model-00004-of-00004.bin",
    "pytorch_model.bin.index.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
];

/// Samples to tune on, and questions of the same kinds that are not among them.
const DATA: [Asset; 2] = assets!["": "instructions.jsonl", "questions.jsonl"];

/// The recipe of the tuning.
const RECIPE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/nano-sft.toml"));

/// Writes everything to `dir`, the model to its subdirectory `model`; returns the bytes written.
pub(crate) fn unpack(dir: &Path, model: &str) -> anyhow::Result<usize> {
    let model = dir.join(model);
    std::fs::create_dir_all(&model).with_context(|| format!("cannot make {}", model.display()))?;
    let mut bytes = 0;
    let mut write = |path: &Path, content: &[u8]| {
        bytes += content.len();
        atomic::write(path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    for (name, content) in NANO_52B {
        write(&model.join(name), content)?;
    }
    for (name, content) in DATA {
        write(&dir.join(name), content)?;
    }
    write(&dir.join("sft.toml"), RECIPE.as_bytes())?;
    Ok(bytes)
}
