//! Which source layer fills each target layer, and which target layers are new.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};

/// Where new layers go and what they are copies of.
///
/// Except for [`Placement::Stack`], a copy comes right after the layer that it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A copy after each listed source layer; a layer listed twice gets two copies.
    After(Vec<usize>),
    /// Masked Structural Growth's: a copy after each layer from the top layer down, starting over at
    /// the top when every layer has one.
    Interpolate,
    /// Copies at even distances over the whole depth.
    Uniform,
    /// The whole stack of layers again, and again, on top.
    Stack,
}

/// What fills a target layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSource {
    /// The source layer.
    pub source: usize,
    /// Whether the target layer is an added copy rather than the layer itself.
    pub new: bool,
}

impl Placement {
    /// The source of every target layer, from the first to the last.
    pub fn layer_map(&self, source_layers: usize, target_layers: usize) -> Result<Vec<LayerSource>> {
        let needed = target_layers.checked_sub(source_layers).ok_or(GrowthError::Shrinks {
            dimension: "num_hidden_layers",
            from: source_layers,
            to: target_layers,
        })?;
        let mut copies = vec![0usize; source_layers];
        match self {
            Self::After(layers) => {
                if layers.len() != needed {
                    return Err(GrowthError::PlacementCount { listed: layers.len(), needed });
                }
                for &layer in layers {
                    *copies.get_mut(layer).ok_or(GrowthError::PlacementLayer {
                        layer,
                        last: source_layers.saturating_sub(1),
                    })? += 1;
                }
            }
            Self::Interpolate => {
                for copy in 0..needed {
                    copies[source_layers - 1 - copy % source_layers] += 1;
                }
            }
            Self::Uniform => {
                // the middles of `needed` equal parts of the depth
                for copy in 0..needed {
                    copies[(2 * copy + 1) * source_layers / (2 * needed)] += 1;
                }
            }
            Self::Stack => {
                return Ok((0..target_layers)
                    .map(|layer| LayerSource { source: layer % source_layers, new: layer >= source_layers })
                    .collect());
            }
        }
        Ok(copies
            .iter()
            .enumerate()
            .flat_map(|(source, &n)| (0..=n).map(move |copy| LayerSource { source, new: copy > 0 }))
            .collect())
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(layers) => {
                let list: Vec<String> = layers.iter().map(usize::to_string).collect();
                write!(f, "after:{}", list.join(","))
            }
            Self::Interpolate => f.write_str("interpolate"),
            Self::Uniform => f.write_str("uniform"),
            Self::Stack => f.write_str("stack"),
        }
    }
}

impl FromStr for Placement {
    type Err = GrowthError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |problem: String| GrowthError::PlacementSyntax { text: text.into(), problem };
        match text {
            "interpolate" => Ok(Self::Interpolate),
            "uniform" => Ok(Self::Uniform),
            "stack" => Ok(Self::Stack),
            _ => {
                let list = text.strip_prefix("after:").ok_or_else(|| wrong("not a placement".into()))?;
                list.split(',')
                    .map(|item| {
                        item.trim().parse().map_err(|_| wrong(format!("{item:?} is no layer number")))
                    })
                    .collect::<Result<Vec<usize>>>()
                    .map(Self::After)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source layers in target order, new ones negative minus one.
    fn map(text: &str, from: usize, to: usize) -> Vec<isize> {
        let layers = text.parse::<Placement>().unwrap().layer_map(from, to).unwrap();
        layers.iter().map(|l| if l.new { -1 - l.source as isize } else { l.source as isize }).collect()
    }

    #[test]
    fn after_puts_copies_right_after_their_source() {
        assert_eq!(map("after:2,0,2", 3, 6), [0, -1, 1, 2, -3, -3]);
    }

    #[test]
    fn interpolate_starts_at_the_top_and_wraps_around() {
        assert_eq!(map("interpolate", 3, 5), [0, 1, -2, 2, -3]);
        assert_eq!(map("interpolate", 3, 7), [0, -1, 1, -2, 2, -3, -3]);
    }

    #[test]
    fn uniform_spreads_evenly() {
        assert_eq!(map("uniform", 4, 6), [0, 1, -2, 2, 3, -4]);
        let layers = Placement::Uniform.layer_map(64, 80).unwrap();
        let sources: Vec<usize> = layers.iter().filter(|l| l.new).map(|l| l.source).collect();
        assert_eq!(sources, (0..16).map(|i| 4 * i + 2).collect::<Vec<_>>());
        assert_eq!(map("uniform", 2, 7), [0, -1, -1, 1, -2, -2, -2]);
    }

    #[test]
    fn stack_repeats_the_whole() {
        assert_eq!(map("stack", 2, 5), [0, 1, -1, -2, -1]);
    }

    #[test]
    fn originals_stay_in_order_and_the_count_is_right() {
        for placement in [Placement::Interpolate, Placement::Uniform, Placement::Stack] {
            for (from, to) in [(1, 1), (1, 9), (5, 5), (16, 20), (20, 35), (7, 30)] {
                let layers = placement.layer_map(from, to).unwrap();
                assert_eq!(layers.len(), to, "{placement}");
                let originals: Vec<usize> = layers.iter().filter(|l| !l.new).map(|l| l.source).collect();
                assert_eq!(originals, (0..from).collect::<Vec<_>>(), "{placement}");
            }
        }
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let says = |text: &str| match text.parse::<Placement>().and_then(|p| p.layer_map(4, 6)) {
            Err(error) => error.to_string(),
            Ok(map) => panic!("{text} gave {map:?}"),
        };
        assert!(says("after:1").contains("names 1 layers, but 2"));
        assert!(says("after:1,4").contains("layer 4; the source has layers 0 to 3"));
        assert!(says("after:1,x").contains("\"x\" is no layer number"));
        assert!(says("middle").contains("known are after"));
        assert_eq!("after:3,7".parse::<Placement>().unwrap().to_string(), "after:3,7");
    }
}
