//! What llama.cpp computes for each family, and what it calls the tensors.

use flm_checkpoint::{LayerKind, LayerRope, ModelType, Part, RopeScaling, TeleFlmConfig, TensorId};

use crate::gguf::Result;
use crate::gguf::error::ExportError;

/// An architecture of llama.cpp. Much of what it computes is not said in the file but built in: a model that differs
/// there is refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    pub(super) name: &'static str,
    /// Whether neighbours are rotated together, not the halves of a head: rows of a model that turns halves are
    /// reordered.
    pub(super) pairs: bool,
    /// Whether it multiplies embedding and logits itself.
    pub(super) scales: bool,
    /// Whether queries, keys and values are one tensor, and gates and units.
    pub(super) fused: bool,
    /// Whether a window of all layers is left out.
    pub(super) drops_window: bool,
    limits: &'static [&'static Limit],
}

/// Something that a model may have and the architecture does not compute.
#[derive(Debug)]
struct Limit {
    what: &'static str,
    has: fn(&TeleFlmConfig) -> bool,
}

const WINDOW: &Limit = &Limit {
    what: "a sliding window",
    has: |config| {
        let windows = config.layers.kinds().iter().filter_map(|kind| kind.window);
        windows.min().is_some_and(|window| window < config.max_position_embeddings)
    },
};
const BIASES: &Limit = &Limit {
    what: "biases",
    has: |config| config.qkv_bias || config.attention_output_bias || config.mlp_output_bias,
};
const DYNAMIC: &Limit = &Limit {
    what: "dynamic rotary scaling",
    has: |config| matches!(config.rope_scaling, RopeScaling::Dynamic { .. }),
};
const LONGROPE: &Limit = &Limit {
    what: "longrope rotary scaling",
    has: |config| matches!(config.rope_scaling, RopeScaling::LongRope { .. }),
};
const OWN_SCALE: &Limit = &Limit {
    what: "query_pre_attn_scalar other than head_dim",
    has: |config| (config.score_scale() * (config.head_dim as f64).sqrt() - 1.0).abs() > 1e-9,
};
const OWN_HEAD: &Limit = &Limit { what: "a head of its own", has: |config| !config.tie_word_embeddings };
const UNBOUNDED: &Limit = &Limit {
    what: "unbounded scores or logits",
    has: |config| config.attention_softcap.is_none() || config.logit_softcap.is_none(),
};
const BOUNDED: &Limit = &Limit {
    what: "bounded scores or logits",
    has: |config| config.attention_softcap.or(config.logit_softcap).is_some(),
};
const NOT_EVERY_SECOND: &Limit = &Limit {
    what: "windows in other layers than every second",
    has: |config| !all_but_every(2, config, |kind| kind.window.is_some()),
};
const NOT_FIVE_OF_SIX: &Limit = &Limit {
    what: "windows in other layers than five of six",
    has: |config| !all_but_every(6, config, |kind| kind.window.is_some()),
};
const OWN_LOCAL_BASE: &Limit = &Limit {
    what: "rope_local_base_freq other than 10000",
    has: |config| !config.layers.kinds().iter().all(built_in_theta),
};
const TWO_ROTARIES: &Limit = &Limit {
    what: "two kinds of rotary positions",
    has: |config| !config.layers.kinds().iter().all(|kind| same_positions(kind, config)),
};
const NOT_EVERY_FOURTH: &Limit = &Limit {
    what: "other layers without positions than every fourth",
    has: |config| !all_but_every(4, config, |kind| kind.rope != LayerRope::None),
};
const NO_POSITIONS: &Limit = &Limit {
    what: "layers without positions",
    has: |config| config.layers.kinds().iter().any(|kind| kind.rope == LayerRope::None),
};

/// What llama.cpp computes for no family, and for none but Phi 3.
const NEVER: &[&Limit] = &[DYNAMIC];
const ONLY_PHI3: &[&Limit] = &[LONGROPE];

impl Architecture {
    /// That of a family, whatever a model of it has.
    fn of_family(family: ModelType) -> Self {
        let (name, limits): (_, &[&Limit]) = match family {
            ModelType::TeleFlm | ModelType::Llama | ModelType::Mistral => ("llama", &[]),
            ModelType::Ministral => ("llama", &[WINDOW]),
            ModelType::Granite => ("granite", &[]),
            ModelType::SmolLm3 => ("smollm3", &[BIASES, WINDOW, NOT_EVERY_FOURTH]),
            ModelType::Qwen2 => ("qwen2", &[WINDOW]),
            ModelType::Qwen3 => ("qwen3", &[BIASES, WINDOW]),
            ModelType::Olmo2 => ("olmo2", &[BIASES, WINDOW]),
            ModelType::Olmo3 => ("olmo2", &[BIASES, WINDOW, TWO_ROTARIES]),
            ModelType::Exaone4 => ("exaone4", &[BIASES, WINDOW, NO_POSITIONS]),
            ModelType::Phi3 => ("phi3", &[BIASES]),
            ModelType::Gemma => ("gemma", &[BIASES, OWN_HEAD]),
            ModelType::Gemma2 => ("gemma2", &[BIASES, OWN_SCALE, OWN_HEAD, UNBOUNDED, NOT_EVERY_SECOND]),
            ModelType::Gemma3 => {
                ("gemma3", &[BIASES, OWN_SCALE, OWN_HEAD, BOUNDED, NOT_FIVE_OF_SIX, OWN_LOCAL_BASE])
            }
            // llama.cpp's Llama turns neighbours, as Helium does
            ModelType::Helium => ("llama", &[]),
            // its own architecture knows models of 32 and 40 layers alone
            ModelType::Baichuan => ("llama", &[]),
            // within the context that it was trained for
            ModelType::TeleChat => ("llama", &[]),
            ModelType::InternLm2 => ("internlm2", &[]),
            ModelType::Ernie45 => ("ernie4_5", &[BIASES]),
        };
        Self {
            name,
            pairs: ["llama", "granite", "smollm3", "ernie4_5", "internlm2"].contains(&name),
            scales: ["granite", "gemma", "gemma2", "gemma3"].contains(&name),
            fused: name == "phi3",
            drops_window: matches!(family, ModelType::Mistral | ModelType::Phi3),
            limits,
        }
    }

