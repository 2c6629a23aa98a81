//! Intervals by the bootstrap: questions are drawn again within their category.
//!
//! Few questions a category make a plain percentile interval too narrow twice over: a resample's spread is
//! that of n values about their own mean, not of n − 1, and normal quantiles know nothing of a spread that is
//! itself uncertain. So drawn deviations are widened by √(n/(n−1)), and the quantiles' distance from the mean
//! by Student's t over the normal quantile, with Welch and Satterthwaite's degrees of freedom. Where most rows
//! are alike, quantiles of resamples are still too near on one side: each end is the farther one of theirs and
//! of Student's own interval. Below [`FEWEST`] rows a category or [`FREEDOM`] in all, or where all rows are
//! alike, even that promises too much, and there is no interval.

use std::collections::BTreeMap;

use flm_candle::Stream;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::score::aggregate::{Halves, Reading, Rules, mean};

/// Rows that a category needs for an interval.
pub(crate) const FEWEST: usize = 7;

/// Degrees of freedom that a mean needs if its categories vary alike: a few rows seldom show a rare low score.
const FREEDOM: f64 = 18.0;

/// The normal distribution's 97.5 % quantile.
const NORMAL: f64 = 1.959_963_984_540_054;

/// 95 % intervals, [low, high].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Intervals {
    pub categories: Map<String, Value>,
    pub reasoning: Option<[f64; 2]>,
    pub language: Option<[f64; 2]>,
    pub overall: Option<[f64; 2]>,
    /// Categories with too few rows for an interval, and their rows.
    pub too_few: BTreeMap<String, usize>,
    /// Rows that each of them would need.
    pub needed: usize,
    /// Rows that a category needs for an interval of its own.
    pub needed_alone: usize,
    /// Draws that they come from.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Intervals of every mean of `readings`.
pub(super) fn intervals(readings: &[Reading<'_>], rules: Rules, resamples: usize, seed: u64) -> Intervals {
    let mut scores: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for reading in readings {
        scores.entry(reading.category).or_default().push(reading.score);
    }
    let means: BTreeMap<String, f64> =
        scores.iter().map(|(name, scores)| ((*name).to_owned(), mean(scores))).collect();
    let centre = Halves::new(&means, rules);
    let mut random = Draws::new(seed);
    let mut by_category: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut reasoning, mut language, mut overall) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..resamples {
        let mut drawn = BTreeMap::new();
        for (&category, scores) in &scores {
            let n = scores.len() as f64;
            let again = (0..scores.len()).map(|_| scores[random.below(scores.len())]).sum::<f64>() / n;
            let widened = (again - means[category]) * (n / (n - 1.0).max(1.0)).sqrt();
            drawn.insert(category.to_owned(), means[category] + widened);
        }
        let halves = Halves::new(&drawn, rules);
        reasoning.extend(halves.reasoning);
        language.extend(halves.language);
        overall.extend(halves.overall);
        for (category, mean) in drawn {
            by_category.entry(category).or_default().push(mean);
        }
    }
    // a mean above the categories is their weighed sum: each one's weight is what the mean gains by it
    let weigh = |of: &dyn Fn(&Halves) -> Option<f64>| -> Option<Vec<(f64, &[f64])>> {
        let here = of(&centre)?;
        let gain = |name: &str| {
            let mut moved = means.clone();
            *moved.get_mut(name)? += 1.0;
            Some(of(&Halves::new(&moved, rules))? - here)
        };
        let weights = scores.iter().filter_map(|(name, scores)| Some((gain(name)?, scores.as_slice())));
        Some(weights.filter(|(weight, _)| weight.abs() > 1e-9).collect())
    };
    let above =
        |of: &dyn Fn(&Halves) -> Option<f64>, draws: Vec<f64>| interval(of(&centre)?, &weigh(of)?, draws);
    let categories = by_category.into_iter().filter_map(|(name, draws)| {
        let found = interval(means[&name], &[(1.0, scores[name.as_str()].as_slice())], draws)?;
        Some((name, json!(found)))
    });
    Intervals {
        categories: categories.collect(),
        reasoning: above(&|halves| halves.reasoning, reasoning),
        language: above(&|halves| halves.language, language),
        overall: above(&|halves| halves.overall, overall),
        too_few: scores
            .iter()
            .filter(|(_, scores)| scores.len() < FEWEST)
            .map(|(name, scores)| ((*name).to_owned(), scores.len()))
            .collect(),
        needed: FEWEST,
        needed_alone: FREEDOM as usize + 1,
        resamples,
        seed,
    }
}

