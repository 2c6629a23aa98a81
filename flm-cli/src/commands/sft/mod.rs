//! `flm sft`: a recipe to a plan, events to progress and lines.

mod plan;
mod settings;

use std::{
    path::PathBuf,
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use clap::Args;
use flm_checkpoint::peak_memory;
use flm_train::{Event, Outcome, StepMetrics, Trainer};
use flm_train::{Options, Plan, PlanReport};
use serde::Serialize;

use crate::arguments::{RunArgs, dtypes, tell_of_code};
use crate::commands::sft::plan::ShapeArgs;
use crate::commands::sft::settings::SettingArgs;
use crate::exit as interrupt;
use crate::output::{Output, count, size};
use crate::recipe::train::{blamed, settings};
use crate::report::training::Pictures;
use flm_checkpoint::Dtype;

/// Train all parameters of a model: supervised fine-tuning on conversations, or pre-training on text.
///
/// The recipe is a TOML file with at least the checkpoint to start from (model), a directory for the
/// result (output) and the training data (data.files); `--print-recipe` explains every setting, and any of
/// them can be given after it as key=value. --model, --output and --data do without a recipe.
///
/// Data are JSON lines such as {"messages": [{"role": "user", "content": "…"}, {"role": "assistant",
/// "content": "…"}]}, {"instruction": …, "output": …} or {"text": …}, and .txt files. Run again with the same
/// output directory, it goes on from the newest
/// checkpoint there. Ctrl-C saves a checkpoint and exits with status 130. The trained model is in final/.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        flm sft --model ./SmolLM2 --data chats.jsonl --output ./tuned --epochs 2\n  \
        flm sft --print-recipe > recipe.toml\n  \
        flm sft recipes/tele-flm-sft.toml --dry-run \\\n    \
    \x20 model=./Tele-FLM output=./tuned data.files='[\"sft.jsonl\"]'\n  \
        flm sft recipe.toml optimizer.learning_rate=1e-5 train.epochs=2\n  \
        flm sft --dry-run --from-config tele-flm-52b --device-memory 141GB \\\n    --memory 1.5TB --peak-flops 989T\n  \
        flm chat ./tuned/final")]
pub(crate) struct Sft {
    /// Recipe file.
    #[arg(required_unless_present_any = ["from_config", "model", "print_recipe"])]
    recipe: Option<PathBuf>,
    /// Settings that replace the recipe's.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Check the data and print the plan, with steps, memory, disk and time, without training.
    #[arg(long)]
    dry_run: bool,
    /// Do not compare the model with its own digests first, which reads it once more.
    #[arg(long)]
    no_source_digests: bool,
    /// Print a complete recipe with defaults and an explanation of every setting.
    #[arg(long, conflicts_with = "from_config")]
    print_recipe: bool,
    #[command(flatten)]
    settings: SettingArgs,
    /// With --dry-run: tokens a second to predict the time from [default: a short measurement].
    #[arg(long, requires = "dry_run", value_name = "RATE")]
    tokens_per_second: Option<f64>,
    /// Compute dtype: f32 or bf16 [default: f32 on a CPU, bf16 on a GPU].
    #[arg(long, value_parser = dtypes(), value_name = "DTYPE", hide_possible_values = true)]
    dtype: Option<Dtype>,
    /// Device to run on: cpu, cuda (the first GPU) or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    #[command(flatten)]
    shape: ShapeArgs,
}

/// What a finished or stopped run prints.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    outcome: Outcome,
    /// The step that it went on from.
    resumed_from: Option<u64>,
    seconds: f64,
    /// Of the steps of this call, padding included.
    tokens: usize,
    tokens_per_second: f64,
    peak_memory: Option<u64>,
}

