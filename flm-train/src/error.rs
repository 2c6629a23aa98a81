//! What can go wrong while training.

use std::path::PathBuf;

use flm_candle::TokenizerError;
use flm_candle::{ModelError, is_out_of_memory};
use flm_checkpoint::CheckpointError;
use flm_checkpoint::ConfigError;

/// What can go wrong while training.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer or its chat template failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Masks that do not follow their own schedule.
    #[error(
        "{path}: the masks of `growth` in config.json are not the {mask} that its schedule says at step \
         {step} of {steps}: correct them there, or fold them with `flm fold`"
    )]
    Masks {
        path: PathBuf,
        /// What the schedule says.
        mask: f64,
        /// Its step.
        step: u64,
        /// Its length.
        steps: u64,
    },
    /// Backward did not reach a parameter.
    #[error(
        "parameter {0} got no gradient: an operation of the forward pass has no backward; nothing was changed"
    )]
    MissingGradient(String),
    /// A batch without anything to learn.
    #[error("step {0} has no target tokens: all its labels are masked")]
    NoTargets(u64),
    /// The loss or the gradient is not a number.
    #[error(
        "{what} of step {step} is {value}: stopped before the update; batch: {batch}{}",
        cause(.zero_tokens)
    )]
    NotFinite {
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// The step, counted from 1.
        step: u64,
        /// What it is.
        value: f64,
        /// The samples of the step.
        batch: String,
        /// Tokens of the step whose row of the embedding is zero.
        zero_tokens: Vec<u32>,
    },
    /// Something in a line of a data file.
    #[error("{path}:{line}: {message}")]
    Line {
        path: PathBuf,
        /// Its line, counted from 1.
        line: usize,
        message: String,
    },
    /// Something in the data as a whole.
    #[error("{0}")]
    Data(String),
    /// A setting that is not possible, by its key.
    #[error("{0}")]
    Setting(String),
    /// No plan is within the memory.
    #[error(
        "no plan fits the memory that there is; every kind of plan, as near to it as it comes:\n{table}\n\
         give more (memory.budget, memory.device_budget), or make train.micro_batch_size or \
         data.context_length smaller"
    )]
    DoesNotFit {
        /// A line a plan, with what is missing.
        table: String,
    },
    /// A training state that does not fit.
    #[error("cannot resume from {path}: {message}")]
    State { path: PathBuf, message: String },
    /// There is no room left for what a run writes.
    #[error(
        "the disk is full ({source}): {kept}; make room and run the same command again, or lower save.keep"
    )]
    DiskFull {
        /// Where the run can go on from.
        kept: String,
        /// What could not be written.
        source: Box<Self>,
    },
    /// The GPU's memory was not enough.
    #[error(
        "the GPU's memory is full: set memory.device_budget below what the plan took of it \
         (`flm sft --dry-run` says how much), or make train.micro_batch_size smaller"
    )]
    DeviceMemory {
        /// What the driver said.
        driver: Box<Self>,
    },
    /// The thread that reads or writes beside the computation died.
    #[error("the thread that moves parameters stopped without an answer")]
    Worker,
}

/// What rows of zeros have to do with it.
fn cause(zero_tokens: &[u32]) -> String {
    if zero_tokens.is_empty() {
        return String::new();
    }
    let ids: Vec<String> = zero_tokens.iter().take(8).map(u32::to_string).collect();
    let more = if zero_tokens.len() > ids.len() { ", …" } else { "" };
    format!(
        "; it holds tokens whose rows of the embedding are zeros, which can be the cause: ids {}{more}; \
         give them values, or leave such texts out",
        ids.join(", ")
    )
}

impl TrainError {
    /// Whether the reason is that a disk is full.
    pub fn is_disk_full(&self) -> bool {
        use std::io::{Error, ErrorKind};
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let kind = error.downcast_ref::<Error>().map(Error::kind);
            if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Whether the reason is that a GPU has no memory left.
    pub fn is_device_memory(&self) -> bool {
        matches!(self, Self::Model(ModelError::DeviceMemory)) || is_out_of_memory(self)
    }

    /// An error of the system while doing `action` to `path`.
    pub fn file(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gpu_is_told_from_other_errors() {
        let driver = |text: &str| TrainError::from(candle_core::Error::Msg(text.into()));
        assert!(driver("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").is_device_memory());
        assert!(!driver("DriverError(CUDA_ERROR_INVALID_VALUE)").is_device_memory());
    }

    #[test]
    fn a_full_disk_is_told_from_other_errors_however_deep() {
        let file = |kind: std::io::ErrorKind| TrainError::file("write", "x".as_ref())(kind.into());
        assert!(file(std::io::ErrorKind::StorageFull).is_disk_full());
        assert!(!file(std::io::ErrorKind::NotFound).is_disk_full());
        let source = std::io::ErrorKind::StorageFull.into();
        let inner = CheckpointError::Io { action: "write", path: "x".into(), source };
        assert!(TrainError::from(inner).is_disk_full());
    }
}
