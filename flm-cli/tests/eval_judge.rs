//! `flm eval judge` over HTTP: a server with every fault, and kills at random moments.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use flm_tests::judge_server::{Fault, JudgeServer};
use serde_json::{Value, json};

const KEY: &str = "sk-secret-0123456789";

fn write_answers(dir: &Path, count: usize) -> PathBuf {
    let categories =
        ["数学计算", "逻辑推理", "基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"];
    let rows: String = (1..=count)
        .map(|id| {
            let row = json!({
                "question_id": id, "category": categories[id % 8], "subcategory": "", "question": format!("q-{id}-q"),
                "reference": "{参考}", "answer": format!("答\"{id}\"\n{{}}"), "data_sha256": "d", "model": "m",
            });
            format!("{row}\n")
        })
        .collect();
    let path = dir.join("answers.jsonl");
    std::fs::write(&path, rows).unwrap();
    path
}

fn judge(answers: &Path, server: &JudgeServer, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args(["eval", "judge", "--json"]).arg(answers);
    command.args(["--judge-url", &server.url(), "--judge-model", "mock", "--judge-retry-wait", "0.02"]);
    command.args(more).env("OPENAI_API_KEY", KEY).env_remove("http_proxy").env_remove("HTTP_PROXY");
    command.env("NO_PROXY", "*").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(command: &mut Command) -> (bool, Value, String) {
    let out = command.output().unwrap();
    let json = serde_json::from_slice(&out.stdout).unwrap_or_default();
    (out.status.success(), json, String::from_utf8(out.stderr).unwrap())
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_fault_is_survived_and_every_answer_judged_once() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 60);
    let faults = [
        Fault::TooMany { retry_after: "1" },
        Fault::ServerError,
        Fault::Hang(Duration::from_secs(3)),
        Fault::MalformedJson,
        Fault::EmptyContent,
        Fault::NullContent,
        Fault::CutBody,
        Fault::CutChunked,
        Fault::Reset,
    ];
    // the first try of every question meets one of the faults, the second a success
    let server = JudgeServer::start(move |id, tries| (tries == 1).then(|| faults[id % faults.len()]));
    let start = Instant::now();
    let (ok, report, error) = run(&mut judge(&answers, &server, &["--judge-timeout", "1.5"]));
    assert!(ok, "{error}\n{report}");
    assert_eq!((&report["judged"], &report["already"]), (&json!(60), &json!(0)));
    let rows = rows(&dir.path().join("judgments.jsonl"));
    let ids: BTreeSet<u64> = rows.iter().map(|row| row["question_id"].as_u64().unwrap()).collect();
    assert_eq!((rows.len(), ids.len()), (60, 60));
    for row in &rows {
        let id = row["question_id"].as_u64().unwrap();
        assert_eq!(row["score"], json!(1 + id % 10), "the judgment of another question");
        assert_eq!((&row["judge"], &row["judge_reported"]), (&json!("mock"), &json!("mock-0613")));
        assert!(row["prompt_sha256"].as_str().unwrap().len() == 64 && row["data_sha256"] == "d");
    }
    // a question whose server asked for a second of patience was left alone for a second
    for (id, times) in server.times() {
        assert_eq!(times.len(), 2, "question {id}");
        if id % 9 == 0 {
            assert!(times[1] - times[0] >= Duration::from_secs(1), "question {id} came back too early");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(60));
    assert!(server.keys_seen().iter().all(|key| key == &format!("Bearer {KEY}")));
    assert_eq!(server.temperatures_seen(), BTreeSet::from(["0".to_owned()]));
    let again = run(&mut judge(&answers, &server, &[]));
    assert_eq!((again.0, &again.1["judged"], &again.1["already"]), (true, &json!(0), &json!(60)));
    assert_eq!(server.answered().values().sum::<usize>(), 60, "something was judged twice");
}

#[test]
fn kill_9_at_twenty_moments_loses_nothing_and_judges_nothing_twice() {
    const QUESTIONS: usize = 683;
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), QUESTIONS);
    let out = dir.path().join("judgments.jsonl");
    let server = JudgeServer::start(|id, tries| match (id % 23, tries) {
        (3, 1) => Some(Fault::MalformedJson),
        (5, 1) => Some(Fault::EmptyContent),
        (7, 1) => Some(Fault::TooMany { retry_after: "0" }),
        (11, 1) => Some(Fault::ServerError),
        (13, 1) => Some(Fault::CutBody),
        (17, 1) => Some(Fault::Reset),
        (19, 1) => Some(Fault::CutChunked),
        _ => Some(Fault::Slow(Duration::from_millis(20 + (id as u64 * 7919) % 60))),
    });
    // a small generator; the seed is fixed, the moments are not quite
    let mut state = 6_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 260
    };
    let (mut kept, mut asked) = (0, BTreeMap::<u64, usize>::new());
    for kill in 0..20 {
        let mut child = judge(&answers, &server, &[]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 + random()));
        // SIGKILL
        child.kill().unwrap();
        child.wait().unwrap();
        if out.exists() {
            let text = std::fs::read(&out).unwrap();
            let lines = text.iter().filter(|&&byte| byte == b'\n').count();
            assert!(lines >= kept, "kill {kill} lost rows");
            kept = lines;
            // what had a row at the last kill was not asked for by this run
            std::thread::sleep(Duration::from_millis(100));
            let now: BTreeMap<u64, usize> = server.times().iter().map(|(id, t)| (*id, t.len())).collect();
            assert!(asked.iter().all(|(id, count)| now[id] == *count), "kill {kill}: asked again");
            let whole = String::from_utf8_lossy(&text).into_owned();
            let ids = whole.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            asked = ids.filter_map(|row| row["question_id"].as_u64()).map(|id| (id, now[&id])).collect();
        }
    }
    assert!((1..QUESTIONS).contains(&kept), "{kept} rows after 20 kills: the moments prove nothing");
    let before: BTreeMap<u64, usize> = server.answered();
    let on_disk: BTreeSet<u64> = std::fs::read_to_string(&out)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?["question_id"].as_u64())
        .collect();
    let (ok, report, error) = run(&mut judge(&answers, &server, &[]));
    assert!(ok, "{error}");
    assert_eq!(report["already"], json!(on_disk.len()));
    let ids: Vec<u64> = rows(&out).iter().map(|row| row["question_id"].as_u64().unwrap()).collect();
    let unique: BTreeSet<u64> = ids.iter().copied().collect();
    assert_eq!((ids.len(), unique.len()), (QUESTIONS, QUESTIONS), "duplicate or missing rows");
    // no question that had a row was asked for again, by the last run or any other
    for (id, count) in server.answered() {
        if on_disk.contains(&id) {
            assert_eq!(count, before[&id], "question {id} had a row and was judged again");
        }
    }
    // more answers than rows can only be of requests that were in flight at a kill, at most 8 each
    let answered: usize = server.answered().values().sum();
    assert!(answered <= QUESTIONS + 20 * 8, "{answered} judgments were made for {QUESTIONS} rows");
}

