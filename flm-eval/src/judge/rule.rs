//! A judge without a model, for tests and demonstrations.

use std::collections::{HashMap, HashSet};

use crate::judge::prompt::Prompt;
use crate::judge::{Case, Judge, Sink, Verdict};

/// A judge without a model, for tests and demonstrations: how much of what an answer and the reference
/// say beyond the question is the same, pair by pair of characters. It knows nothing of truth, and its
/// scores compare with no other judge's.
#[derive(Debug, Clone, Copy)]
pub struct RuleJudge;

impl Judge for RuleJudge {
    fn id(&self) -> String {
        "rule: what is shared with the reference beyond the question (not comparable with any other judge)"
            .into()
    }

    fn prompt(&self) -> Option<&Prompt> {
        None
    }

    fn judge(&self, cases: &[Case], _proved: bool, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        for (index, case) in cases.iter().enumerate() {
            let verdict = if case.reference.trim().is_empty() {
                Err("there is no reference to compare with".to_owned())
            } else {
                let overlap = overlap(&case.question, &case.answer, &case.reference);
                let score = 1 + (9.0 * overlap).round() as u8;
                let judgment = format!(
                    "除去题目已有的字词，与参考答案的字词对重合度（F1）为 {overlap:.3}。\n{{'综合得分': {score}}}"
                );
                Ok(Verdict::plain(judgment))
            };
            sink(index, verdict)?;
        }
        Ok(())
    }
}

/// F1 of the pairs of neighbouring units of two texts, 0 to 1. What an answer says beyond the reference
/// counts against it as much as what it leaves out.
///
/// Pairs of the question count for neither: to repeat it is no answer, and a wrong name in the
/// reference's sentence is no half-right one. Where the reference says nothing else, all pairs count.
fn overlap(question: &str, answer: &str, reference: &str) -> f64 {
    let (question, answer, reference) = (units(question), units(answer), units(reference));
    // a reference of one unit has no pairs
    let size = reference.len().min(2);
    if size == 0 {
        return 0.0;
    }
    let mut known: HashSet<&[String]> = question.windows(size).collect();
    if reference.windows(size).all(|pair| known.contains(pair)) {
        known.clear();
    }
    let pairs = |text| pairs_beyond(text, size, &known);
    let (answer, reference) = (pairs(&answer), pairs(&reference));
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for &pair in &reference {
        *left.entry(pair).or_default() += 1;
    }
    let mut shared = 0;
    for &pair in &answer {
        if let Some(count) = left.get_mut(pair).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    2.0 * f64::from(shared) / (answer.len() + reference.len()) as f64
}

/// The runs of `size` neighbouring units that are not `known`.
fn pairs_beyond<'t>(text: &'t [String], size: usize, known: &HashSet<&[String]>) -> Vec<&'t [String]> {
    text.windows(size).filter(|pair| !known.contains(*pair)).collect()
}

/// A text's units: every Chinese character or kana, and every word or number of other letters, so that
/// 17 is not half of 7. Case, width and punctuation make no difference.
fn units(text: &str) -> Vec<String> {
    let mut units = Vec::<String>::new();
    let mut word = false;
    for c in text.chars().map(half_width) {
        let alone = is_ideograph(c);
        if alone || (c.is_alphanumeric() && !word) {
            units.push(String::new());
        }
        word = c.is_alphanumeric() && !alone;
        if let Some(unit) = units.last_mut().filter(|_| alone || word) {
            unit.extend(c.to_lowercase());
        }
    }
    units
}

/// Ｆ and ７ as F and 7.
fn half_width(c: char) -> char {
    match c {
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(c as u32 - 0xFEE0).unwrap_or(c),
        c => c,
    }
}

