//! What was measured, and whether it is the same function.

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::verify::metrics::LogitMetrics;

/// What counts as the same function; a bound that is `None` is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Largest relative L2 difference of the logits.
    pub relative_l2: Option<f64>,
    /// Largest relative L2 difference of the logits, in noise floors.
    pub noise_floors: Option<f64>,
    /// Smallest share of positions with the same most likely token.
    pub argmax_agreement: Option<f64>,
}

impl Bounds {
    /// The default: in bf16 twice the noise floor, in other dtypes 1e-5 and the same most likely token
    /// everywhere.
    pub fn of(dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self { relative_l2: None, noise_floors: Some(2.0), argmax_agreement: None },
            _ => Self { relative_l2: Some(1e-5), noise_floors: None, argmax_agreement: Some(1.0) },
        }
    }
}

/// Difference of the residual streams at matching layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerDifference {
    /// After this layer of the source.
    pub source: usize,
    /// After this layer of the target.
    pub target: usize,
    /// ‖source − target‖ / ‖source‖ over the source's entries of the stream.
    #[serde(rename = "rel_l2")]
    pub relative_l2: f64,
}

/// What the target's new vocabulary rows do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NewRowsReport {
    /// How many there are.
    pub rows: usize,
    /// Their mean probability: what the old rows lose.
    pub probability: f64,
    /// Share of positions at which one of them is the target's likeliest token.
    pub likeliest: f64,
    /// Perplexity of the target among the old rows and these; `None` where no text has two tokens.
    pub target_perplexity: Option<f64>,
}

/// How far a target is from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// What was computed in.
    pub dtype: String,
    /// Texts compared.
    pub texts: usize,
    /// Positions compared.
    pub positions: u64,
    /// Logits compared at each position.
    pub vocab: usize,
    /// Largest difference of a logit.
    pub max_abs: f64,
    /// Mean difference of a logit.
    pub mean_abs: f64,
    /// ‖source − target‖ / ‖source‖ of all logits.
    #[serde(rename = "rel_l2")]
    pub relative_l2: f64,
    /// Mean over positions of KL(source ‖ target), in nats.
    pub kl_mean: f64,
    /// Largest KL of a position.
    pub kl_max: f64,
    /// Share of positions with the same most likely token.
    pub argmax_agreement: f64,
    /// Perplexity of the source on the texts; `None` where no text has two tokens.
    pub source_perplexity: Option<f64>,
    /// Perplexity of the target.
    pub target_perplexity: Option<f64>,
    /// The target's vocabulary rows that the source lacks; `None` where it has no more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_rows: Option<NewRowsReport>,
    /// Logits that are NaN or infinite, of either model.
    pub not_finite: u64,
    /// Relative L2 difference between the source in bf16 and in f32.
    pub noise_floor: Option<f64>,
    /// The residual streams at matching layers; empty where layers cannot be matched.
    pub layers: Vec<LayerDifference>,
    /// What was asked for.
    pub bounds: Bounds,
    /// The bounds that were exceeded, in words.
    pub failures: Vec<String>,
    /// Whether none was.
    pub passed: bool,
}

/// Everything measured.
pub struct Measured {
    pub logits: LogitMetrics,
    pub noise_floor: Option<f64>,
    pub layers: Vec<LayerDifference>,
    pub texts: usize,
    pub vocab: usize,
    /// Rows of the target that the source lacks.
    pub new_rows: usize,
}

impl VerifyReport {
    /// Judges what was measured in `dtype` by `bounds`.
    pub fn new(measured: Measured, dtype: DType, bounds: Bounds) -> Self {
        let Measured { logits: m, noise_floor, layers, texts, vocab, new_rows } = measured;
        let perplexity = |nll: f64| (m.predicted > 0).then(|| (nll / m.predicted as f64).exp());
        let relative_l2 = m.difference.relative();
        let argmax_agreement = m.same_argmax as f64 / m.positions as f64;
        let mut failures = Vec::new();
        if m.not_finite > 0 {
            failures.push(format!("{} logits are NaN or infinite", m.not_finite));
        }
        // comparisons that NaN fails
        let within = |value: f64, bound: f64| value <= bound;
        if let Some(bound) = bounds.relative_l2.filter(|&b| !within(relative_l2, b)) {
            failures.push(format!("relative L2 difference {relative_l2:.3e} exceeds {bound:.3e}"));
        }
        if let Some(factor) = bounds.noise_floors {
            let floor = noise_floor.unwrap_or(0.0);
            if !within(relative_l2, factor * floor) {
                failures.push(format!(
                    "relative L2 difference {relative_l2:.3e} exceeds {factor} times the noise floor of {floor:.3e}"
                ));
            }
        }
        if let Some(bound) = bounds.argmax_agreement.filter(|&b| !within(b, argmax_agreement)) {
            failures.push(format!(
                "the most likely token agrees at {:.2} % of positions, less than {:.2} %",
                100.0 * argmax_agreement,
                100.0 * bound
            ));
        }
        let new_rows = (new_rows > 0).then(|| NewRowsReport {
            rows: new_rows,
            probability: m.new_mass / m.positions as f64,
            likeliest: m.new_wins as f64 / m.positions as f64,
            target_perplexity: perplexity(m.nll[1] + m.new_nll),
        });
        // what wins is what is generated, whatever the old rows say
        if let (Some(new), Some(_)) = (new_rows.filter(|n| n.likeliest > 0.0), bounds.argmax_agreement) {
            failures.push(format!(
                "one of {} new vocabulary rows is the most likely token at {:.2} % of positions",
                new.rows,
                100.0 * new.likeliest
            ));
        }
        Self {
            dtype: dtype.as_str().into(),
            texts,
            positions: m.positions,
            vocab,
            max_abs: m.max_abs,
            mean_abs: m.sum_abs / m.values as f64,
            relative_l2,
            kl_mean: m.sum_kl / m.positions as f64,
            kl_max: m.max_kl,
            argmax_agreement,
            source_perplexity: perplexity(m.nll[0]),
            target_perplexity: perplexity(m.nll[1]),
            new_rows,
            not_finite: m.not_finite,
            noise_floor,
            layers,
            bounds,
            passed: failures.is_empty(),
            failures,
        }
    }
}
