//! The decoder: embedding, blocks of attention and SwiGLU, final norm, head.
//!
//! Every operation has two paths that tests hold equal: a fused one for inference and a
//! differentiable one (candle's fused operations cut the gradient in silence). See [`Path`].

pub(crate) mod attention;
pub(crate) mod block;
mod block_source;
pub(crate) mod causal_lm;
mod cross_entropy;
pub(crate) mod error;
pub(crate) mod forward_context;
pub(crate) mod kernels;
pub(crate) mod kv_cache;
pub(crate) mod linear;
pub(crate) mod masks;
pub(crate) mod mlp;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod weights;
