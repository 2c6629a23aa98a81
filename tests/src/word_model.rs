//! A small checkpoint that reads and writes words.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A model with a tokenizer of words: `w17` is the token 17. Its context is 512 tokens.
pub fn word_model(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    std::fs::create_dir_all(&model).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-f32-st");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(source.join(name), model.join(name)).unwrap();
    }
    let special = ["<unk>", "<s>", "</s>", "<_user>", "<_bot>"];
    let word = |id: usize| special.get(id).map_or_else(|| format!("w{id}"), |token| (*token).to_owned());
    let vocabulary: serde_json::Map<String, Value> = (0..384).map(|id| (word(id), id.into())).collect();
    let added = (0..special.len()).map(|id| {
        json!({"id": id, "content": word(id), "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    std::fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    model
}
