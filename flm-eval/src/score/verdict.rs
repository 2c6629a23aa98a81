//! The verdict of a judgment as a careful reader takes it.
//!
//! The released parser (`parse`) is kept as it is, for tables that compare with published ones. This one reads
//! what the judge concluded: nothing of its thinking, the dict that stands by itself rather than one that is
//! quoted in a sentence, JSON or Python in one line or several, half or full width, decimals, `n/10`, `[[n]]`.
//! Where two different scores have the same claim, there is none: a guess would be counted as a score.

use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::score::parse::OVERALL;

/// What a judgment concludes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// One score from 1 to 10.
    Scored(f64),
    /// One score that is not on the scale.
    OutOfRange(f64),
    /// Different scores, none of which is the last word.
    Ambiguous,
    /// No score.
    Missing,
}

impl Verdict {
    /// The score that counts.
    pub fn score(self) -> Option<f64> {
        match self {
            Self::Scored(score) => Some(score),
            _ => None,
        }
    }

    fn of(value: f64) -> Self {
        if (1.0..=10.0).contains(&value) { Self::Scored(value) } else { Self::OutOfRange(value) }
    }
}

/// A verdict and the scores of the dimensions beside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conclusion {
    pub rating: Map<String, Value>,
    pub verdict: Verdict,
}

/// Names of the overall score, longer ones before those that they begin with.
const NAMES: [&str; 16] = [
    OVERALL,
    "綜合得分",
    "综合评分",
    "总得分",
    "总评分",
    "总分",
    "總得分",
    "總分",
    "overall score",
    "overall_score",
    "overall rating",
    "overall_rating",
    "overall",
    "final score",
    "final_score",
    "total score",
];

/// Names of a number inside an object that is the value of a name.
const INNER: [&str; 6] = ["score", "分数", "得分", "评分", "rating", "value"];

/// Words between two scores that make the second the last word.
const CORRECTIONS: [&str; 12] = [
    "修正",
    "改为",
    "更正",
    "修改",
    "复核",
    "重新",
    "最终",
    "最后",
    "revised",
    "corrected",
    "final",
    "instead",
];

/// Where a sentence ends.
const ENDS: &str = "。!?;\n";

/// Words of a clause that tells the reference's score, unless the answer is compared with it.
const REFERENCE: [&str; 5] = ["参考答案", "标准答案", "参考回答", "參考答案", "reference"];
const COMPARED: [&str; 9] = ["比", "根据", "按照", "对照", "参照", "than", "compar", "against", "based"];

/// What begins a score that is given, and names of what it is given to (or who gives it).
const GIVES: &str = "得评给打获";
const ANSWER: [&str; 5] = ["回答", "作答", "助手", "模型", "我"];

/// How much a score says for itself: what stands alone wins over what stands in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Prose,
    Line,
    Dict,
}

#[derive(Debug)]
struct Candidate {
    claim: Claim,
    start: usize,
    end: usize,
    value: f64,
    braces: Option<(usize, usize)>,
    of_reference: bool,
}

/// Reads the verdict; with `pattern`, it is the first group of the pattern's last match after the thinking.
pub(crate) fn conclude(judgment: &str, pattern: Option<&Regex>) -> Conclusion {
    let text = Text::new(after_thinking(judgment));
    let mut candidates = text.named();
    candidates.extend(text.in_double_brackets());
    candidates.sort_by_key(|candidate| candidate.start);
    let strongest = candidates.iter().map(|candidate| candidate.claim).max();
    candidates.retain(|candidate| Some(candidate.claim) == strongest);
    if candidates.iter().all(|candidate| candidate.of_reference) {
        candidates.clear();
    }
    let verdict = match pattern {
        Some(pattern) => by_pattern(after_thinking(judgment), pattern),
        None => text.decide(&candidates),
    };
    let braces = candidates.last().and_then(|candidate| candidate.braces);
    let rating = braces.map(|braces| text.pairs(braces)).filter(|pairs| !pairs.is_empty());
    let rating = rating.or_else(|| text.braces.iter().rev().map(|&b| text.pairs(b)).find(|p| !p.is_empty()));
    Conclusion { rating: rating.unwrap_or_default(), verdict }
}

