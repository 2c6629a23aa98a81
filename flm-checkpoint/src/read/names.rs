//! Names of tensors as wrappers save them: a prefix before every name, or a decoder saved without its head's class.

use crate::error::CheckpointError;
use crate::read::Checkpoint;
use crate::tensor_id::{EMBED_TOKENS, LM_HEAD};

/// What puts a prefix before every name.
const WRAPPERS: [(&str, &str); 4] = [
    ("module.", "DistributedDataParallel"),
    ("_orig_mod.", "torch.compile"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("base_model.model.", "PEFT"),
];

/// What names begin with that belong to the decoder.
const DECODER: &str = "model.";

impl Checkpoint {
    /// Takes off what stands before every name, and puts `model.` before those of a decoder that was saved
    /// without its head's class, as transformers does. Where only some names have a prefix all stay, for `check`.
    pub(super) fn unwrap_names(&mut self) {
        let Some(bare) = EMBED_TOKENS.strip_prefix(DECODER) else { return };
        let base = self.entries.iter().find_map(|e| e.name.strip_suffix(bare));
        let Some(base) = base.filter(|base| base.is_empty() || base.ends_with('.')) else { return };
        let base = base.to_owned();
        // `X.model.embed_tokens` is the embedding of X, `X.embed_tokens` that of a decoder X
        let (prefix, headless) = match base.strip_suffix(DECODER) {
            Some(prefix) if prefix.is_empty() || prefix.ends_with('.') => (prefix, false),
            _ => (base.as_str(), true),
        };
        if prefix.is_empty() && !headless {
            return;
        }
        let is_head = |name: &str| headless && name == LM_HEAD;
        if !self.entries.iter().all(|e| e.name.starts_with(prefix) || is_head(&e.name)) {
            return;
        }
        for entry in &mut self.entries {
            let name = entry.name.strip_prefix(prefix).unwrap_or(&entry.name);
            let add = if headless && name != LM_HEAD { DECODER } else { "" };
            entry.name = format!("{add}{name}");
        }
        self.prefix = Some(prefix).filter(|prefix| !prefix.is_empty()).map(str::to_owned);
    }

    /// What stands before every name of a tensor in the files and is left out, with who has put it there where
    /// that is known.
    pub fn prefix(&self) -> Option<(&str, Vec<&'static str>)> {
        let prefix = self.prefix.as_deref()?;
        let by = WRAPPERS.iter().filter(|(part, _)| prefix.contains(part)).map(|&(_, who)| who);
        Some((prefix, by.collect()))
    }

    /// What one sentence says of names that no model of this kind has.
    pub(super) fn foreign_names(&self) -> Option<CheckpointError> {
        let file = |entry: &crate::read::TensorEntry| self.files[entry.file].path.clone();
        let adapter = [".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.", ".modules_to_save."];
        if let Some(entry) = self.entries.iter().find(|e| adapter.iter().any(|part| e.name.contains(part))) {
            return Some(CheckpointError::Adapter { tensor: entry.name.clone(), file: file(entry) });
        }
        if self.contains(EMBED_TOKENS) {
            return None;
        }
        let entry = self.entries.iter().find(|e| e.name.ends_with(".embed_tokens.weight"))?;
        Some(CheckpointError::ForeignNames { tensor: entry.name.clone(), file: file(entry) })
    }
}
