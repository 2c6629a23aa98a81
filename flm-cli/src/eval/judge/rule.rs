use std::collections::HashMap;

use super::{Case, Judge, Prompt, Sink, Verdict};

/// A judge without a model, for tests and demonstrations: how many character pairs an answer shares
/// with the reference. It knows nothing of truth, and its scores compare with no other judge's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuleJudge;

impl Judge for RuleJudge {
    fn id(&self) -> String {
        "rule: character overlap with the reference (not comparable with any other judge)".into()
    }

    fn prompt(&self) -> Option<&Prompt> {
        None
    }

    fn judge(&self, cases: &[Case], sink: &mut Sink<'_>) -> anyhow::Result<()> {
        for (index, case) in cases.iter().enumerate() {
            let verdict = if case.reference.trim().is_empty() {
                Err("there is no reference to compare with".to_owned())
            } else {
                let overlap = overlap(&case.answer, &case.reference);
                let score = 1 + (9.0 * overlap).round() as u8;
                let judgment =
                    format!("与参考答案的字对重合度（F1）为 {overlap:.3}。\n{{'综合得分': {score}}}");
                Ok(Verdict { judgment, reported_model: None })
            };
            sink(index, verdict)?;
        }
        Ok(())
    }
}

/// F1 of the character pairs of two texts, 0 to 1; only letters and digits count.
fn overlap(a: &str, b: &str) -> f64 {
    let letters = |text: &str| -> Vec<char> {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let (a, b) = (letters(a), letters(b));
    // a text of one character has no pairs
    let size = if a.len().min(b.len()) < 2 { 1 } else { 2 };
    let (pairs_a, pairs_b) = (a.windows(size).count(), b.windows(size).count());
    let mut left: HashMap<&[char], usize> = HashMap::new();
    for pair in b.windows(size) {
        *left.entry(pair).or_default() += 1;
    }
    let mut shared = 0;
    for pair in a.windows(size) {
        if let Some(count) = left.get_mut(pair).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    if pairs_a + pairs_b == 0 { 0.0 } else { 2.0 * f64::from(shared) / (pairs_a + pairs_b) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_shared_pairs() {
        assert_eq!(overlap("床前明月光", "床前，明月光。"), 1.0);
        assert_eq!(overlap("ABC", "abc"), 1.0);
        // 甲乙 of 甲乙, 乙丙 against 甲乙, 乙丁
        assert_eq!(overlap("甲乙丙", "甲乙丁"), 0.5);
        // a pair said five times is shared once
        assert_eq!(overlap("哈哈哈哈哈哈", "哈哈"), 2.0 / 6.0);
        assert_eq!(overlap("", "甲"), 0.0);
        assert_eq!(overlap("？！", "……"), 0.0);
        assert_eq!(overlap("7", "7"), 1.0);
    }
}