fn by_pattern(text: &str, pattern: &Regex) -> Verdict {
    let value = pattern.captures_iter(text).last().and_then(|found| found.get(1));
    let value = value.and_then(|group| group.as_str().trim().parse::<f64>().ok());
    value.filter(|value| value.is_finite()).map_or(Verdict::Missing, Verdict::of)
}

/// What follows the judge's thinking: nothing, where the thinking has no end.
fn after_thinking(text: &str) -> &str {
    let lower = text.to_ascii_lowercase();
    let mut rest = 0;
    for tag in ["think", "thinking", "thought"] {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let end = lower.rfind(&close).map_or(0, |at| at + close.len());
        if lower[end..].contains(&open) {
            return "";
        }
        rest = rest.max(end);
    }
    &text[rest..]
}

/// A text as characters, full width ones as their half width forms.
struct Text {
    chars: Vec<char>,
    /// Pairs of braces, by their ends.
    braces: Vec<(usize, usize)>,
}

impl Text {
    fn new(text: &str) -> Self {
        let half = |c: char| match c {
            '\u{FF01}'..='\u{FF5E}' => char::from_u32(c as u32 - 0xFEE0).unwrap_or(c),
            '\u{3000}' => ' ',
            c => c,
        };
        let chars: Vec<char> = text.chars().map(half).collect();
        let (mut open, mut braces) = (Vec::new(), Vec::new());
        for (index, c) in chars.iter().enumerate() {
            match c {
                '{' => open.push(index),
                '}' => braces.extend(open.pop().map(|start| (start, index))),
                _ => {}
            }
        }
        Self { chars, braces }
    }

    fn at(&self, index: usize) -> Option<char> {
        self.chars.get(index).copied()
    }

    fn skip(&self, mut index: usize, which: impl Fn(char) -> bool) -> usize {
        while self.at(index).is_some_and(&which) {
            index += 1;
        }
        index
    }

    fn starts_with(&self, index: usize, word: &str) -> bool {
        word.chars()
            .enumerate()
            .all(|(k, c)| self.at(index + k).is_some_and(|at| at.eq_ignore_ascii_case(&c)))
    }

    /// Scores that a name of the overall score introduces.
    fn named(&self) -> Vec<Candidate> {
        let mut found = Vec::new();
        let mut index = 0;
        while index < self.chars.len() {
            let Some(name) = NAMES.iter().find(|name| self.starts_with(index, name)) else {
                index += 1;
                continue;
            };
            let after = index + name.chars().count();
            let inside_word = index > 0 && name.is_ascii() && self.chars[index - 1].is_ascii_alphanumeric();
            if let Some((value, end)) = self.value_after(after).filter(|_| !inside_word) {
                // quotation marks around the name alone open no quotation
                let marked =
                    index > 0 && is_quote(self.chars[index - 1]) && self.at(after).is_some_and(is_quote);
                found.extend(self.candidate(index - usize::from(marked), end, value));
            }
            index = after;
        }
        found
    }

    fn candidate(&self, start: usize, end: usize, value: f64) -> Option<Candidate> {
        let around = self.braces.iter().filter(|(open, close)| (*open..*close).contains(&start));
        let braces = around.min().copied();
        let from = braces.map_or(start, |(open, _)| open);
        let line_start = self.chars[..from].iter().rposition(|&c| c == '\n').map_or(0, |newline| newline + 1);
        let before = &self.chars[line_start..from];
        let quotations = before.iter().fold(0_i32, |depth, c| match c {
            '“' | '「' | '『' => depth + 1,
            '”' | '」' | '』' => (depth - 1).max(0),
            _ => depth,
        });
        if quotations > 0 {
            return None;
        }
        let claim = match braces {
            Some((_, close)) => {
                let last = before.iter().rfind(|c| !c.is_whitespace());
                let line = self.chars[close + 1..].iter().take_while(|&&c| c != '\n');
                let alone = last.is_none_or(|&c| ":。.,!;>*`-_[({=)]】|".contains(c))
                    && line.into_iter().all(|&c| c.is_whitespace() || "*`_)]}。.;,|".contains(c));
                if alone { Claim::Dict } else { Claim::Line }
            }
            None if before
                .iter()
                .all(|&c| c.is_whitespace() || c.is_ascii_digit() || "*#->.`|_【[\"'".contains(c)) =>
            {
                Claim::Line
            }
            None => Claim::Prose,
        };
        if braces.is_none() && self.is_scale(end, value) {
            return None;
        }
        let clause = self.clause(start);
        let has = |words: &[&str]| words.iter().any(|word| clause.contains(word));
        let of_reference = braces.is_none() && has(&REFERENCE) && !has(&COMPARED);
        let end = braces.map_or(end, |(_, close)| close + 1);
        Some(Candidate { claim, start: from, end, value, braces, of_reference })
    }

