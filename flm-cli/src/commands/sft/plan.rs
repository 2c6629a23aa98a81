//! The plan of a run: its table, and `flm sft --dry-run --from-config`, which needs neither weights nor data.

use anyhow::Context;
use clap::Args;
use flm_train::{Considered, InputPlace, Machine, MemoryUse, Placement, ShapePlan, StepShape, WeightDtype};

use crate::arguments::{config, parse_flops, parse_rate, parse_size};
use crate::commands::sft::duration;
use crate::output::{Output, count, size, table};

/// Options of a plan from shapes alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Plan for another machine, with --dry-run --from-config")]
pub(super) struct ShapeArgs {
    /// Plan from a preset's name or a config.json, without recipe, weights and data.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "recipe", requires = "dry_run")]
    pub(super) from_config: Option<String>,
    /// Batch size in rows.
    #[arg(long, requires = "from_config", default_value_t = 1024, value_name = "N")]
    rows: usize,
    /// Rows of a micro-batch.
    #[arg(long, requires = "from_config", default_value_t = 1, value_name = "N")]
    micro_rows: usize,
    /// Steps of the run [default: four passes over 30,000 rows].
    #[arg(long, requires = "from_config", value_name = "N")]
    steps: Option<u64>,
    /// Dtype in which matrices are stored: bf16 or f32.
    #[arg(long, requires = "from_config", default_value = "bf16", value_name = "DTYPE", value_parser = ["bf16", "f32"])]
    weights: String,
    /// The GPU's memory, for example 141GB; without it a CPU computes.
    #[arg(long, requires = "from_config", value_parser = parse_size, value_name = "SIZE")]
    device_memory: Option<u64>,
    /// Host memory, for example 1.5TB.
    #[arg(long, requires = "from_config", value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Space for files of parameters and block inputs [default: as much as it takes].
    #[arg(long, requires = "from_config", value_parser = parse_size, value_name = "SIZE")]
    disk_space: Option<u64>,
    /// Bandwidth between host and GPU, for example 50GB/s.
    #[arg(long, requires = "from_config", value_parser = parse_rate, value_name = "RATE")]
    pcie: Option<f64>,
    /// Disk bandwidth, for example 6GB/s.
    #[arg(long, requires = "from_config", value_parser = parse_rate, value_name = "RATE")]
    disk: Option<f64>,
    /// Host memory bandwidth, for example 100GB/s.
    #[arg(long, requires = "from_config", value_parser = parse_rate, value_name = "RATE")]
    memory_bandwidth: Option<f64>,
}

/// Tokens of a row where none are asked for.
const CONTEXT: usize = 2048;

impl ShapeArgs {
    /// Plans, and prints the plan.
    pub(super) fn run(
        &self,
        name: &str,
        context: Option<usize>,
        peak_flops: Option<&str>,
        output: &Output,
    ) -> anyhow::Result<bool> {
        let context = context.unwrap_or(CONTEXT);
        let peak = match peak_flops {
            Some(text) => {
                let rate = parse_flops(text).filter(|&rate| rate > 0.0);
                Some(rate.with_context(|| format!("--peak-flops {text}: expected a rate such as 989T"))?)
            }
            None => None,
        };
        anyhow::ensure!(
            self.rows > 0 && self.micro_rows > 0 && context > 1,
            "--rows and --micro-rows must be at least 1, --context at least 2"
        );
        let memory = self.memory.context("--from-config needs --memory, for example --memory 1.5TB")?;
        let mut machine = match self.device_memory {
            Some(device) => Machine::gpu(device, memory, peak),
            None => {
                let cpu = Machine::cpu(memory);
                Machine { flops: peak.unwrap_or(cpu.flops), ..cpu }
            }
        };
        machine.disk_space = self.disk_space;
        machine.pcie = self.pcie.unwrap_or(machine.pcie);
        machine.disk = self.disk.unwrap_or(machine.disk);
        machine.memory_bandwidth = self.memory_bandwidth.unwrap_or(machine.memory_bandwidth);
        let shape = StepShape { rows: self.rows, micro_rows: self.micro_rows, context };
        let weights = if self.weights == "f32" { WeightDtype::F32 } else { WeightDtype::Bf16 };
        let steps = self.steps.unwrap_or_else(|| 4 * 30_000u64.div_ceil(self.rows as u64));
        let plan = ShapePlan::new(&config(name)?, weights, shape, steps, machine, peak)?;
        output.result(&plan, describe)?;
        Ok(true)
    }
}

