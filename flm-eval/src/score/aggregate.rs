//! AlignBench's means: categories, halves, overall.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::score::{LANGUAGE, REASONING};

/// One judgment as it enters the means.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    pub category: &'a str,
    pub score: f64,
    pub rating: &'a Map<String, Value>,
}

/// Which rules the means follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Those of the released scripts: a half needs every one of its categories (`show_result.py` divides by
    /// all of them), and a row scored −1 counts for no dimension (`dimension_calculate.py`).
    Released,
    /// What is there: categories without rows are left out of their half, dimension values that are not
    /// between 1 and 10 out of their mean; benchmarks with none of AlignBench's categories have the mean of
    /// their categories as the overall score.
    Strict,
}

/// AlignBench's table of one model.
///
/// A half is the mean of its categories' means, and the overall score is the mean of the halves: each
/// reasoning category weighs 1/4, each language category 1/12. What happens without rows of some category,
/// the rules asked for say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Mean by category, AlignBench's eight first.
    pub categories: Map<String, Value>,
    /// 中文推理: mean of the reasoning categories' means.
    pub reasoning: Option<f64>,
    /// 中文语言: mean of the language categories' means.
    pub language: Option<f64>,
    /// 总分: mean of the halves.
    pub overall: Option<f64>,
    /// Mean and count by dimension, over the values in the dicts.
    pub dimensions: BTreeMap<String, (f64, usize)>,
}

impl Totals {
    /// Means of the readings, by category and above.
    pub fn new(readings: &[Reading<'_>], rules: Rules) -> Self {
        let mut scores: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut dimensions: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for reading in readings {
            scores.entry(reading.category).or_default().push(reading.score);
            for (name, value) in reading.rating {
                let Some(value) = value.as_f64() else { continue };
                let usable = match rules {
                    Rules::Released => reading.score != -1.0,
                    Rules::Strict => (1.0..=10.0).contains(&value),
                };
                // the released script takes a name with a comma for a misread one
                if usable && !name.contains(',') {
                    let sum = dimensions.entry(name.clone()).or_default();
                    *sum = (sum.0 + value, sum.1 + 1);
                }
            }
        }
        for (sum, count) in dimensions.values_mut() {
            *sum /= *count as f64;
        }
        let means = scores.into_iter().map(|(name, scores)| (name.to_owned(), mean(&scores))).collect();
        let halves = Halves::new(&means, rules);
        Self {
            reasoning: halves.reasoning,
            language: halves.language,
            overall: halves.overall,
            categories: in_order(means).into_iter().map(|(name, mean)| (name, mean.into())).collect(),
            dimensions,
        }
    }

    /// The mean of a category.
    pub fn category(&self, name: &str) -> Option<f64> {
        self.categories.get(name).and_then(Value::as_f64)
    }

    /// This table's numbers divided by those of a baseline.
    pub fn ratios(&self, baseline: &Self) -> Ratios {
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?).filter(|r| r.is_finite());
        let category =
            |name: &String| Some((name.clone(), ratio(self.category(name), baseline.category(name))?.into()));
        Ratios {
            categories: self.categories.keys().filter_map(category).collect(),
            reasoning: ratio(self.reasoning, baseline.reasoning),
            language: ratio(self.language, baseline.language),
            overall: ratio(self.overall, baseline.overall),
        }
    }
}

/// A table divided by a baseline's.
#[derive(Debug, Clone, Serialize)]
pub struct Ratios {
    /// By category, those left out that either table lacks.
    pub categories: Map<String, Value>,
    /// Of the reasoning categories' means.
    pub reasoning: Option<f64>,
    /// Of the language categories' means.
    pub language: Option<f64>,
    /// Of the overall scores.
    pub overall: Option<f64>,
}

/// The means above the categories.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Halves {
    /// Of the reasoning categories' means.
    pub reasoning: Option<f64>,
    /// Of the language categories' means.
    pub language: Option<f64>,
    /// Of the overall scores.
    pub overall: Option<f64>,
}