#[test]
fn a_wrong_key_stops_at_once_and_the_key_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 400);
    let server = JudgeServer::start(|_, _| Some(Fault::Unauthorized));
    let (ok, _, error) = run(&mut judge(&answers, &server, &[]));
    assert!(!ok && error.contains("401") && error.contains("OPENAI_API_KEY"), "{error}");
    // the server's message repeats the key
    assert!(!error.contains(KEY) && error.contains("[key]"), "{error}");
    // those in flight when the first answer came, and what a busy machine lets through before it is read
    assert!(server.times().values().map(Vec::len).sum::<usize>() <= 100);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains(KEY));
    }
}

#[test]
fn one_answer_that_cannot_be_judged_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 30);
    let server = JudgeServer::start(|id, _| (id == 17).then_some(Fault::BadRequest));
    let (ok, report, _) = run(&mut judge(&answers, &server, &[]));
    // refused for what it says: a row with the reason, and no failure of the run
    assert!(ok, "{report}");
    assert_eq!((&report["judged"], &report["refused"]), (&json!(30), &json!(1)));
    let refused: Vec<Value> = rows(&dir.path().join("judgments.jsonl"))
        .into_iter()
        .filter(|row| row.get("refused").is_some())
        .collect();
    assert_eq!((refused.len(), &refused[0]["question_id"]), (1, &json!(17)));
    assert!(refused[0]["refused"].as_str().unwrap().contains("HTTP 400"));
    // down for good: the run stops instead of trying every answer
    let down = JudgeServer::start(|_, _| Some(Fault::ServerError));
    let out = dir.path().join("other.jsonl");
    let more = ["--judge-attempts", "2", "--judge-concurrency", "2", "--out", out.to_str().unwrap()];
    let (ok, _, error) = run(&mut judge(&answers, &down, &more));
    assert!(!ok && error.contains("in a row") && error.contains("HTTP 500"), "{error}");
    assert!(down.times().len() < 15);
}

