//! Which plan: every one that the settings allow is estimated, the fastest that fits is taken.

use serde::Serialize;

use crate::backprop::{InputPlace, SweepOptions};
use crate::error::TrainError;
use crate::options::{Inputs, Options, Placement, Recompute};
use crate::params::Layout;
use crate::plan::estimate::{Choice, Estimate, MemoryUse, StepShape};
use crate::plan::machine::Machine;

/// What is not left to the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// Where parameters are; [`Placement::Auto`] leaves it open.
    pub placement: Placement,
    /// Whether blocks run again.
    pub recompute: Option<bool>,
    /// Rows of a sweep: rounded down to micro-batches, and those to a power of two.
    pub sweep_rows: Option<usize>,
    /// Where block inputs wait.
    pub inputs: Option<InputPlace>,
}

impl Wanted {
    /// What a run is told to do.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for settings that do not go together.
    pub(crate) fn of(options: &Options) -> Result<Self, TrainError> {
        let m = &options.memory;
        let recompute = match m.recompute {
            Recompute::Auto => None,
            Recompute::Always => Some(true),
            Recompute::Never => Some(false),
        };
        if m.placement == Placement::Disk && recompute == Some(false) {
            return Err(TrainError::Setting(
                "memory.recompute = \"never\" keeps all weights in memory: it does not go with \
                 placement = \"disk\""
                    .into(),
            ));
        }
        let inputs = match m.inputs {
            Inputs::Auto => None,
            Inputs::Device => Some(InputPlace::Device),
            Inputs::Host => Some(InputPlace::Host),
            Inputs::Disk => Some(InputPlace::Disk),
        };
        let sweep_rows = Some(m.sweep_rows).filter(|&rows| rows > 0);
        Ok(Self { placement: m.placement, recompute, sweep_rows, inputs })
    }
}

/// A plan that was considered: of its kind the fastest that fits, or the one that is nearest to it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Considered {
    /// How a step would be carried out.
    #[serde(flatten)]
    pub choice: Choice,
    /// Rows of a sweep.
    pub sweep_rows: usize,
    /// What it would need and take.
    pub estimate: Estimate,
    /// Whether it fits.
    pub fits: bool,
    /// Whether it is the one that was taken.
    pub chosen: bool,
    /// Bytes that are missing: of the GPU's memory, the host's, the disk's.
    pub missing: Missing,
}

/// Bytes that a plan needs beyond what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Missing {
    /// Of the GPU's memory.
    pub device: u64,
    /// Of host memory.
    pub host: u64,
    /// Of space for files.
    pub disk: u64,
}

impl Missing {
    fn total(&self) -> u64 {
        self.device.saturating_add(self.host).saturating_add(self.disk)
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [(self.device, "GPU memory"), (self.host, "host memory"), (self.disk, "disk")];
        let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
        let parts: Vec<String> = parts.map(|(bytes, what)| format!("{} of {what}", size(*bytes))).collect();
        f.write_str(&parts.join(", "))
    }
}

/// 1234567890 as "1.23 GB".
fn size(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1_000_000 => return format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => (bytes as f64 / 1e6, "MB"),
        1_000_000_000..1_000_000_000_000 => (bytes as f64 / 1e9, "GB"),
        _ => (bytes as f64 / 1e12, "TB"),
    };
    // rounded up: with that much more it fits
    format!("{:.2} {unit}", (value * 100.0).ceil() / 100.0)
}

/// Every kind of plan that the settings allow, the one that is taken marked.
///
/// `data` is what the rows take in host memory beside each. Of the plans that fit the fastest is taken. A hundredth more time counts as equal: then the first kind is
/// taken, with the least memory.
pub(crate) fn consider(
    layout: &Layout,
    machine: &Machine,
    shape: StepShape,
    data: u64,
    wanted: Wanted,
) -> Vec<Considered> {
    let mut kinds: Vec<Considered> = Vec::new();
    for placement in placements(machine, wanted) {
        for recompute in [false, true] {
            // graphs hold all weights, which files are there to avoid
            let possible = wanted.recompute.is_none_or(|wanted| wanted == recompute)
                && (recompute || placement != Placement::Disk);
            if !possible {
                continue;
            }
            for inputs in places(machine, wanted, recompute) {
                let plans = sweeps(shape, machine, wanted).map(|(micro_batches, summed)| {
                    let sweeps = SweepOptions { micro_batches, summed, recompute, inputs };
                    consider_one(layout, machine, shape, data, Choice { placement, sweeps })
                });
                kinds.extend(best(plans.collect()));
            }
        }
    }
    let times = kinds.iter().filter(|plan| plan.fits).map(|plan| plan.estimate.seconds.step);
    if let Some(fastest) = times.min_by(f64::total_cmp) {
        let equal = |plan: &&mut Considered| plan.fits && plan.estimate.seconds.step <= fastest * 1.01;
        if let Some(plan) = kinds.iter_mut().find(equal) {
            plan.chosen = true;
        }
    }
    kinds
}

