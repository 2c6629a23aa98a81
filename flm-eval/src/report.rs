//! Results as a page, as Markdown and as JSON.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::provenance::{Identity, version};
use crate::score::aggregate::Ratios;
use crate::score::compare::Comparison;
use crate::score::rows::{JudgedRow, QuestionId, read_rows};
use crate::score::{Expected, Reader, Scores, score};

use crate::published::{PUBLISHED, Published};

/// The judgments of one model.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// Name in tables and legends.
    pub label: String,
    /// What was judged, by whom and how.
    pub identity: Identity,
    /// Its scores.
    pub scores: Scores,
    /// Strict totals divided by the baseline's, both over the questions that both have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratios>,
    /// The whole comparison with the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// The judgments themselves.
    #[serde(skip)]
    pub rows: Vec<JudgedRow>,
}

/// What a report shows.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of flm.
    pub flm: String,
    /// The models, in the order of the command line.
    pub series: Vec<Series>,
    /// Label of the series that ratios are to.
    pub baseline: Option<String>,
    /// What keeps the series from being compared; only with --allow-different.
    pub differences: Vec<String>,
    /// The model card's rows, for orientation: another judge's.
    pub published: &'static [Published],
}

/// Finds the judgments of a result: a file, a directory with `judgments.jsonl`, or one whose
/// subdirectories have some.
pub fn find(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let own = path.join("judgments.jsonl");
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    if own.is_file() {
        return Ok(vec![own]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry?.path().join("judgments.jsonl");
        if file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "{}: no judgments.jsonl in it or one level below", path.display());
    Ok(found)
}

impl Report {
    /// Reads and scores judgments; `baseline` comes first and the others are divided by it.
    pub fn read(files: &[PathBuf], baseline: Option<&Path>, allow_different: bool) -> anyhow::Result<Self> {
        let mut series: Vec<Series> = Vec::new();
        for path in baseline.into_iter().chain(files.iter().map(PathBuf::as_path)) {
            let rows = read_rows(path)?;
            let identity =
                Identity::of(&rows, allow_different).with_context(|| path.display().to_string())?;
            let asked = Expected::beside(path)?;
            let folder = path
                .canonicalize()
                .ok()
                .and_then(|p| Some(p.parent()?.file_name()?.to_string_lossy().into_owned()));
            let folder = folder.unwrap_or_else(|| path.display().to_string());
            let mut label = identity.model.clone().unwrap_or_else(|| folder.clone());
            if series.iter().any(|other| other.label == label) {
                label = format!("{label}, {folder}");
            }
            let scores = score(&rows, Reader { expected: asked.as_ref(), pattern: None })?;
            series.push(Series { label, identity, scores, ratio: None, comparison: None, rows });
        }
        let (first, others) = series.split_first_mut().context("no judgments")?;
        let mut differences = Vec::new();
        for other in others.iter_mut() {
            if let Err(error) = first.identity.check_comparable(&other.identity) {
                let error = error.context(format!("{} and {}", first.label, other.label));
                ensure!(allow_different, "{error:#}");
                differences.push(format!("{error:#}"));
            }
            if baseline.is_some() {
                let comparison = Comparison::new(&other.rows, &other.scores, &first.scores);
                other.ratio = Some(comparison.ratio.clone());
                other.comparison = Some(comparison);
            }
        }
        let baseline = baseline.map(|_| series[0].label.clone());
        Ok(Self { flm: version(), series, baseline, differences, published: &PUBLISHED })
    }

    /// All categories, in the order of the tables.
    pub fn categories(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        let known = crate::score::REASONING.into_iter().chain(crate::score::LANGUAGE);
        let present = |name: &str| self.series.iter().any(|s| s.scores.released.category(name).is_some());
        names.extend(known.filter(|name| present(name)));
        for series in &self.series {
            for name in series.scores.released.categories.keys() {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// Every question with each series' counted or first row, by question id.
    pub fn questions(&self) -> BTreeMap<&QuestionId, Vec<Option<usize>>> {
        let mut questions: BTreeMap<&QuestionId, Vec<Option<usize>>> = BTreeMap::new();
        for (s, series) in self.series.iter().enumerate() {
            for (r, row) in series.rows.iter().enumerate() {
                let slots =
                    questions.entry(&row.question_id).or_insert_with(|| vec![None; self.series.len()]);
                // the row that is counted, else the first
                if slots[s].is_none() || series.scores.rows[r].counted {
                    slots[s] = Some(r);
                }
            }
        }
        questions
    }
}

/// The English name of a category or dimension of AlignBench.
pub fn gloss(name: &str) -> &'static str {
    match name {
        "数学计算" => "Mathematics",
        "逻辑推理" => "Reasoning",
        "基本任务" => "Fundamental language",
        "中文理解" => "Chinese understanding",
        "综合问答" => "Open questions",
        "文本写作" => "Writing",
        "角色扮演" => "Role play",
        "专业能力" => "Professional knowledge",
        "事实正确性" => "Factual correctness",
        "满足用户需求" => "Meets the user's need",
        "清晰度" => "Clarity",
        "完备性" => "Completeness",
        "逻辑连贯性" => "Logical coherence",
        "创造性" => "Creativity",
        "丰富度" => "Richness",
        "公平与可负责程度" => "Fairness and responsibility",
        "综合得分" => "Overall score",
        _ => "",
    }
}
