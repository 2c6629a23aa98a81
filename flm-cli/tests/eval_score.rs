//! `flm eval score` against tables and readings made by AlignBench's released scripts.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/alignbench").join(name)
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn score(arguments: &[&str]) -> (bool, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    let out = command.args(["eval", "score", "--json"]).args(arguments).output().unwrap();
    let json = serde_json::from_slice(&out.stdout).unwrap_or_default();
    (out.status.success(), json, String::from_utf8(out.stderr).unwrap())
}

fn same_number(a: &Value, b: &Value) -> bool {
    a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() <= 1e-12)
}

#[test]
fn the_released_table_is_reproduced() {
    for name in ["clean", "quirks"] {
        let judgments = format!("judgments-{name}.jsonl");
        let (ok, found, error) = score(&[fixture(&judgments).to_str().unwrap()]);
        assert!(ok, "{error}");
        let table: Value =
            serde_json::from_slice(&std::fs::read(fixture(&format!("table-{name}.json"))).unwrap()).unwrap();
        let released = &found["released"];
        let halves = [("中文推理", "reasoning"), ("中文语言", "language"), ("总分", "overall")];
        for (key, field) in halves {
            assert!(same_number(&table[key], &released[field]), "{key}");
        }
        let categories = released["categories"].as_object().unwrap();
        assert_eq!(categories.len(), 8);
        for (category, mean) in categories {
            assert!(same_number(&table[category], mean), "{category}");
        }
        let dimensions = released["dimensions"].as_object().unwrap();
        assert_eq!(dimensions.len(), table["dimensions"].as_object().unwrap().len());
        for (dimension, found) in dimensions {
            let expected = &table["dimensions"][dimension];
            assert!(same_number(&expected[0], &found[0]) && expected[1] == found[1], "{dimension}");
        }
        let ledger = &found["ledger"];
        assert_eq!(ledger["failed"], table["unparsable"]);
        assert_eq!(ledger["rows"], 683);
        assert_eq!((&ledger["duplicates"], &ledger["missing"]), (&Value::from([0; 0]), &Value::from([0; 0])));
    }
}

#[test]
fn every_row_is_read_as_the_released_parser_reads_it() {
    for name in ["judgments-clean.jsonl", "judgments-quirks.jsonl", "parser-fuzz.jsonl"] {
        let (ok, found, error) = score(&[fixture(name).to_str().unwrap()]);
        assert!(ok, "{error}");
        let expected = rows(name);
        assert_eq!(found["rows"].as_array().unwrap().len(), expected.len());
        for (found, expected) in found["rows"].as_array().unwrap().iter().zip(&expected) {
            // same numbers of the same type: 8 from a dict, 8.0 from the text, −1
            for field in ["question_id", "rating", "score"] {
                assert_eq!(found[field], expected[field], "{name}: {expected}");
            }
        }
    }
}

