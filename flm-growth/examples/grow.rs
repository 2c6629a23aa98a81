//! Grows a checkpoint to half as much again in width and depth, and shows that it computes the same function.
//!
//! ```sh
//! cargo run --release --example grow -- SRC DST
//! ```

#![allow(clippy::print_stdout)]

use std::{error::Error, path::PathBuf, sync::Arc};

use flm_checkpoint::Checkpoint;
use flm_growth::{
    ExecuteOptions, GrowthOptions, GrowthPlan, Shape, SourceModel, VerifyOptions, execute, verify,
};

/// The model of `flm demo`.
const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../flm-cli/assets/nano-52b");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let scratch = tempfile::tempdir()?;
    let src = arguments.next().unwrap_or_else(|| BUILT_IN.into());
    let dst = arguments.next().unwrap_or_else(|| scratch.path().join("grown"));

    let source = Arc::new(Checkpoint::open(&src)?);
    let shape = Shape::of(source.config());
    let target = Shape {
        hidden_size: shape.hidden_size * 3 / 2,
        num_attention_heads: shape.num_attention_heads * 3 / 2,
        num_key_value_heads: shape.num_key_value_heads * 3 / 2,
        num_hidden_layers: shape.num_hidden_layers * 3 / 2,
        ..shape
    };
    let plan = GrowthPlan::new(&SourceModel::from_checkpoint(&source)?, &target, &GrowthOptions::default())?;
    execute(&plan, &source, &dst, &ExecuteOptions::default(), &|_bytes| ())?;

    let grown = Arc::new(Checkpoint::open(&dst)?);
    let options = VerifyOptions::new(vec![(5..69).collect()]);
    let report = verify(&source, &grown, &options, &mut |_layer, _layers| ())?;
    println!(
        "{} parameters became {}; logits differ by {:.1e} at most",
        source.config().parameter_count(),
        grown.config().parameter_count(),
        report.max_abs,
    );
    if report.passed { Ok(()) } else { Err("the grown model computes something else".into()) }
}
