//! `flm eval judge`, and the options that choose a judge.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::arguments::{Asking, RunArgs, checkpoint_dir, local_model};
use crate::output::Output;
use flm_eval::Judge;
use flm_eval::LocalJudge;
use flm_eval::Prompt;
use flm_eval::Questions;
use flm_eval::Rubric;
use flm_eval::RuleJudge;
use flm_eval::{Again, JudgeOptions, Judged, read_answers, run};
use flm_eval::{Endpoint, EndpointOptions, shown_url};
use serde_json::Value;

/// Have answers judged, each on a scale of 1 to 10.
///
/// The judge is an OpenAI-compatible endpoint (--judge-model), a checkpoint (--judge-dir) or a rule that
/// needs neither (--judge rule). The endpoint's key is read from the environment variable OPENAI_API_KEY.
/// A run that was stopped goes on where it was; nothing is judged twice.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm eval judge answers.jsonl --judge-model gpt-4o-2024-05-13\n  \
    flm eval judge answers.jsonl --judge-model critic \\\n    \
    \x20 --judge-url http://127.0.0.1:8000/v1\n  \
    flm eval judge answers.jsonl --judge rule")]
pub(crate) struct JudgeAnswers {
    /// Answers, one JSON object a line: question_id, category, subcategory, question, reference, answer.
    answers: PathBuf,
    /// Where the judgments go [default: judgments.jsonl beside the answers].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A checkout of AlignBench whose config/*.json replace the built-in dimensions.
    #[arg(long, value_name = "PATH")]
    questions: Option<PathBuf>,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl JudgeAnswers {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        ensure!(
            self.judge.is_given(),
            "no judge: give --judge-model NAME, --judge-dir CHECKPOINT or --judge rule"
        );
        let rubric = match &self.questions {
            Some(path) => Questions::open(path)?.rubric,
            None => Rubric::built_in(),
        };
        let answers = read_answers(&self.answers, &rubric)?;
        let judge = self.judge.open(&rubric, &self.run, output)?;
        let out = self.out.clone().unwrap_or_else(|| self.answers.with_file_name("judgments.jsonl"));
        let judged = run(
            &answers,
            judge.as_ref(),
            &self.judge.options(),
            &out,
            &mut crate::commands::eval::bar(output, "judgments"),
        )?;
        output.result(&judged, describe)?;
        warn(&judged, output);
        Ok(succeeded(&judged))
    }
}

/// A line for people.
pub(crate) fn describe(judged: &Judged) -> String {
    let mut text = format!(
        "{}: {} judged, {} judged before, {} failed\njudge: {}",
        judged.out.display(),
        judged.judged,
        judged.already,
        judged.failed.len(),
        judged.judge
    );
    for (count, what) in [
        (judged.refused, "refused by the judge (their rows say why; --again refused asks again)"),
        (judged.unreadable, "without a verdict that can be read (--again unreadable asks again)"),
        (judged.without_reference, "judged without a reference answer"),
    ] {
        if count > 0 {
            text += &format!("\n{count} {what}");
        }
    }
    // one line a reason
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for failure in &judged.failed {
        match reasons.iter_mut().find(|(why, _)| *why == failure.why) {
            Some((_, ids)) => ids.push(failure.question_id.to_string()),
            None => reasons.push((&failure.why, vec![failure.question_id.to_string()])),
        }
    }
    for (why, ids) in reasons.iter().take(10) {
        let more = if ids.len() > 5 { ", …" } else { "" };
        let first = ids[..ids.len().min(5)].join(", ");
        text += &format!("\n{} failed (questions {first}{more}): {why}", ids.len());
    }
    if !judged.failed.is_empty() {
        text += "\nrun the same command again for the rest";
    }
    text
}

/// Whether there is something to score and nothing failed: a judge that refuses everything has judged nothing.
pub(crate) fn succeeded(judged: &Judged) -> bool {
    judged.failed.is_empty() && (judged.refused == 0 || judged.refused < judged.judged + judged.already)
}

/// Says what a reader of scores should know.
pub(crate) fn warn(judged: &Judged, output: &Output) {
    let all = judged.judged + judged.already;
    if 100 * (judged.unreadable + judged.refused) > all {
        output.warn(&format!(
            "{} of {all} judgments have no verdict that can be read, {} were refused: no score is made of them",
            judged.unreadable, judged.refused
        ));
    }
}

/// What is judged once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AskAgain {
    /// Judgments without a verdict that can be read.
    Unreadable,
    /// Answers that the judge refused.
    Refused,
}

/// Judges that are no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rule {
    /// Pairs of characters or words shared with the reference beyond the question's: for tests and demonstrations.
    Rule,
}