#[test]
fn judgments_of_another_judge_prompt_or_answer_are_not_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 3);
    let server = JudgeServer::start(|_, _| None);
    assert!(run(&mut judge(&answers, &server, &[])).0);
    let template = dir.path().join("prompt.jinja");
    std::fs::write(&template, "{{ question }} {{ answer }}").unwrap();
    let (_, _, error) = run(&mut judge(&answers, &server, &["--judge-template", template.to_str().unwrap()]));
    assert!(error.contains("line 1: a judgment of another prompt; give another --out"), "{error}");
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, text.replace("答", "改")).unwrap();
    let (_, _, error) = run(&mut judge(&answers, &server, &[]));
    assert!(error.contains("a judgment of another answer"), "{error}");
    std::fs::write(&answers, text).unwrap();
    let mut rule = Command::new(env!("CARGO_BIN_EXE_flm"));
    let (_, _, error) = run(rule.args(["eval", "judge", "--judge", "rule"]).arg(&answers));
    assert!(error.contains("a judgment of another judge"), "{error}");
}

#[test]
fn the_rule_is_deterministic_and_labelled() {
    let dir = tempfile::tempdir().unwrap();
    let answers = dir.path().join("answers.jsonl");
    let row = |id: u64, answer: &str| json!({"question_id": id, "category": "数学计算", "question": "q", "reference": "床前明月光", "answer": answer});
    std::fs::write(&answers, format!("{}\n{}\n", row(1, "床前明月光。"), row(2, "不知道"))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    let (ok, report, error) = run(command.args(["eval", "judge", "--json", "--judge", "rule"]).arg(&answers));
    assert!(ok, "{error}");
    assert!(report["judge"].as_str().unwrap().contains("not comparable"));
    let scores: Vec<Value> =
        rows(&dir.path().join("judgments.jsonl")).iter().map(|row| row["score"].clone()).collect();
    assert_eq!(scores, [json!(10), json!(1)]);
}

#[test]
fn refused_answers_never_end_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 80);
    let server = JudgeServer::start(|id, _| (id % 80 < 40).then_some(Fault::Flagged));
    let (ok, report, error) = run(&mut judge(&answers, &server, &["--judge-concurrency", "1"]));
    assert!(ok, "{error}");
    assert_eq!((&report["judged"], &report["refused"]), (&json!(80), &json!(40)));
    assert!(error.contains("40 were refused"), "{error}");
    assert!(server.times().values().all(|times| times.len() == 1), "refusals are not asked again");
}

#[test]
fn a_cut_judgment_is_a_failure_and_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 20);
    let server = JudgeServer::start(|id, tries| (id % 5 == 0 && tries == 1).then_some(Fault::CutByLimit));
    let (ok, report, _) = run(&mut judge(&answers, &server, &["--judge-concurrency", "1"]));
    assert!(!ok);
    assert_eq!((&report["judged"], report["failed"].as_array().unwrap().len()), (&json!(16), 4));
    assert!(report["failed"][0]["why"].as_str().unwrap().contains("--judge-max-tokens"), "{report}");
    let (ok, report, _) = run(&mut judge(&answers, &server, &[]));
    assert!(ok && report["judged"] == json!(4) && report["already"] == json!(16), "{report}");
}

