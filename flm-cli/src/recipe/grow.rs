//! What one growth is to do, from a recipe or from flags.

use std::{ops::Range, path::PathBuf, str::FromStr};

use anyhow::{Context, anyhow, ensure};
use flm_growth::Metric;
use flm_growth::Placement;
use flm_growth::Std;
use flm_growth::{NewRows, Operator};
use serde::{Deserialize, Deserializer};
use toml::Value;

use crate::recipe::keys::{Key, Kind, Settings, assignment, parse};

/// What the stages share.
const SHARED: &[Key] = &[Key::new("from"), Key::new("seed"), Key::new("max_shard_size").of(Kind::Size)];

/// The settings of a stage; sizes also under config.json's names.
const STAGE: &[Key] = &[
    Key::new("to"),
    Key::new("layers").also(&["num_hidden_layers"]),
    Key::new("hidden").also(&["hidden_size"]),
    Key::new("heads").also(&["num_attention_heads"]),
    Key::new("kv_heads").also(&["num_key_value_heads"]),
    Key::new("ffn").also(&["intermediate_size"]),
    Key::new("vocab").also(&["vocab_size"]),
    Key::new("operator"),
    Key::new("place"),
    Key::new("metric"),
    Key::new("keep_ends"),
    Key::new("std"),
    Key::new("noise"),
    Key::new("mup"),
    Key::new("input_mult"),
    Key::new("untie"),
    Key::new("mask_steps"),
    Key::new("seed"),
    Key::new("new_rows"),
];

/// The operator of a stage that names none.
pub(crate) const DEFAULT_OPERATOR: Operator = Operator::Msg;

/// A growth from one size to the next; what is `None` has its default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Stage {
    pub(crate) to: Option<String>,
    pub(crate) layers: Option<usize>,
    pub(crate) hidden: Option<usize>,
    pub(crate) heads: Option<usize>,
    pub(crate) kv_heads: Option<usize>,
    pub(crate) ffn: Option<usize>,
    pub(crate) vocab: Option<usize>,
    pub(crate) operator: Option<Operator>,
    #[serde(deserialize_with = "parsed")]
    pub(crate) place: Option<Place>,
    pub(crate) metric: Option<Metric>,
    pub(crate) keep_ends: Option<bool>,
    #[serde(deserialize_with = "std")]
    pub(crate) std: Option<Std>,
    pub(crate) noise: Option<f64>,
    #[serde(deserialize_with = "pair")]
    pub(crate) mup: Option<(f64, f64)>,
    pub(crate) input_mult: Option<f64>,
    pub(crate) untie: Option<bool>,
    pub(crate) mask_steps: Option<u64>,
    pub(crate) seed: Option<u64>,
    pub(crate) new_rows: Option<NewRows>,
}

/// Where new layers go, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// By a rule.
    Rule(Placement),
    /// By the layers' distances: of this file, or measured.
    Distance(Option<PathBuf>),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "distance" => Ok(Self::Distance(None)),
            Some(("distance", file)) if !file.is_empty() => Ok(Self::Distance(Some(file.into()))),
            _ => text
                .parse()
                .map(Self::Rule)
                .map_err(|e: flm_growth::GrowthError| format!("{e}, distance and distance:FILE")),
        }
    }
}

fn parsed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Place>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn std<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Std>, D::Error> {
    let text = match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        number => number.to_string(),
    };
    parse_std(&text).map(Some).map_err(serde::de::Error::custom)
}

fn pair<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(f64, f64)>, D::Error> {
    parse_pair(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

pub(crate) fn parse_std(text: &str) -> Result<Std, String> {
    match text {
        "match" => Ok(Std::Match),
        number => match number.parse::<f64>() {
            Ok(std) if std.is_finite() && std >= 0.0 => Ok(Std::Value(std)),
            _ => Err(format!("{number:?} is neither match nor a finite number of at least 0")),
        },
    }
}

pub(crate) fn parse_pair(text: &str) -> Result<(f64, f64), String> {
    let pair = text.split_once('/').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    // the logits' factor is an f32
    let usable = |&(a, b): &(f64, f64)| {
        ((a / b) as f32).is_normal() && (a as f32).is_normal() && (b as f32).is_normal()
    };
    pair.filter(usable)
        .ok_or_else(|| format!("{text:?}: write output_mult/mup_scale_factor, for example 2.0/80"))
}

/// Most stages of a recipe.
const MAX_STAGES: usize = 64;

/// A recipe: stages, and what they share.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    shared: Shared,
    stages: Vec<Stage>,
    /// The text, with what was overridden.
    pub(crate) text: String,
}

/// What stands before the stages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shared {
    from: Option<String>,
    seed: Option<u64>,
    max_shard_size: Option<u64>,
}

impl Recipe {
    /// Reads a recipe; `overrides` are `key=value`, of the recipe or of every stage, or
    /// `stage.N.key=value` of the N-th.
    pub(crate) fn parse(text: &str, overrides: &[String]) -> anyhow::Result<Self> {
        let mut table = parse(text)?;
        let stages = match table.remove("stage") {
            Some(Value::Array(stages)) if !stages.is_empty() => stages,
            _ => return Err(anyhow!("the recipe has no [[stage]]")),
        };
        let count = stages.len();
        ensure!(
            count <= MAX_STAGES,
            "the recipe has {count} stages: at most {MAX_STAGES}, each of which writes a checkpoint"
        );
        let mut shared = Settings::read(SHARED, table)?;
        let stage = |stage: Value| match stage {
            Value::Table(stage) => Settings::read(STAGE, stage),
            _ => Err(anyhow!("stage is no [[stage]] of the recipe")),
        };
        let mut stages = stages.into_iter().map(stage).collect::<anyhow::Result<Vec<_>>>()?;
        for item in overrides {
            let (key, word) = assignment(item)?;
            if shared.knows(key) {
                shared.set(key, word)?;
                continue;
            }
            let (chosen, key) = chosen(key, count)?;
            stages[chosen].iter_mut().try_for_each(|stage| stage.set(key, word))?;
        }
        let mut text = text.to_owned();
        if !overrides.is_empty() {
            let changed: String = overrides.iter().map(|o| format!("#   {o}\n")).collect();
            text += &format!("\n# Overridden on the command line:\n{changed}");
        }
        let stages = stages.iter().map(Settings::options).collect::<anyhow::Result<_>>()?;
        Ok(Self { shared: shared.options()?, stages, text })
    }

