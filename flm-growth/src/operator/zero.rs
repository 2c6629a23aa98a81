//! Zero growth: a plain checkpoint of any larger sizes that computes the same function.
//!
//! The residual stream's new entries stay exactly 0: nothing writes them. New heads and feed-forward
//! units compute something that their writers multiply by 0. New layers write nothing. What remains is
//! RMSNorm, whose mean square now divides by D' instead of D: for x padded with zeros
//!
//! ```text
//! x / √(Σx²/D' + eps') · gain'  with  gain' = gain·√(D/D'),  eps' = eps·D/D'
//!   = x·√(D/D') / √(D/D' · (Σx²/D + eps)) · gain = x / √(Σx²/D + eps) · gain
//! ```
//!
//! Without the change of eps the result is wrong by 35 % where the residual stream is small.
//!
//! Gemma multiplies the embedding by √D. Where its dtype holds no product with √(D/D'), the matrices stay and the
//! stream becomes c·x with c = √(D'/D). Norms of what sub-layers read then take gain/c and keep their eps, since
//! Σ(c·x)²/D' = Σx²/D; those of what they write give c times as much with the gain that they have. Of these alone
//! the eps is off, by (c² − 1)·eps / (2 · mean square of what is written).

use crate::operator::{Context, Role, Rule, normed_head_scale};
use crate::shape::Shape;
use crate::tensor_plan::Fill;
use flm_checkpoint::Dtype;

pub(super) fn rms_norm_eps(eps: f64, from: &Shape, to: &Shape) -> f64 {
    eps * from.hidden_size as f64 / to.hidden_size as f64
}

/// √(D/D').
fn gain_scale(context: &Context) -> f64 {
    (context.from.hidden_size as f64 / context.to.hidden_size as f64).sqrt()
}

/// eps changes with the width, and the norms of heads have it too.
fn query_scale(dtype: Dtype, context: &Context) -> f64 {
    normed_head_scale(context.normed_heads && !context.stream_grows, gain_scale(context), dtype)
}

pub(super) fn rule(role: Role, new_layer: bool, dtype: Dtype, context: &Context) -> Rule {
    let noise = Fill::Normal(context.std);
    match role {
        Role::Embedding => {
            Rule { new_rows: context.embedding_rows(), ..Rule::copy(dtype, context.embed_scale, Fill::Zero) }
        }
        Role::Head => Rule { new_rows: context.head_rows(), ..Rule::copy(dtype, context.head_scale, noise) },
        Role::OutputNorm if context.stream_grows => Rule::gain(dtype, 1.0, Fill::Constant),
        Role::Norm | Role::OutputNorm => Rule::gain(dtype, gain_scale(context), Fill::Constant),
        Role::FinalNorm => Rule::gain(dtype, gain_scale(context) * context.final_norm_scale, Fill::Constant),
        Role::Reader => Rule::copy(dtype, 1.0, noise),
        Role::HeadReader => Rule::copy(dtype, query_scale(dtype, context), noise),
        Role::HeadReaderBias => Rule::copy(dtype, query_scale(dtype, context), Fill::Zero),
        Role::AttentionWriter | Role::FeedForwardWriter | Role::WriterBias if new_layer => {
            Rule::silent(dtype)
        }
        Role::AttentionWriter | Role::FeedForwardWriter | Role::WriterBias => {
            Rule::copy(dtype, 1.0, Fill::Zero)
        }
        Role::ReaderBias | Role::HeadNorm | Role::HeadsNorm => Rule::copy(dtype, 1.0, Fill::Zero),
    }
}
