//! `flm verify`, of two checkpoints or of one and its checksums.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;
use flm_checkpoint::{ChecksumReport, Checksums, JobPart};
use flm_growth::Provenance;
use flm_growth::VerifyReport;
use flm_growth::{VerifyOptions, verify};

use crate::arguments::part::WhichPart;
use crate::arguments::{RunArgs, TextArgs, checkpoint_dir, open};
use crate::output::{Output, count, size, table};
use crate::output_file::{self, Kind, Page};
use crate::report::verification::{among, page};

/// Run two checkpoints on the same tokens and compare them, layer by layer and in their logits; of one
/// checkpoint, compare its files with their checksums.
///
/// The exit status is 1 when they are not the same function: in f32 a relative L2 above 1e-5 or
/// another most likely token anywhere, in bf16 more than twice the noise of bf16 itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm verify ./Tele-FLM ./Tele-FLM-102B --stream --report verify.html\n  \
    flm verify ./SmolLM2 ./SmolLM2-wide --text sample.txt --json\n  \
    flm verify ./Tele-FLM-102B")]
pub(crate) struct Verify {
    /// Source checkpoint; alone, the checkpoint whose checksums are compared.
    #[arg(value_parser = checkpoint_dir())]
    a: PathBuf,
    /// Grown (or converted) checkpoint.
    #[arg(value_parser = checkpoint_dir())]
    b: Option<PathBuf>,
    /// Do not measure the bf16 noise floor of the source.
    #[arg(long)]
    no_noise_floor: bool,
    /// Write plan, differences, a picture of them and the provenance into one HTML page.
    #[arg(long, value_name = "FILE", requires = "b")]
    report: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Input tokens")]
    texts: TextArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Of one checkpoint: compare the I-th of N parts with their checksums, I from 0, beside processes that compare
    /// the others; auto takes I and N from Slurm or MPI.
    #[arg(long, value_name = "I/N", conflicts_with = "b")]
    part: Option<WhichPart>,
    /// Overwrite a file that is not an earlier result of this command.
    #[arg(long)]
    force: bool,
}

impl Verify {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        match &self.b {
            Some(target) => self.compare(target, output),
            None => check(&self.a, self.part.map(WhichPart::part).transpose()?, output),
        }
    }

    fn compare(&self, path: &Path, output: &Output) -> anyhow::Result<bool> {
        if let Some(file) = &self.report {
            output_file::check(file, Kind::Page(Page::Verification), self.force)?;
        }
        let (source, target) = (open(&self.a)?, open(path)?);
        let rows = source.config().vocab_size.min(target.config().vocab_size);
        let longest = source.config().context_length().min(target.config().context_length());
        let texts = self.texts.tokens(&self.a, rows, longest)?;
        let device = self.run.device()?;
        let options = VerifyOptions {
            dtype: self.run.dtype(&device),
            device,
            residency: self.run.residency(),
            tokenizer_size: texts.tokenizer_size,
            noise_floor: !self.no_noise_floor,
            ..VerifyOptions::new(texts.tokens)
        };
        let bar = output.steps("layers", 0);
        let report = verify(&source, &target, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        if let Some(file) = &self.report {
            let page = page(&report, &name(&self.a), &name(path), Provenance::read(path)?.as_ref())?;
            output_file::write(file, Kind::Page(Page::Verification), page.as_bytes(), self.force)?;
        }
        output.result(&report, human)?;
        Ok(report.passed)
    }
}

/// The last part of a path.
fn name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Compares a checkpoint's files with checksums.json.
fn check(dir: &Path, part: Option<JobPart>, output: &Output) -> anyhow::Result<bool> {
    ensure!(
        dir.join(flm_checkpoint::CHECKSUMS_FILE).is_file(),
        "{} has no checksums.json: give a second checkpoint to compare with",
        dir.display()
    );
    let checksums = Checksums::read(dir)?;
    let bar = output.bytes("checking", checksums.total_bytes() / part.map_or(1, JobPart::count) as u64);
    let report = checksums.check(dir, part, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    output.result(&report, |r: &ChecksumReport| {
        let what = match part {
            Some(part) => format!("part {part}, {}", size(r.bytes)),
            None => format!("{} files, {}", count(r.files as u64), size(r.bytes)),
        };
        let text = match r.problems.as_slice() {
            [] => format!("{what}: all as their checksums say"),
            problems => format!("{what}: NOT as their checksums say\n  {}", problems.join("\n  ")),
        };
        match r.unlisted.as_slice() {
            [] => text,
            unlisted => format!("{text}\nwithout a checksum, not compared: {}", unlisted.join(", ")),
        }
    })?;
    Ok(report.passed)
}

fn human(r: &VerifyReport) -> String {
    let optional =
        |value: Option<f64>, digits: usize| value.map_or_else(|| "–".into(), |v| format!("{v:.digits$}"));
    let mut rows = vec![
        vec![
            "positions".into(),
            format!("{} in {} texts, {} vocabulary rows, {}", r.positions, r.texts, r.vocab, r.dtype),
        ],
        vec!["logits, largest difference".into(), format!("{:.3e}", r.max_abs)],
        vec!["logits, relative L2".into(), format!("{:.3e}", r.relative_l2)],
        vec!["KL divergence, mean and largest".into(), format!("{:.3e}, {:.3e}", r.kl_mean, r.kl_max)],
        vec!["same most likely token".into(), format!("{:.2} %", 100.0 * r.argmax_agreement)],
        vec![
            "perplexity, source and target".into(),
            format!("{}, {}", optional(r.source_perplexity, 4), optional(r.target_perplexity, 4)),
        ],
        vec![
            "noise floor (bf16 against f32, source)".into(),
            r.noise_floor.map_or_else(|| "not measured".into(), |floor| format!("{floor:.3e}")),
        ],
    ];
    if let Some(new) = &r.new_rows {
        rows.push(vec![
            "new vocabulary rows".into(),
            format!(
                "{} with {:.3e} of the probability, the most likely token at {:.2} %; perplexity with them {}",
                new.rows,
                new.probability,
                100.0 * new.likeliest,
                optional(new.target_perplexity, 4)
            ),
        ]);
    }
    if let Some(worst) = r.layers.iter().max_by(|a, b| a.relative_l2.total_cmp(&b.relative_l2)) {
        rows.push(vec![
            "residual stream, worst layer".into(),
            format!("{:.3e} after layer {} (target {})", worst.relative_l2, worst.source, worst.target),
        ]);
    }
    let mut text = table(&[], rows, false);
    match r.failures.as_slice() {
        [] => text += &format!("the same function{}, within the bounds", among(r)),
        failures => {
            text += &format!("NOT the same function:\n  {}", failures.join("\n  "));
            // where rounding alone can explain it
            if r.dtype == "f32" && r.argmax_agreement == 1.0 && r.relative_l2 < 1e-3 {
                text += "\n  or f32's rounding, which models with much noise amplify: --dtype f64 tells";
            }
        }
    }
    text
}
