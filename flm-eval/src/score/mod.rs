//! Scores of saved judgments: the released table with all its quirks, and a strict one beside it.

pub(crate) mod aggregate;
mod bootstrap;
mod digits;
mod ledger;
pub(crate) mod parse;
pub(crate) mod rows;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::score::aggregate::Totals;
use crate::score::bootstrap::Intervals;
use crate::score::ledger::Ledger;
use crate::score::parse::{Score, parse};
use crate::score::rows::{JudgedRow, QuestionId};

use crate::score::aggregate::Reading;

/// The two categories that make up the reasoning half of AlignBench.
pub(crate) const REASONING: [&str; 2] = ["数学计算", "逻辑推理"];

/// The six categories that make up the language half.
pub(crate) const LANGUAGE: [&str; 6] =
    ["基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"];

/// How many resamples the intervals come from.
const RESAMPLES: usize = 2000;

/// The seed of the resampling.
const SEED: u64 = 20_240_704;

/// What `flm eval score` reports.
#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    /// As the released scripts compute it: −1 for what cannot be read is inside the means.
    pub released: Totals,
    /// Over the first row of each question whose score can be read and is between 1 and 10.
    pub strict: Totals,
    /// What is behind the totals.
    pub ledger: Ledger,
    /// 95 % intervals of both.
    pub intervals: BothIntervals,
    /// Each row's reading, in the order of the file.
    pub rows: Vec<RowScore>,
}

/// Intervals of both totals.
#[derive(Debug, Clone, Serialize)]
pub struct BothIntervals {
    pub released: Intervals,
    pub strict: Intervals,
}

/// One judgment's reading.
#[derive(Debug, Clone, Serialize)]
pub struct RowScore {
    pub question_id: QuestionId,
    pub rating: Map<String, Value>,
    pub score: Score,
}

/// Scores judgments; `expected` are the ids of the questions, where they are known.
pub fn score(rows: &[JudgedRow], expected: Option<&[QuestionId]>) -> Scores {
    let parsed: Vec<_> = rows.iter().map(|row| parse(&row.judgment)).collect();
    let ledger = Ledger::new(rows, &parsed, expected);
    let reading = |index: usize, score: f64, range: Option<(u64, u64)>| Reading {
        category: &rows[index].category,
        score,
        rating: &parsed[index].rating,
        range,
    };
    let all: Vec<Reading<'_>> =
        (0..rows.len()).map(|i| reading(i, parsed[i].score.released(), None)).collect();
    let mut seen = std::collections::HashSet::new();
    let strict: Vec<Reading<'_>> = (0..rows.len())
        .filter(|&i| seen.insert(&rows[i].question_id))
        .filter_map(|i| Some(reading(i, parsed[i].score.strict()?, Some((1, 10)))))
        .collect();
    Scores {
        released: Totals::new(&all),
        strict: Totals::new(&strict),
        ledger,
        intervals: BothIntervals {
            released: crate::score::bootstrap::intervals(&all, RESAMPLES, SEED),
            strict: crate::score::bootstrap::intervals(&strict, RESAMPLES, SEED),
        },
        rows: rows
            .iter()
            .zip(parsed)
            .map(|(row, parsed)| RowScore {
                question_id: row.question_id.clone(),
                rating: parsed.rating,
                score: parsed.score,
            })
            .collect(),
    }
}
