//! Percentile bootstrap: questions are drawn again within their category.

use std::collections::BTreeMap;

use flm_candle::Stream;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::score::aggregate::{Halves, Reading, mean};

/// 95 % intervals, [low, high].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Intervals {
    pub categories: Map<String, Value>,
    pub reasoning: Option<[f64; 2]>,
    pub language: Option<[f64; 2]>,
    pub overall: Option<[f64; 2]>,
    /// Draws that they come from.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Intervals of every mean of `readings`.
pub(super) fn intervals(readings: &[Reading<'_>], resamples: usize, seed: u64) -> Intervals {
    let mut scores: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for reading in readings {
        scores.entry(reading.category).or_default().push(reading.score);
    }
    let mut random = Draws::new(seed);
    let mut by_category: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut reasoning, mut language, mut overall) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..resamples {
        let mut means = BTreeMap::new();
        for (&category, scores) in &scores {
            let drawn: Vec<f64> = scores.iter().map(|_| scores[random.below(scores.len())]).collect();
            means.insert(category.to_owned(), mean(&drawn));
        }
        let halves = Halves::new(&means);
        reasoning.extend(halves.reasoning);
        language.extend(halves.language);
        overall.extend(halves.overall);
        for (category, mean) in means {
            by_category.entry(category).or_default().push(mean);
        }
    }
    let categories = by_category.into_iter().filter_map(|(name, draws)| Some((name, json!(middle(draws)?))));
    Intervals {
        categories: categories.collect(),
        reasoning: middle(reasoning),
        language: middle(language),
        overall: middle(overall),
        resamples,
        seed,
    }
}

/// The 2.5 % and 97.5 % quantiles, between neighbours by their distance.
fn middle(mut draws: Vec<f64>) -> Option<[f64; 2]> {
    draws.sort_by(f64::total_cmp);
    let last = draws.len().checked_sub(1)?;
    let quantile = |p: f64| {
        let at = p * last as f64;
        let (low, part) = (at.floor() as usize, at.fract());
        draws[low] + part * (draws[(low + 1).min(last)] - draws[low])
    };
    Some([quantile(0.025), quantile(0.975)])
}

/// One random number after the other.
struct Draws {
    stream: Stream,
    drawn: u64,
}

impl Draws {
    fn new(seed: u64) -> Self {
        Self { stream: Stream::splitmix64(seed), drawn: 0 }
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        self.stream.at(self.drawn - 1)
    }

    /// A number below `n`; the bias of at most n/2⁶⁴ is of no account here.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // the reference implementation's first outputs for seed 1234567
        let mut random = Draws::new(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn an_interval_is_as_wide_as_the_mean_is_uncertain() {
        let empty = Map::new();
        let reading = |i: usize, category| Reading {
            category,
            score: if i.is_multiple_of(2) { 4.0 } else { 6.0 },
            rating: &empty,
            range: None,
        };
        let readings: Vec<_> = (0..400)
            .map(|i| reading(i, "数学计算"))
            .chain((0..400).map(|i| reading(i, "综合问答")))
            .collect();
        let found = intervals(&readings, 4000, 1);
        // the standard error of a mean of 400 values ±1 is 1/20
        let expected = [5.0 - 1.96 / 20.0, 5.0 + 1.96 / 20.0];
        let [low, high] = found.reasoning.unwrap();
        assert!((low - expected[0]).abs() < 0.01 && (high - expected[1]).abs() < 0.01, "{low} {high}");
        // the mean of two independent halves is √2 surer
        let [low, high] = found.overall.unwrap();
        assert!(((high - low) - 2.0 * 1.96 / 20.0 / 2f64.sqrt()).abs() < 0.01, "{low} {high}");
        assert_eq!(found, intervals(&readings, 4000, 1));
        assert_eq!(intervals(&[], 10, 1).overall, None);
    }
}