#[test]
fn what_no_request_can_mend_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 80);
    let server = JudgeServer::start(|_, _| Some(Fault::WrongParameter));
    let (ok, _, error) = run(&mut judge(&answers, &server, &["--judge-concurrency", "2"]));
    assert!(!ok && error.contains("temperature is not supported"), "{error}");
    assert!(server.times().values().map(Vec::len).sum::<usize>() <= 9);
}

#[test]
fn requests_are_as_the_endpoint_wants_them() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 3);
    let server = JudgeServer::start(|_, _| Some(Fault::Stream));
    let url = format!("{}?api-version=1", server.url());
    let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
    command.args(["eval", "judge", "--json"]).arg(&answers).args([
        "--judge-url",
        &url,
        "--judge-model",
        "mock",
    ]);
    command.args(["--judge-temperature", "none", "--judge-stream", "--judge-max-tokens", "77"]);
    command.args(["--judge-field", "enable_thinking=false", "--judge-header", "api-key: $AZURE_KEY"]);
    command.env("AZURE_KEY", "azure-0123456789").env("NO_PROXY", "*").env_remove("OPENAI_API_KEY");
    let (ok, report, error) = run(&mut command);
    assert!(ok && report["judged"] == json!(3), "{error}");
    for body in server.bodies() {
        assert!(body.get("temperature").is_none());
        let sent = (&body["stream"], &body["max_tokens"], &body["enable_thinking"]);
        assert_eq!(sent, (&json!(true), &json!(77), &json!(false)));
    }
    assert!(server.headers().iter().any(|line| line == "api-key: azure-0123456789"));
    for row in rows(&dir.path().join("judgments.jsonl")) {
        assert_eq!((&row["judge_temperature"], &row["judge_max_tokens"]), (&Value::Null, &json!(77)));
        assert!(!row.to_string().contains("azure-0123456789"));
    }
}

#[test]
fn unreadable_judgments_are_judged_again_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 10);
    let server = JudgeServer::start(|id, tries| (id <= 2 && tries == 1).then_some(Fault::NoScore));
    let (ok, report, error) = run(&mut judge(&answers, &server, &[]));
    assert!(ok && report["unreadable"] == json!(2), "{report}");
    assert!(error.contains("no verdict that can be read"), "{error}");
    let (_, report, _) = run(&mut judge(&answers, &server, &[]));
    assert_eq!((&report["judged"], &report["unreadable"]), (&json!(0), &json!(2)));
    let (ok, report, _) = run(&mut judge(&answers, &server, &["--again", "unreadable"]));
    assert!(ok && report["judged"] == json!(2) && report["unreadable"] == json!(0), "{report}");
    let mut score = Command::new(env!("CARGO_BIN_EXE_flm"));
    let (ok, scores, _) =
        run(score.args(["eval", "score", "--json"]).arg(dir.path().join("judgments.jsonl")));
    assert!(ok);
    let ledger = &scores["ledger"];
    assert_eq!((&ledger["rows"], &ledger["replaced"], &ledger["failed"]), (&json!(12), &json!(2), &json!(0)));
    assert_eq!((&ledger["strict"]["scored"], &ledger["duplicates"]), (&json!(10), &json!([])));
}

#[test]
fn judges_of_one_name_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 8);
    let server = JudgeServer::start(|id, tries| match (id <= 4, tries) {
        (true, _) => None,
        (false, 1) => Some(Fault::WrongParameter),
        _ => Some(Fault::OtherSnapshot),
    });
    let (ok, report, _) = run(&mut judge(&answers, &server, &["--judge-concurrency", "1"]));
    assert!(!ok && report["judged"] == json!(4), "{report}");
    let (ok, _, error) = run(&mut judge(&answers, &server, &["--judge-concurrency", "1"]));
    assert!(!ok && error.contains("mock-1106") && error.contains("mock-0613"), "{error}");
    let other = JudgeServer::start(|_, _| None);
    let (ok, _, error) = run(&mut judge(&answers, &other, &[]));
    assert!(!ok && error.contains("a judgment of a judge at another address"), "{error}");
}

