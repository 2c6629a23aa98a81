//! The key `growth` of config.json: masks of a model that is still growing, and how they rise.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{ConfigError, TeleFlmConfig};

/// The masks of a model that is still growing: the key `growth` of config.json.
///
/// What is new is multiplied by its mask, which training raises from 0 to 1; at 0 the model computes
/// the function of the smaller one, at 1 the masks are gone (Masked Structural Growth,
/// arXiv 2305.02869).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowthMasks {
    /// Version of this key: 1.
    pub version: u32,
    /// What made the new weights: `msg`.
    pub operator: String,
    /// New entries of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Mask>,
    /// New query heads, with their key/value heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<HeadMask>,
    /// New feed-forward units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn: Option<Mask>,
    /// New layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayerMask>,
    /// How the masks rise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<MaskSchedule>,
}

/// A mask over the last entries of a dimension.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// The first new entry.
    pub from: usize,
    /// What new entries are multiplied by, from 0 to 1.
    pub mask: f64,
}

/// A mask over the last heads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadMask {
    /// The first new query head.
    pub from: usize,
    /// The first new key/value head.
    pub kv_from: usize,
    /// What the outputs of new heads are multiplied by, from 0 to 1.
    pub mask: f64,
}

/// A mask over whole layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMask {
    /// The new layers, in ascending order.
    pub new: Vec<usize>,
    /// What both residual branches of a new layer are multiplied by, from 0 to 1.
    pub mask: f64,
}

/// How masks rise with the optimizer's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskSchedule {
    /// Shape of the rise from 0 to 1.
    pub kind: ScheduleKind,
    /// Optimizer steps until the masks are 1.
    pub steps: u64,
    /// Optimizer steps done.
    pub step: u64,
}

/// The curve of a [`MaskSchedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// step / steps.
    Linear,
}

impl MaskSchedule {
    /// The mask after `step` steps.
    pub fn mask(&self, step: u64) -> f64 {
        match self.kind {
            ScheduleKind::Linear => (step as f64 / self.steps as f64).min(1.0),
        }
    }
}

impl GrowthMasks {
    /// These masks after `step` optimizer steps in all; `None` once they are all 1 and the key goes.
    ///
    /// Without a schedule they stay as they are.
    pub fn at_step(&self, step: u64) -> Option<Self> {
        let Some(schedule) = self.schedule else { return Some(self.clone()) };
        if step >= schedule.steps {
            return None;
        }
        let mut masks = self.with_mask(schedule.mask(step));
        masks.schedule = Some(MaskSchedule { step, ..schedule });
        Some(masks)
    }

    /// These masks with every value set to `mask`.
    pub fn with_mask(&self, mask: f64) -> Self {
        let mut masks = self.clone();
        if let Some(hidden) = &mut masks.hidden {
            hidden.mask = mask;
        }
        if let Some(heads) = &mut masks.heads {
            heads.mask = mask;
        }
        if let Some(ffn) = &mut masks.ffn {
            ffn.mask = mask;
        }
        if let Some(layers) = &mut masks.layers {
            layers.mask = mask;
        }
        masks
    }

    /// The mask of layer `layer`; 1 for one that is not new.
    pub fn layer(&self, layer: usize) -> f64 {
        self.layers.as_ref().filter(|l| l.new.binary_search(&layer).is_ok()).map_or(1.0, |l| l.mask)
    }