/// Who judges.
#[derive(Debug, Args)]
#[group(skip)]
#[command(next_help_heading = "Judge: --judge rule, --judge-model or --judge-dir")]
pub(crate) struct JudgeArgs {
    /// Judge by a rule, without a model: what an answer shares with the reference beyond the
    /// question. Its scores compare with no other judge's.
    #[arg(long, value_name = "KIND", conflicts_with_all = ["judge_model", "judge_dir"])]
    judge: Option<Rule>,
    /// Model of the endpoint at --judge-url.
    #[arg(long, value_name = "NAME", conflicts_with = "judge_dir")]
    judge_model: Option<String>,
    /// Base address of an OpenAI-compatible endpoint.
    #[arg(long, value_name = "URL", default_value = "https://api.openai.com/v1")]
    judge_url: String,
    /// Environment variable that holds the endpoint's key.
    #[arg(long, value_name = "NAME", default_value = "OPENAI_API_KEY")]
    judge_key_env: String,
    /// Checkpoint directory of a local chat model to judge with.
    #[arg(long, value_name = "DIR", value_parser = checkpoint_dir())]
    judge_dir: Option<PathBuf>,
    /// Prompt of the judge: a minijinja template with category, subcategory, kind, dimensions,
    /// question, reference, answer, reference_score.
    #[arg(long, value_name = "FILE")]
    judge_template: Option<PathBuf>,
    /// Requests in flight, or answers that a checkpoint judges together.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    judge_concurrency: u16,
    /// Timeout of a request in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180.0, value_parser = seconds)]
    judge_timeout: f64,
    /// Maximum number of attempts per answer.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    judge_attempts: u32,
    /// Seconds before the second try; doubled before each later one, up to a minute.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    judge_retry_wait: f64,
    /// Another field of the request's body, such as enable_thinking=false or reasoning_effort="low".
    #[arg(long, value_name = "NAME=JSON", value_parser = field)]
    judge_field: Vec<(String, Value)>,
    /// Another header of the request; $NAME as its value is read from the environment.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    judge_header: Vec<(String, String)>,
    /// Maximum number of tokens of an endpoint's judgment, sent as max_tokens [default: the endpoint's].
    #[arg(long, value_name = "N")]
    judge_max_tokens: Option<u64>,
    /// Temperature of the endpoint; none sends no such field.
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    judge_temperature: Temperature,
    /// Request a streamed response, for endpoints that offer no other.
    #[arg(long)]
    judge_stream: bool,
    /// Read the score by this regular expression: the first group of its last match.
    #[arg(long, value_name = "REGEX")]
    judge_pattern: Option<String>,
    /// Judge again rows without a score.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    again: Vec<AskAgain>,
    /// Maximum number of new tokens of a judgment by a checkpoint.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    judge_max_new_tokens: usize,
}

impl JudgeArgs {
    /// Whether there is one.
    pub(crate) fn is_given(&self) -> bool {
        self.judge.is_some() || self.judge_model.is_some() || self.judge_dir.is_some()
    }

    /// How answers are judged.
    pub(crate) fn options(&self) -> JudgeOptions {
        let again = Again {
            unreadable: self.again.contains(&AskAgain::Unreadable),
            refused: self.again.contains(&AskAgain::Refused),
        };
        JudgeOptions { again, pattern: self.judge_pattern.clone() }
    }

    /// The judge that is asked for.
    pub(crate) fn open(
        &self,
        rubric: &Rubric,
        run: &RunArgs,
        output: &Output,
    ) -> anyhow::Result<Box<dyn Judge>> {
        if self.judge == Some(Rule::Rule) {
            return Ok(Box::new(RuleJudge));
        }
        let prompt = match &self.judge_template {
            Some(path) => Prompt::open(path, rubric)?,
            None => Prompt::built_in(rubric)?,
        };
        if let Some(dir) = &self.judge_dir {
            return Ok(Box::new(LocalJudge {
                model: local_model(dir, run, &Asking::Chat)?,
                prompt,
                max_new_tokens: self.judge_max_new_tokens,
                batch: usize::from(self.judge_concurrency),
            }));
        }
        let key = std::env::var(&self.judge_key_env).ok().filter(|key| !key.trim().is_empty());
        let address = shown_url(&self.judge_url);
        if key.is_some() && address.starts_with("http://") && !is_local(&address) {
            output.warn(&format!("the key in {} goes to {address} unencrypted", self.judge_key_env));
        }
        let options = EndpointOptions {
            url: self.judge_url.clone(),
            model: self.judge_model.clone().context("--judge-model is missing")?,
            key: key.map(|key| key.trim().to_owned()),
            key_env: self.judge_key_env.clone(),
            timeout: Duration::from_secs_f64(self.judge_timeout),
            attempts: self.judge_attempts,
            retry_wait: Duration::from_secs_f64(self.judge_retry_wait),
            concurrency: usize::from(self.judge_concurrency),
            fields: self.judge_field.iter().cloned().collect(),
            headers: self.judge_header.clone(),
            max_tokens: self.judge_max_tokens,
            temperature: self.judge_temperature.0,
            stream: self.judge_stream,
        };
        Ok(Box::new(Endpoint::new(options, prompt)?))
    }
}

/// Whether an address as [`shown_url`] shows it is this machine's; a name that only begins like one is not.
fn is_local(url: &str) -> bool {
    let rest = url.trim_start_matches("http://");
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(host, |(host, _)| host);
    host == "localhost"
        || host == "[::1]"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    if (0.001..=1e6).contains(&seconds) { Ok(seconds) } else { Err("expected 0.001 to 1000000".into()) }
}

/// A temperature, or none.
#[derive(Debug, Clone, Copy)]
struct Temperature(Option<f64>);

fn temperature(text: &str) -> Result<Temperature, String> {
    if text == "none" {
        return Ok(Temperature(None));
    }
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=10.0).contains(value));
    value
        .map(|value| Temperature(Some(value)))
        .ok_or_else(|| "expected a number from 0 to 10, or none".into())
}

fn field(text: &str) -> Result<(String, Value), String> {
    let (name, json) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("expected NAME=JSON")?;
    let value = serde_json::from_str(json).map_err(|error| format!("{json:?} is not JSON ({error})"))?;
    Ok((name.to_owned(), value))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let value = match value.trim().strip_prefix('$') {
        Some(variable) => std::env::var(variable).map_err(|_| format!("there is no variable {variable}"))?,
        None => value.trim().to_owned(),
    };
    Ok((name.trim().to_owned(), value))
}
