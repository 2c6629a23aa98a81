use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use flm_growth::verify::{VerifyOptions, VerifyReport, verify};

use crate::{
    arguments::{RunArgs, has_tokenizer, open, parse_ids, read_text, tokenizer},
    output::{Output, table},
};

/// Run two checkpoints on the same tokens and compare them, layer by layer and in their logits.
///
/// The exit status is 1 when they are not the same function: in f32 a relative L2 above 1e-5 or
/// another likeliest token anywhere, in bf16 more than twice the noise of bf16 itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm verify ./Tele-FLM ./Tele-FLM-102B --stream\n  \
    flm verify ./SmolLM2 ./SmolLM2-wide --text sample.txt --json")]
pub(crate) struct Verify {
    /// Source checkpoint.
    a: PathBuf,
    /// Grown (or converted) checkpoint.
    b: PathBuf,
    /// Compare on a text file, in windows of --context tokens [default: random tokens].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Compare on these token ids.
    #[arg(long, value_parser = parse_ids, value_name = "IDS", conflicts_with = "text")]
    ids: Option<::std::vec::Vec<u32>>,
    /// Tokens in a window.
    #[arg(long, default_value_t = 64, value_name = "N")]
    context: usize,
    /// Windows to run.
    #[arg(long, default_value_t = 4, value_name = "N")]
    windows: usize,
    /// Do not measure how far bf16 is from f32 on the source.
    #[arg(long)]
    no_noise_floor: bool,
    #[command(flatten)]
    run: RunArgs,
}

impl Verify {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let (source, target) = (open(&self.a)?, open(&self.b)?);
        ensure!(self.context > 0 && self.windows > 0, "--context and --windows must be at least 1");
        let tokenizer = if has_tokenizer(&self.a) { Some(tokenizer(&self.a)?) } else { None };
        let rows = source.config().vocab_size.min(target.config().vocab_size);
        let vocabulary = tokenizer.as_ref().map_or(rows, |t| t.len().min(rows));
        let tokens = match (&self.ids, &self.text) {
            (Some(ids), _) => vec![ids.clone()],
            (None, Some(path)) => {
                let tokenizer =
                    tokenizer.as_ref().context("--text needs a tokenizer beside the source; give --ids")?;
                let ids = tokenizer.encode(&read_text(path)?)?;
                ids.chunks(self.context).take(self.windows).map(<[u32]>::to_vec).collect()
            }
            (None, None) => random_tokens(self.windows, self.context, vocabulary),
        };
        let device = self.run.device()?;
        let options = VerifyOptions {
            dtype: self.run.dtype(&device),
            device,
            residency: self.run.residency(),
            tokenizer_size: tokenizer.map(|t| t.len()),
            noise_floor: !self.no_noise_floor,
            ..VerifyOptions::new(tokens)
        };
        let bar = output.steps("layers", 0);
        let report = verify(&source, &target, &options, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        output.result(&report, human)?;
        Ok(report.passed)
    }
}

/// The same tokens every time: a full-period linear congruential sequence, high bits.
fn random_tokens(rows: usize, len: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let mut state: u64 = 0x2407_0278_3000_0001;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary as u64) as u32
    };
    (0..rows).map(|_| (0..len).map(|_| next()).collect()).collect()
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
        vec!["same likeliest token".into(), format!("{:.2} %", 100.0 * r.argmax_agreement)],
        vec![
            "perplexity, source and target".into(),
            format!("{}, {}", optional(r.source_perplexity, 4), optional(r.target_perplexity, 4)),
        ],
        vec![
            "noise floor (bf16 against f32, source)".into(),
            r.noise_floor.map_or_else(|| "not measured".into(), |floor| format!("{floor:.3e}")),
        ],
    ];
    if let Some(worst) = r.layers.iter().max_by(|a, b| a.relative_l2.total_cmp(&b.relative_l2)) {
        rows.push(vec![
            "residual stream, worst layer".into(),
            format!("{:.3e} after layer {} (target {})", worst.relative_l2, worst.source, worst.target),
        ]);
    }
    let mut text = table(&[], rows, false);
    match r.failures.as_slice() {
        [] => text += "the same function, within the bounds",
        failures => text += &format!("NOT the same function:\n  {}", failures.join("\n  ")),
    }
    text
}
