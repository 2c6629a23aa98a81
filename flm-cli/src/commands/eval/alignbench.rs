//! `flm eval alignbench`: answers, and with a judge also judgments and scores.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::arguments::{Asking, RawTextArgs, RunArgs, TemplateArgs, checkpoint_dir, local_model};
use crate::commands::eval::judge;
use crate::commands::eval::judge::JudgeArgs;
use crate::output::Output;
use crate::output_file::{self, Kind};
use flm_eval::Decoding;
use flm_eval::Identity;
use flm_eval::Questions;
use flm_eval::read_rows;
use flm_eval::{AnswerOptions, Answered, answer};
use flm_eval::{Judged, read_answers, run};
use flm_eval::{Reader, Scores, score};

/// Answer the questions of AlignBench, or of any file in its format; with a judge, also judge and score.
///
/// AlignBench's data has no licence and does not come with flm: clone THUDM/AlignBench and give its path.
/// A file of your own has one JSON object a line: question_id, category, subcategory, question, reference.
/// Answers and judgments are appended as they come; the same command goes on where a run was stopped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm eval alignbench ./SmolLM2 --questions questions.jsonl \\\n    \
    \x20 --limit 50 --max-new-tokens 128 --judge rule\n  \
    flm eval alignbench ./FLM-2-52B-Instruct --questions ./AlignBench \\\n    \
    \x20 --stream --out results --judge-model gpt-4o-2024-05-13\n  flm eval report results")]
pub(crate) struct AlignBench {
    /// Checkpoint directory.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// Questions: a JSONL file, or a checkout of THUDM/AlignBench.
    #[arg(long, value_name = "PATH")]
    questions: PathBuf,
    /// Directory for answers.jsonl, judgments.jsonl and scores.json.
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
    /// Use only N questions, with proportional categories.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Maximum number of new tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_new_tokens: usize,
    /// Questions per batch [default: 16, with --stream 64].
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Penalty on tokens that occurred before; 1 is none.
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Random seed of the sampling.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Name of the model in rows, tables and pages [default: its folder, or the run's for a run's `final`].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Use the question as the prompt, without a chat template.
    #[arg(long)]
    plain: bool,
    /// Estimate time and memory without answering.
    #[arg(long)]
    dry_run: bool,
    /// Overwrite a scores.json that is not an earlier result of this command.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    raw: RawTextArgs,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    answers: Answered,
    judgments: Option<Judged>,
    identity: Option<Identity>,
    scores: Option<Scores>,
}

impl AlignBench {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        ensure!(
            self.max_new_tokens > 0 && self.batch != Some(0),
            "--max-new-tokens and --batch must be at least 1"
        );
        let mut questions = Questions::open(&self.questions)?;
        if let Some(limit) = self.limit {
            questions.limit(limit);
        }
        let answers_path = self.out.join("answers.jsonl");
        let scores_path = self.out.join("scores.json");
        let scored = self.judge.is_given() && !self.dry_run;
        if scored {
            output_file::check(&scores_path, Kind::Scores, self.force)?;
        }
        let answers = {
            let asking = if self.plain {
                self.template.refuse_without_chat("drop --plain")?;
                Asking::Plain(self.raw.clone())
            } else {
                self.raw.refuse_without_raw_text()?;
                Asking::Template(self.template.clone())
            };
            let mut model = local_model(&self.dir, &self.run, &asking)?;
            model.name = self.name.clone().unwrap_or(model.name);
            let batch = self.batch.unwrap_or(if model.streamed { 64 } else { 16 });
            let decoding = Decoding {
                max_new_tokens: self.max_new_tokens,
                top_p: self.top_p,
                repetition_penalty: self.repetition_penalty,
                batch,
            };
            let options = AnswerOptions { decoding, seed: self.seed, dry_run: self.dry_run };
            answer(
                &questions,
                &model,
                &options,
                &answers_path,
                &mut crate::commands::eval::bar(output, "answers"),
            )?
        };
        let mut report = Report { answers, judgments: None, identity: None, scores: None };
        if scored {
            let list = read_answers(&answers_path, &questions.rubric)?;
            let judge = self.judge.open(&questions.rubric, &self.run, output)?;
            let path = self.out.join("judgments.jsonl");
            let judged = run(
                &list,
                judge.as_ref(),
                &self.judge.options(),
                &path,
                &mut crate::commands::eval::bar(output, "judgments"),
            )?;
            // without any judgment there is nothing to score, and the failures say why
            if judged.judged + judged.already > 0 {
                let rows = read_rows(&path)?;
                report.identity = Some(Identity::of(&rows, false)?);
                let expected = questions.expected();
                report.scores = Some(score(&rows, Reader { expected: Some(&expected), pattern: None })?);
            }
            judge::warn(&judged, output);
            report.judgments = Some(judged);
            output_file::write(&scores_path, Kind::Scores, &serde_json::to_vec_pretty(&report)?, self.force)?;
        }
        let complete = report.judgments.as_ref().is_none_or(judge::succeeded);
        output.result(&report, |report| self.human(report))?;
        Ok(complete)
    }

    fn human(&self, report: &Report) -> String {
        let a = &report.answers;
        let mut text = format!(
            "{}: {} answered in {} passes, {} answered before, {} empty, {} cut by --max-new-tokens, \
             {} too long for the context",
            self.out.join("answers.jsonl").display(),
            a.answered,
            a.passes,
            a.already,
            a.empty,
            a.cut,
            a.too_long
        );
        if let Some(judged) = &report.judgments {
            text += &format!("\n{}", judge::describe(judged));
        }
        if let (Some(scores), Some(identity)) = (&report.scores, &report.identity) {
            text += &format!("\n\n{}", crate::commands::eval::score::tables(scores, identity, None));
        }
        text
    }
}