fn placements(machine: &Machine, wanted: Wanted) -> Vec<Placement> {
    match (wanted.placement, machine.device_memory) {
        (Placement::Auto, Some(_)) => vec![Placement::Resident, Placement::Host, Placement::Disk],
        (Placement::Auto, None) => vec![Placement::Resident, Placement::Disk],
        (given, _) => vec![given],
    }
}

fn places(machine: &Machine, wanted: Wanted, recompute: bool) -> Vec<InputPlace> {
    match (recompute, wanted.inputs, machine.device_memory) {
        // graphs stay where they are made
        (false, ..) => vec![InputPlace::Device],
        (true, Some(place), _) => vec![place],
        (true, None, Some(_)) => vec![InputPlace::Device, InputPlace::Host, InputPlace::Disk],
        (true, None, None) => vec![InputPlace::Device, InputPlace::Disk],
    }
}

/// Sizes of sweeps in micro-batches, and of groups whose gradients are summed on a GPU.
fn sweeps(shape: StepShape, machine: &Machine, wanted: Wanted) -> impl Iterator<Item = (usize, usize)> {
    let all = shape.micro_batches().next_power_of_two().ilog2();
    let powers = match wanted.sweep_rows {
        None => 0..=all,
        Some(rows) => {
            let power = (rows / shape.micro_rows.max(1)).max(1).ilog2().min(all);
            power..=power
        }
    };
    let gpu = machine.device_memory.is_some();
    powers.flat_map(move |power| {
        let summed = if gpu { 0..=power } else { power..=power };
        summed.map(move |summed| (1 << power, 1 << summed))
    })
}

fn consider_one(
    layout: &Layout,
    machine: &Machine,
    shape: StepShape,
    data: u64,
    choice: Choice,
) -> Considered {
    let estimate = Estimate::new(layout, machine, choice, shape);
    let estimate = Estimate { host: estimate.host.beside(data), ..estimate };
    let over = |needed: u64, there: Option<u64>| there.map_or(0, |there| needed.saturating_sub(there));
    let missing = Missing {
        device: over(estimate.device.map_or(0, |m: MemoryUse| m.total), machine.device_memory),
        host: over(estimate.host.total, Some(machine.memory)),
        disk: over(estimate.disk, machine.disk_space),
    };
    let sweep_rows = (choice.sweeps.micro_batches.saturating_mul(shape.micro_rows)).min(shape.rows);
    Considered { choice, sweep_rows, estimate, fits: missing.total() == 0, chosen: false, missing }
}

/// The fastest that fits, or the one that is nearest to it.
fn best(plans: Vec<Considered>) -> Option<Considered> {
    let memory = |plan: &Considered| plan.estimate.host.total + plan.estimate.device.map_or(0, |m| m.total);
    let time = |plan: &Considered| plan.estimate.seconds.step;
    let fitting: Vec<&Considered> = plans.iter().filter(|plan| plan.fits).collect();
    let Some(fastest) = fitting.iter().map(|plan| time(plan)).min_by(f64::total_cmp) else {
        return plans.into_iter().min_by_key(|plan| plan.missing.total());
    };
    fitting.into_iter().filter(|plan| time(plan) <= fastest * 1.01).min_by_key(|plan| memory(plan)).copied()
}