    /// The masks that the value of config.json's key `growth` describes.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        serde_json::from_value(value.clone())
            .map_err(|e| ConfigError::Unsupported(format!("`growth` as it is written ({e})")))
    }

    /// Checks that the masks fit the model.
    pub fn validate(&self, config: &TeleFlmConfig) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(ConfigError::Inconsistent(format!("`growth`: {what}")));
        if self.version != 1 {
            return wrong(format!("version is {}, expected 1", self.version));
        }
        if self.operator != "msg" {
            return wrong(format!("operator is {:?}, expected \"msg\"", self.operator));
        }
        let group = config.num_attention_heads / config.num_key_value_heads;
        if let Some(h) = self.heads.filter(|h| h.kv_from.checked_mul(group) != Some(h.from)) {
            return wrong(format!("heads.from {} is not {group} times heads.kv_from {}", h.from, h.kv_from));
        }
        for (name, from, size) in [
            ("hidden", self.hidden.map(|m| m.from), config.hidden_size),
            ("heads", self.heads.map(|m| m.from), config.num_attention_heads),
            ("ffn", self.ffn.map(|m| m.from), config.intermediate_size),
        ] {
            if let Some(from) = from.filter(|from| !(1..=size).contains(from)) {
                return wrong(format!("{name}.from is {from}, expected 1 to {size}"));
            }
        }
        for (name, mask) in [
            ("hidden", self.hidden.map(|m| m.mask)),
            ("heads", self.heads.map(|m| m.mask)),
            ("ffn", self.ffn.map(|m| m.mask)),
            ("layers", self.layers.as_ref().map(|m| m.mask)),
        ] {
            if let Some(mask) = mask.filter(|mask| !(0.0..=1.0).contains(mask)) {
                return wrong(format!("{name}.mask is {mask}, expected 0 to 1"));
            }
        }
        if let Some(layers) = &self.layers {
            let inside = layers.new.last().is_none_or(|&last| last < config.num_hidden_layers);
            if !inside || layers.new.windows(2).any(|w| w[0] >= w[1]) {
                return wrong("layers.new must name layers of the model in ascending order".into());
            }
        }
        match self.schedule {
            Some(s) if s.steps == 0 || s.step > s.steps => {
                wrong(format!("schedule.step is {} of {}", s.step, s.steps))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::preset::preset;

    fn with(change: impl Fn(&mut Value)) -> Result<TeleFlmConfig, ConfigError> {
        let mut json = Value::Object(preset("nano-102b").unwrap().raw().clone());
        json["growth"] = json!({
            "version": 1, "operator": "msg",
            "hidden": {"from": 96, "mask": 0.0}, "heads": {"from": 4, "kv_from": 4, "mask": 0.25},
            "ffn": {"from": 256, "mask": 0.0}, "layers": {"new": [9, 12], "mask": 0.5},
            "schedule": {"kind": "linear", "steps": 5000, "step": 0}
        });
        change(&mut json["growth"]);
        TeleFlmConfig::from_json(&json.to_string())
    }

    #[test]
    fn masks_are_read_written_raised_and_dropped() {
        let mut config = with(|_| ()).unwrap();
        let masks = config.growth.clone().unwrap();
        assert_eq!((masks.layer(9), masks.layer(10), masks.heads.unwrap().mask), (0.5, 1.0, 0.25));
        assert_eq!(TeleFlmConfig::from_json(&config.to_json()).unwrap(), config);
        let later = masks.at_step(1250).unwrap();
        assert_eq!((later.hidden.unwrap().mask, later.schedule.unwrap().step), (0.25, 1250));
        assert_eq!(masks.at_step(5000), None);
        config.growth = None;
        let plain = TeleFlmConfig::from_json(&config.to_json()).unwrap();
        assert!(plain.growth.is_none() && !plain.raw().contains_key("growth"));
        assert!(with(|g| *g = Value::Null).unwrap().growth.is_none());
    }

    #[test]
    fn masks_that_do_not_fit_are_refused_by_name() {
        for (path, value, says) in [
            ("/version", json!(2), "version is 2"),
            ("/operator", json!("clone"), "operator is \"clone\""),
            ("/hidden/from", json!(121), "hidden.from is 121"),
            ("/hidden/mask", json!(1.5), "hidden.mask is 1.5"),
            ("/heads/from", json!(3), "heads.from 3 is not 1 times"),
            ("/layers/new", json!([12, 9]), "ascending order"),
            ("/layers/new", json!([20]), "layers of the model"),
            ("/schedule/step", json!(5001), "schedule.step is 5001 of 5000"),
            ("/schedule/kind", json!("cosine"), "cosine"),
            ("/ffn", json!({"from": 256, "mask": 0.0, "shape": 1}), "shape"),
        ] {
            let error = with(|g| *g.pointer_mut(path).unwrap() = value.clone()).expect_err(says).to_string();
            assert!(error.contains(says) && error.contains("growth"), "{error}");
        }
    }
}