#[test]
fn a_judge_that_refuses_everything_has_judged_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 6);
    let server = JudgeServer::start(|_, _| Some(Fault::Flagged));
    let (ok, report, error) = run(&mut judge(&answers, &server, &[]));
    assert!(!ok && error.contains("6 were refused"), "{error}");
    assert_eq!((&report["judged"], &report["refused"]), (&json!(6), &json!(6)));
    // again: nothing is asked, and it is no success either
    let (ok, _, _) = run(&mut judge(&answers, &server, &[]));
    assert!(!ok);
}

#[test]
fn judgments_asked_for_otherwise_are_not_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 4);
    let server = JudgeServer::start(|_, _| None);
    assert!(run(&mut judge(&answers, &server, &["--judge-field", "enable_thinking=false"])).0);
    for other in [
        &["--judge-field", "enable_thinking=true"][..],
        &[],
        &["--judge-field", "enable_thinking=false", "--judge-temperature", "1"],
    ] {
        let (ok, _, error) = run(&mut judge(&answers, &server, other));
        assert!(!ok && error.contains("another temperature or other fields"), "{other:?}: {error}");
    }
    // tokens and addresses' queries change nothing of what was asked
    let same = ["--judge-field", "enable_thinking=false", "--judge-max-tokens", "900"];
    assert!(run(&mut judge(&answers, &server, &same)).0);
}

#[test]
fn a_missing_reference_is_told_to_the_judge_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 6);
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, text.replacen("\"{参考}\"", "null", 2).replacen("\"{参考}\"", "\" \"", 1))
        .unwrap();
    let server = JudgeServer::start(|_, _| None);
    let (ok, report, error) = run(&mut judge(&answers, &server, &[]));
    assert!(ok, "{error}");
    assert_eq!((&report["judged"], &report["without_reference"]), (&json!(6), &json!(3)));
    let prompts: Vec<String> = server
        .bodies()
        .iter()
        .map(|body| body["messages"][0]["content"].as_str().unwrap().to_owned())
        .collect();
    let without = |prompt: &&String| prompt.contains("没有参考答案") && !prompt.contains("参考答案定为");
    assert_eq!(prompts.iter().filter(without).count(), 3);
    assert_eq!(prompts.iter().filter(|prompt| prompt.contains("{参考}")).count(), 3);
}

#[test]
fn the_judge_reads_answers_without_their_thinking() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 3);
    let text = std::fs::read_to_string(&answers).unwrap();
    std::fs::write(&answers, text.replace("\"答", "\"<think>\\nsecret\\n</think>\\n答")).unwrap();
    let server = JudgeServer::start(|_, _| None);
    assert!(run(&mut judge(&answers, &server, &[])).0);
    for body in server.bodies() {
        let prompt = body["messages"][0]["content"].as_str().unwrap().to_owned();
        assert!(prompt.contains("答\"") && !prompt.contains("secret"), "{prompt}");
    }
    // the row keeps all of it
    assert!(rows(&dir.path().join("judgments.jsonl"))[0]["answer"].as_str().unwrap().contains("secret"));
}

#[test]
fn a_file_of_the_users_is_not_cut_and_no_secret_of_an_address_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let answers = write_answers(dir.path(), 1);
    let out = dir.path().join("mine");
    let rule = |out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
        command.args(["eval", "judge"]).arg(&answers).args(["--judge", "rule", "--out", out]);
        command.output().unwrap()
    };
    for mine in ["{\"mine\": 1}\n{\"mine\": 2} and a note", "{\"mine\": 1}", "{ \"mine\": ["] {
        std::fs::write(&out, mine).unwrap();
        assert_eq!(rule(out.to_str().unwrap()).status.code(), Some(1), "{mine}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), mine);
    }
    let said = String::from_utf8(rule("/dev/zero").stderr).unwrap();
    assert!(said.contains("not a regular file"), "{said}");
    // nobody listens at this address
    for scheme in ["http", "ftp"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flm"));
        command.args(["eval", "judge"]).arg(&answers).args(["--judge-model", "m", "--judge-attempts", "1"]);
        command.args(["--judge-url", &format!("{scheme}://u:hidden-1@127.0.0.1:9/v1?key=hidden-2")]);
        let out = command.env("OPENAI_API_KEY", "hidden-3").env("NO_PROXY", "*").output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(!out.status.success() && !said.contains("hidden"), "{said}");
    }
}
