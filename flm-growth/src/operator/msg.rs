//! Masked Structural Growth (arXiv 2305.02869): new weights are noise everywhere, new gains 1, new layers
//! copies; masks of 0 in config.json keep the function, and training raises them to 1.

use flm_checkpoint::{GrowthMasks, HeadMask, LayerMask, Mask, MaskSchedule, ScheduleKind};

use crate::operator::{Context, Role, Rule};
use crate::placement::LayerSource;
use crate::shape::Shape;
use crate::tensor_plan::Fill;
use flm_checkpoint::Dtype;

pub(super) fn rule(role: Role, dtype: Dtype, context: &Context) -> Rule {
    let noise = Fill::Normal(context.std);
    let vocabulary = |scale, new_rows| Rule { new_rows, ..Rule::copy(dtype, scale, noise) };
    match role {
        Role::Embedding => vocabulary(context.embed_scale, context.embedding_rows()),
        Role::Head => vocabulary(context.head_scale, context.head_rows()),
        Role::Norm | Role::OutputNorm => Rule::gain(dtype, 1.0, Fill::Constant),
        Role::FinalNorm => Rule::gain(dtype, context.final_norm_scale, Fill::Constant),
        // new heads, units and entries are masked: a bias starts as a fresh model's
        Role::ReaderBias | Role::HeadReaderBias | Role::WriterBias => Rule::copy(dtype, 1.0, Fill::Zero),
        Role::HeadNorm | Role::HeadsNorm => Rule::copy(dtype, 1.0, Fill::Zero),
        Role::Reader | Role::HeadReader | Role::AttentionWriter | Role::FeedForwardWriter => {
            Rule::copy(dtype, 1.0, noise)
        }
    }
}

/// Masks of 0 over everything that is new, to be raised in `steps` optimizer steps; `None` where
/// nothing is.
pub(super) fn masks(from: &Shape, to: &Shape, layers: &[LayerSource], steps: u64) -> Option<GrowthMasks> {
    let mask = |from: usize, to: usize| (to > from).then_some(Mask { from, mask: 0.0 });
    let new: Vec<usize> = (0..layers.len()).filter(|&i| layers[i].new).collect();
    let masks = GrowthMasks {
        version: 1,
        operator: "msg".into(),
        hidden: mask(from.hidden_size, to.hidden_size),
        heads: (to.num_attention_heads > from.num_attention_heads).then_some(HeadMask {
            from: from.num_attention_heads,
            kv_from: from.num_key_value_heads,
            mask: 0.0,
        }),
        ffn: mask(from.intermediate_size, to.intermediate_size),
        layers: (!new.is_empty()).then_some(LayerMask { new, mask: 0.0 }),
        schedule: Some(MaskSchedule { kind: ScheduleKind::Linear, steps: steps.max(1), step: 0 }),
    };
    let any =
        masks.hidden.is_some() || masks.heads.is_some() || masks.ffn.is_some() || masks.layers.is_some();
    any.then_some(masks)
}
