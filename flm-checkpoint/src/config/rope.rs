//! How rotary frequencies are stretched for contexts longer than those of pre-training.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::config::{ConfigError, short};

/// Changes of the rotary frequencies `theta^(−2i / head_dim)`.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
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
        let mut found = Self::Default;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = raw.get(key).filter(|value| !value.is_null()) else { continue };
            let scaling = value.as_object().and_then(|object| Self::of(object, raw, context));
            let scaling =
                scaling.ok_or_else(|| ConfigError::Unsupported(format!("`{key}` = {}", short(value))))?;
            // both may stand beside each other; `rope_parameters` has the last word where it says anything
            if scaling != Self::Default {
                found = scaling;
            }
        }
        Ok(found)
    }

    fn of(object: &Map<String, Value>, raw: &Map<String, Value>, context: usize) -> Option<Self> {
        let kind =
            ["rope_type", "type"].iter().find_map(|key| object.get(*key).filter(|kind| !kind.is_null()));
        let keys: &[&str] = match kind.map(Value::as_str) {
            // without a type there may be the base and nothing else
            None | Some(Some("default")) => &["rope_theta"],
            Some(Some("linear")) => &["rope_theta", "factor"],
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
                || (key == "partial_rotary_factor" && value.as_f64() == Some(1.0))
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
        let scaling = match kind.and_then(Value::as_str) {
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

    /// What the frequency of pair `i` of `head_dim / 2`, `theta^(−2i / head_dim)`, is divided by.
    pub fn divisor(&self, i: usize, head_dim: usize, theta: f64) -> f64 {
        match *self {
            Self::Default => 1.0,
            Self::Linear { factor } => factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let turns = original * theta.powf(-2.0 * i as f64 / head_dim as f64) / TAU;
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
                    |turns: f64| head_dim as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (divided / factor + (1.0 - divided))
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor, .. } => attention_factor,
            Self::Default | Self::Linear { .. } | Self::Llama3 { .. } => 1.0,
        }
    }
}
