//! How blocks attend: kinds of blocks, and which block is of which kind.

use serde_json::{Map, Value};

use crate::config::ConfigError;
use crate::config::family::Family;
use crate::config::keys::{Keys, invalid, short};

/// How the blocks of one kind attend.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LayerKind {
    /// Number of keys that a query sees, its own included; `None` for all that are not later.
    pub window: Option<usize>,
    /// Its positions.
    pub rope: LayerRope,
}

/// The rotary positions of a block.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerRope {
    /// The model's base and scaling.
    Model,
    /// A base of its own, without scaling.
    Local {
        /// Base of the frequencies.
        theta: f64,
    },
    /// None: queries and keys stay as they are.
    None,
}

/// The kinds of a model's blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerKinds {
    kinds: Vec<LayerKind>,
    /// Index into `kinds`, over and over: one entry where all blocks are alike.
    pattern: Vec<usize>,
}

impl Default for LayerKinds {
    fn default() -> Self {
        Self { kinds: vec![LayerKind { window: None, rope: LayerRope::Model }], pattern: vec![0] }
    }
}

/// Which blocks have the window, where `layer_types` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windows {
    /// No block, whatever the file says: the family has none.
    None,
    /// Every block.
    All,
    /// All but every n-th, n by the file's key, where the family reads one, or by default.
    AllBut {
        /// Key of config.json.
        key: Option<&'static str>,
        /// Its default.
        every: usize,
    },
    /// Where `use_sliding_window`, those from `max_window_layers` on; 28 by default.
    From,
    /// Where `use_sliding_window`, those without positions.
    WithoutPositions,
}

/// Which blocks have which positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Positions {
    /// All alike.
    Alike,
    /// None in every fourth block, or as `no_rope_layers` and `no_rope_layer_interval` say.
    NoRopeLayers,
    /// A base of their own where there is a window; by the file's key or by default.
    LocalInWindows {
        /// Key of config.json.
        key: Option<&'static str>,
        /// Its default.
        theta: f64,
    },
    /// None in blocks without a window, where others have one.
    OnlyInWindows,
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The largest number of layers whose kinds are listed one by one.
const MAX_LISTED: usize = 1 << 16;

impl LayerKinds {
    /// The kind of block `layer`.
    pub fn of(&self, layer: usize) -> &LayerKind {
        &self.kinds[self.index(layer)]
    }

    /// Index of the kind of block `layer` in [`Self::kinds`].
    pub fn index(&self, layer: usize) -> usize {
        self.pattern[layer % self.pattern.len()]
    }

    /// The different kinds.
    pub fn kinds(&self) -> &[LayerKind] {
        &self.kinds
    }

    /// Whether all blocks are alike.
    pub fn is_uniform(&self) -> bool {
        self.kinds.len() == 1
    }

    /// The kinds of a model whose block `i` is made of this model's block `sources[i]`.
    pub fn rearranged(&self, sources: impl IntoIterator<Item = usize>) -> Self {
        if self.is_uniform() {
            return self.clone();
        }
        Self::from_list(sources.into_iter().map(|source| *self.of(source)))
    }

    /// Whether the first `layers` blocks are of the same kinds.
    pub fn same(&self, other: &Self, layers: usize) -> bool {
        self == other || (0..layers).all(|layer| self.of(layer) == other.of(layer))
    }

