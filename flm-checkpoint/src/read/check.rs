//! A checkpoint against its config: every name, shape and dtype.

use std::collections::HashMap;
use std::path::Path;

use crate::error::CheckpointError;
use crate::error::{Result, io};
use crate::read::{Checkpoint, TensorEntry};
use crate::tensor_id::TensorId;

impl Checkpoint {
    /// Names, shapes and dtypes against the config: the first of [`Checkpoint::problems`] as an error.
    pub fn check(&self) -> Result<()> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// Everything in which names, shapes and dtypes differ from the config: missing tensors and
    /// wrong shapes in the order of the forward pass, then unknown tensors, then dtypes.
    ///
    /// A head that is tied to the embedding may be stored as well. Tensors may have different dtypes,
    /// but some matrix must have the dtype that the config declares.
    pub fn problems(&self) -> Vec<CheckpointError> {
        let mut problems = self.shape_problems();
        problems.extend(self.dtype_problem());
        problems
    }

    /// [`Checkpoint::problems`] without those of dtypes, which a conversion mends.
    pub fn shape_problems(&self) -> Vec<CheckpointError> {
        if let Some(foreign) = self.foreign_names() {
            return vec![foreign];
        }
        let tied_head = self.config.tie_word_embeddings.then(|| self.config.tensor(TensorId::Head));
        let mut unknown: HashMap<&str, &TensorEntry> =
            self.entries.iter().map(|e| (e.name.as_str(), e)).collect();
        let mut problems = Vec::new();
        // A config can ask for billions of layers: as many problems as there are tensors are enough.
        let limit = self.entries.len() + 1;
        let required = self.config.tensors().map(|t| (t, true));
        for (expected, required) in required.chain(tied_head.map(|t| (t, false))) {
            match unknown.remove(expected.name.as_str()) {
                None if required => problems
                    .push(CheckpointError::MissingTensor { tensor: expected.name, expected: expected.shape }),
                Some(entry) if entry.shape != expected.shape => {
                    problems.push(CheckpointError::ShapeMismatch {
                        tensor: expected.name,
                        file: self.files[entry.file].path.clone(),
                        expected: expected.shape,
                        got: entry.shape.clone(),
                    })
                }
                _ => {}
            }
            if problems.len() > limit {
                return problems;
            }
        }
        let mut unknown: Vec<&TensorEntry> = unknown.into_values().collect();
        unknown.sort_by(|a, b| a.name.cmp(&b.name));
        problems.extend(unknown.into_iter().map(|entry| CheckpointError::UnknownTensor {
            tensor: entry.name.clone(),
            shape: entry.shape.clone(),
            file: self.files[entry.file].path.clone(),
        }));
        problems
    }

    /// The dtype part of [`Checkpoint::problems`].
    pub fn dtype_problem(&self) -> Option<CheckpointError> {
        let declared = self.config.declared_dtype()?;
        let mut matrices = self.entries.iter().filter(|e| e.shape.len() == 2);
        let first = matrices.next()?;
        if first.dtype == declared || matrices.any(|e| e.dtype == declared) {
            return None;
        }
        Some(CheckpointError::DTypeMismatch {
            tensor: first.name.clone(),
            file: self.files[first.file].path.clone(),
            declared,
            got: first.dtype,
        })
    }
}

impl Checkpoint {
    /// Fails where `dst` is this checkpoint's directory or lies inside it: see [`require_outside`].
    ///
    /// # Errors
    /// [`CheckpointError::InsideSource`].
    pub fn require_outside(&self, dst: &Path) -> Result<()> {
        require_outside(self.dir(), dst)
    }
}

/// Fails where the output `dst` is the directory `src`, which is read, or lies inside it: a reader would find
/// it there.
///
/// # Errors
/// [`CheckpointError::InsideSource`].
pub fn require_outside(src: &Path, dst: &Path) -> Result<()> {
    let whole = src.canonicalize().map_err(io("look at", src))?;
    let nearest = dst.ancestors().find_map(|p| {
        let p = if p.as_os_str().is_empty() { Path::new(".") } else { p };
        p.canonicalize().ok()
    });
    if nearest.is_some_and(|nearest| nearest.starts_with(&whole)) {
        return Err(CheckpointError::InsideSource { dst: dst.into(), src: src.into() });
    }
    Ok(())
}
