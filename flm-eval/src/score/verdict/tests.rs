//! What a careful reader takes from judgments.

use serde_json::json;

use super::*;

#[test]
fn verdicts_are_those_that_a_careful_reader_took() {
    let labelled = include_str!("../../../../tests/fixtures/alignbench/verdicts.jsonl");
    let mut wrong = Vec::new();
    for line in labelled.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let found = match conclude(row["judgment"].as_str().unwrap(), None).verdict {
            Verdict::Scored(score) => json!(score),
            Verdict::Ambiguous => json!("ambiguous"),
            Verdict::OutOfRange(_) | Verdict::Missing => Value::Null,
        };
        if found != row["verdict"] && found.as_f64() != row["verdict"].as_f64().or(Some(f64::NAN)) {
            wrong.push(format!("{}: {} is {found}, not {}", row["form"], row["judgment"], row["verdict"]));
        }
    }
    assert_eq!(labelled.lines().count(), 275);
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
