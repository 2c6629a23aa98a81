//! The verdict of a judgment as a careful reader takes it.
//!
//! The released parser (`parse`) is kept as it is, for tables that compare with published ones. This one reads
//! what the judge concluded: nothing of its thinking, the dict that stands by itself rather than one that is
//! quoted in a sentence, JSON or Python in one line or several, half or full width, decimals, `n/10`, `[[n]]`,
//! `\boxed{n}`, a heading with the number below it. Where nothing names the overall score, a last line that is one
//! (`Score: n`) counts if it is the only one.
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
const NAMES: [&str; 28] = [
    OVERALL,
    "綜合得分",
    "综合评分",
    "综合分数",
    "最终得分",
    "最终评分",
    "最终分数",
    "最后得分",
    "最后评分",
    "总体评分",
    "总体得分",
    "整体评分",
    "整体得分",
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
    "final rating",
    "final grade",
    "total score",
];

/// Names of a score of anything: of the answer only where nothing else has one.
const SCORES: [&str; 6] = ["得分", "评分", "分数", "打分", "score", "rating"];

/// Words between a name and its number.
const JOINTS: [&str; 7] = ["如下", "应为", "应该是", "为", "是", "is ", "of "];

/// What TeX puts around a number.
const BOXED: &str = "\\boxed{";

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
        None if strongest.is_none() => text.last_line(),
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
            let value = self.value_after(after).or_else(|| self.value_below(index, after));
            if let Some((value, end)) = value.filter(|_| !inside_word) {
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
            None if begins_line(before) => Claim::Line,
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

    /// The verdict of a text in which nothing names the overall score: that of its last line, which is a score and
    /// nothing else, if no other line is one.
    fn last_line(&self) -> Verdict {
        let lines: Vec<(f64, usize)> = (0..self.chars.len())
            .filter(|&index| index == 0 || self.chars[index - 1] == '\n')
            .filter_map(|index| self.score_of_line(index))
            .collect();
        let ends_text = |end: usize| {
            let rest: String = self.chars.get(end..).unwrap_or_default().iter().collect();
            !rest.trim_end().contains('\n')
        };
        match lines[..] {
            [] => Verdict::Missing,
            [(value, end)] if ends_text(end) => Verdict::of(value),
            [(first, _), ..] if lines.iter().any(|(value, _)| *value != first) => Verdict::Ambiguous,
            _ => Verdict::Missing,
        }
    }

    /// The score that a line begins with, and its end: one that has the name of a score, one in a box of TeX; where the line is
    /// the whole text, a number too.
    fn score_of_line(&self, line: usize) -> Option<(f64, usize)> {
        let start = self.skip(line, |c| c != '\n' && begins_line(&[c]) && !c.is_ascii_digit());
        if let Some(name) = SCORES.iter().find(|name| self.starts_with(start, name)) {
            let after = start + name.chars().count();
            let (value, end) = self.value_after(after).or_else(|| self.value_below(start, after))?;
            let of_other = self.is_scale(end, value);
            return (!of_other).then_some((value, end));
        }
        let mut start = start;
        while !self.starts_with(start, BOXED) && self.at(start).is_some_and(|c| "$\\[( ".contains(c)) {
            start += 1;
        }
        let alone = self.chars[..line].iter().all(|c| c.is_whitespace());
        if !self.starts_with(start, BOXED) && !alone {
            return None;
        }
        let (value, end) = self.number(self.opened(start))?;
        self.ends_line(self.of_ten(end)?, alone && !self.starts_with(start, BOXED)).then_some((value, end))
    }

    /// Whether nothing but marks, and a remark in brackets, stands between `index` and the end of the line; with
    /// `text`, of the text.
    fn ends_line(&self, index: usize, text: bool) -> bool {
        let mark = |c: char| c.is_whitespace() && (text || c != '\n') || "*_`$}]|。.,;\\".contains(c);
        let mut end = self.skip(index, mark);
        if self.at(end) == Some('(') {
            end = self.skip(self.skip(end, |c| c != ')' && c != '\n') + 1, mark);
        }
        self.at(end).is_none_or(|c| c == '\n' && !text)
    }

    /// The number that stands below a heading which is the name at `start..after`, or behind it at the end of its
    /// line, with nothing between them.
    fn value_below(&self, start: usize, after: usize) -> Option<(f64, usize)> {
        let line_start =
            self.chars[..start].iter().rposition(|&c| c == '\n').map_or(0, |newline| newline + 1);
        let (index, _) = self.name_end(after);
        let (value, end) = self.number(self.opened(index))?;
        let end = self.of_ten(end)?;
        (begins_line(&self.chars[line_start..start]) && self.ends_line(end, false)).then_some((value, end))
    }

    /// The index behind a name that ends at `index` and what closes it, and whether a bracket does.
    fn name_end(&self, index: usize) -> (usize, bool) {
        let closing = |c: char| c == ' ' || c == '\t' || c == '*' || c == '_' || is_quote(c);
        let mut index = self.skip(index, closing);
        // 综合得分（1-10）
        if self.at(index) == Some('(') {
            index = self.skip(index, |c| c != ')' && c != '\n') + 1;
            index = self.skip(index, closing);
        }
        let bracket = self.at(index) == Some('】');
        (self.skip(index + usize::from(bracket), closing), bracket)
    }

    /// The index behind what joins a name to its number, where anything does.
    fn joint(&self, index: usize, bracket: bool) -> Option<usize> {
        let word = JOINTS.iter().find(|word| self.starts_with(index, word));
        let behind = index + word.map_or(0, |word| word.chars().count());
        let mark = self.skip(behind, |c| c == ' ');
        match self.at(mark) {
            Some(':' | '=' | '|' | '→') => Some(mark + 1),
            Some('—') => Some(self.skip(mark, |c| c == '—')),
            // <score>8</score>
            Some('>') if self.starts_with(self.skip(mark, |c| c != '<' && c != '\n'), "</") => Some(mark + 1),
            _ if word.is_some() || bracket => Some(behind),
            _ => None,
        }
    }

    /// The index behind what opens a number.
    fn opened(&self, index: usize) -> usize {
        let opening = |c: char| c.is_whitespace() || "*_`[$".contains(c) || is_quote(c);
        let index = self.skip(index, opening);
        if self.starts_with(index, BOXED) { self.skip(index + BOXED.len(), opening) } else { index }
    }

    /// The number that belongs to a name which ends at `index`, and its end.
    fn value_after(&self, index: usize) -> Option<(f64, usize)> {
        let (index, bracket) = self.name_end(index);
        let mut index = self.joint(index, bracket)?;
        let opening = |c: char| c.is_whitespace() || "*_`[".contains(c) || is_quote(c);
        let number = self.opened(index);
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
        let mark = |c: char| c == ' ' || c == '*' || c == '_';
        let slash = self.skip(end, mark);
        let of = ["/", "out of "].iter().find(|of| self.starts_with(slash, of));
        let Some(of) = of.filter(|_| !self.starts_with(slash, "//")) else { return Some(end) };
        let Some((denominator, end)) = self.number(self.skip(slash + of.len(), mark)) else {
            return (*of != "/").then_some(end);
        };
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

/// Whether a name behind these characters stands at the beginning of its line.
fn begins_line(before: &[char]) -> bool {
    before.iter().all(|&c| c.is_whitespace() || c.is_ascii_digit() || "*#-><.`|_【[\"'".contains(c))
}

fn is_quote(c: char) -> bool {
    "'\"‘’“”「」『』`".contains(c)
}

/// An integer where the value is one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && (0.0..1e15).contains(&value) { (value as u64).into() } else { value.into() }
}

#[cfg(test)]
mod tests;