#[test]
fn the_strict_total_is_over_the_verdicts_on_the_scale() {
    let (_, found, _) = score(&[fixture("judgments-quirks.jsonl").to_str().unwrap()]);
    let (mut sum, mut count) = (0.0, 0);
    for (row, read) in rows("judgments-quirks.jsonl").iter().zip(found["rows"].as_array().unwrap()) {
        let verdict = read["verdict"]["scored"].as_f64();
        assert_eq!(read["counted"], Value::from(verdict.is_some()));
        // where the released parser finds an integer in the dict, both read the same
        if row["score"].is_u64() && row["score"].as_u64() <= Some(10) && row["form"] != "decimal" {
            assert_eq!(verdict, row["score"].as_f64(), "{row}");
        }
        if let Some(score) = verdict.filter(|_| row["category"] == "数学计算") {
            (sum, count) = (sum + score, count + 1);
        }
    }
    assert!(same_number(&(sum / f64::from(count)).into(), &found["strict"]["categories"]["数学计算"]));
    let ledger = &found["ledger"];
    let of = |name: &str| ledger[name].as_u64().unwrap();
    assert_eq!(of("parsed") + of("fallback") + of("failed"), 683);
    let off_scale =
        rows("judgments-quirks.jsonl").iter().filter(|r| r["score"].as_f64() > Some(10.0)).count();
    assert_eq!(of("out_of_range"), off_scale as u64);
    let verdicts = ledger["strict"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
    assert_eq!(verdicts.sum::<u64>(), 683);
    let overall = found["strict"]["overall"].as_f64().unwrap();
    let interval = &found["intervals"]["strict"]["overall"];
    assert!(interval[0].as_f64().unwrap() < overall && overall < interval[1].as_f64().unwrap());
}

/// Writes judgments of id, category and text.
fn judgments(path: &Path, rows: &[(u64, &str, String)]) -> String {
    let row = |(id, category, judgment): &(u64, &str, String)| {
        format!("{}\n", serde_json::json!({"question_id": id, "category": category, "judgment": judgment}))
    };
    std::fs::write(path, rows.iter().map(row).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

const CATEGORIES: [&str; 8] =
    ["数学计算", "逻辑推理", "基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"];

#[test]
fn a_baseline_is_compared_over_the_questions_that_both_have() {
    let dir = tempfile::tempdir().unwrap();
    let row = |id: u64| {
        (id, CATEGORIES[id as usize % 8], format!("{{'综合得分': {}}}", if id > 80 { 4 } else { 6 }))
    };
    let all: Vec<_> = (1..=160).map(row).collect();
    let after = judgments(&dir.path().join("after.jsonl"), &all);
    let before = judgments(&dir.path().join("before.jsonl"), &all[..80]);
    let (ok, found, warning) = score(&[&after, "--baseline", &before]);
    assert!(ok, "{warning}");
    let baseline = &found["baseline"];
    assert!(same_number(&baseline["ratio"]["overall"], &1.0.into()), "{baseline}");
    let comparison = &baseline["comparison"];
    assert_eq!(
        (&comparison["questions"], &comparison["only_here"], &comparison["ties"]),
        (&80.into(), &80.into(), &80.into())
    );
    assert_eq!(baseline["ledger"]["rows"], 80);
    assert!(
        warning.contains("80 questions that both have") && warning.contains("80 are only in"),
        "{warning}"
    );
    let other = judgments(&dir.path().join("other.jsonl"), &[(999, "数学计算", "{'综合得分': 6}".into())]);
    let (ok, _, error) = score(&[&after, "--baseline", &other]);
    assert!(!ok && error.contains("no scored question in common"), "{error}");
}

#[test]
fn the_released_table_follows_the_scripts_where_rows_are_odd() {
    let dir = tempfile::tempdir().unwrap();
    // dimension_calculate.py: `if line['score'] != -1`
    let row = |id: u64, text: &str| (id, CATEGORIES[id as usize % 8], text.to_owned());
    let dims = judgments(
        &dir.path().join("dims.jsonl"),
        &[
            row(1, "{'事实正确性': 8, '综合得分': 8}"),
            row(2, "{'事实正确性': 8, '综合得分': 8}"),
            row(3, "{'事实正确性': 2}"),
            row(4, "{'事实正确性': 2}"),
        ],
    );
    let (_, found, _) = score(&[&dims]);
    assert_eq!(found["released"]["dimensions"]["事实正确性"], serde_json::json!([8.0, 2]));
    // show_result.py divides by every category: without one there is no mean
    assert_eq!(found["released"]["overall"], Value::Null);
    // and takes the category from the question file
    let questions = dir.path().join("questions.jsonl");
    let question = |id: u64, category: &str| serde_json::json!({"question_id": id, "category": category, "question": "q"});
    std::fs::write(&questions, format!("{}\n{}\n", question(1, "基本任务"), question(2, "数学计算")))
        .unwrap();
    let two = [(1, "数学计算", "{'综合得分': 8}".into()), (2, "数学计算", "{'综合得分': 2}".into())];
    let two = judgments(&dir.path().join("two.jsonl"), &two);
    let (_, found, _) = score(&[&two, "--questions", questions.to_str().unwrap()]);
    assert_eq!(found["released"]["categories"], serde_json::json!({"数学计算": 2.0, "基本任务": 8.0}));
}

#[test]
fn readability_goes_before_the_order_of_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    let rows =
        [(1, "a", "抱歉".into()), (2, "a", "{'综合得分': 4}".into()), (1, "a", "{'综合得分': 8}".into())];
    let path = judgments(&dir.path().join("j.jsonl"), &rows);
    let (_, found, _) = score(&[&path]);
    assert!(same_number(&found["strict"]["categories"]["a"], &6.0.into()), "{found}");
    // categories of one's own have an overall score
    assert!(same_number(&found["strict"]["overall"], &6.0.into()), "{found}");
    // nothing that can be read is no success
    let path = judgments(&dir.path().join("k.jsonl"), &rows[..1]);
    let (ok, _, warning) = score(&[&path]);
    assert!(!ok && warning.contains("no verdict that can be read"), "{warning}");
}

#[test]
fn an_own_pattern_reads_the_score() {
    let dir = tempfile::tempdir().unwrap();
    let path = judgments(&dir.path().join("j.jsonl"), &[(1, "a", "grade: B+ (7.5 points)".into())]);
    let (ok, found, error) = score(&[&path, "--pattern", r"\(([\d.]+) points\)"]);
    assert!(ok && same_number(&found["strict"]["overall"], &7.5.into()), "{error}");
    let (ok, _, error) = score(&[&path, "--pattern", "points"]);
    assert!(!ok && error.contains("has no group"), "{error}");
}

#[test]
fn what_was_not_asked_is_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let row = |id: u64| (id, CATEGORIES[id as usize % 8], "{'综合得分': 5}".to_owned());
    let path = judgments(&dir.path().join("judgments.jsonl"), &[row(1), row(9), row(30)]);
    let (_, found, _) = score(&[&path]);
    assert_eq!(found["ledger"]["missing"], Value::from([0; 0]), "{found}");
    let answers = dir.path().join("answers.jsonl");
    std::fs::copy(&path, &answers).unwrap();
    let asked = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, asked + "{\"question_id\": 40, \"category\": \"数学计算\"}\n").unwrap();
    let (_, found, _) = score(&[&path]);
    assert_eq!(found["ledger"]["missing"], Value::from([40]));
    assert_eq!(found["ledger"]["expected_from"], "the answers");
}

