//! Opens a checkpoint and continues a text, a block of the model in memory at a time.
//!
//! ```sh
//! cargo run --release --example generate -- [DIR] [TEXT]
//! ```

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path, sync::Arc};

use candle_core::{DType, Device};
use flm_candle::{CausalLm, GenerateOptions, Residency, Tokenizer, generate};
use flm_checkpoint::Checkpoint;

/// The model of `flm demo`.
const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../flm-cli/assets/nano-52b");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| BUILT_IN.into());
    let text = arguments.next().unwrap_or_else(|| "白日依山尽，".into());

    let checkpoint = Arc::new(Checkpoint::open(Path::new(&dir))?);
    let tokenizer = Tokenizer::from_dir(Path::new(&dir))?;
    let model = CausalLm::load(&checkpoint, &Device::Cpu, DType::F32, Residency::Streamed)?;

    let options = GenerateOptions {
        stop_tokens: tokenizer.stop_tokens(&checkpoint.config().eos_token_ids),
        ..GenerateOptions::greedy(16, tokenizer.len())
    };
    let prompt = tokenizer.encode_prompt(&text)?;
    let answers = generate(&model, &[prompt], &options, |_row, _token| true)?;
    println!("{text}{}", tokenizer.decode(&answers[0].ids)?);
    Ok(())
}