/// The interval of a weighed sum of categories' means; `None` with too few rows or without any spread.
fn interval(centre: f64, parts: &[(f64, &[f64])], draws: Vec<f64>) -> Option<[f64; 2]> {
    let (mut variance, mut fourth) = (0.0, 0.0);
    let (mut alike, mut alike_fourth) = (0.0, 0.0);
    for (weight, scores) in parts {
        if scores.len() < FEWEST {
            return None;
        }
        let n = scores.len() as f64;
        let mean = mean(scores);
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        let part = weight.powi(2) * squares / (n - 1.0) / n;
        variance += part;
        fourth += part.powi(2) / (n - 1.0);
        let share = weight.powi(2) / n;
        alike += share;
        alike_fourth += share.powi(2) / (n - 1.0);
    }
    if variance <= 0.0 || alike.powi(2) / alike_fourth < FREEDOM - 1e-9 {
        return None;
    }
    let student = student(variance.powi(2) / fourth);
    let [low, high] = middle(draws)?;
    let (widen, half) = (student / NORMAL, student * variance.sqrt());
    Some([centre + ((low - centre) * widen).min(-half), centre + ((high - centre) * widen).max(half)])
}

/// Student's 97.5 % quantile, by the normal one's expansion (Abramowitz and Stegun 26.7.5).
fn student(freedom: f64) -> f64 {
    let z = NORMAL;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z)
            / 92160.0,
    ];
    terms.iter().zip(1..).fold(z, |sum, (term, power)| sum + term / freedom.powi(power))
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
        };
        let readings: Vec<_> = (0..400)
            .map(|i| reading(i, "数学计算"))
            .chain((0..400).map(|i| reading(i, "综合问答")))
            .collect();
        let found = intervals(&readings, Rules::Strict, 4000, 1);
        // the standard error of a mean of 400 values ±1 is 1/20
        let expected = [5.0 - 1.96 / 20.0, 5.0 + 1.96 / 20.0];
        let [low, high] = found.reasoning.unwrap();
        assert!((low - expected[0]).abs() < 0.01 && (high - expected[1]).abs() < 0.01, "{low} {high}");
        // the mean of two independent halves is √2 surer
        let [low, high] = found.overall.unwrap();
        assert!(((high - low) - 2.0 * 1.96 / 20.0 / 2f64.sqrt()).abs() < 0.01, "{low} {high}");
        assert_eq!(found, intervals(&readings, Rules::Strict, 4000, 1));
        assert_eq!(intervals(&[], Rules::Strict, 10, 1).overall, None);
    }

    #[test]
    fn the_quantiles_are_students() {
        // from its table
        for (freedom, quantile) in [(4.0, 2.776), (9.0, 2.262), (30.0, 2.042), (1e9, 1.960)] {
            assert!((student(freedom) - quantile).abs() < 2e-3, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn an_interval_covers_the_truth_as_often_as_it_says_or_is_not_given() {
        const WORLDS: u64 = 1500;
        let empty = Map::new();
        let names: Vec<&str> = crate::score::REASONING.into_iter().chain(crate::score::LANGUAGE).collect();
        let mut random = Draws::new(7);
        for rows in [1, 2, 3, 5, 7, 10, 50] {
            let (mut given, mut overall) = (0, 0);
            let (mut category_given, mut category) = (0, 0);
            for world in 0..WORLDS {
                // scores from 1 to 10, all alike: the truth is 5.5 everywhere
                let readings: Vec<Reading<'_>> = (0..8 * rows)
                    .map(|i| Reading {
                        category: names[i % 8],
                        score: 1.0 + random.below(10) as f64,
                        rating: &empty,
                    })
                    .collect();
                let found = intervals(&readings, Rules::Strict, 400, world);
                let covers = |[low, high]: [f64; 2]| u64::from((low..=high).contains(&5.5));
                if let Some(interval) = found.overall {
                    given += 1;
                    overall += covers(interval);
                }
                if let Some(interval) = found.categories.get(names[0]).cloned() {
                    category_given += 1;
                    category += covers(serde_json::from_value(interval).unwrap());
                }
                assert_eq!(found.too_few.len(), if rows < FEWEST { 8 } else { 0 });
            }
            if rows < FEWEST {
                assert_eq!((given, category_given), (0, 0), "{rows} rows");
                continue;
            }
            // a category by itself has one degree of freedom less than rows
            let alone = rows as f64 - 1.0 >= FREEDOM;
            assert_eq!((given, category_given), (WORLDS, if alone { WORLDS } else { 0 }), "{rows} rows");
            for (what, covered) in [("overall", Some(overall)), ("a category", alone.then_some(category))] {
                let Some(covered) = covered else { continue };
                let share = covered as f64 / WORLDS as f64;
                assert!((0.93..=0.97).contains(&share), "{rows} rows: {what} covered in {share}");
            }
        }
    }
}