#[test]
fn duplicates_and_missing_rows_are_named_and_a_broken_line_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("judgments.jsonl");
    let text = std::fs::read_to_string(fixture("judgments-clean.jsonl")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let first = lines[0];
    lines.remove(682);
    lines.remove(99);
    lines.push(first);
    std::fs::write(&path, lines.join("\n")).unwrap();
    let (ok, found, _) = score(&[path.to_str().unwrap()]);
    assert!(ok);
    assert_eq!(found["ledger"]["duplicates"], Value::from([1]));
    assert_eq!(found["ledger"]["missing"], Value::from([100, 683]));
    lines[6] = &lines[6][..38];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let (ok, found, error) = score(&[path.to_str().unwrap()]);
    assert!(!ok && found.is_null());
    assert!(error.contains("judgments.jsonl, line 7: not a JSON object"), "{error}");
}

#[test]
fn a_baseline_of_another_judge_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, judge: &str, score: u8| {
        let path = dir.path().join(name);
        let row = |category: &str| {
            let judgment = format!("{{'综合得分': {score}}}");
            serde_json::json!({"question_id": category, "category": category, "judgment": judgment, "judge": judge})
        };
        std::fs::write(&path, format!("{}\n{}\n", row("数学计算"), row("综合问答"))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (a, b, c) = (write("a", "gpt-x", 6), write("b", "gpt-x", 8), write("c", "gpt-y", 8));
    let (ok, found, _) = score(&[&a, "--baseline", &b]);
    assert!(ok && same_number(&found["baseline"]["ratio"]["overall"], &0.75.into()));
    let (ok, _, error) = score(&[&a, "--baseline", &c]);
    assert!(!ok && error.contains("the judge differs (gpt-x and gpt-y)"), "{error}");
    assert!(score(&[&a, "--baseline", &c, "--allow-different"]).0);
}