    fn from_list(list: impl IntoIterator<Item = LayerKind>) -> Self {
        let (mut kinds, mut pattern) = (Vec::new(), Vec::new());
        for kind in list {
            let index = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                kinds.push(kind);
                kinds.len() - 1
            });
            pattern.push(index);
        }
        match pattern.is_empty() {
            true => Self::default(),
            false if kinds.len() == 1 => Self { kinds, pattern: vec![0] },
            false => Self { kinds, pattern },
        }
    }

    /// What the file says for a model of `layers` blocks.
    pub(crate) fn read(
        raw: &Map<String, Value>,
        family: &Family,
        layers: usize,
    ) -> Result<Self, ConfigError> {
        let keys = Keys(raw);
        let rope = |layer: usize| -> Result<bool, ConfigError> {
            if family.positions != Positions::NoRopeLayers {
                return Ok(true);
            }
            match keys.get("no_rope_layers") {
                Some(list) => {
                    let flag = list.as_array().and_then(|list| list.get(layer)).and_then(Value::as_u64);
                    flag.filter(|&flag| flag <= 1)
                        .map(|flag| flag == 1)
                        .ok_or_else(|| invalid("no_rope_layers", short(list), "0 or 1 for each layer"))
                }
                None => {
                    let interval = keys.optional_size("no_rope_layer_interval")?.unwrap_or(4);
                    Ok(!(layer + 1).is_multiple_of(interval))
                }
            }
        };
        let switched = matches!(family.windows, Windows::From | Windows::WithoutPositions);
        let on = !switched || keys.boolean("use_sliding_window")?.unwrap_or(false);
        // null is none; only an absent key has the family's default
        let window = match raw.get("sliding_window") {
            _ if family.windows == Windows::None || !on => None,
            None => family.sliding_window,
            Some(_) => keys.optional_size("sliding_window")?,
        };
        let types = match keys.get("layer_types") {
            Some(Value::Array(types)) if types.len() >= layers => {
                let sliding = |kind: &Value| match kind.as_str() {
                    Some(FULL) => Ok(false),
                    Some(SLIDING) if window.is_some() => Ok(true),
                    _ => Err(ConfigError::Unsupported(format!("`layer_types` with {}", short(kind)))),
                };
                Some(types[..layers].iter().map(sliding).collect::<Result<Vec<bool>, _>>()?)
            }
            Some(types) => {
                return Err(invalid("layer_types", short(types), "the kind of each layer"));
            }
            None => None,
        };
        let first = keys.number("max_window_layers")?.map_or(28, |layer| layer.max(0.0) as usize);
        let every = match family.windows {
            Windows::AllBut { key, every } if window.is_some() && types.is_none() => match key {
                Some(key) => keys.optional_size(key)?.unwrap_or(every),
                None => every,
            },
            _ => 1,
        };
        let sliding = |layer: usize| -> Result<bool, ConfigError> {
            Ok(window.is_some()
                && match (&types, family.windows) {
                    (Some(types), _) => types[layer],
                    (None, Windows::None) => false,
                    (None, Windows::All) => true,
                    (None, Windows::AllBut { .. }) => !(layer + 1).is_multiple_of(every),
                    (None, Windows::From) => layer >= first,
                    (None, Windows::WithoutPositions) => !rope(layer)?,
                })
        };
        let kind = |layer: usize| -> Result<LayerKind, ConfigError> {
            let sliding = sliding(layer)?;
            let rope = match family.positions {
                Positions::NoRopeLayers if !rope(layer)? => LayerRope::None,
                Positions::OnlyInWindows if window.is_some() && !sliding => LayerRope::None,
                Positions::LocalInWindows { key, theta } if sliding => {
                    LayerRope::Local { theta: local_theta(&keys, key)?.unwrap_or(theta) }
                }
                _ => LayerRope::Model,
            };
            Ok(LayerKind { window: window.filter(|_| sliding), rope })
        };
        // the most layers of real models are in the hundreds; a file that claims billions gets no list
        let alike = types.is_none()
            && family.positions != Positions::NoRopeLayers
            && (window.is_none() || family.windows == Windows::All);
        if alike {
            return Ok(Self::from_list([kind(0)?]));
        }
        if layers > MAX_LISTED {
            return Err(ConfigError::Inconsistent(format!(
                "num_hidden_layers {layers} is more than {MAX_LISTED}, the most whose kinds can be told apart"
            )));
        }
        Ok(Self::from_list((0..layers).map(kind).collect::<Result<Vec<_>, _>>()?))
    }

    /// Writes what the file must say of `layers` blocks, where it does not yet.
    pub(crate) fn write(&self, out: &mut Map<String, Value>, family: &Family, layers: usize) {
        let listed = |out: &Map<String, Value>, key| out.get(key).is_some_and(Value::is_array);
        if listed(out, "layer_types") {
            self.write_types(out, layers);
        }
        if listed(out, "no_rope_layers") && family.positions == Positions::NoRopeLayers {
            self.write_positions(out, layers);
        }
        if !Self::read(out, family, layers).is_ok_and(|read| read.same(self, layers)) {
            self.write_types(out, layers);
            if family.positions == Positions::NoRopeLayers {
                self.write_positions(out, layers);
            }
        }
    }

    fn write_types(&self, out: &mut Map<String, Value>, layers: usize) {
        let name = |layer| if self.of(layer).window.is_some() { SLIDING } else { FULL };
        out.insert("layer_types".into(), (0..layers).map(name).collect());
    }

    fn write_positions(&self, out: &mut Map<String, Value>, layers: usize) {
        let flag = |layer| u64::from(self.of(layer).rope != LayerRope::None);
        out.insert("no_rope_layers".into(), (0..layers).map(flag).collect());
    }
}

/// The base of layers with a window: its own key, or in transformers 5's table by kinds of layers.
fn local_theta(keys: &Keys<'_>, key: Option<&'static str>) -> Result<Option<f64>, ConfigError> {
    if let Some(sliding) = keys.get("rope_parameters").and_then(|table| table.get(SLIDING)) {
        let kind = sliding.get("rope_type").or_else(|| sliding.get("type")).and_then(Value::as_str);
        match (sliding, kind) {
            (Value::Null, _) => {}
            (Value::Object(object), None | Some("default")) => {
                if let Some(theta) = Keys(object).number("rope_theta")? {
                    return Ok(Some(theta));
                }
            }
            _ => {
                return Err(ConfigError::Unsupported(format!(
                    "`rope_parameters` of sliding_attention = {}",
                    short(sliding)
                )));
            }
        }
    }
    let theta = match key {
        Some(key) => keys.number(key)?,
        None => None,
    };
    match theta.filter(|theta| !theta.is_finite() || *theta <= 0.0) {
        Some(theta) => Err(invalid(key.unwrap_or("rope_theta"), theta, "a number > 0")),
        None => Ok(theta),
    }
}
