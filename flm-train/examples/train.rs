//! Trains all parameters of a model on conversations for three steps.
//!
//! ```sh
//! cargo run --release --example train -- [MODEL] [DATA] [OUTPUT]
//! ```

#![allow(clippy::print_stdout)]

use std::{error::Error, path::PathBuf, sync::atomic::AtomicBool};

use candle_core::{DType, Device};
use flm_train::{Event, Options, Plan, Trainer};

/// The model of `flm demo`, and its data.
const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../flm-cli/assets");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let (built_in, scratch) = (PathBuf::from(BUILT_IN), tempfile::tempdir()?);
    let model = arguments.next().unwrap_or_else(|| built_in.join("nano-52b"));
    let data = arguments.next().unwrap_or_else(|| built_in.join("instructions.jsonl"));
    let output = arguments.next().unwrap_or_else(|| scratch.path().join("tuned"));

    let mut options = Options::new(model, output, vec![data]);
    options.data.context_length = Some(64);
    options.train.batch_size = 4;
    options.train.max_steps = Some(3);
    options.optimizer.learning_rate = 1e-3;
    let mut trainer = Trainer::new(Plan::new(options)?, &Device::Cpu, DType::F32)?;
    trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Step(step) = event {
            println!("step {}: loss {:.4}", step.step, step.loss);
        }
        Ok(())
    })?;
    Ok(())
}