    /// The architecture that computes what the model does.
    ///
    /// # Errors
    /// [`ExportError::NoArchitecture`] names what of the model it does not compute.
    pub(super) fn of(config: &TeleFlmConfig) -> Result<Self> {
        let architecture = Self::of_family(config.model_type);
        let others: &[&Limit] = if config.model_type == ModelType::Phi3 { &[] } else { ONLY_PHI3 };
        let mut limits = NEVER.iter().chain(others).chain(architecture.limits);
        match limits.find(|limit| (limit.has)(config)) {
            Some(Limit { what, .. }) => {
                Err(ExportError::NoArchitecture { family: config.model_type.as_str(), what })
            }
            None => Ok(architecture),
        }
    }
}

/// llama.cpp's name of a family's architecture, and what of the family it does not compute, in words.
pub fn gguf_architecture(family: ModelType) -> (&'static str, String) {
    let architecture = Architecture::of_family(family);
    let limits: Vec<&str> = architecture.limits.iter().map(|limit| limit.what).collect();
    let limits = match (limits.as_slice(), architecture.drops_window) {
        ([], true) => "without the window".into(),
        ([], false) => String::new(),
        (limits, true) => format!("without the window; not with {}", limits.join(", ")),
        (limits, false) => format!("not with {}", limits.join(", ")),
    };
    (architecture.name, limits)
}

/// Whether all layers but every `period`-th have something, and those have not.
fn all_but_every(period: usize, config: &TeleFlmConfig, has: fn(&LayerKind) -> bool) -> bool {
    let expected = |layer: usize| !(layer + 1).is_multiple_of(period);
    (0..config.num_hidden_layers).all(|layer| has(config.layers.of(layer)) == expected(layer))
}

/// Whether a kind of layers turns by the model's own base and scaling, in effect.
fn same_positions(kind: &LayerKind, config: &TeleFlmConfig) -> bool {
    match kind.rope {
        LayerRope::Local { theta } => {
            theta == config.rope_theta && config.rope_scaling == RopeScaling::Default
        }
        LayerRope::Model | LayerRope::None => true,
    }
}

/// Whether llama.cpp has the base of layers with a window built in.
fn built_in_theta(kind: &LayerKind) -> bool {
    match kind.rope {
        LayerRope::Local { theta } => theta == 10_000.0,
        LayerRope::Model | LayerRope::None => true,
    }
}

/// The name that llama.cpp has for a tensor.
pub(super) fn gguf_name(id: TensorId, config: &TeleFlmConfig, fused: bool) -> String {
    let name = match id {
        TensorId::Block(layer, part) => {
            let output = config.is_output_norm(part);
            let name = match part {
                Part::InputLayernorm => "attn_norm.weight",
                Part::QProj if fused => "attn_qkv.weight",
                Part::GateProj if fused => "ffn_up.weight",
                Part::QProj => "attn_q.weight",
                Part::QBias => "attn_q.bias",
                Part::KProj => "attn_k.weight",
                Part::KBias => "attn_k.bias",
                Part::VProj => "attn_v.weight",
                Part::VBias => "attn_v.bias",
                Part::QNorm | Part::QNormWhole => "attn_q_norm.weight",
                Part::KNorm | Part::KNormWhole => "attn_k_norm.weight",
                Part::OProj => "attn_output.weight",
                Part::OBias => "attn_output.bias",
                Part::PostAttentionLayernorm if output => "post_attention_norm.weight",
                Part::PostAttentionLayernorm | Part::PreFeedforwardLayernorm => "ffn_norm.weight",
                Part::GateProj => "ffn_gate.weight",
                Part::GateBias => "ffn_gate.bias",
                Part::UpProj => "ffn_up.weight",
                Part::UpBias => "ffn_up.bias",
                Part::DownProj => "ffn_down.weight",
                Part::DownBias => "ffn_down.bias",
                Part::PostFeedforwardLayernorm => "post_ffw_norm.weight",
            };
            return format!("blk.{layer}.{name}");
        }
        TensorId::Embedding => "token_embd.weight",
        TensorId::FinalNorm => "output_norm.weight",
        TensorId::Head => "output.weight",
    };
    name.into()
}

/// The end of the name of the tensor whose rows this one's follow, where llama.cpp has one for several.
pub(super) fn follows(id: TensorId) -> Option<&'static str> {
    match id {
        TensorId::Block(_, Part::KProj | Part::VProj) => Some("attn_qkv.weight"),
        TensorId::Block(_, Part::UpProj) => Some("ffn_up.weight"),
        _ => None,
    }
}
