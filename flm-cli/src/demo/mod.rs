//! The built-in model's way through inspect, convert, distance, grow, verify, sft and eval.

pub(crate) mod assets;

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use anyhow::Context;
use candle_core::{DType, Device};
use clap::ValueEnum;
use flm_candle::Residency;
use flm_candle::Tokenizer;
use flm_checkpoint::Checkpoint;
use flm_checkpoint::{DirectoryLock, atomic, preset};
use flm_growth::Placement;
use flm_growth::Shape;
use flm_growth::SourceModel;
use flm_growth::{ConvertOptions, convert};
use flm_growth::{DistanceOptions, Metric, measure};
use flm_growth::{ExecuteOptions, execute};
use flm_growth::{GrowthOptions, GrowthPlan, Multipliers};
use flm_growth::{VerifyOptions, verify};
use flm_train::Plan;
use flm_train::Trainer;
use serde::Serialize;

use crate::arguments::{Asking, RunArgs, local_model};
use crate::output::{Output, count, size};
use crate::recipe::train::{Recipe, blamed, settings};
use crate::report::evaluation::page;
use crate::report::layers;
use crate::report::training::Pictures;
use flm_eval::Decoding;
use flm_eval::JudgeOptions;
use flm_eval::Questions;
use flm_eval::Report as EvalReport;
use flm_eval::RuleJudge;
use flm_eval::read_rows;
use flm_eval::write_whole;
use flm_eval::{AnswerOptions, answer};
use flm_eval::{Reader, score};
use flm_eval::{read_answers, run};

/// The built-in model as it comes, as PyTorch shards.
const SHARDS: &str = "nano-52b-pytorch";
/// The same as safetensors.
const SOURCE: &str = "nano-52b";
/// What it is grown to first; this one is tuned.
const MIDDLE: &str = "nano-102b";
/// What that is grown to.
const TARGET: &str = "nano-1t";
/// The file of the report page.
const PAGE: &str = "report.html";
/// Marks a directory as a demo's, and holds its report.
const MARKER: &str = "demo.json";
/// Held locked in the directory while a demo works there.
const LOCK: &str = ".flm-demo.lock";
/// All that a demo makes in its directory; the marker is replaced.
const MADE: [&str; 11] = [
    SHARDS,
    SOURCE,
    MIDDLE,
    TARGET,
    PAGE,
    "nano-102b-sft",
    "results",
    "distances.json",
    "distances.svg",
    "instructions.jsonl",
    "questions.jsonl",
];
/// Most tokens of an answer.
const ANSWER_TOKENS: usize = 48;

/// A kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Write the built-in model and its data.
    Unpack,
    /// Check names, shapes and dtypes against config.json.
    Inspect,
    /// PyTorch shards to safetensors.
    Convert,
    /// Measure what each layer does.
    Distance,
    /// To the shape of the next stage.
    Grow,
    /// Logits against the source's.
    Verify,
    /// Full-parameter fine-tuning.
    Sft,
    /// Answers, judged and scored.
    Eval,
    /// One page of it.
    Report,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// A step of the demo.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    #[serde(rename = "name")]
    pub(crate) kind: Kind,
    pub(crate) did: String,
    pub(crate) proved: String,
    pub(crate) seconds: f64,
    pub(crate) passed: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) dir: PathBuf,
    pub(crate) steps: Vec<Step>,
    pub(crate) seconds: f64,
    pub(crate) passed: bool,
    /// The page, once it is there.
    pub(crate) page: Option<PathBuf>,
}

/// What a step's work returns: what it did, what that proved, whether it held.
type Outcome = anyhow::Result<(String, String, bool)>;

/// The demo's directory: a new one, or one that an earlier demo has made, without what that one left. What
/// else stands there stays. It is this demo's alone while the lock lives.
///
/// # Errors
/// Where something else is there, or another demo is at work.
pub(crate) fn prepare(dir: &Path) -> anyhow::Result<DirectoryLock> {
    let context = || format!("cannot make {}", dir.display());
    // nothing is made where something else is, not even the lock
    let ours = || -> anyhow::Result<bool> {
        let mut names = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            names => names.with_context(context)?,
        };
        let made = dir.join(MARKER).is_file();
        let free = made || names.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK));
        anyhow::ensure!(free, "{} exists and is no demo's: name a new directory with --dir", dir.display());
        Ok(made)
    };
    ours()?;
    let lock = DirectoryLock::take(dir, LOCK)?;
    if ours()? {
        for path in MADE.iter().map(|name| dir.join(name)) {
            let removed = match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&path),
                Ok(_) => std::fs::remove_file(&path),
                Err(_) => Ok(()),
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    atomic::write(&dir.join(MARKER), b"{}\n").with_context(context)?;
    Ok(lock)
}

