//! `flm eval report`: hostile answers stay text, the page loads nothing, judges are kept apart.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::json;

const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&|`{{ 7*7 }}{% raw %}";

fn results(dir: &Path, model: &str, judge: &str, score: u8) -> PathBuf {
    let folder = dir.join(model.replace('/', "_").replace(['<', '>'], ""));
    std::fs::create_dir_all(&folder).unwrap();
    let categories = ["数学计算", "综合问答", "角色扮演", HOSTILE];
    let row = |(id, category): (usize, &&str)| {
        let row = json!({
            "question_id": id, "category": category, "subcategory": HOSTILE, "question": HOSTILE,
            "reference": HOSTILE, "answer": HOSTILE, "model": model, "judge": judge, "finish": HOSTILE,
            "judgment": format!("{HOSTILE}\n{{'{HOSTILE}': 3, '清晰度': 4, '综合得分': {score}}}"),
        });
        format!("{row}\n")
    };
    let text: String = categories.iter().enumerate().map(row).collect();
    std::fs::write(folder.join("judgments.jsonl"), text).unwrap();
    folder
}

fn report(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flm")).args(["eval", "report"]).args(arguments).output().unwrap()
}

#[test]
fn hostile_text_stays_text_and_the_page_loads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let a = results(dir.path(), "<b>model</b>", HOSTILE, 4);
    let b = results(dir.path(), "after", HOSTILE, 7);
    let base = a.join("judgments.jsonl");
    let out = report(&[b.to_str().unwrap(), "--baseline", base.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let page = std::fs::read_to_string(b.join("report.html")).unwrap();
    let lower = page.to_lowercase();
    // one script, the page's own; one style; nothing that is fetched
    assert_eq!((lower.matches("<script").count(), lower.matches("<style").count()), (1, 1));
    for tag in ["<img", "<iframe", "<b>model", "src=\"", "@import", "url(", "http://", "https://", "49"] {
        assert!(!lower.contains(tag), "{tag}");
    }
    assert!(lower.contains("&lt;img src=x onerror=alert(2)&gt;"));
    assert!(lower.contains("default-src 'none'") && lower.contains("script-src 'sha256-"));
    assert!(page.contains("175.0 %") && page.contains("after against ") && page.contains(" higher, "));
}

#[test]
fn results_of_different_judges_are_only_shown_together_on_request_and_marked() {
    let dir = tempfile::tempdir().unwrap();
    results(dir.path(), "a", "judge-1", 4);
    results(dir.path(), "b", "judge-2", 4);
    let out = report(&[dir.path().to_str().unwrap()]);
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && error.contains("the judge differs (judge-1 and judge-2)"), "{error}");
    let out = report(&[dir.path().to_str().unwrap(), "--allow-different", "--markdown"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("**Not comparable:**") && text.contains("judge-2"), "{text}");
    // a pipe or a tag in a name does not break the table
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("alert(1)")).collect();
    assert!(!rows.is_empty() && rows.iter().all(|row| !row.contains("<script>")), "{rows:?}");
    let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("Not comparable."));
}

#[test]
fn the_json_report_names_the_judge_beside_every_score() {
    let dir = tempfile::tempdir().unwrap();
    let folder = results(dir.path(), "a", "judge-1", 4);
    let out = report(&[folder.to_str().unwrap(), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let series = &json["series"][0];
    assert_eq!((&series["identity"]["judge"], &series["label"]), (&json!("judge-1"), &json!("a")));
    assert_eq!(series["scores"]["strict"]["overall"], json!(4.0));
    assert_eq!(json["published"].as_array().unwrap().len(), 5);
}

#[test]
fn a_rule_has_no_reference_level_and_one_question_no_interval() {
    let dir = tempfile::tempdir().unwrap();
    let page = |judge: &str| {
        let folder = results(dir.path(), "a", judge, 4);
        assert!(report(&[folder.to_str().unwrap()]).status.success());
        std::fs::read_to_string(folder.join("report.html")).unwrap()
    };
    let (rule, model) = (page("rule: something"), page("gpt"));
    assert!(rule.contains("<main class=\"rule\">") && rule.contains("Judged by a rule."));
    assert!(!rule.contains("counts as 8") && !rule.contains("mark at 8"));
    assert!(model.contains("<main>") && model.contains("counts as 8"));
    for page in [rule, model] {
        assert!(page.contains("over 4 questions") && !page.contains("class=\"whisker\""));
    }
}