/// A table of plans that do not fit, for an error.
pub(crate) fn refusal(plans: &[Considered]) -> String {
    let line = |plan: &Considered| {
        let Choice { placement, sweeps } = plan.choice;
        format!(
            "  {:<9} {:<9} {:<7} {:>6} {:>11} {:>11} {:>11}  {}",
            format!("{placement:?}").to_lowercase(),
            if sweeps.recompute { "yes" } else { "no" },
            format!("{:?}", sweeps.inputs).to_lowercase(),
            plan.sweep_rows,
            plan.estimate.device.map_or("-".into(), |memory| size(memory.total)),
            size(plan.estimate.host.total),
            size(plan.estimate.disk),
            plan.missing
        )
    };
    let header = format!(
        "  {:<9} {:<9} {:<7} {:>6} {:>11} {:>11} {:>11}  {}",
        "placement", "recompute", "inputs", "sweep", "GPU memory", "host memory", "disk", "missing"
    );
    std::iter::once(header).chain(plans.iter().map(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flm_checkpoint::preset;

    fn plans(machine: &Machine, rows: usize) -> (Vec<Considered>, Layout) {
        let layout = Layout::new(&preset("tele-flm-52b").unwrap()).with_bf16_weights();
        let shape = StepShape { rows, micro_rows: 1, context: 2048 };
        (consider(&layout, machine, shape, 0, Wanted::default()), layout)
    }

    #[test]
    fn the_shipped_recipes_step_of_the_52b_fits_one_gpu_with_host_memory_or_disk() {
        let rates = |machine: Machine| Machine { disk: 6e9, ..machine };
        for (device, memory) in [(141e9, 1.5e12), (24e9, 256e9)] {
            let machine = rates(Machine::gpu(device as u64, memory as u64, Some(989e12)));
            let (plans, _) = plans(&machine, 1024);
            let chosen = plans.iter().find(|plan| plan.chosen).unwrap();
            let estimate = chosen.estimate;
            assert!(estimate.device.unwrap().total <= device as u64, "{chosen:#?}");
            assert!(estimate.host.total <= memory as u64);
            // the block inputs of the whole step are 2.2 TB
            let place = chosen.choice.sweeps.inputs;
            assert!(place == InputPlace::Disk || estimate.kept_inputs < memory as u64, "{chosen:#?}");
            let fastest = plans.iter().filter(|p| p.fits).map(|p| p.estimate.seconds.step);
            assert!(estimate.seconds.step <= 1.01 * fastest.fold(f64::INFINITY, f64::min));
            assert!(plans.iter().any(|plan| !plan.fits && plan.missing.total() > 0));
        }
    }

    #[test]
    fn nothing_that_does_not_fit_is_chosen_and_what_is_missing_would_be_enough() {
        let machine = Machine { disk_space: Some(100_000_000_000), ..Machine::gpu(8 << 30, 32 << 30, None) };
        let (refused, layout) = plans(&machine, 1024);
        assert!(refused.iter().all(|plan| !plan.fits && !plan.chosen));
        let text = refusal(&refused);
        assert!(text.lines().count() == refused.len() + 1 && text.contains("GB of host memory"), "{text}");
        for plan in &refused {
            let more = Machine {
                device_memory: machine.device_memory.map(|bytes| bytes + plan.missing.device),
                memory: machine.memory + plan.missing.host,
                disk_space: machine.disk_space.map(|bytes| bytes + plan.missing.disk),
                ..machine
            };
            let shape = StepShape { rows: 1024, micro_rows: 1, context: 2048 };
            assert!(consider_one(&layout, &more, shape, 0, plan.choice).fits);
            // what the rows of data take is missing too
            let beside = consider_one(&layout, &more, shape, 1_000_000, plan.choice);
            assert_eq!((beside.missing.total(), beside.estimate.host.data), (1_000_000, 1_000_000));
            assert_eq!(beside.estimate.host.total, plan.estimate.host.total + 1_000_000);
        }
    }

    #[test]
    fn more_memory_is_never_slower() {
        let mut last = f64::INFINITY;
        for memory in [64e9, 128e9, 256e9, 512e9, 1e12, 2e12, 4e12] {
            let (plans, _) = plans(&Machine::gpu(80_000_000_000, memory as u64, None), 256);
            let Some(chosen) = plans.iter().find(|plan| plan.chosen) else { continue };
            assert!(chosen.estimate.seconds.step <= last * 1.01, "{memory}: {:#?}", chosen.estimate.seconds);
            last = chosen.estimate.seconds.step;
        }
        assert!(last.is_finite());
    }
}
