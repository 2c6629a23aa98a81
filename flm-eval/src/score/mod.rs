//! Scores of saved judgments: the released table with all its quirks (`parse`), and a strict one (`verdict`).

pub(crate) mod aggregate;
pub(crate) mod bootstrap;
pub(crate) mod compare;
mod digits;
pub(crate) mod ledger;
pub(crate) mod parse;
pub(crate) mod rows;
pub(crate) mod verdict;

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use anyhow::{Context, ensure};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::score::aggregate::{Reading, Rules, Totals};
use crate::score::bootstrap::Intervals;
use crate::score::ledger::{Ledger, ReadRow};
use crate::score::parse::{Parsed, Score, parse};
use crate::score::rows::{JudgedRow, QuestionId, read_rows_of};
use crate::score::verdict::{Verdict, conclude};

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
    /// Over the first row of each question whose verdict is one score from 1 to 10.
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
    /// The dimensions as the released parser reads them.
    pub rating: Map<String, Value>,
    /// The score as the released parser reads it.
    pub score: Score,
    /// The verdict of the strict parser.
    pub verdict: Verdict,
    /// Whether the row is inside the strict totals.
    pub counted: bool,
}

/// The questions that judgments belong to.
#[derive(Debug, Clone)]
pub struct Expected {
    /// In the order of their file.
    pub ids: Vec<QuestionId>,
    /// Their categories: `show_result.py` takes them from here, not from the rows.
    pub categories: HashMap<QuestionId, String>,
    /// Where they come from.
    pub from: &'static str,
}

impl Expected {
    /// The questions that were asked, where the answers lie beside their judgments: those that `--limit` left
    /// out are not missing.
    ///
    /// # Errors
    /// A file of answers that cannot be read.
    pub fn beside(judgments: &Path) -> anyhow::Result<Option<Self>> {
        let path = judgments.with_file_name("answers.jsonl");
        if judgments.file_name().is_none_or(|name| name != "judgments.jsonl") || !path.is_file() {
            return Ok(None);
        }
        let (mut ids, mut categories) = (Vec::new(), HashMap::new());
        for row in read_rows_of::<AskedRow>(&path)? {
            ids.push(row.question_id.clone());
            categories.insert(row.question_id, row.category);
        }
        Ok(Some(Self { ids, categories, from: "the answers" }))
    }
}

#[derive(Deserialize)]
struct AskedRow {
    question_id: QuestionId,
    category: String,
}

/// How judgments are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reader<'a> {
    /// The questions, where they are known.
    pub expected: Option<&'a Expected>,
    /// The score is the first group of this pattern's last match; it goes before the pattern in a row.
    pub pattern: Option<&'a Regex>,
}

/// Scores judgments.
///
/// # Errors
/// A pattern in a row that is not a regular expression.
pub fn score(rows: &[JudgedRow], reader: Reader<'_>) -> anyhow::Result<Scores> {
    let again: HashMap<&QuestionId, usize> = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| row.is_again())
        .map(|(i, row)| (&row.question_id, i))
        .collect();
    let parsed: Vec<Parsed> = rows.iter().map(|row| parse(&row.judgment)).collect();
    let mut patterns: HashMap<&str, Regex> = HashMap::new();
    let mut conclusions = Vec::with_capacity(rows.len());
    for row in rows {
        let own = row.text("score_pattern");
        if !own.is_empty() && !patterns.contains_key(own) {
            patterns.insert(own, score_pattern(own)?);
        }
        conclusions.push(conclude(&row.judgment, reader.pattern.or(patterns.get(own))));
    }
    let read: Vec<ReadRow<'_>> = (0..rows.len())
        .map(|i| ReadRow {
            row: &rows[i],
            released: &parsed[i],
            verdict: if rows[i].is_refused() { Verdict::Missing } else { conclusions[i].verdict },
            replaced: again.get(&rows[i].question_id).is_some_and(|&last| i < last),
        })
        .collect();
    let ledger = Ledger::new(&read, reader.expected);
    let of_question = |i: usize| {
        let known = reader.expected.and_then(|expected| expected.categories.get(&rows[i].question_id));
        known.map_or(rows[i].category.as_str(), String::as_str)
    };
    let released: Vec<Reading<'_>> = (0..rows.len())
        .filter(|&i| !read[i].replaced && !rows[i].is_refused())
        .map(|i| Reading {
            category: of_question(i),
            score: parsed[i].score.released(),
            rating: &parsed[i].rating,
        })
        .collect();
    let mut seen = HashSet::new();
    let mut counted: Vec<usize> = (0..rows.len())
        .filter(|&i| {
            !read[i].replaced && read[i].verdict.score().is_some() && seen.insert(&rows[i].question_id)
        })
        .collect();
    // draws go by position: rows stand in the order of their questions, not of their arrival
    counted.sort_by(|&a, &b| rows[a].question_id.cmp(&rows[b].question_id));
    let strict: Vec<Reading<'_>> = counted
        .iter()
        .filter_map(|&i| {
            let score = read[i].verdict.score()?;
            Some(Reading { category: &rows[i].category, score, rating: &conclusions[i].rating })
        })
        .collect();
    let (released_totals, strict_totals) =
        (Totals::new(&released, Rules::Released), Totals::new(&strict, Rules::Strict));
    let intervals = BothIntervals {
        released: bootstrap::intervals(&released, Rules::Released, RESAMPLES, SEED),
        strict: bootstrap::intervals(&strict, Rules::Strict, RESAMPLES, SEED),
    };
    let counted: HashSet<usize> = counted.into_iter().collect();
    let verdicts: Vec<Verdict> = read.iter().map(|read| read.verdict).collect();
    let row_scores = rows.iter().zip(parsed).enumerate().map(|(i, (row, parsed))| RowScore {
        question_id: row.question_id.clone(),
        rating: parsed.rating,
        score: parsed.score,
        verdict: verdicts[i],
        counted: counted.contains(&i),
    });
    Ok(Scores {
        released: released_totals,
        strict: strict_totals,
        ledger,
        intervals,
        rows: row_scores.collect(),
    })
}

/// A pattern for scores: a regular expression whose first group is the number.
///
/// # Errors
/// When it is no regular expression or has no group.
pub fn score_pattern(text: &str) -> anyhow::Result<Regex> {
    let pattern = Regex::new(text).with_context(|| format!("the score pattern {text:?}"))?;
    ensure!(pattern.captures_len() > 1, "the score pattern {text:?} has no group: put the number in (…)");
    Ok(pattern)
}