/// Runs every step in the directory `dir`, and none after the last of the kind `until`.
pub(crate) fn run_steps(dir: &Path, until: Kind, output: &Output) -> anyhow::Result<Report> {
    let demo = Demo { dir };
    type Work<'a> = Box<dyn Fn() -> Outcome + 'a>;
    let demo = &demo;
    let steps: Vec<(Kind, Work<'_>)> = vec![
        (Kind::Unpack, Box::new(|| demo.unpack())),
        (Kind::Inspect, Box::new(|| demo.inspect())),
        (Kind::Convert, Box::new(|| demo.convert())),
        (Kind::Distance, Box::new(|| demo.distance())),
        (Kind::Grow, Box::new(|| demo.grow(SOURCE, MIDDLE, None))),
        (Kind::Verify, Box::new(|| demo.verify(MIDDLE))),
        // the released 1T's multipliers are not those of the stage before: lm_head makes up for it
        (Kind::Grow, Box::new(|| demo.grow(MIDDLE, TARGET, Some((2.0, 80.0))))),
        (Kind::Verify, Box::new(|| demo.verify(TARGET))),
        (Kind::Eval, Box::new(|| demo.eval("before", &dir.join(MIDDLE)))),
        (Kind::Sft, Box::new(|| demo.sft())),
        (Kind::Eval, Box::new(|| demo.eval("after", &dir.join(format!("{MIDDLE}-sft/final"))))),
        (Kind::Report, Box::new(|| demo.report())),
    ];
    let last = steps.iter().rposition(|(kind, _)| *kind == until).unwrap_or(0);
    let bar = output.steps("demo", last as u64 + 1);
    let (begin, mut done) = (Instant::now(), Vec::new());
    for (kind, work) in steps.iter().take(last + 1) {
        bar.set_message(kind.to_string());
        let start = Instant::now();
        let (did, proved, passed) = work().with_context(|| format!("{kind} failed"))?;
        done.push(Step { kind: *kind, did, proved, seconds: start.elapsed().as_secs_f64(), passed });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let page = dir.join(PAGE);
    let report = Report {
        dir: dir.to_owned(),
        passed: done.iter().all(|step| step.passed),
        steps: done,
        seconds: begin.elapsed().as_secs_f64(),
        page: page.is_file().then_some(page),
    };
    write_whole(&dir.join(MARKER), &serde_json::to_vec_pretty(&report)?)?;
    Ok(report)
}

struct Demo<'a> {
    dir: &'a Path,
}

