//! The time that a run will take, measured on one block.

use std::time::Instant;

use candle_core::{DType, Device};

use crate::backprop::{Backprop, SweepOptions};
use crate::data::batch::{MicroBatch, Packed};
use crate::error::TrainError;
use crate::optimizer::adamw::AdamW;
use crate::options::Placement;
use crate::params::Layout;
use crate::plan::Plan;
use crate::plan::estimate::{Choice, Estimate, StepShape};
use crate::plan::flops::model_operations;
use crate::plan::machine::Machine;
use crate::store::memory::MemoryStore;
use crate::store::{Array, ParameterStore, Place};

/// Rows of the embedding that are measured with.
const VOCABULARY: usize = 1024;
/// Memory that a measurement may take.
const MEMORY: u64 = 2 << 30;

impl Plan {
    /// The time that the run takes on this machine: its arithmetic from a step of a model with one block of the
    /// same width, on a micro-batch of the run's own, files by the bytes that the plan moves and the rate that it
    /// assumes; `None` where that block is too large for a quick measurement. Checkpoints are not in it.
    pub fn measure(&self, device: &Device, dtype: DType) -> Result<Option<f64>, TrainError> {
        let mut config = self.layout.config().clone();
        config.num_hidden_layers = 1;
        config.vocab_size = config.vocab_size.min(VOCABULARY);
        config.growth = None;
        let layout = Layout::new(&config);
        let micro = self.options.train.micro_batch_size.min(self.dataset.rows.len()).max(1);
        let shape = StepShape { rows: micro, micro_rows: micro, context: self.context };
        let recompute = self.choice.sweeps.recompute;
        let sweeps = SweepOptions::whole_step(recompute);
        let choice = Choice { placement: Placement::Resident, sweeps };
        let needed = Estimate::new(&layout, &Machine::cpu(MEMORY), choice, shape).host.total;
        if needed > self.machine.memory.min(MEMORY) {
            return Ok(None);
        }
        let rows: Vec<Packed> = self.dataset.rows[..micro].iter().map(|row| small(&row.packed)).collect();
        let sample = model_operations(&config, &rows);
        if sample == 0.0 {
            return Ok(None);
        }
        let mut store = MemoryStore::new(&layout, device, dtype, true)?;
        fill(&mut store)?;
        let backprop = Backprop::new(&layout, device, dtype, recompute);
        let batches = [MicroBatch::new(&rows)];
        let adamw = AdamW::new(self.options.adamw(), 1, 0.0, 1.0);
        // the first step finds cold caches
        let (mut pass, mut update) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..3 {
            let start = Instant::now();
            backprop.run(&mut store, &batches)?;
            pass = pass.min(start.elapsed().as_secs_f64());
            let start = Instant::now();
            store.update(&mut |parameter, slices| adamw.apply(parameter, slices))?;
            update = update.min(start.elapsed().as_secs_f64());
        }
        let passes = pass / sample * self.operations_per_epoch() / self.steps_per_epoch().max(1) as f64;
        let update = update / layout.len() as f64 * self.layout.len() as f64;
        let traffic = self.considered.iter().find(|plan| plan.chosen).map(|plan| plan.estimate.traffic);
        let traffic = traffic.unwrap_or_default();
        let file = |bytes: u64| bytes as f64 / self.machine.disk;
        let beside = file(traffic.disk_read + traffic.disk_written);
        let step = (passes + file(traffic.disk_waited)).max(beside) + update.max(file(traffic.disk_update));
        Ok(Some(step * self.steps as f64))
    }
}

/// The same row with ids of a smaller vocabulary.
fn small(row: &Packed) -> Packed {
    let mut row = row.clone();
    row.ids.iter_mut().for_each(|id| *id %= VOCABULARY as u32);
    row.labels.iter_mut().filter(|label| **label >= 0).for_each(|label| *label %= VOCABULARY as i32);
    row
}

/// Weights of about the size of a model's.
fn fill(store: &mut dyn ParameterStore) -> Result<(), TrainError> {
    let layout = store.layout().clone();
    for (unit, index, parameter) in layout.parameters() {
        let value = |i: usize| if parameter.decays() { (i as f32 * 0.37).sin() * 0.02 } else { 1.0 };
        let values: Vec<f32> = (0..parameter.len()).map(value).collect();
        store.write(Place { unit, parameter: index, array: Array::Weights }, 0, &values)?;
    }
    Ok(())
}
