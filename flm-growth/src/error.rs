//! What can go wrong in a growth.

use flm_candle::ModelError;
use flm_checkpoint::CheckpointError;
use flm_checkpoint::ConfigError;

/// Result of this crate's functions.
pub(crate) type Result<T> = std::result::Result<T, GrowthError>;

/// What can go wrong in a growth.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
pub enum GrowthError {
    /// More layers than a plan is made for.
    #[error("num_hidden_layers {layers}: at most {limit} can be grown to")]
    TooManyLayers { layers: usize, limit: usize },
    /// A dimension of the target is smaller than the source's.
    #[error("{dimension} would shrink from {from} to {to}; a growth only adds")]
    Shrinks {
        /// The key of config.json.
        dimension: &'static str,
        /// The source's size.
        from: usize,
        /// The target's size.
        to: usize,
    },
    /// The target's heads have another width.
    #[error(
        "head_dim would change from {from} to {to}; growth adds heads of the same width: choose another number of heads or another hidden_size"
    )]
    HeadDim {
        /// The source's head width.
        from: usize,
        /// The target's head width.
        to: usize,
    },
    /// The number of query heads for each key/value head would change.
    #[error(
        "{heads} query heads on {kv_heads} key/value heads: the source has {group} query heads for each key/value head, and new heads come in such groups"
    )]
    HeadGroups {
        /// The target's query heads.
        heads: usize,
        /// The target's key/value heads.
        kv_heads: usize,
        /// The source's query heads per key/value head.
        group: usize,
    },
    /// A placement could not be read.
    #[error("placement {text:?}: {problem}; known are after:LAYER,LAYER,…, interpolate, uniform and stack")]
    PlacementSyntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A placement lists another number of layers than are to be added.
    #[error("the placement names {listed} layers, but {needed} layers are to be added")]
    PlacementCount {
        /// Layers in the list.
        listed: usize,
        /// Layers to add.
        needed: usize,
    },
    /// A placement names a layer that the source does not have.
    #[error("the placement names layer {layer}; the source has layers 0 to {last}")]
    PlacementLayer {
        /// The layer named.
        layer: usize,
        /// The source's last layer.
        last: usize,
    },
    /// A multiplier was asked of a model without multipliers.
    #[error("{0} was set, but the model has no multipliers (use_mup is false)")]
    NoMultipliers(&'static str),
    /// A multiplier is not usable.
    #[error("{name} is {value}; it must be a finite number other than 0")]
    Multiplier {
        /// The key of config.json.
        name: &'static str,
        /// What was given.
        value: f64,
    },
    /// The source is still growing.
    #[error(
        "the source is still growing: its config.json has masks; finish the training that raises them, or make a plain checkpoint of it with `flm fold`"
    )]
    Masked,
    /// There are no masks to fold.
    #[error("config.json has no growth masks: the checkpoint is a plain one already")]
    NotMasked,
    /// No operator has this name.
    #[error("no operator {0:?}; known are msg, zero, clone and stack")]
    UnknownOperator(String),
    /// The operator cannot make this target.
    #[error("the operator `{operator}` {problem}")]
    Operator {
        /// The operator's name.
        operator: &'static str,
        /// What it cannot do.
        problem: String,
    },
    /// A plan contradicts itself; plans made by [`crate::GrowthPlan::new`] do not.
    #[error("the plan of tensor {name} is wrong: {problem}")]
    Plan { name: String, problem: &'static str },
    /// A standard deviation is not usable.
    #[error("standard deviation {0}: it must be a finite number ≥ 0")]
    Std(f64),
    /// A standard deviation with which drawn values become infinite.
    #[error(
        "standard deviation {std:e}: {dtype} does not hold 4.33 times that, the largest that is drawn: give less"
    )]
    StdTooLarge { std: f64, dtype: String },
    /// The standard deviation was to be measured where there is nothing to measure.
    #[error("tensor {0} has no source to measure the standard deviation of: give a number")]
    StdWithoutSource(String),
    /// The source holds NaN or infinities.
    #[error("tensor {0} of the source holds values that are not finite")]
    NotFinite(String),
    /// The source lacks a tensor.
    #[error("the source lacks {0}")]
    MissingTensor(String),
    /// A tensor has another shape than config.json says, or than the plan was made for.
    #[error("tensor {name} has shape {got:?}, expected {expected:?}")]
    TensorShape {
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor is stored in another dtype than the plan was made for.
    #[error("tensor {name} is stored as {got}, the plan was made for {expected}: plan again")]
    TensorDtype {
        name: String,
        /// Its dtype.
        got: String,
        /// The plan's.
        expected: String,
    },
    /// There are no tokens to verify on.
    #[error("no tokens to verify on: give a text of at least one token")]
    NothingToVerify,
    /// There is no optimizer state to grow.
    #[error("{0} holds no optimizer state: its folder `optimizer` is missing; leave --optimizer-state out")]
    NoOptimizerState(String),
    /// There are no tokens to measure distances on.
    #[error("no tokens to measure on: give a text of at least one token")]
    NothingToMeasure,
    /// The first and the last layer are kept, and there is no other.
    #[error("the model has no layers between its first and its last: copy those too with --keep-ends=false")]
    NoLayersToCopy,
    /// A map of layers does not fit the models.
    #[error(
        "the layer map {got:?} must give, in ascending order, one of {target_layers} layers of the target for each of the {source_layers} layers of the source"
    )]
    LayerMap {
        got: Vec<usize>,
        /// Layers of the source.
        source_layers: usize,
        /// Layers of the target.
        target_layers: usize,
    },
    /// A model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The disk cannot hold the output.
    #[error(
        "{needed} bytes are to be written, and the file system of {path} has {free} free: make room or choose another place"
    )]
    DiskSpace {
        /// The directory whose file system was looked at.
        path: String,
        /// Bytes to write.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The disk filled up while the output was written.
    #[error(
        "the disk is full ({error}): the output has {total} bytes; make room and run the same command again, it goes on where it stopped"
    )]
    DiskFull {
        /// What could not be written.
        error: Box<Self>,
        /// Bytes of all tensors.
        total: u64,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file that is not what `flm distance --json` writes.
    #[error("{path} is no file of distances ({source}): make it with `flm distance --json`")]
    Distances {
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Distances that are not those of all layers, in order.
    #[error(
        "{path}: what stands for layer {layer} is not its distances: make the file with `flm distance --json`"
    )]
    DistancesLayer { path: String, layer: usize },
    /// The plan could not be put into words.
    #[error("cannot serialise: {0}")]
    Json(#[from] serde_json::Error),
    /// A config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A checkpoint is wrong, or could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl GrowthError {
    /// Says of an error that comes of a full disk what to do about it.
    pub fn disk_full(self, total: u64) -> Self {
        let kind = match &self {
            Self::Write { source, .. } | Self::Checkpoint(CheckpointError::Io { source, .. }) => {
                source.kind()
            }
            _ => return self,
        };
        match kind {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { error: Box::new(self), total }
            }
            _ => self,
        }
    }
}