impl Halves {
    pub(crate) fn new(means: &BTreeMap<String, f64>, rules: Rules) -> Self {
        let half = |names: &[&str]| {
            let present: Vec<f64> = names.iter().filter_map(|name| means.get(*name).copied()).collect();
            let enough = match rules {
                Rules::Released => present.len() == names.len(),
                Rules::Strict => !present.is_empty(),
            };
            enough.then(|| mean(&present))
        };
        let (reasoning, language) = (half(&REASONING), half(&LANGUAGE));
        let overall = reasoning.zip(language).map(|(reasoning, language)| (reasoning + language) / 2.0);
        let foreign = REASONING.iter().chain(&LANGUAGE).all(|name| !means.contains_key(*name));
        let own = (rules == Rules::Strict && foreign && !means.is_empty())
            .then(|| means.values().sum::<f64>() / means.len() as f64);
        Self { reasoning, language, overall: overall.or(own) }
    }
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// AlignBench's categories in the order of its table, then others by name.
fn in_order(mut means: BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let known = REASONING.iter().chain(&LANGUAGE);
    let mut ordered: Vec<_> = known.filter_map(|name| means.remove_entry(*name)).collect();
    ordered.extend(means);
    ordered
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_overall_score_is_the_mean_of_the_halves() {
        // the last row of the model card: 6.227 comes out only with the halves weighed alike
        let row = [
            ("数学计算", 3.79),
            ("逻辑推理", 5.15),
            ("基本任务", 7.69),
            ("中文理解", 7.86),
            ("综合问答", 8.45),
            ("文本写作", 8.17),
            ("角色扮演", 7.88),
            ("专业能力", 7.85),
        ];
        let empty = Map::new();
        let readings: Vec<_> =
            row.iter().map(|&(category, score)| Reading { category, score, rating: &empty }).collect();
        let totals = Totals::new(&readings, Rules::Released);
        assert_eq!(totals, Totals::new(&readings, Rules::Strict));
        assert!((totals.overall.unwrap() - 6.226_666_666_666_667).abs() < 1e-12, "{totals:?}");
        assert_eq!(totals.categories.keys().next().unwrap(), "数学计算");
        let half = Totals::new(&readings[..2], Rules::Strict);
        assert_eq!((half.language, half.overall), (None, None));
        let ratios = totals.ratios(&totals);
        assert_eq!((ratios.overall, ratios.categories.len()), (Some(1.0), 8));
    }

    #[test]
    fn without_a_category_the_released_scripts_have_no_half() {
        let empty = Map::new();
        let names = || REASONING.iter().chain(&LANGUAGE).filter(|name| **name != "角色扮演");
        let readings: Vec<_> =
            names().map(|category| Reading { category, score: 5.0, rating: &empty }).collect();
        let released = Totals::new(&readings, Rules::Released);
        assert_eq!((released.reasoning, released.language, released.overall), (Some(5.0), None, None));
        assert_eq!(Totals::new(&readings, Rules::Strict).overall, Some(5.0));
    }

    #[test]
    fn categories_of_other_benchmarks_have_their_mean() {
        let empty = Map::new();
        let reading = |category, score| Reading { category, score, rating: &empty };
        let readings = [reading("a", 2.0), reading("a", 4.0), reading("b", 9.0)];
        assert_eq!(Totals::new(&readings, Rules::Strict).overall, Some(6.0));
        assert_eq!(Totals::new(&readings, Rules::Released).overall, None);
    }

    #[test]
    fn dimensions_skip_names_with_commas_and_what_the_rules_say() {
        let rating = object(json!({"清晰度": 4, "甲', '乙": 3, "完备性": 12}));
        let names = |score, rules| {
            let totals = Totals::new(&[Reading { category: "x", score, rating: &rating }], rules);
            totals.dimensions.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(1.0, Rules::Released), ["完备性", "清晰度"]);
        assert_eq!(names(-1.0, Rules::Released), [""; 0]);
        assert_eq!(names(1.0, Rules::Strict), ["清晰度"]);
    }
}