    /// What stands before `end` in its clause.
    fn clause(&self, end: usize) -> String {
        let border = self.chars[..end].iter().rposition(|&c| c == ',' || ENDS.contains(c));
        let clause = &self.chars[border.map_or(0, |at| at + 1)..end];
        clause.iter().collect::<String>().to_ascii_lowercase()
    }

    /// Whether a total is the scale: 10, and the sentence goes on with what the answer gets of it.
    fn is_scale(&self, end: usize, value: f64) -> bool {
        let gives = |index: usize| {
            let number = self.number(self.skip(index + 1, |c| " 了到出为:分*".contains(c)));
            let clause = self.clause(index);
            let has = |words: &[&str]| words.iter().any(|word| clause.contains(word));
            number.is_some_and(|(given, after)| {
                let ends = self.at(after).is_none_or(|c| c == ',' || ENDS.contains(c));
                given < 10.0
                    && (ends || self.of_ten(after) != Some(after))
                    && has(&ANSWER)
                    && !has(&REFERENCE)
            })
        };
        let sentence_end = self.skip(end, |c| !ENDS.contains(c));
        value == 10.0 && (end..sentence_end).any(|index| GIVES.contains(self.chars[index]) && gives(index))
    }

    /// Scores written `[[n]]`.
    fn in_double_brackets(&self) -> Vec<Candidate> {
        let blank = |c: char| c == ' ';
        let inside = |start: usize| {
            let (value, end) = self.number(self.skip(start + 2, blank))?;
            let end = self.skip(self.of_ten(end)?, blank);
            self.starts_with(end, "]]").then_some((value, end + 2))
        };
        let starts = (0..self.chars.len()).filter(|&index| self.starts_with(index, "[["));
        let found = starts.filter_map(|start| {
            let (value, end) = inside(start)?;
            Some(Candidate { claim: Claim::Line, start, end, value, braces: None, of_reference: false })
        });
        found.collect()
    }

    /// The number that belongs to a name which ends at `index`, and its end.
    fn value_after(&self, index: usize) -> Option<(f64, usize)> {
        let closing = |c: char| c == ' ' || c == '\t' || c == '*' || c == '_' || is_quote(c);
        let mut index = self.skip(index, closing);
        // 综合得分（1-10）
        if self.at(index) == Some('(') {
            index = self.skip(index, |c| c != ')' && c != '\n') + 1;
            index = self.skip(index, closing);
        }
        let bracket = self.at(index) == Some('】');
        index = self.skip(index + usize::from(bracket), closing);
        match self.at(index) {
            Some(':' | '=' | '为' | '是' | '|') => index += 1,
            _ if bracket => {}
            _ => return None,
        }
        let opening = |c: char| c.is_whitespace() || "*_`[".contains(c) || is_quote(c);
        let number = self.skip(index, opening);
        let next_line = self.chars[index..number].contains(&'\n');
        index = number;
        if self.at(index) == Some('{') {
            let name = self.skip(index + 1, |c| c.is_whitespace() || is_quote(c));
            let word = INNER.iter().find(|word| self.starts_with(name, word))?;
            let colon = self.skip(name + word.chars().count(), |c| c.is_whitespace() || is_quote(c));
            index = self.skip((self.at(colon) == Some(':')).then_some(colon + 1)?, opening);
        }
        let (value, end) = self.number(index)?;
        // 综合得分：, and in the next line 1. 事实正确性
        let item = next_line
            && self.at(end).is_some_and(|c| ".、)".contains(c))
            && self.at(end + 1).is_some_and(|c| c != '\n');
        let end = self.of_ten(end)?;
        let next = self.skip(end, |c| c == ' ');
        // 6-7, 6或7, 8 × 0.5 + 6 × 0.5, 8→6, 1e1, | 10 | 6 |: it goes on, or the next number may be the one
        let range = self.at(next).is_some_and(|c| "-~–—−到至或、+×*→^|eE".contains(c))
            && self.at(self.skip(next + 1, |c| c == ' ')).is_some_and(|c| c.is_ascii_digit());
        // 综合得分：1 分是最低: said of the scale, not of the answer
        let of_scale = ["是", "为", "中的", "表示", "代表"].iter().any(|word| self.starts_with(next, word));
        let count = self.at(next).is_some_and(|c| "个项条%".contains(c));
        (!range && !of_scale && !item && !count).then_some((value, end))
    }

