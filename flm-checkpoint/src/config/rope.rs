//! How rotary frequencies are stretched for contexts longer than those of pre-training.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::config::keys::{Keys, short};
use crate::config::{ConfigError, TeleFlmConfig};

/// Changes of the rotary frequencies `theta^(−2i / head_dim)`.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// None.
    #[default]
    Default,
    /// All frequencies divided by a factor (position interpolation, arXiv 2306.15595).
    Linear {
        /// What they are divided by.
        factor: f64,
    },
    /// In texts longer than the original context a larger base, the larger the longer the text ("NTK-aware").
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The original context, in tokens.
        #[serde(rename = "original_max_position_embeddings")]
        original: f64,
    },
    /// A base that grows with the text in steps, and a factor on cosines and sines beyond the context of training
    /// (TeleChat's).
    Ntk {
        /// Tokens up to which the base is the given one.
        base_seqlen: f64,
        /// The shortest text that the base is for, and the longest without a factor: the context of training.
        training_seqlen: f64,
    },
    /// A divisor for each frequency, of two lists, one for texts within the original context and one for
    /// longer ones, and a factor on cosines and sines (LongRoPE, arXiv 2402.13753).
    LongRope {
        /// Divisors within the original context.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// The original context, in tokens.
        #[serde(rename = "original_max_position_embeddings")]
        original: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// Low frequencies divided, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns in the original context below which a frequency is low.
        low_freq_factor: f64,
        /// Turns in the original context above which a frequency is kept.
        high_freq_factor: f64,
        /// The original context, in tokens.
        #[serde(rename = "original_max_position_embeddings")]
        original: f64,
    },
    /// A ramp over dimensions between kept and divided frequencies, and a factor on cosines and sines
    /// (YaRN, arXiv 2309.00071).
    Yarn {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns in the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns in the original context below which a frequency is divided.
        beta_slow: f64,
        /// The original context, in tokens.
        #[serde(rename = "original_max_position_embeddings")]
        original: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
    },
}

impl RopeScaling {
    /// What `rope_parameters` or `rope_scaling` says, as transformers reads it.
    pub(crate) fn read(raw: &Map<String, Value>, context: usize) -> Result<Self, ConfigError> {
        let mut found: Option<(Self, &Value)> = None;
        for key in ["rope_scaling", "rope_parameters"] {
            let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
            let Some(value) = raw.get(key).filter(|value| !empty(value)) else { continue };
            let scaling = model_table(raw, key).and_then(|object| Self::of(object, raw, context));
            let scaling =
                scaling.ok_or_else(|| ConfigError::Unsupported(format!("`{key}` = {}", short(value))))?;
            // transformers takes `rope_scaling` then, others the other: whoever wrote both meant one of them
            if let Some((earlier, beside)) = &found
                && *earlier != scaling
            {
                return Err(ConfigError::Unsupported(format!(
                    "`rope_scaling` = {} beside `{key}` = {}",
                    short(beside),
                    short(value)
                )));
            }
            found = Some((scaling, value));
        }
        Ok(found.map_or(Self::Default, |(scaling, _)| scaling))
    }

    /// TeleChat's; its first code has no key for where the base begins to grow.
    pub(crate) fn of_telechat(keys: Keys<'_>, context: usize) -> Result<Self, ConfigError> {
        let base_seqlen = keys.optional_size("base_seqlen")?.unwrap_or(4096) as f64;
        Ok(Self::Ntk { base_seqlen, training_seqlen: context as f64 })
    }

    fn of(object: &Map<String, Value>, raw: &Map<String, Value>, context: usize) -> Option<Self> {
        let kind =
            ["rope_type", "type"].iter().find_map(|key| object.get(*key).filter(|kind| !kind.is_null()));
        let keys: &[&str] = match kind.map(Value::as_str) {
            // without a type there may be the base and nothing else
            None | Some(Some("default")) => &["rope_theta"],
            Some(Some("linear")) => &["rope_theta", "factor"],
            Some(Some("dynamic")) => &["rope_theta", "factor", "original_max_position_embeddings"],
            Some(Some("longrope" | "su")) => &[
                "rope_theta",
                "factor",
                "short_factor",
                "long_factor",
                "original_max_position_embeddings",
                "attention_factor",
            ],
            Some(Some("llama3")) => &[
                "rope_theta",
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            Some(Some("yarn")) => &[
                "rope_theta",
                "factor",
                "beta_fast",
                "beta_slow",
                "original_max_position_embeddings",
                "attention_factor",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
            Some(_) => return None,
        };
        // a type that says "default" needs nothing, whatever else is there
        if kind.is_some_and(|kind| kind == "default") {
            return Some(Self::Default);
        }
        let read = |key: &str, value: &Value| {
            ["rope_type", "type"].contains(&key)
                || keys.contains(&key)
                || value.is_null()
                // read with the sizes of heads
                || key == "partial_rotary_factor"
        };
        if !object.iter().all(|(key, value)| read(key, value)) {
            return None;
        }
        // numbers that are finite and above 0, or absent
        let number = |key: &str| match object.get(key).filter(|value| !value.is_null()) {
            None => Some(None),
            Some(value) => value.as_f64().filter(|n| n.is_finite() && *n > 0.0).map(Some),
        };
        let original = || match number("original_max_position_embeddings")? {
            Some(original) => Some(original),
            None => Some(
                raw.get("original_max_position_embeddings").and_then(Value::as_f64).unwrap_or(context as f64),
            ),
        };
        let factors = |key: &str| {
            let list = object.get(key)?.as_array()?.iter().map(Value::as_f64);
            list.collect::<Option<Vec<f64>>>().filter(|list| list.iter().all(|n| n.is_finite() && *n > 0.0))
        };
        let scaling = match kind.and_then(Value::as_str) {
            // transformers takes the model's context, whatever stands beside the factor
            Some("dynamic") => Self::Dynamic { factor: number("factor")??, original: context as f64 },
            Some("longrope" | "su") => {
                let original = original()?;
                let factor = number("factor")?.unwrap_or(context as f64 / original);
                let attention_factor = match number("attention_factor")? {
                    Some(given) => given,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / original.ln()).sqrt(),
                };
                Self::LongRope {
                    short_factor: factors("short_factor")?,
                    long_factor: factors("long_factor")?,
                    original,
                    attention_factor,
                }
            }
            Some("linear") => Self::Linear { factor: number("factor")?? },
            Some("llama3") => Self::Llama3 {
                factor: number("factor")??,
                low_freq_factor: number("low_freq_factor")??,
                high_freq_factor: number("high_freq_factor")??,
                original: original()?,
            },
            Some("yarn") => {
                let original = original()?;
                let factor = number("factor")?.unwrap_or(context as f64 / original);
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let attention_factor =
                    match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
                        (Some(given), ..) => given,
                        (None, Some(m), Some(all)) => scale(m) / scale(all),
                        _ => scale(1.0),
                    };
                Self::Yarn {
                    factor,
                    beta_fast: number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: number("beta_slow")?.unwrap_or(1.0),
                    original,
                    attention_factor,
                    truncate: object.get("truncate").is_none_or(|truncate| truncate != false),
                }
            }
            _ => Self::Default,
        };
        match scaling {
            Self::Llama3 { low_freq_factor, high_freq_factor, .. } if low_freq_factor >= high_freq_factor => {
                None
            }
            scaling => Some(scaling),
        }
    }

