//! A result against a baseline: over the questions that both have, pair by pair.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Map;

use crate::score::aggregate::{Ratios, Reading, Rules, Totals};
use crate::score::bootstrap::{self, Intervals};
use crate::score::rows::{JudgedRow, QuestionId};
use crate::score::{RESAMPLES, SEED, Scores};

/// What two results say about the questions that both have a strict score of.
///
/// The difference of a question counts in its category as its score does, so the differences of the totals are
/// the totals of the differences, and their intervals know that both models met the same questions.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Questions that both have.
    pub questions: usize,
    /// Questions that only this result has a score of.
    pub only_here: usize,
    /// Questions that only the baseline has a score of.
    pub only_baseline: usize,
    /// This result over the common questions.
    pub strict: Totals,
    /// The baseline over them.
    pub baseline: Totals,
    /// `strict` divided by `baseline`.
    pub ratio: Ratios,
    /// Means of the differences, this result's score less the baseline's.
    pub difference: Totals,
    /// 95 % intervals of the differences.
    pub intervals: Intervals,
    /// Questions on which this result scores higher.
    pub wins: usize,
    /// Questions on which both score alike.
    pub ties: usize,
    /// Questions on which the baseline scores higher.
    pub losses: usize,
}

impl Comparison {
    /// Compares the strict scores of two results; the rows are those that `scores` were made of.
    pub fn new(rows: &[JudgedRow], scores: &Scores, baseline: &Scores) -> Self {
        let mine = by_question(scores);
        let theirs = by_question(baseline);
        let category: HashMap<&QuestionId, &str> =
            rows.iter().map(|row| (&row.question_id, row.category.as_str())).collect();
        let none = Map::new();
        let (mut here, mut there, mut differences) = (Vec::new(), Vec::new(), Vec::new());
        for (id, &score) in &mine {
            let (Some(&other), Some(category)) = (theirs.get(id), category.get(id)) else { continue };
            let reading = |score| Reading { category, score, rating: &none };
            here.push(reading(score));
            there.push(reading(other));
            differences.push(reading(score - other));
        }
        let (strict, baseline) = (Totals::new(&here, Rules::Strict), Totals::new(&there, Rules::Strict));
        let count = |is: fn(f64) -> bool| differences.iter().filter(|reading| is(reading.score)).count();
        Self {
            questions: here.len(),
            only_here: mine.len() - here.len(),
            only_baseline: theirs.len() - here.len(),
            ratio: strict.ratios(&baseline),
            difference: Totals::new(&differences, Rules::Strict),
            intervals: bootstrap::intervals(&differences, Rules::Strict, RESAMPLES, SEED),
            wins: count(|difference| difference > 0.0),
            ties: count(|difference| difference == 0.0),
            losses: count(|difference| difference < 0.0),
            strict,
            baseline,
        }
    }

    /// What the comparison says in a sentence or two, without the names of the models.
    pub fn verdict(&self) -> String {
        let mut text = match self.difference.overall {
            Some(difference) => format!("{difference:+.2}"),
            None => "no overall difference".to_owned(),
        };
        text += &match self.intervals.overall {
            Some([low, high]) if low > 0.0 || high < 0.0 => format!(" (95 % {low:+.2} to {high:+.2})"),
            Some([low, high]) => format!(" (95 % {low:+.2} to {high:+.2}: may be chance)"),
            None if self.questions == self.ties => String::new(),
            None => format!(
                " (no interval: it takes {} questions a category, {} of one alone)",
                self.intervals.needed, self.intervals.needed_alone
            ),
        };
        text += &format!(
            " over the {} questions that both have: {} higher, {} alike, {} lower",
            self.questions, self.wins, self.ties, self.losses
        );
        text
    }
}

/// The scores that count, by question.
fn by_question(scores: &Scores) -> BTreeMap<&QuestionId, f64> {
    let counted = scores.rows.iter().filter(|row| row.counted);
    counted.filter_map(|row| Some((&row.question_id, row.verdict.score()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{LANGUAGE, REASONING, Reader, score};

    fn result(scores: impl Iterator<Item = (u64, u64)>) -> (Vec<JudgedRow>, Scores) {
        let names: Vec<&str> = REASONING.into_iter().chain(LANGUAGE).collect();
        let rows: Vec<JudgedRow> = scores
            .map(|(id, score)| {
                JudgedRow::plain(id.into(), names[id as usize % 8], &format!("{{'综合得分': {score}}}"))
            })
            .collect();
        let scores = score(&rows, Reader::default()).unwrap();
        (rows, scores)
    }

    #[test]
    fn the_same_judgments_without_the_harder_half_are_alike() {
        // odd questions are hard
        let of = |id: u64| (id, if id % 16 < 8 { 6 } else { 4 });
        let (rows, whole) = result((1..=160).map(of));
        let (_, half) = result((1..=160).filter(|id| id % 16 < 8).map(of));
        assert!(whole.strict.overall < half.strict.overall);
        let found = Comparison::new(&rows, &whole, &half);
        assert_eq!((found.questions, found.only_here, found.only_baseline), (80, 80, 0));
        assert_eq!((found.ratio.overall, found.difference.overall), (Some(1.0), Some(0.0)));
        assert_eq!((found.wins, found.ties, found.losses, found.intervals.overall), (0, 80, 0, None));
    }

    #[test]
    fn pairs_see_what_two_intervals_do_not() {
        // questions differ by far more than the models do: one is better by 1 on two of three
        let base = |id: u64| 1 + (id + id / 8 * 5) % 8;
        let (_, before) = result((1..=240).map(|id| (id, base(id))));
        let (rows, after) = result((1..=240).map(|id| (id, base(id) + u64::from(id % 3 != 0))));
        let apart = (before.intervals.strict.overall.unwrap(), after.intervals.strict.overall.unwrap());
        let found = Comparison::new(&rows, &after, &before);
        let [low, high] = found.intervals.overall.unwrap();
        let difference = found.difference.overall.unwrap();
        assert!(apart.1[0] - apart.0[1] < low, "{apart:?} {low}");
        assert!(low > 0.5 && low < difference && difference < high && high < 0.8, "{low} {high}");
        assert_eq!((found.wins, found.ties, found.losses), (160, 80, 0));
        assert!((after.strict.overall.unwrap() - before.strict.overall.unwrap() - difference).abs() < 1e-12);
    }

    #[test]
    fn nothing_in_common_is_nothing_to_compare() {
        let (rows, a) = result((1..=8).map(|id| (id, 5)));
        let (_, b) = result((9..=16).map(|id| (id, 5)));
        let found = Comparison::new(&rows, &a, &b);
        assert_eq!((found.questions, found.only_here, found.only_baseline), (0, 8, 8));
        assert_eq!(found.difference.overall, None);
    }
}
