//! `flm eval score` against tables and readings made by AlignBench's released scripts.

#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, process::Command};

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
fn the_strict_total_leaves_out_what_cannot_be_read_or_is_off_the_scale() {
    let (_, found, _) = score(&[fixture("judgments-quirks.jsonl").to_str().unwrap()]);
    let (mut sum, mut count) = (0.0, 0);
    for row in rows("judgments-quirks.jsonl") {
        let score = row["score"].as_f64().unwrap();
        if row["category"] == "数学计算" && (1.0..=10.0).contains(&score) {
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
    let overall = found["strict"]["overall"].as_f64().unwrap();
    let interval = &found["intervals"]["strict"]["overall"];
    assert!(interval[0].as_f64().unwrap() < overall && overall < interval[1].as_f64().unwrap());
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
