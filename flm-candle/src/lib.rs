//! The Tele-FLM (FLM-2) model on candle: configuration, checkpoints, tokenizer, forward pass,
//! generation.
//!
//! Tele-FLM is Llama with three multipliers: the embedding's output is multiplied by `input_mult`,
//! the logits by `output_mult / mup_scale_factor`. Plain Llama checkpoints open as the same model
//! without multipliers.
//!
//! - [`config`]: the Hub's `config.json` and presets
//! - [`checkpoint`]: one way to open weights (safetensors, PyTorch shards), one way to write them
//! - [`tokenizer`]: SentencePiece and `tokenizer.json`, chat templates
//! - [`model`]: the decoder, layer by layer
//! - [`block_source`]: where a block's weights come from: resident, or streamed from disk
//! - [`generate`]: sampling and decoding
//! - [`export`]: GGUF files for llama.cpp
//! - [`train`]: full-parameter fine-tuning and pre-training

pub mod generate;
pub mod html;
pub mod model;
pub mod random;
pub mod tokenizer;