    fn number(&self, start: usize) -> Option<(f64, usize)> {
        let digits = start + usize::from(self.at(start) == Some('-'));
        let digit = |c: char| c.is_ascii_digit();
        let mut end = self.skip(digits, digit);
        if end == digits {
            return None;
        }
        let decimals = self.skip(end + 1, digit);
        if self.at(end) == Some('.') && decimals > end + 1 {
            end = decimals;
        }
        Some((self.chars[start..end].iter().collect::<String>().parse().ok()?, end))
    }

    /// The end of what may follow a number: 分, and a denominator, which has to be 10.
    fn of_ten(&self, end: usize) -> Option<usize> {
        let unit = |index: usize| {
            let after = self.skip(index, |c| c == ' ' || c == '*' || c == '_' || c == ']');
            if self.at(after) == Some('分') { after + 1 } else { index }
        };
        let end = unit(end);
        let slash = self.skip(end, |c| c == ' ');
        if self.at(slash) != Some('/') {
            return Some(end);
        }
        let (denominator, end) = self.number(self.skip(slash + 1, |c| c == ' '))?;
        (denominator == 10.0).then(|| unit(end))
    }

    fn decide(&self, candidates: &[Candidate]) -> Verdict {
        let Some((last, earlier)) = candidates.split_last() else { return Verdict::Missing };
        let corrected = || {
            let previous = earlier.iter().map(|candidate| candidate.end).max().unwrap_or(0);
            let between = self.chars.get(previous..last.start).unwrap_or_default();
            let between = between.iter().collect::<String>().to_ascii_lowercase();
            CORRECTIONS.iter().any(|word| between.contains(word))
        };
        if earlier.iter().all(|candidate| candidate.value == last.value) || corrected() {
            Verdict::of(last.value)
        } else {
            Verdict::Ambiguous
        }
    }

    /// Quoted names with their numbers, between braces.
    fn pairs(&self, (open, close): (usize, usize)) -> Map<String, Value> {
        let mut found = Map::new();
        let mut index = open;
        while index < close {
            if !is_quote(self.chars[index]) {
                index += 1;
                continue;
            }
            let end = self.skip(index + 1, |c| !is_quote(c) && c != '\n');
            let name: String = self.chars[index + 1..end.min(close).max(index + 1)].iter().collect();
            match self.value_after(end).filter(|(_, end)| *end <= close && !name.is_empty()) {
                Some((value, end)) => {
                    found.insert(name, number(value));
                    index = end;
                    // a quoted number's closing mark opens no name
                    index += usize::from(self.at(index).is_some_and(is_quote));
                }
                None => index = end + 1,
            }
        }
        found
    }
}

fn is_quote(c: char) -> bool {
    "'\"‘’“”「」『』`".contains(c)
}