impl Demo<'_> {
    fn open(&self, name: &str) -> anyhow::Result<Arc<Checkpoint>> {
        Ok(Arc::new(Checkpoint::open(&self.dir.join(name))?))
    }

    fn unpack(&self) -> Outcome {
        let bytes = crate::demo::assets::unpack(self.dir, SHARDS)?;
        let checkpoint = self.open(SHARDS)?;
        let did = format!(
            "the built-in model: {} parameters, {} PyTorch shards, {}",
            count(checkpoint.config().parameter_count()),
            checkpoint.files().len(),
            size(bytes as u64)
        );
        let config = checkpoint.config();
        let (nano, real) = preset(SOURCE).zip(preset("tele-flm-52b")).context("a preset is missing")?;
        let ratio = |a: usize, b: usize| a as f64 / b as f64;
        let alike = Shape::of(config) == Shape::of(&nano)
            && (config.output_mult, config.mup_scale_factor) == (real.output_mult, real.mup_scale_factor)
            && (ratio(config.intermediate_size, config.hidden_size)
                - ratio(real.intermediate_size, real.hidden_size))
            .abs()
                < 0.01;
        Ok((did, "the 52B's ratios, multipliers and kinds of files".into(), alike))
    }

    fn inspect(&self) -> Outcome {
        let checkpoint = self.open(SHARDS)?;
        let problems = checkpoint.problems().len();
        let did = format!("{} tensors checked against config.json", checkpoint.entries().count());
        Ok((did, format!("{problems} problems; nothing unpickled, no weight read"), problems == 0))
    }

    fn convert(&self) -> Outcome {
        let source = self.open(SHARDS)?;
        let options = ConvertOptions { max_shard_size: 2 << 20, ..ConvertOptions::default() };
        let report = convert(&source, &self.dir.join(SOURCE), &options, &|_| ())?;
        let target = self.open(SOURCE)?;
        let mut different = 0;
        for entry in source.entries() {
            different += usize::from(source.read(entry)? != target.read(target.entry(&entry.name)?)?);
        }
        let did = format!("{} in {} safetensors files", size(report.bytes_written), report.files);
        let equal = report.tensors - different;
        Ok((did, format!("{equal} of {} tensors equal bit for bit", report.tensors), different == 0))
    }

    /// Windows of the questions and references, as tokens.
    fn text(&self, windows: usize) -> anyhow::Result<Vec<Vec<u32>>> {
        let questions = Questions::open(&self.dir.join("questions.jsonl"))?;
        let tokenizer = Tokenizer::from_dir(&self.dir.join(SHARDS))?;
        let text: String = questions.list.iter().flat_map(|q| [&*q.question, &*q.reference]).collect();
        Ok(tokenizer.encode(&text)?.chunks_exact(48).take(windows).map(<[u32]>::to_vec).collect())
    }

    fn distance(&self) -> Outcome {
        let options = DistanceOptions {
            tokens: self.text(8)?,
            dtype: DType::F32,
            device: Device::Cpu,
            residency: Residency::Streamed,
        };
        let distances = measure(&self.open(SOURCE)?, &options, &mut |_, _| ())?;
        write_whole(&self.dir.join("distances.json"), &serde_json::to_vec_pretty(&distances)?)?;
        write_whole(&self.dir.join("distances.svg"), layers::distances(&distances)?.as_bytes())?;
        let added = self.added_layers()?;
        let Placement::After(layers) = distances.placement(Metric::Angular, added, true)? else {
            anyhow::bail!("a placement by distance names its layers");
        };
        let names: Vec<String> = layers.iter().map(ToString::to_string).collect();
        let did = format!("{} layers on {} tokens", distances.layers.len(), distances.tokens);
        Ok((did, format!("layers {} change their input least", names.join(", ")), layers.len() == added))
    }

    fn added_layers(&self) -> anyhow::Result<usize> {
        let middle = preset(MIDDLE).with_context(|| format!("no preset {MIDDLE}"))?;
        Ok(middle.num_hidden_layers - self.open(SOURCE)?.config().num_hidden_layers)
    }

    fn grow(&self, from: &str, to: &str, pair: Option<(f64, f64)>) -> Outcome {
        let source = self.open(from)?;
        let target = preset(to).with_context(|| format!("no preset {to}"))?;
        let placement = if to == MIDDLE {
            let distances = flm_growth::Distances::read(&self.dir.join("distances.json"))?;
            distances.placement(Metric::Angular, self.added_layers()?, true)?
        } else {
            Placement::Interpolate
        };
        let options = GrowthOptions {
            seed: 1,
            placement,
            multipliers: Multipliers { input_mult: None, output_pair: pair },
            tokenizer_size: Some(Tokenizer::from_dir(&self.dir.join(SHARDS))?.len()),
            ..GrowthOptions::default()
        };
        let plan = GrowthPlan::new(&SourceModel::from_checkpoint(&source)?, &Shape::of(&target), &options)?;
        execute(&plan, &source, &self.dir.join(to), &ExecuteOptions::default(), &|_| ())?;
        let (from, shape, summary) = (plan.source, plan.target, plan.summary());
        let did = format!(
            "to {to}: {} → {} layers, {} → {} hidden, {} → {} heads, {} → {} ffn",
            from.num_hidden_layers,
            shape.num_hidden_layers,
            from.hidden_size,
            shape.hidden_size,
            from.num_attention_heads,
            shape.num_attention_heads,
            from.intermediate_size,
            shape.intermediate_size
        );
        let grown = self.open(to)?;
        let (parameters, expected) = (grown.config().parameter_count(), target.parameter_count());
        let proved = format!("{} → {} parameters", count(summary.source_parameters), count(parameters));
        Ok((did, proved, parameters == expected && grown.problems().is_empty()))
    }

    fn verify(&self, target: &str) -> Outcome {
        let options = VerifyOptions {
            tokenizer_size: Some(Tokenizer::from_dir(&self.dir.join(SHARDS))?.len()),
            noise_floor: false,
            ..VerifyOptions::new(self.text(4)?)
        };
        let report = verify(&self.open(SOURCE)?, &self.open(target)?, &options, &mut |_, _| ())?;
        let did = format!("{target} on {} positions against {SOURCE}, f32, layer by layer", report.positions);
        let proved = format!(
            "logits differ by {:.0e} (relative), {:.0} % the same token",
            report.relative_l2,
            100.0 * report.argmax_agreement
        );
        Ok((did, proved, report.passed))
    }

    fn sft(&self) -> Outcome {
        let recipe = Recipe::read(Some(&self.dir.join("sft.toml")))?;
        let plan = Plan::new(recipe.options()?).map_err(blamed)?;
        let samples = plan.report().data.samples;
        let mut trainer = Trainer::new(plan, &Device::Cpu, DType::F32)?;
        let (mut first, mut tokens) = (None, 0);
        let options = &trainer.plan().options;
        let mut pictures = Pictures::new(&options.output, settings(options));
        let outcome = trainer.run(&AtomicBool::new(false), &mut |event| {
            if let flm_train::Event::Step(step) = event {
                first = first.or(Some(step.loss));
                tokens += step.tokens;
            }
            pictures.draw(event)
        })?;
        let (first, last) = (first.unwrap_or(f64::NAN), outcome.loss.unwrap_or(f64::NAN));
        let did = format!(
            "all parameters of {MIDDLE} on {samples} samples, {} steps, {} tokens",
            outcome.steps,
            count(tokens as u64)
        );
        Ok((did, format!("loss {first:.2} → {last:.2}"), last < first))
    }

    fn eval(&self, name: &str, model: &Path) -> Outcome {
        let questions = Questions::open(&self.dir.join("questions.jsonl"))?;
        let out = self.dir.join("results").join(name);
        let run_args = RunArgs { dtype: None, device: "cpu".into(), stream: false };
        let decoding = Decoding {
            max_new_tokens: ANSWER_TOKENS,
            top_p: None,
            repetition_penalty: 1.0,
            batch: questions.list.len(),
        };
        let options = AnswerOptions { decoding, seed: 0, dry_run: false };
        let mut local = local_model(model, &run_args, &Asking::Chat)?;
        local.name = format!("{MIDDLE} {name} SFT");
        let answers = out.join("answers.jsonl");
        let answered = answer(&questions, &local, &options, &answers, &mut |_| ())?;
        let judgments = out.join("judgments.jsonl");
        let list = read_answers(&answers, &questions.rubric)?;
        run(&list, &RuleJudge, &JudgeOptions::default(), &judgments, &mut |_| ())?;
        let scores =
            score(&read_rows(&judgments)?, Reader { expected: Some(&questions.expected()), pattern: None })?;
        let overall = scores.strict.overall.context("no overall score: a category is missing")?;
        let interval =
            scores.intervals.strict.overall.map(|[low, high]| format!(" (95 % {low:.2} – {high:.2})"));
        let did = format!("{} {name} SFT: {} answers to questions not trained on", MIDDLE, answered.answered);
        let proved = format!("rule judge: {overall:.2} of 10{}", interval.unwrap_or_default());
        Ok((did, proved, answered.answered == questions.list.len()))
    }

    fn report(&self) -> Outcome {
        let file = |name: &str| self.dir.join("results").join(name).join("judgments.jsonl");
        let report = EvalReport::read(&[file("after")], Some(&file("before")), false)?;
        let html = page(&report)?;
        let path = self.dir.join(PAGE);
        write_whole(&path, html.as_bytes())?;
        let comparison = report.series[1].comparison.as_ref().context("no baseline")?;
        let apart = comparison.intervals.overall.is_some_and(|[low, _]| low > 0.0);
        let proved = match (comparison.difference.overall, comparison.intervals.overall) {
            (Some(by), Some([low, high])) if apart => {
                format!("better after SFT by {by:.2} (95 % {low:.2} – {high:.2})")
            }
            _ => "no clear difference".to_owned(),
        };
        Ok((format!("one page, {}: {PAGE}", size(html.len() as u64)), proved, apart))
    }
}