    /// What the frequency of pair `i` of `width / 2`, `theta^(−2i / width)`, is divided by in a text of `length`
    /// tokens; `width` is how much of a head is turned.
    pub fn divisor(&self, i: usize, width: usize, theta: f64, length: usize) -> f64 {
        match *self {
            Self::Default => 1.0,
            Self::Linear { factor } => factor,
            Self::Dynamic { factor, original } => {
                let stretch = factor * (length as f64).max(original) / original - (factor - 1.0);
                stretch.powf(2.0 * i as f64 / (width as f64 - 2.0))
            }
            Self::Ntk { base_seqlen, training_seqlen } => {
                let length = (length as f64).max(training_seqlen);
                let doublings = ((length / base_seqlen).log2() + 1.0).ceil();
                let stretch = (doublings.exp2() - 1.0).max(1.0);
                stretch.powf(2.0 * i as f64 / (width as f64 - 2.0))
            }
            Self::LongRope { ref short_factor, ref long_factor, original, .. } => {
                let factors = if length as f64 > original { long_factor } else { short_factor };
                factors.get(i).copied().unwrap_or(1.0)
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let turns = original * theta.powf(-2.0 * i as f64 / width as f64) / TAU;
                if turns < low_freq_factor {
                    factor
                } else if turns > high_freq_factor {
                    1.0
                } else {
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    1.0 / ((1.0 - kept) / factor + kept)
                }
            }
            Self::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } => {
                // the dimension that turns so often in the original context
                let dimension =
                    |turns: f64| width as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (divided / factor + (1.0 - divided))
            }
        }
    }

    /// What cosines and sines are multiplied by in a text of `length` tokens.
    pub fn attention_factor(&self, length: usize) -> f64 {
        match *self {
            Self::Ntk { training_seqlen, .. } => 1.0 + 0.1 * (length as f64 / training_seqlen).max(1.0).ln(),
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => attention_factor,
            Self::Default | Self::Linear { .. } | Self::Dynamic { .. } | Self::Llama3 { .. } => 1.0,
        }
    }

    /// Whether keys of a text of `before` tokens are of no use once it has `after`: its frequencies are others
    /// then. Dynamic scaling, where they change with every token, keeps what it has, as in transformers.
    pub fn switches(&self, before: usize, after: usize) -> bool {
        match *self {
            Self::LongRope { original, .. } => (before as f64) <= original && (after as f64) > original,
            _ => false,
        }
    }

    /// Whether it has a divisor for each of `pairs` frequencies, where it lists them.
    pub(crate) fn fits(&self, pairs: usize) -> bool {
        match self {
            Self::LongRope { short_factor, long_factor, .. } => {
                [short_factor, long_factor].iter().all(|list| list.len() == pairs)
            }
            _ => true,
        }
    }
}

/// What `key` says of the model's rotary positions: the table itself or, where kinds of layers have one each, that
/// of full attention.
pub(crate) fn model_table<'a>(raw: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    let table = raw.get(key)?.as_object()?;
    match table.get("full_attention") {
        Some(full) => full.as_object(),
        None => Some(table),
    }
}

/// [`model_table`] to write to.
pub(crate) fn model_table_mut<'a>(
    raw: &'a mut Map<String, Value>,
    key: &str,
) -> Option<&'a mut Map<String, Value>> {
    let table = raw.get_mut(key)?.as_object_mut()?;
    match table.contains_key("full_attention") {
        true => table.get_mut("full_attention")?.as_object_mut(),
        false => Some(table),
    }
}
impl TeleFlmConfig {
    /// Whether entries `2i` and `2i + 1` of a head are turned together, not `i` and `i + width / 2`.
    pub fn rotary_pairs(&self) -> bool {
        self.model_type.family().rotary_pairs
    }

    /// Whether heads are turned in f32 where the model computes in 16 bits.
    pub fn rotary_in_f32(&self) -> bool {
        self.model_type.family().rotary_in_f32
    }
}
