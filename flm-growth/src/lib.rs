//! Function-preserving growth of Tele-FLM checkpoints, out of core.
//!
//! A growth takes a checkpoint to a wider or deeper shape so that the grown model computes the same
//! logits. It is described by a [`GrowthPlan`]: for each tensor of the target, which source tensor fills
//! its leading corner, with which scale, and what fills the rest. Everything else reads the plan.
//!
//! - [`shape`]: the sizes that can grow, and whether one shape can grow to another
//! - [`placement`]: which source layer fills each target layer
//! - [`operator`]: the rules that make a growth preserve the function
//! - [`plan`]: the plan and its numbers, from a checkpoint or from a `config.json` alone
//! - [`fold`]: masked checkpoints as plain ones
//! - [`mod@init`]: checkpoints with random weights
//! - [`distance`]: how much each layer does, for choosing which to copy
//! - [`checksums`]: digests of what was written
//! - [`fill`]: reproducible random weights
//! - [`mod@execute`]: streams a source checkpoint through a plan into a new one
//! - [`mod@verify`]: runs source and target side by side and compares
//!
//! ```
//! use flm_growth::{GrowthOptions, GrowthPlan, Shape, SourceModel};
//!
//! let source = flm_candle::config::preset("nano-52b").unwrap();
//! let target = Shape::of(&flm_candle::config::preset("nano-102b").unwrap());
//! let source = SourceModel::from_config(&source, candle_core::DType::BF16)?;
//! let plan = GrowthPlan::new(&source, &target, &GrowthOptions::default())?;
//! assert_eq!(plan.target_config(source.config())?.hidden_size, 120);
//! # Ok::<(), flm_growth::GrowthError>(())
//! ```

pub mod checksums;
pub mod distance;
pub mod error;
pub mod execute;
pub mod fill;
pub mod fold;
pub mod init;
pub mod operator;
mod picture;
pub mod placement;
pub mod plan;
pub mod precision;
pub mod shape;
pub mod verify;

#[cfg(test)]
mod reference;

pub use error::GrowthError;
pub use execute::{ExecuteOptions, ExecuteReport, execute};
pub use fold::FoldPlan;
pub use init::init;
pub use operator::Operator;
pub use placement::Placement;
pub use plan::{GrowthOptions, GrowthPlan, Multipliers, SourceModel};
pub use shape::Shape;
pub use verify::{VerifyOptions, VerifyReport, verify};