fn describe(plan: &ShapePlan) -> String {
    let (shape, machine, chosen) = (plan.shape, plan.machine, &plan.chosen);
    let (estimate, sweeps) = (&chosen.estimate, chosen.choice.sweeps);
    let (traffic, seconds) = (estimate.traffic, estimate.seconds);
    let rate = |bytes: f64| format!("{}/s", size(bytes as u64));
    let mut lines: Vec<(&str, String)> = vec![
        ("parameters", count(plan.parameters)),
        (
            "step",
            format!(
                "{} rows of {} tokens in micro-batches of {}: {} tokens, {:.2e} operations",
                count(shape.rows as u64),
                count(shape.context as u64),
                shape.micro_rows,
                count(shape.tokens()),
                plan.operations
            ),
        ),
        ("plan", in_words(chosen)),
    ];
    if machine.device_memory.is_some() {
        let groups =
            format!("gradients of {} micro-batches are summed there before they leave", sweeps.summed);
        lines.push(("on the GPU", groups));
    }
    let used = |name, memory: MemoryUse, there: u64| {
        let MemoryUse { parameters, activations, workspace, total, .. } = memory;
        let parts = [("parameters", parameters), ("activations", activations), ("workspace", workspace)];
        let parts: Vec<String> =
            parts.iter().map(|(name, bytes)| format!("{} {name}", size(*bytes))).collect();
        (name, format!("{} of {}: {}", size(total), size(there), parts.join(", ")))
    };
    if let (Some(memory), Some(there)) = (estimate.device, machine.device_memory) {
        lines.push(used("GPU memory", memory, there));
    }
    lines.push(used("host memory", estimate.host, machine.memory));
    lines.push(("disk", size(estimate.disk)));
    if machine.device_memory.is_some() {
        lines.push((
            "PCIe a step",
            format!(
                "{} to the GPU, {} from it, at {}: {}",
                size(traffic.to_device),
                size(traffic.from_device),
                rate(machine.pcie),
                duration(seconds.pcie)
            ),
        ));
    }
    lines.push((
        "disk a step",
        format!(
            "{} read, {} written, {} by the update, at {}: {}",
            size(traffic.disk_read),
            size(traffic.disk_written),
            size(traffic.disk_update),
            rate(machine.disk),
            duration(seconds.disk)
        ),
    ));
    lines.push((
        "host memory a step",
        format!(
            "{} for sums and AdamW, at {}: {}",
            size(traffic.host_memory),
            rate(machine.memory_bandwidth),
            duration(seconds.host_memory)
        ),
    ));
    lines.push((
        "arithmetic a step",
        format!("at {:.3e} operations/s: {}", machine.flops, duration(seconds.arithmetic)),
    ));
    let utilisation =
        plan.utilisation.map_or_else(String::new, |part| format!(", {:.0} % of peak", part * 100.0));
    let tokens = shape.tokens() as f64 / seconds.step;
    lines.push((
        "time",
        format!(
            "{} a step, {tokens:.0} tokens/s{utilisation}; {} steps: {}",
            duration(seconds.step),
            count(plan.steps),
            duration(plan.seconds)
        ),
    ));
    lines.push(("bound by", format!("{}: the fastest plan that fits", plan.bound)));
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<19} {value}\n")).collect();
    text.push('\n');
    text.push_str(&plans(&plan.plans));
    text.push_str(
        "\nPredicted by formula, for full rows. Copies between host and GPU, block inputs in files and sums of \
         earlier sweeps\nadd to the arithmetic; weights read ahead and gradients written behind do not.",
    );
    text
}

/// How a step is carried out.
pub(super) fn in_words(plan: &Considered) -> String {
    let gpu = plan.estimate.device.is_some();
    let placement = placement(plan.choice.placement, gpu);
    let rows = count(plan.sweep_rows as u64);
    format!("weights, gradients and moments {placement}; sweeps of {rows} rows; {}", kept(plan))
}

fn placement(placement: Placement, gpu: bool) -> &'static str {
    match placement {
        Placement::Resident | Placement::Auto if gpu => "in host memory, weights also on the GPU",
        Placement::Resident | Placement::Auto => "in memory",
        Placement::Host => "in host memory, weights to the device for each use",
        Placement::Disk => "in files",
    }
}

fn kept(plan: &Considered) -> String {
    let sweeps = plan.choice.sweeps;
    if !sweeps.recompute {
        return "graphs are kept for the backward pass".into();
    }
    let place = match (sweeps.inputs, plan.estimate.device) {
        (InputPlace::Device, Some(_)) => "on the GPU",
        (InputPlace::Device | InputPlace::Host, _) => "in host memory",
        (InputPlace::Disk, _) => "in a file",
    };
    let kept = size(plan.estimate.kept_inputs);
    format!("block inputs ({kept} a sweep) wait {place}, blocks run again in the backward pass")
}

/// Every kind of plan: the one that is taken, others that fit, and by how much the rest does not.
pub(super) fn plans(plans: &[Considered]) -> String {
    let gpu = plans.iter().any(|plan| plan.estimate.device.is_some());
    let rows = plans.iter().map(|plan| {
        let (choice, estimate) = (plan.choice, &plan.estimate);
        let mut row = vec![
            format!("{:?}", choice.placement).to_lowercase(),
            if choice.sweeps.recompute { "yes" } else { "no" }.into(),
            format!("{:?}", choice.sweeps.inputs).to_lowercase(),
            count(plan.sweep_rows as u64),
        ];
        row.extend(gpu.then(|| size(estimate.device.map_or(0, |memory| memory.total))));
        row.extend([
            size(estimate.host.total),
            size(estimate.disk),
            duration(estimate.seconds.step),
            match (plan.chosen, plan.fits) {
                (true, _) => "chosen".into(),
                (false, true) => "fits".into(),
                (false, false) => format!("lacks {}", plan.missing),
            },
        ]);
        row
    });
    let mut header = vec!["placement", "recompute", "inputs", "rows a sweep"];
    header.extend(gpu.then_some("GPU memory"));
    header.extend(["memory", "disk", "a step", ""]);
    table(&header, rows, true)
}