/// An integer where the value is one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && (0.0..1e15).contains(&value) { (value as u64).into() } else { value.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn verdicts_are_those_that_a_careful_reader_took() {
        let labelled = include_str!("../../../tests/fixtures/alignbench/verdicts-200.jsonl");
        let mut wrong = Vec::new();
        for line in labelled.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let found = match conclude(row["judgment"].as_str().unwrap(), None).verdict {
                Verdict::Scored(score) => json!(score),
                Verdict::Ambiguous => json!("ambiguous"),
                Verdict::OutOfRange(_) | Verdict::Missing => Value::Null,
            };
            if found != row["verdict"] && found.as_f64() != row["verdict"].as_f64().or(Some(f64::NAN)) {
                wrong
                    .push(format!("{}: {} is {found}, not {}", row["form"], row["judgment"], row["verdict"]));
            }
        }
        assert_eq!(labelled.lines().count(), 200);
        assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    }

    /// The first number is part of a sum, of a choice, of a table or of the scale: better no verdict than that one.
    #[test]
    fn a_number_that_goes_on_is_no_verdict() {
        for (text, right) in [
            ("综合得分：8 × 0.5 + 2 × 0.5 = 5", 5.0),
            ("综合得分：8 + 1 = 9", 9.0),
            ("综合得分：8→1", 1.0),
            ("综合得分：8或1", f64::NAN),
            ("综合得分 | 10 | 7", 7.0),
            ("综合得分：10分中的6分", 6.0),
            ("综合得分为10表示完美，本回答得4分", 4.0),
            ("{'综合得分': 1e1}", 10.0),
            ("综合得分：\n1. 事实正确 5\n2. 清晰 6", f64::NAN),
            ("综合得分：3个维度平均为6", 6.0),
        ] {
            let found = conclude(text, None).verdict;
            let right = matches!(found, Verdict::Scored(score) if score == right);
            assert!(right || !matches!(found, Verdict::Scored(_)), "{text}: {found:?}");
        }
        assert!(matches!(conclude("综合得分：8分", None).verdict, Verdict::Scored(score) if score == 8.0));
    }

    #[test]
    fn a_scale_and_a_references_score_are_no_verdict_on_the_answer() {
        for (text, right) in [
            ("总分为10分，本回答得9分", None),
            ("总分：10分，我给这个回答打了6分", None),
            ("总分为10分，本回答得9分。综合得分：9", Some(9.0)),
            ("综合得分为10，事实正确性得9分", Some(10.0)),
            ("综合得分为10分，参考答案得8分", Some(10.0)),
            ("综合得分为10分，助手的回答得10分", Some(10.0)),
            ("综合得分为10分，回答给出了3个例子", Some(10.0)),
            ("参考答案的综合得分为8分，回答较差。", None),
            ("参考答案的总分是8。\n综合得分：3", Some(3.0)),
            ("与参考答案相比，综合得分为6", Some(6.0)),
            ("相比参考答案综合得分为6", Some(6.0)),
        ] {
            assert_eq!(conclude(text, None).verdict.score(), right, "{text}");
        }
        assert_eq!(conclude("参考答案的总分为8，回答的总分为5", None).verdict, Verdict::Ambiguous);
    }

    #[test]
    fn dimensions_stand_beside_the_verdict() {
        let rating = |text: &str| Value::Object(conclude(text, None).rating);
        assert_eq!(
            rating("先 {'清晰度': 1}\n{\n \"清晰度\": 4.5, \"完备性\": \"6\",\n \"综合得分\": 5\n}"),
            json!({"清晰度": 4.5, "完备性": 6, "综合得分": 5})
        );
        assert_eq!(rating("{'清晰度': 4}\n总分：6"), json!({"清晰度": 4}));
        assert_eq!(rating("<think>{'清晰度': 4}</think>总分：6"), json!({}));
    }

    #[test]
    fn a_pattern_reads_its_last_match_after_the_thinking() {
        let pattern = Regex::new(r"GRADE=(\S+)").unwrap();
        let verdict = |text: &str| conclude(text, Some(&pattern)).verdict;
        assert_eq!(verdict("<think>GRADE=9</think>GRADE=3 GRADE=4.5"), Verdict::Scored(4.5));
        assert_eq!(verdict("{'综合得分': 5}"), Verdict::Missing);
        assert_eq!(verdict("GRADE=A"), Verdict::Missing);
        assert_eq!(verdict("GRADE=40"), Verdict::OutOfRange(40.0));
    }
}
