//! Function-preserving growth of Tele-FLM checkpoints, out of core.
//!
//! A growth takes a checkpoint to a wider or deeper shape so that the grown model computes the same
//! logits. It is described by a [`GrowthPlan`]: for each tensor of the target, which source tensor fills
//! its leading corner, with which scale, and what fills the rest. Everything else reads the plan.
//!
//! In the order to read it (knows nothing about training, the network or the command):
//! - `shape`: the sizes that can grow ([`Shape`]); `placement`: which source layer fills each target layer
//! - `operator`: the rules that make a growth preserve the function ([`Operator`])
//! - `plan`: [`GrowthPlan`] and its numbers, from a checkpoint or from a `config.json` alone
//! - `execute`: [`execute()`] streams a source checkpoint through a plan into a new one
//! - `fold`: masked checkpoints as plain ones; `init`: random ones; `convert`: other forms and layouts;
//!   `gguf`: one file for llama.cpp
//! - `distance`: how much each layer does, for choosing which to copy
//! - `verify`: [`verify()`] runs source and target side by side and compares
//! - `reference`: an independent forward pass in f64, for tests
//!
//! ```
//! use flm_growth::{GrowthOptions, GrowthPlan, Shape, SourceModel};
//!
//! let source = flm_checkpoint::preset("nano-52b").unwrap();
//! let target = Shape::of(&flm_checkpoint::preset("nano-102b").unwrap());
//! let source = SourceModel::from_config(&source, flm_checkpoint::Dtype::BF16)?;
//! let plan = GrowthPlan::new(&source, &target, &GrowthOptions::default())?;
//! assert_eq!(plan.target_config(source.config())?.hidden_size, 120);
//! # Ok::<(), flm_growth::GrowthError>(())
//! ```

mod convert;
mod distance;
mod error;
mod execute;
mod fill;
mod fold;
mod gguf;
mod init;
mod mup;
mod operator;
mod placement;
mod plan;
#[cfg(test)]
pub(crate) mod reference;
mod shape;
mod tensor_plan;
mod verify;

pub use crate::convert::compare::{CompareReport, compare};
pub use crate::convert::{ConvertOptions, FoldedTensor, TargetLayout, convert, plan_conversion};
pub use crate::distance::{DistanceOptions, Distances, Metric, measure};
pub use crate::error::GrowthError;
pub use crate::execute::disk::{DiskNeed, disk_need};
pub use crate::execute::record::Provenance;
pub use crate::execute::{ExecuteOptions, ExecuteReport, execute};
pub use crate::fill::NormalFill;
pub use crate::fold::FoldPlan;
pub use crate::gguf::architecture::gguf_architecture;
pub use crate::gguf::error::ExportError;
pub use crate::gguf::plan::{Folding, GgufFile, GgufOptions, GgufPlan, Rounding};
pub use crate::gguf::tensor::GgufTensor;
pub use crate::gguf::vocabulary::vocabulary_of;
pub use crate::gguf::write::{DamagedTensor, GgufReport};
pub use crate::init::init;
pub use crate::operator::{NewRows, Operator};
pub use crate::placement::Placement;
pub use crate::plan::source::SourceModel;
pub use crate::plan::summary::{PlanSummary, Preservation};
pub use crate::plan::{GrowthOptions, GrowthPlan, Multipliers};
pub use crate::shape::{Shape, ShapeOverrides};
pub use crate::tensor_plan::{Block, Std, TensorPlan};
pub use crate::verify::report::VerifyReport;
pub use crate::verify::{VerifyOptions, verify};