    /// Preset that the recipe starts from; what `--from-config` is without weights.
    pub(crate) fn from(&self) -> Option<&str> {
        self.shared.from.as_deref()
    }

    /// The largest file that is written, in bytes.
    pub(crate) fn max_shard_bytes(&self) -> Option<u64> {
        self.shared.max_shard_size
    }

    /// The stages, each with what they share.
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let with = |stage: &Stage| Stage { seed: stage.seed.or(self.shared.seed), ..stage.clone() };
        self.stages.iter().map(with).collect()
    }
}

/// The stages of `count` that `key` is about, and its name there.
fn chosen(key: &str, count: usize) -> anyhow::Result<(Range<usize>, &str)> {
    let Some((number, key)) = key.strip_prefix("stage.").and_then(|rest| rest.split_once('.')) else {
        return Ok((0..count, key));
    };
    let number: usize = number.parse().with_context(|| format!("stage.{number}: not a number"))?;
    ensure!((1..=count).contains(&number), "stage.{number}: the recipe has stages 1 to {count}");
    Ok((number - 1..number, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "seed = 3\n[[stage]]\nto = \"nano-102b\"\noperator = \"msg\"\nplace = \"distance:d.json\"\n\
        std = 0.02\nnoise = 0.1\n[[stage]]\nto = \"nano-1t\"\nmup = \"2.0/80\"\nstd = \"match\"\n";

    #[test]
    fn recipes_are_read_and_overridden() {
        let recipe = Recipe::parse(TEXT, &[]).unwrap();
        let stages = recipe.stages();
        assert_eq!((stages[0].seed, stages[0].operator), (Some(3), Some(Operator::Msg)));
        assert_eq!(stages[0].place, Some(Place::Distance(Some("d.json".into()))));
        assert_eq!((stages[0].noise, stages[1].noise), (Some(0.1), None));
        assert_eq!((stages[0].std, stages[1].std), (Some(Std::Value(0.02)), Some(Std::Match)));
        assert_eq!((stages[1].mup, recipe.text.as_str()), (Some((2.0, 80.0)), TEXT));
        let overrides =
            ["seed=9", "operator=zero", "stage.2.layers=40", "max_shard_size=1GB"].map(String::from);
        let recipe = Recipe::parse(TEXT, &overrides).unwrap();
        let stages = recipe.stages();
        assert_eq!(
            (stages[1].seed, stages[0].operator, stages[1].operator),
            (Some(9), Some(Operator::Zero), Some(Operator::Zero))
        );
        assert_eq!((stages[0].layers, stages[1].layers), (None, Some(40)));
        assert_eq!(recipe.max_shard_bytes(), Some(1_000_000_000));
        assert!(recipe.text.contains("#   stage.2.layers=40"));
    }

    #[test]
    fn every_key_is_a_setting_of_its_table_and_no_other_is() {
        let missing = |known: &[Key], settings: anyhow::Result<()>| {
            let error = settings.unwrap_err().to_string();
            let names: Vec<&str> =
                error.lines().next().unwrap_or_default().split('`').skip(3).step_by(2).collect();
            assert_eq!(names, known.iter().map(|key| key.path).collect::<Vec<_>>(), "{error}");
        };
        // what the types say that they expect
        let table = || toml::Table::from_iter([("no such key".to_owned(), Value::Integer(1))]);
        missing(STAGE, Value::Table(table()).try_into::<Stage>().map(drop).map_err(Into::into));
        missing(SHARED, Value::Table(table()).try_into::<Shared>().map(drop).map_err(Into::into));
        let text = "[[stage]]\nhidden_size = 120\nnum_hidden_layers = 20\n";
        let recipe = Recipe::parse(text, &["vocab_size=9".into(), "max_shard_size=4096".into()]).unwrap();
        let stage = &recipe.stages()[0];
        assert_eq!((stage.hidden, stage.layers, stage.vocab), (Some(120), Some(20), Some(9)));
        assert_eq!(recipe.max_shard_bytes(), Some(4096));
    }

    #[test]
    fn mistakes_in_recipes_are_named() {
        for (text, item, says) in [
            ("seed = 1", None, "stage"),
            (&"[[stage]]\n".repeat(65), None, "65 stages: at most 64"),
            ("[[stage]]\nhiden = 5", None, "unknown key `hiden`; did you mean `hidden`?"),
            ("sed = 5\n[[stage]]", None, "did you mean `seed`?"),
            ("[[stage]]\nplace = \"top\"", None, "placement \"top\""),
            ("[[stage]]\nmup = \"2\"", None, "2.0/80"),
            ("[[stage]]", Some("layers"), "key=value"),
            ("[[stage]]", Some("stage.2.layers=4"), "stages 1 to 1"),
            ("[[stage]]", Some("layers=many"), "layers"),
        ] {
            let overrides: Vec<String> = item.map(String::from).into_iter().collect();
            let error = format!("{:#}", Recipe::parse(text, &overrides).expect_err(says));
            assert!(error.contains(says), "{text:?} {item:?}: {error}");
        }
    }
}
