//! What one growth is to do, from a recipe or from flags.

use std::{path::PathBuf, str::FromStr};

use anyhow::{Context, bail, ensure};
use flm_growth::Metric;
use flm_growth::Placement;
use flm_growth::Std;
use flm_growth::{NewRows, Operator};
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::arguments::parse_size;

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
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// Preset that the recipe starts from; what `--from-config` is without weights.
    pub(crate) from: Option<String>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    max_shard_size: Option<String>,
    stage: Vec<Stage>,
    /// The text, with what was overridden.
    #[serde(skip)]
    pub(crate) text: String,
}

impl Recipe {
    /// Reads a recipe; `overrides` are `key=value`, of the recipe or of every stage, or
    /// `stage.N.key=value` of the N-th.
    pub(crate) fn parse(text: &str, overrides: &[String]) -> anyhow::Result<Self> {
        let mut table: Table = text.parse().context("the recipe is no TOML")?;
        for item in overrides {
            let (key, value) = item.split_once('=').with_context(|| format!("{item:?}: write key=value"))?;
            // what is no TOML value is text
            let value = format!("value = {value}").parse::<Table>().ok();
            let plain = || Value::String(item.split_once('=').map_or("", |(_, v)| v).to_owned());
            let value = value.and_then(|mut t| t.remove("value")).unwrap_or_else(plain);
            set(&mut table, key.trim(), value)?;
        }
        let mut recipe: Self = table.clone().try_into().context("the recipe")?;
        ensure!(!recipe.stage.is_empty(), "the recipe has no [[stage]]");
        ensure!(
            recipe.stage.len() <= MAX_STAGES,
            "the recipe has {} stages: at most {MAX_STAGES}, each of which writes a checkpoint",
            recipe.stage.len()
        );
        recipe.text = text.to_owned();
        if !overrides.is_empty() {
            let changed: String = overrides.iter().map(|o| format!("#   {o}\n")).collect();
            recipe.text += &format!("\n# Overridden on the command line:\n{changed}");
        }
        Ok(recipe)
    }

    pub(crate) fn max_shard_bytes(&self) -> anyhow::Result<Option<u64>> {
        let size = self.max_shard_size.as_deref().map(parse_size).transpose();
        size.map_err(|e| anyhow::anyhow!("max_shard_size: {e}"))
    }

    /// The stages, each with what they share.
    pub(crate) fn stages(&self) -> Vec<Stage> {
        let with = |stage: &Stage| Stage { seed: stage.seed.or(self.seed), ..stage.clone() };
        self.stage.iter().map(with).collect()
    }
}

fn set(table: &mut Table, key: &str, value: Value) -> anyhow::Result<()> {
    if ["from", "seed", "max_shard_size"].contains(&key) {
        table.insert(key.into(), value);
        return Ok(());
    }
    let Some(Value::Array(stages)) = table.get_mut("stage") else { bail!("the recipe has no [[stage]]") };
    let count = stages.len();
    let (chosen, key) = match key.strip_prefix("stage.").and_then(|rest| rest.split_once('.')) {
        Some((number, key)) => {
            let number: usize = number.parse().with_context(|| format!("stage.{number}: not a number"))?;
            ensure!((1..=count).contains(&number), "stage.{number}: the recipe has stages 1 to {count}");
            (number - 1..number, key)
        }
        None => (0..count, key),
    };
    for stage in &mut stages[chosen] {
        let Value::Table(stage) = stage else { bail!("stage is no [[stage]] of the recipe") };
        stage.insert(key.into(), value.clone());
    }
    Ok(())
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
        assert_eq!(recipe.max_shard_bytes().unwrap(), Some(1_000_000_000));
        assert!(recipe.text.contains("#   stage.2.layers=40"));
    }

    #[test]
    fn mistakes_in_recipes_are_named() {
        for (text, item, says) in [
            ("seed = 1", None, "stage"),
            (&"[[stage]]\n".repeat(65), None, "65 stages: at most 64"),
            ("[[stage]]\nhiden = 5", None, "hiden"),
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
