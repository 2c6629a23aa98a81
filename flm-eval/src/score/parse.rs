//! What a judge's text says, read exactly as AlignBench's released script reads it.
//!
//! The script (THUDM/AlignBench, `judge.py`) looks for the last dict in braces and, failing that, for
//! the overall score anywhere. Its regular expressions have consequences that a careful reader would
//! not choose; published scores contain them, so they are kept: see the table in the tests.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::score::digits::leading_digits;

/// The key of the overall score.
pub const OVERALL: &str = "综合得分";

/// The overall score of one judgment, and where it was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// In the last dict.
    Parsed(u64),
    /// Not in the last dict, but somewhere in the text.
    Fallback(f64),
    /// Nowhere.
    Failed,
}

impl Score {
    /// The number that the released script aggregates: −1 where there is none.
    pub fn released(self) -> f64 {
        match self {
            Self::Parsed(score) => score as f64,
            Self::Fallback(score) => score,
            Self::Failed => -1.0,
        }
    }

    /// The number if there is one and it is on the scale of 1 to 10.
    pub fn strict(self) -> Option<f64> {
        Some(self.released()).filter(|score| (1.0..=10.0).contains(score))
    }
}

impl Serialize for Score {
    /// As the released script writes it: an integer from a dict, a float from the text, −1.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Parsed(score) => serializer.serialize_u64(score),
            Self::Fallback(score) => serializer.serialize_f64(score),
            Self::Failed => serializer.serialize_i64(-1),
        }
    }
}

/// What a judgment says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parsed {
    /// The last dict: names to integers, in the order of their first mention.
    pub rating: Map<String, Value>,
    /// The overall score.
    pub score: Score,
}

/// Reads a judgment as the released script does.
pub(crate) fn parse(judgment: &str) -> Parsed {
    let rating = last_braces(judgment).map(pairs).unwrap_or_default();
    let score = match rating.get(OVERALL) {
        Some(number) => number
            .as_u64()
            .map_or_else(|| Score::Fallback(number.as_f64().unwrap_or_default()), Score::Parsed),
        None => overall_anywhere(judgment).map_or(Score::Failed, Score::Fallback),
    };
    Parsed { rating, score }
}

/// What the expression `{(.*?)}(?![^{]*{)` captures: it ends at a brace that no `{` follows anywhere,
/// and begins at the first `{` of the same line.
fn last_braces(text: &str) -> Option<&str> {
    let last_open = text.rfind('{')?;
    let line_start = text[..last_open].rfind('\n').map_or(0, |newline| newline + 1);
    let open = line_start + text[line_start..].find('{')?;
    let rest = &text[last_open..];
    let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
    Some(&text[open + 1..last_open + line.find('}')?])
}

/// All matches of `'(.*?)': (\d+)`; a later value of a name replaces an earlier one.
fn pairs(text: &str) -> Map<String, Value> {
    let mut found = Map::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('\'') {
        let value = after.match_indices("': ").find_map(|(end, mark)| {
            let (digits, bytes) = leading_digits(&after[end + mark.len()..], usize::MAX);
            (bytes > 0).then(|| (end, digits, end + mark.len() + bytes))
        });
        let Some((end, digits, next)) = value else { break };
        found.insert(after[..end].to_owned(), integer(&digits));
        rest = &after[next..];
    }
    found
}

/// A number as Python's `int` reads it; beyond 64 bits to the precision of a double, and never past its range.
fn integer(digits: &str) -> Value {
    match digits.parse::<u64>() {
        Ok(number) => number.into(),
        Err(_) => digits.parse::<f64>().unwrap_or(f64::MAX).min(f64::MAX).into(),
    }
}

/// The first match of `'综合得分': (\d+(\.\d{1,2})?)`.
fn overall_anywhere(text: &str) -> Option<f64> {
    let mark = format!("'{OVERALL}': ");
    text.match_indices(&mark).find_map(|(at, _)| {
        let number = &text[at + mark.len()..];
        let (whole, bytes) = leading_digits(number, usize::MAX);
        let decimals = number[bytes..].strip_prefix('.').map(|rest| leading_digits(rest, 2).0);
        let decimals = decimals.filter(|digits| !digits.is_empty()).unwrap_or_else(|| "0".into());
        (bytes > 0).then(|| format!("{whole}.{decimals}").parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Judge output, rating and score; every row was run against the released expressions in Python.
    #[test]
    fn quirks_of_the_released_parser_are_kept() {
        let table = [
            ("好。{'事实正确性': 7, '综合得分': 8}", json!({"事实正确性": 7, "综合得分": 8}), json!(8)),
            ("{\n'事实正确性': 7,\n'综合得分': 8\n}", json!({}), json!(8.0)),
            ("{'综合得分': 7.5}", json!({"综合得分": 7}), json!(7)),
            ("{\"综合得分\": 7}", json!({}), json!(-1)),
            ("{'综合得分':7}", json!({}), json!(-1)),
            ("{'综合得分': 7}\n即 \\frac{1}{2}", json!({}), json!(7.0)),
            ("{'综合得分': 7} 即 \\frac{1}{2}", json!({"综合得分": 7}), json!(7)),
            ("{'综合得分': 3} 改为 {'综合得分': 6}", json!({"综合得分": 6}), json!(6)),
            ("{'综合得分': 3}\n改为\n{'综合得分': 6}", json!({"综合得分": 6}), json!(6)),
            ("{{'清晰度': 4, '综合得分': 5}}", json!({"清晰度": 4, "综合得分": 5}), json!(5)),
            ("{'综合得分': '7'}", json!({}), json!(-1)),
            ("{'综合得分': 7/10}", json!({"综合得分": 7}), json!(7)),
            ("{'综合得分': ７}", json!({"综合得分": 7}), json!(7)),
            ("'综合得分': 7.555", json!({}), json!(7.55)),
            ("'综合得分': 7.", json!({}), json!(7.0)),
            ("{'综合得分': 77}", json!({"综合得分": 77}), json!(77)),
            ("{'综合得分': 99999999999999999999999}", json!({"综合得分": 1e23}), json!(1e23)),
            ("{'甲', '乙': 3}", json!({"甲', '乙": 3}), json!(-1)),
            ("{'': 3}", json!({"": 3}), json!(-1)),
            ("{ {'甲': 1}\n{ '综合得分': 2", json!({}), json!(2.0)),
            ("a} {'甲': 1, '综合得分': 2} b}", json!({"甲": 1, "综合得分": 2}), json!(2)),
            ("{'甲': 1 } \n }", json!({"甲": 1}), json!(-1)),
            ("抱歉", json!({}), json!(-1)),
            ("", json!({}), json!(-1)),
        ];
        for (text, rating, score) in table {
            let parsed = parse(text);
            assert_eq!(Value::Object(parsed.rating), rating, "{text}");
            assert_eq!(serde_json::to_value(parsed.score).unwrap(), score, "{text}");
        }
    }

    #[test]
    fn the_strict_score_is_on_the_scale() {
        let strict = |text: &str| parse(text).score.strict();
        assert_eq!(strict("{'综合得分': 10}"), Some(10.0));
        assert_eq!(strict("'综合得分': 1.25"), Some(1.25));
        for bad in ["{'综合得分': 0}", "{'综合得分': 11}", "'综合得分': 10.5", "抱歉"] {
            assert_eq!(strict(bad), None, "{bad}");
        }
    }
}
