//! The decoder: embedding, blocks of attention and SwiGLU, final norm, head.
//!
//! Every operation has two paths that tests hold equal: a fused one for inference and a
//! differentiable one (candle's fused operations cut the gradient in silence). See [`Path`].

pub mod attention;
pub mod block;
pub mod block_source;
pub mod causal_lm;
pub mod cross_entropy;
pub mod error;
pub mod forward_context;
pub mod kernels;
pub mod kv_cache;
pub mod linear;
pub mod masks;
pub mod mlp;
pub mod rms_norm;
pub mod rotary;
pub mod weights;
