//! What the scores are made of, and what they leave out.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use crate::score::parse::{OVERALL, Parsed, Score};
use crate::score::rows::{JudgedRow, QuestionId};
use crate::score::verdict::Verdict;
use crate::score::{Expected, LANGUAGE, REASONING};

/// How many questions AlignBench v1.1 has, numbered from 1.
const ALIGNBENCH: u64 = 683;

/// What the totals are made of, and what they leave out.
///
/// `parsed + fallback + failed + refused + replaced = rows`, as the released parser reads them; `out_of_range`
/// counts those of the first two whose score is not between 1 and 10. What the strict parser makes of them is
/// in `strict`.
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
    /// The judge refused to judge the answer: no part of any mean.
    pub refused: usize,
    /// Judged again later, on request: no part of any mean.
    pub replaced: usize,
    /// Rows without a reference answer.
    pub without_reference: usize,
    /// Verdicts of the strict parser.
    pub strict: Verdicts,
    /// Dimension values below 1 or above 10.
    pub dimensions_out_of_range: usize,
    /// Questions with more than one row: the strict total takes the first that can be read.
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

/// What the strict parser found in the rows that are neither refused nor replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// A score from 1 to 10.
    pub scored: usize,
    /// Scores that contradict each other.
    pub ambiguous: usize,
    /// A score below 1 or above 10.
    pub out_of_range: usize,
    /// No score.
    pub missing: usize,
}

/// A row with what both parsers made of it.
pub(crate) struct ReadRow<'a> {
    pub row: &'a JudgedRow,
    pub released: &'a Parsed,
    pub verdict: Verdict,
    /// Judged again later.
    pub replaced: bool,
}

impl Ledger {
    pub(crate) fn new(all: &[ReadRow<'_>], questions: Option<&Expected>) -> Self {
        let judged: Vec<&ReadRow<'_>> =
            all.iter().filter(|read| !read.replaced && !read.row.is_refused()).collect();
        let count = |is: fn(&Score) -> bool| judged.iter().filter(|read| is(&read.released.score)).count();
        let (mut seen, mut duplicates) = (HashSet::new(), BTreeSet::new());
        for read in all.iter().filter(|read| !read.replaced) {
            if !seen.insert(&read.row.question_id) {
                duplicates.insert(read.row.question_id.clone());
            }
        }
        let mut strict = Verdicts::default();
        for read in &judged {
            match read.verdict {
                Verdict::Scored(_) => strict.scored += 1,
                Verdict::Ambiguous => strict.ambiguous += 1,
                Verdict::OutOfRange(_) => strict.out_of_range += 1,
                Verdict::Missing => strict.missing += 1,
            }
        }
        let rows: Vec<&JudgedRow> = all.iter().map(|read| read.row).collect();
        let categories: BTreeSet<&str> = rows.iter().map(|row| row.category.as_str()).collect();
        let known = || REASONING.into_iter().chain(LANGUAGE);
        let missing_categories: Vec<_> = known().filter(|name| !categories.contains(name)).collect();
        let (expected, expected_from) = match questions {
            Some(expected) => (expected.ids.clone(), expected.from),
            // rows of our own say nothing of questions that were not asked
            None if rows.iter().any(|row| row.fields.contains_key("answer_sha256")) => (
                seen.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>().into_iter().collect(),
                "the file itself",
            ),
            None => guess(&seen, missing_categories.is_empty()),
        };
        let expected_ids: HashSet<&QuestionId> = expected.iter().collect();
        let unknown: BTreeSet<_> = seen.iter().filter(|id| !expected_ids.contains(**id)).copied().collect();
        let dimensions =
            judged.iter().flat_map(|read| &read.released.rating).filter(|(name, _)| *name != OVERALL);
        Self {
            rows: rows.len(),
            parsed: count(|score| matches!(score, Score::Parsed(_))),
            fallback: count(|score| matches!(score, Score::Fallback(_))),
            failed: count(|score| matches!(score, Score::Failed)),
            out_of_range: count(|score| *score != Score::Failed && score.strict().is_none()),
            dimensions_out_of_range: dimensions
                .filter(|(_, value)| !value.as_u64().is_some_and(|value| (1..=10).contains(&value)))
                .count(),
            refused: all.iter().filter(|read| !read.replaced && read.row.is_refused()).count(),
            replaced: all.iter().filter(|read| read.replaced).count(),
            without_reference: rows.iter().filter(|row| row.lacks_reference()).count(),
            strict,
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
        self.strict.scored == self.rows - self.replaced
            && self.duplicates.is_empty()
            && self.missing.is_empty()
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
    use std::collections::HashMap;

    use super::*;
    use crate::score::parse::parse;
    use crate::score::verdict::conclude;

    fn ledger(rows: &[(u64, &str, &str)], questions: Option<&[QuestionId]>) -> Ledger {
        let rows: Vec<_> = rows.iter().map(|(id, c, j)| JudgedRow::plain((*id).into(), c, j)).collect();
        let parsed: Vec<_> = rows.iter().map(|row| parse(&row.judgment)).collect();
        let read = rows.iter().zip(&parsed).map(|(row, released)| ReadRow {
            row,
            released,
            verdict: conclude(&row.judgment, None).verdict,
            replaced: false,
        });
        let expected = questions.map(|ids| Expected {
            ids: ids.to_vec(),
            categories: HashMap::new(),
            from: "the questions",
        });
        Ledger::new(&read.collect::<Vec<_>>(), expected.as_ref())
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
        assert_eq!(l.strict, Verdicts { scored: 2, ambiguous: 0, out_of_range: 1, missing: 1 });
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