impl Sft {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if let Some(name) = &self.shape.from_config {
            let SettingArgs { context, peak_flops, .. } = &self.settings;
            return self.shape.run(name, *context, peak_flops.as_deref(), output);
        }
        let recipe = self.settings.recipe(self.recipe.as_ref(), &self.overrides)?;
        if self.print_recipe {
            let text = recipe.text();
            output.result(&text.parse::<toml::Table>()?, |_| text)?;
            return Ok(true);
        }
        let options = Options { no_source_digests: self.no_source_digests, ..recipe.options()? };
        let run = RunArgs { dtype: self.dtype, device: self.device.clone(), stream: false };
        let device = run.device()?;
        let plan = Plan::for_device(options, &device, run.dtype(&device)).map_err(blamed)?;
        plan.notes().iter().for_each(|note| output.say(note));
        tell_of_code(plan.checkpoint.config(), plan.checkpoint.dir(), output);
        if self.dry_run {
            let mut report = plan.report();
            report.seconds = match self.tokens_per_second {
                Some(rate) => Some(report.tokens as f64 / rate),
                None => plan.measure(&device, run.dtype(&device))?,
            };
            output.result(&report, describe)?;
            return Ok(true);
        }
        if let Some(chosen) = plan.considered.iter().find(|plan| plan.chosen) {
            output.log(&format!("plan: {}", plan::in_words(chosen)));
        }
        let mut trainer = Trainer::new(plan, &device, run.dtype(&device)).map_err(blamed)?;
        let stop = interrupt::watch()?;
        let summary = self.train(&mut trainer, &stop, output)?;
        let stopped = summary.outcome.stopped;
        output.result(&summary, |s| {
            let (o, rate) = (&s.outcome, s.tokens_per_second);
            let validation =
                o.validation_loss.map_or_else(String::new, |loss| format!(", validation loss {loss:.4}"));
            let loss = o.loss.map_or_else(|| "no step left to make".into(), |loss| format!("loss {loss:.4}"));
            let state = if o.stopped { "stopped" } else { "trained" };
            format!(
                "{state} at step {} of {}: {loss}{validation}, {rate:.1} tokens/s\n{}",
                o.step,
                o.steps,
                o.model.display()
            )
        })?;
        output.log(&next(&summary.outcome));
        if stopped {
            std::process::exit(i32::from(interrupt::STATUS));
        }
        Ok(true)
    }

    fn train(&self, trainer: &mut Trainer, stop: &AtomicBool, output: &Output) -> anyhow::Result<Summary> {
        let (resumed_from, steps, due) = (trainer.resumed(), trainer.plan().steps, trainer.due());
        if let Some(step) = resumed_from {
            output.log(&format!("going on from step {step} of {steps}"));
            if trainer.undone() > 0 {
                output.log(&format!(
                    "{} lines of later steps, which are made again, are now in metrics-undone.jsonl",
                    trainer.undone()
                ));
            }
        }
        let bar = output.drawn_steps("training", steps);
        bar.set_position(resumed_from.unwrap_or(0));
        bar.reset_eta();
        let (start, mut tokens, mut busy) = (Instant::now(), 0, 0.0);
        let mut logged = Instant::now();
        let options = &trainer.plan().options;
        let mut pictures = Pictures::new(&options.output, settings(options));
        let outcome = trainer.run(stop, &mut |event| {
            match event {
                Event::Step(step) => {
                    tokens += step.tokens;
                    busy += step.seconds;
                    bar.set_message(line(step));
                    bar.inc(1);
                    // where no bar is drawn, twenty lines are written, and one in half a minute
                    if !output.draws() && (due.log(step.step) || logged.elapsed() >= LOG_EVERY) {
                        logged = Instant::now();
                        let left = bar.eta().as_secs_f64();
                        let text = format!("step {} of {steps}: {}", step.step, line(step));
                        output.log(&format!("{text}, {} left", duration(left)));
                    }
                }
                Event::Validation { step, loss } => {
                    bar.suspend(|| output.log(&format!("step {step}: validation loss {loss:.4}")));
                }
                Event::Saved(path) => bar.suspend(|| output.log(&format!("saved {}", path.display()))),
            }
            pictures.draw(event)
        })?;
        bar.finish_and_clear();
        if outcome.stopped {
            output.log("stopped: run the same command again to go on");
        }
        Ok(Summary {
            outcome,
            resumed_from,
            seconds: start.elapsed().as_secs_f64(),
            tokens,
            tokens_per_second: tokens as f64 / f64::max(busy, 1e-9),
            peak_memory: peak_memory(),
        })
    }
}

/// Time after which a step is logged in any case.
const LOG_EVERY: Duration = Duration::from_secs(30);

fn line(step: &StepMetrics) -> String {
    let utilisation = step.utilisation.map_or_else(String::new, |u| format!("  {:.1} % of peak", u * 100.0));
    let mask = step.mask.map_or_else(String::new, |mask| format!("  mask {mask:.3}"));
    format!(
        "loss {:.4}  rate {:.2e}  norm {:.3}  {:.0} tokens/s{utilisation}{mask}",
        step.loss,
        step.learning_rate,
        step.gradient_norm,
        step.tokens as f64 / step.seconds
    )
}

/// Where a run can be looked at, and what can be done with its model.
fn next(outcome: &Outcome) -> String {
    let (model, output) =
        (outcome.model.display(), outcome.model.parent().unwrap_or(&outcome.model).display());
    let seen =
        format!("loss, rate and memory: {output}/report.html, {output}/metrics.jsonl, {output}/tensorboard");
    match outcome.stopped {
        true => seen,
        false => format!("{seen}\ntry it: flm chat {model}, or flm eval perplexity {model} --text FILE"),
    }
}

/// 5025 as "1 h 24 min".
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 86_400, whole / 3600 % 24, whole / 60 % 60) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", whole % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

fn describe(report: &PlanReport) -> String {
    let data = &report.data;
    let mut text = format!(
        "parameters          {}\n\
         samples             {} ({} cut off, {} left out)\n\
         tokens              {} in {} documents, {} learned, the longest {}\n\
         rows                {} of {} tokens, {:.1} % filled; {} to validate\n\
         steps               {} ({} per epoch), {} tokens, {:.2e} operations\n\
         time                {}\n\
         checkpoints         {} of disk at most\n\
         memory budget       {}\n\
         data in memory      {} of it, for the whole run; counted below\n\
         plan                {}\n\
         bound by            {}: the fastest plan that fits\n\n",
        count(report.parameters),
        count(data.samples as u64),
        count(data.truncated as u64),
        count(data.dropped as u64),
        count(data.tokens as u64),
        count(data.documents as u64),
        count(data.targets as u64),
        count(data.longest as u64),
        count(report.rows as u64),
        count(report.context as u64),
        report.packing_efficiency * 100.0,
        count(report.validation_rows as u64),
        count(report.steps),
        count(report.steps_per_epoch),
        count(report.tokens),
        report.operations,
        report.seconds.map_or_else(
            || "not measured: a block is too large for that; give --tokens-per-second".into(),
            |seconds| {
                let rate = report.tokens as f64 / seconds;
                format!("about {}, {rate:.0} tokens/s", duration(seconds))
            }
        ),
        size(report.checkpoint_disk),
        size(report.budget),
        size(report.data_memory),
        report.plans.iter().find(|plan| plan.chosen).map_or_else(String::new, plan::in_words),
        report.bound,
    );
    text.push_str(&plan::plans(&report.plans));
    text
}