/// A character that is a unit by itself: Han, hiragana, katakana.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3005}'..='\u{3007}' | '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}'
        | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_shared_pairs() {
        assert_eq!(overlap("", "床前明月光", "床前，明月光。"), 1.0);
        assert_eq!(overlap("", "ＡＢＣ ７", "abc 7"), 1.0);
        // 甲乙 of 甲乙, 乙丙 against 甲乙, 乙丁
        assert_eq!(overlap("", "甲乙丙", "甲乙丁"), 0.5);
        // a pair said five times is shared once
        assert_eq!(overlap("", "哈哈哈哈哈哈", "哈哈"), 2.0 / 6.0);
        assert_eq!(overlap("", "", "甲"), 0.0);
        assert_eq!(overlap("", "？！", "……"), 0.0);
        assert_eq!(overlap("", "7", "7"), 1.0);
    }

    #[test]
    fn units_are_characters_and_words() {
        assert_eq!(units("用Rust写了17行代码。"), ["用", "rust", "写", "了", "17", "行", "代", "码"]);
        assert_eq!(units("3.14, co-op"), ["3", "14", "co", "op"]);
        assert_eq!(units("カナ한국 々"), ["カ", "ナ", "한국", "々"]);
        // another number shares nothing, nor does one of two characters
        assert_eq!(overlap("", "答案是17", "7"), 0.0);
        assert_eq!(overlap("", "李", "李白"), 0.0);
    }

    fn score(question: &str, answer: &str, reference: &str) -> u64 {
        let case = Case {
            question_id: 1.into(),
            category: String::new(),
            subcategory: String::new(),
            kind: String::new(),
            dimensions: Vec::new(),
            question: question.into(),
            reference: reference.into(),
            answer: answer.into(),
        };
        let mut score = None;
        let mut sink = |_, verdict: Result<Verdict, String>| {
            score = crate::score::parse::parse(&verdict.unwrap().judgment).score.strict();
            Ok(())
        };
        RuleJudge.judge(&[case], false, &mut sink).unwrap();
        score.unwrap() as u64
    }

    #[test]
    fn short_answers_score_by_what_they_share_and_rambling_does_not_pay() {
        let score = |answer: &str, reference: &str| score("", answer, reference);
        let reference = "春眠不觉晓，处处闻啼鸟。";
        assert_eq!(score(reference, reference), 10);
        for nothing in ["", " \n", "。。。", "晓", "不知道。", "的是了在有和人这中大"] {
            assert_eq!(score(nothing, reference), 1, "{nothing}");
        }
        // half of it; all of it in a sentence; with two characters wrong
        assert_eq!(score("春眠不觉晓", reference), 7);
        assert_eq!(score("这首诗是：春眠不觉晓，处处闻啼鸟。", reference), 8);
        assert_eq!(score("春眠不觉晓，处处闻花香。", reference), 8);
        // its characters in another order
        assert_eq!(score("鸟啼闻处处晓觉不眠春", reference), 2);
        // the right answer in ever more words, or again and again
        let rambling =
            "子曰学而时习之不亦说乎有朋自远方来不亦乐乎人不知而不愠不亦君子乎其为人也孝弟而好犯上者鲜矣";
        let mut last = 10;
        for words in [8, 16, 32, 90] {
            let longer: String = rambling.chars().cycle().take(words).collect();
            let now = score(&format!("{reference}{longer}"), reference);
            assert!(now < last, "{words} characters more: {now}, before {last}");
            last = now;
        }
        assert!(last <= 3, "{last}");
        assert!(score(&reference.repeat(4), reference) <= 5);
        assert_eq!(score(&rambling.repeat(10), reference), 1);
        assert_eq!((score("李白", "李白"), score("这首诗的作者是李白。", "李白")), (10, 3));
    }

    #[test]
    fn the_question_said_again_is_no_answer() {
        let question = "《早发白帝城》的作者是谁？";
        let reference = "《早发白帝城》的作者是李白。";
        for (answer, expected) in [
            (reference, 10),
            ("作者是李白", 10),
            ("李白。", 7),
            ("《早发白帝城》的作者是杜甫。", 1),
            (question, 1),
            ("早发白帝城早发白帝城早发白帝城", 1),
            ("《早发白帝城》的作者是李白，不是杜甫，也不是王维。", 4),
        ] {
            assert_eq!(score(question, answer, reference), expected, "{answer}");
        }
        assert_eq!(score("七加五等于几？", "七加五等于十二。", "七加五等于十二。"), 10);
        assert_eq!(score("七加五等于几？", "七加五等于十。", "七加五等于十二。"), 7);
        assert_eq!(score("七加五等于几？", "三加三等于八。", "七加五等于十二。"), 1);
        // the reference is in the question: there, nothing else can be compared
        let question = "找出地名：昨天他去了上海。";
        assert_eq!((score(question, "上海", "上海"), score(question, "昨天", "上海")), (10, 1));
        assert!(score(question, question, "上海") <= 3);
    }
}
