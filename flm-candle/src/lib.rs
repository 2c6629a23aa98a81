//! The Tele-FLM (FLM-2) model on candle: tokenizer, forward pass, generation.
//!
//! Tele-FLM is Llama with three multipliers: the embedding's output is multiplied by `input_mult`,
//! the logits by `output_mult / mup_scale_factor`. Plain Llama checkpoints open as the same model
//! without multipliers. Knows nothing about training, growth or the network.
//!
//! In the order to read it:
//! - `device`: a GPU, opened
//! - `tokenizer`: [`Tokenizer`], SentencePiece and `tokenizer.json`; [`ChatTemplate`]
//! - `model`: [`CausalLm`], the decoder, layer by layer; `model/kernels`: its arithmetic;
//!   `model/block_source`: where a block's weights come from, resident or streamed from disk
//! - `generate`: [`generate`], sampling and decoding; [`Session`], a text that grows
//! - `random`: numbers by seed, stream and counter

mod device;
mod generate;
mod model;
mod random;
mod tokenizer;

pub use crate::device::{DeviceError, is_out_of_memory, open_gpu};
pub use crate::generate::session::Session;
pub use crate::generate::{Finish, GenerateOptions, generate, generate_each};
pub use crate::model::attention::Attention;
pub use crate::model::block::{Block, offset_gain};
pub use crate::model::causal_lm::{CausalLm, Positions, Residency};
pub use crate::model::error::ModelError;
pub use crate::model::forward_context::{AttentionKinds, Pass};
pub use crate::model::kernels::Path;
pub use crate::model::kernels::matmul::{Matrix, Output, Real, multiply};
pub use crate::model::linear::Linear;
pub use crate::model::masks::{BlockMasks, NormMask, hidden_mask, norm_mask};
pub use crate::model::mlp::Mlp;
pub use crate::model::rms_norm::RmsNorm;
pub use crate::model::rotary::Rotary;
pub use crate::model::weights::{candle_dtype, read_tensor};
pub use crate::random::Stream;
pub use crate::tokenizer::chat_policy::ChatPolicy;
pub use crate::tokenizer::chat_template::{ChatMessage, ChatTemplate};
pub use crate::tokenizer::error::TokenizerError;
pub use crate::tokenizer::fast_files::write_llama_files;
pub use crate::tokenizer::generation_config::GenerationDefaults;
pub use crate::tokenizer::stream::TextStream;
pub use crate::tokenizer::unrendered::Unrendered;
pub use crate::tokenizer::vocabulary::{TokenKind, Vocabulary, VocabularyModel, VocabularyToken};
pub use crate::tokenizer::{TokenOrigins, Tokenizer};
