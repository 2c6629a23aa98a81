//! The built-in model's way through inspect, convert, grow, verify and generate.

mod nano;

use std::{path::Path, sync::Arc, time::Instant};

use candle_core::{DType, Device};
use flm_candle::{
    checkpoint::{Checkpoint, ConvertOptions, convert},
    config::preset,
    generate::{GenerateOptions, generate},
    model::{CausalLm, Residency},
};
use flm_growth::{
    ExecuteOptions, GrowthOptions, GrowthPlan, Multipliers, Shape, SourceModel, execute,
    verify::{VerifyOptions, verify},
};
use serde::Serialize;

use crate::output::{count, size};

/// How many steps [`run`] reports.
pub(crate) const STEPS: usize = 8;

/// A step of the demo.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) did: String,
    pub(crate) proved: String,
    pub(crate) seconds: f64,
    pub(crate) passed: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) steps: Vec<Step>,
    pub(crate) passed: bool,
}

/// What a step's work returns: what it did, what that proved, whether it held.
type Outcome = anyhow::Result<(String, String, bool)>;

/// Runs every step in the directory `dir`; `started` hears the name of each.
pub(crate) fn run(dir: &Path, mut started: impl FnMut(&str)) -> anyhow::Result<Report> {
    let path = |name: &str| dir.join(name);
    let open = |name: &str| Checkpoint::open(&path(name)).map(Arc::new);
    let mut steps = Vec::with_capacity(STEPS);
    let mut step = |name: &'static str, work: &dyn Fn() -> Outcome| -> anyhow::Result<()> {
        started(name);
        let start = Instant::now();
        let (did, proved, passed) = work()?;
        steps.push(Step { name, did, proved, seconds: start.elapsed().as_secs_f64(), passed });
        Ok(())
    };
    step("make", &|| {
        let config = nano::write(&path("nano-52b-pytorch"))?;
        let files = open("nano-52b-pytorch")?.files().len();
        let did = format!(
            "nano-52b, {} random parameters, {files} PyTorch shards",
            count(config.parameter_count())
        );
        Ok((did, "shards and index as the released models have them".into(), true))
    })?;
    step("inspect", &|| {
        let checkpoint = open("nano-52b-pytorch")?;
        let problems = checkpoint.problems().len();
        let did = format!("{} tensors checked against config.json", checkpoint.entries().count());
        Ok((did, format!("{problems} problems; nothing unpickled, no weight read"), problems == 0))
    })?;
    step("convert", &|| {
        let source = open("nano-52b-pytorch")?;
        let options = ConvertOptions { max_shard_size: 2 << 20, ..Default::default() };
        let report = convert(&source, &path("nano-52b"), &options, &|_| ())?;
        let target = open("nano-52b")?;
        let mut different = 0;
        for entry in source.entries() {
            different += usize::from(source.read(entry)? != target.read(target.entry(&entry.name)?)?);
        }
        let did = format!("{} in {} safetensors files", size(report.bytes_written), report.files);
        let equal = report.tensors - different;
        Ok((did, format!("{equal} of {} tensors equal bit for bit", report.tensors), different == 0))
    })?;
    for (name, checked, from, to, pair) in [
        ("grow", "verify", "nano-52b", "nano-102b", None),
        // the released 1T's multipliers are not those of the stage before: lm_head makes up for it
        ("grow", "verify", "nano-102b", "nano-1t", Some((2.0, 80.0))),
    ] {
        step(name, &|| grow(&*open(from)?, &path(to), to, pair))?;
        step(checked, &|| compare(&open("nano-52b")?, &open(to)?))?;
    }
    step("generate", &|| {
        let ids = |name| -> anyhow::Result<Vec<u32>> {
            let model = CausalLm::load(&open(name)?, &Device::Cpu, DType::F32, Residency::Streamed)?;
            let options = GenerateOptions::greedy(24, nano::TOKENIZER_SIZE);
            Ok(generate(&model, &[vec![1, 5, 17, 300, 42]], &options, |_, _| true)?.remove(0).ids)
        };
        let (small, large) = (ids("nano-52b")?, ids("nano-1t")?);
        let equal = small.iter().zip(&large).filter(|(a, b)| a == b).count();
        let did = "24 tokens, greedy, from the first and the last model, streamed from disk".into();
        Ok((did, format!("{equal} of 24 tokens equal"), small == large))
    })?;
    let passed = steps.iter().all(|step| step.passed);
    Ok(Report { steps, passed })
}

fn grow(source: &Checkpoint, dst: &Path, to: &str, pair: Option<(f64, f64)>) -> Outcome {
    let target = preset(to).ok_or_else(|| anyhow::anyhow!("no preset {to}"))?;
    let options = GrowthOptions {
        seed: 1,
        multipliers: Multipliers { input_mult: None, output_pair: pair },
        tokenizer_size: Some(nano::TOKENIZER_SIZE),
        ..GrowthOptions::default()
    };
    let plan = GrowthPlan::new(&SourceModel::from_checkpoint(source)?, &Shape::of(&target), &options)?;
    execute(&plan, source, dst, &ExecuteOptions::default(), &|_| ())?;
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
    let grown = Checkpoint::open(dst)?;
    let (parameters, expected) = (grown.config().parameter_count(), target.parameter_count());
    let proved = format!("{} → {} parameters", count(summary.source_parameters), count(parameters));
    Ok((did, proved, parameters == expected && grown.problems().is_empty()))
}

fn compare(source: &Arc<Checkpoint>, target: &Arc<Checkpoint>) -> Outcome {
    let text =
        |i: u32| (0..48).map(|t| (t * 997 + i * 131 + t * t * 7) % nano::TOKENIZER_SIZE as u32).collect();
    let options = VerifyOptions {
        tokenizer_size: Some(nano::TOKENIZER_SIZE),
        noise_floor: false,
        ..VerifyOptions::new((0..4).map(text).collect())
    };
    let report = verify(source, target, &options, &mut |_, _| ())?;
    let did = format!("{} positions against nano-52b, f32, layer by layer", report.positions);
    let proved = format!(
        "logits differ by {:.0e} (relative), {:.0} % the same token",
        report.relative_l2,
        100.0 * report.argmax_agreement
    );
    Ok((did, proved, report.passed))
}
