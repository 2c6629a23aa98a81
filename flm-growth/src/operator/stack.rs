//! Stacking (G_stack, arXiv 2405.15319): the layers again on top of themselves. The baseline that does
//! not preserve the function.

use crate::operator::{Context, Role, Rule};
use crate::shape::Shape;
use crate::tensor_plan::Fill;
use flm_checkpoint::Dtype;

pub(super) fn check(from: &Shape, to: &Shape) -> Result<(), String> {
    let deeper = Shape { num_hidden_layers: to.num_hidden_layers, vocab_size: to.vocab_size, ..*from };
    if deeper == *to { Ok(()) } else { Err("grows only the number of layers: use `zero` for widths".into()) }
}

pub(super) fn rule(role: Role, dtype: Dtype, context: &Context) -> Rule {
    let vocabulary = |scale, new_rows| Rule { new_rows, ..Rule::copy(dtype, scale, Fill::Zero) };
    match role {
        Role::Embedding => vocabulary(context.embed_scale, context.embedding_rows()),
        Role::Head => vocabulary(context.head_scale, context.head_rows()),
        Role::FinalNorm => Rule::gain(dtype, context.final_norm_scale, |_| Fill::Zero),
        _ => Rule::copy(dtype, 1.0, Fill::Zero),
    }
}
