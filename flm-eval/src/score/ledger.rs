//! What the scores are made of, and what they leave out.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use crate::score::parse::{OVERALL, Parsed, Score};
use crate::score::rows::{JudgedRow, QuestionId};
use crate::score::{LANGUAGE, REASONING};

/// How many questions AlignBench v1.1 has, numbered from 1.
const ALIGNBENCH: u64 = 683;

/// What the totals are made of, and what they leave out.
///
/// `parsed + fallback + failed = rows`; `out_of_range` counts those of the first two whose score is not
/// between 1 and 10.
#[derive(Debug, Clone, Serialize)]
pub struct Ledger {
    /// Rows of the file.
    pub rows: usize,
    /// The score stood in the last dict.
    pub parsed: usize,
    /// The score stood only elsewhere in the text.
    pub fallback: usize,
    /// There was no score.
    pub failed: usize,
    /// The score is below 1 or above 10.
    pub out_of_range: usize,
    /// Dimension values below 1 or above 10.
    pub dimensions_out_of_range: usize,
    /// Questions with more than one row: the strict total takes the first.
    pub duplicates: Vec<QuestionId>,
    /// Questions without a row.
    pub missing: Vec<QuestionId>,
    /// Questions that are expected.
    pub expected: usize,
    /// Where `expected` comes from.
    pub expected_from: &'static str,
    /// Rows of questions that are not expected.
    pub unknown: Vec<QuestionId>,
    /// AlignBench's categories that have no row.
    pub missing_categories: Vec<&'static str>,
    /// Categories that AlignBench does not have; they are in no half and not in the overall score.
    pub other_categories: Vec<String>,
}

impl Ledger {
    pub fn new(rows: &[JudgedRow], parsed: &[Parsed], questions: Option<&[QuestionId]>) -> Self {
        let count = |is: fn(&Score) -> bool| parsed.iter().filter(|p| is(&p.score)).count();
        let (mut seen, mut duplicates) = (HashSet::new(), BTreeSet::new());
        for row in rows {
            if !seen.insert(&row.question_id) {
                duplicates.insert(row.question_id.clone());
            }
        }
        let categories: BTreeSet<&str> = rows.iter().map(|row| row.category.as_str()).collect();
        let known = || REASONING.into_iter().chain(LANGUAGE);
        let missing_categories: Vec<_> = known().filter(|name| !categories.contains(name)).collect();
        let (expected, expected_from) = match questions {
            Some(questions) => (questions.to_vec(), "the questions"),
            None => guess(&seen, missing_categories.is_empty()),
        };
        let expected_ids: HashSet<&QuestionId> = expected.iter().collect();
        let unknown: BTreeSet<_> = seen.iter().filter(|id| !expected_ids.contains(**id)).copied().collect();
        let dimensions = parsed.iter().flat_map(|p| &p.rating).filter(|(name, _)| *name != OVERALL);
        Self {
            rows: rows.len(),
            parsed: count(|score| matches!(score, Score::Parsed(_))),
            fallback: count(|score| matches!(score, Score::Fallback(_))),
            failed: count(|score| matches!(score, Score::Failed)),
            out_of_range: count(|score| *score != Score::Failed && score.strict().is_none()),
            dimensions_out_of_range: dimensions
                .filter(|(_, value)| !value.as_u64().is_some_and(|value| (1..=10).contains(&value)))
                .count(),
            duplicates: duplicates.into_iter().collect(),
            missing: expected.iter().filter(|id| !seen.contains(id)).cloned().collect(),
            expected: expected.len(),
            expected_from,
            unknown: unknown.into_iter().cloned().collect(),
            missing_categories,
            other_categories: categories
                .into_iter()
                .filter(|category| !known().any(|name| name == *category))
                .map(ToOwned::to_owned)
                .collect(),
        }
    }

    /// Whether nothing is wrong with the rows.
    pub fn is_clean(&self) -> bool {
        self.failed + self.out_of_range == 0 && self.duplicates.is_empty() && self.missing.is_empty()
    }
}

/// The questions that judgments without a question file most likely belong to.
fn guess(seen: &HashSet<&QuestionId>, all_categories: bool) -> (Vec<QuestionId>, &'static str) {
    let numbers: Option<Vec<u64>> = seen.iter().map(|id| id.as_u64()).collect();
    match numbers.and_then(|numbers| Some((*numbers.iter().min()?, *numbers.iter().max()?))) {
        // most of the benchmark is there: count against the whole of it
        Some((1.., last)) if all_categories && last <= ALIGNBENCH && 2 * seen.len() as u64 > ALIGNBENCH => {
            ((1..=ALIGNBENCH).map(QuestionId::from).collect(), "AlignBench v1.1 has 683 questions")
        }
        Some((first, last)) if last - first < 4 * seen.len() as u64 => {
            ((first..=last).map(QuestionId::from).collect(), "the first and the last id of the file")
        }
        _ => {
            let ids: BTreeSet<_> = seen.iter().map(|id| (*id).clone()).collect();
            (ids.into_iter().collect(), "the file itself")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::parse::parse;

    fn ledger(rows: &[(u64, &str, &str)], questions: Option<&[QuestionId]>) -> Ledger {
        let rows: Vec<_> = rows.iter().map(|(id, c, j)| JudgedRow::plain((*id).into(), c, j)).collect();
        let parsed: Vec<_> = rows.iter().map(|row| parse(&row.judgment)).collect();
        Ledger::new(&rows, &parsed, questions)
    }

    #[test]
    fn every_kind_of_row_is_counted_once() {
        let rows = [
            (1, "数学计算", "{'清晰度': 11, '综合得分': 3}"),
            (2, "数学计算", "'综合得分': 3.5"),
            (2, "数学计算", "?"),
            (4, "other", "{'综合得分': 30}"),
        ];
        let l = ledger(&rows, None);
        assert_eq!((l.rows, l.parsed, l.fallback, l.failed, l.out_of_range), (4, 2, 1, 1, 1));
        assert_eq!(l.dimensions_out_of_range, 1);
        assert_eq!((l.duplicates, l.missing), (vec![2.into()], vec![3.into()]));
        assert_eq!((l.missing_categories.len(), l.other_categories), (7, vec!["other".to_owned()]));
        let questions: Vec<QuestionId> = (1..=3).map(QuestionId::from).collect();
        let l = ledger(&rows, Some(&questions));
        assert_eq!((l.missing, l.unknown, l.expected), (vec![3.into()], vec![4.into()], 3));
    }

    #[test]
    fn the_end_of_alignbench_is_missed_too() {
        let categories: Vec<_> = REASONING.into_iter().chain(LANGUAGE).collect();
        let rows: Vec<_> = (1..=680).map(|i| (i, categories[i as usize % 8], "{'综合得分': 3}")).collect();
        let missing = ledger(&rows, None).missing;
        assert_eq!(missing, [681, 682, 683].map(QuestionId::from));
    }
}
