//! Where parameters, gradients and optimizer state live.

pub(crate) mod disk;
pub(crate) mod memory;

use candle_core::Var;
use half::bf16;
use rayon::prelude::*;

use crate::error::TrainError;
use crate::params::{Layout, Parameter, Slices};
use crate::sums::CHUNK;
use flm_checkpoint::{Checkpoint, Dtype, cast};

/// Which of a parameter's four arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Array {
    /// Weights.
    Weights,
    /// First moment.
    ExpAvg,
    /// Second moment.
    ExpAvgSq,
}

/// Parameters, gradients and optimizer state of a model, unit by unit.
///
/// All stores give the same numbers: they move bytes, they do not compute.
pub trait ParameterStore: Send + std::fmt::Debug {
    /// The parameters that the store holds.
    fn layout(&self) -> &Layout;

    /// A unit's weights as variables on the device that computes, in the order of its parameters.
    fn weights(&mut self, unit: usize) -> Result<Vec<Var>, TrainError>;

    /// Says which unit will be asked for next, so that it can be read ahead.
    fn expect(&mut self, unit: usize);

    /// Keeps a gradient of a unit. A slot holds one; that in slot 0 is the update's.
    fn put_gradient(&mut self, unit: usize, slot: usize, gradient: Vec<Vec<f32>>) -> Result<(), TrainError>;

    /// Takes a gradient back, to add to it.
    fn take_gradient(&mut self, unit: usize, slot: usize) -> Result<Vec<Vec<f32>>, TrainError>;

    /// Lets `update` change weights and moments of every parameter, in parts; gradients are gone then.
    fn update(&mut self, update: &mut Update<'_>) -> Result<(), TrainError>;

    /// Fills `values` (f32, whatever is stored) with one of a parameter's arrays, from value `offset` on.
    fn read(&self, at: Place, offset: usize, values: &mut [f32]) -> Result<(), TrainError>;

    /// Sets one of a parameter's arrays, from value `offset` on; weights stored in bf16 to the nearest.
    fn write(&mut self, at: Place, offset: usize, values: &[f32]) -> Result<(), TrainError>;
}

/// Changes a part of a parameter.
pub(crate) type Update<'a> = dyn FnMut(&Parameter, Slices<'_>) + Send + 'a;

/// One array of one parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the unit.
    pub unit: usize,
    /// Index of the parameter in it.
    pub parameter: usize,
    /// Which array.
    pub array: Array,
}

/// Values that are moved at once while weights are loaded.
const MOVED: usize = 1 << 22;

/// Fills the weights of a store from a checkpoint.
///
/// # Errors
/// When the checkpoint does not hold what its config says.
pub fn load_weights(store: &mut dyn ParameterStore, checkpoint: &Checkpoint) -> Result<(), TrainError> {
    checkpoint.check()?;
    let layout = store.layout().clone();
    for (unit, index, parameter) in layout.parameters() {
        let entry = checkpoint.entry(&parameter.name)?;
        let width = entry.dtype.size_in_bytes();
        let place = Place { unit, parameter: index, array: Array::Weights };
        let mut bytes = vec![0u8; MOVED.min(parameter.len()) * width];
        for offset in (0..parameter.len()).step_by(MOVED) {
            let count = MOVED.min(parameter.len() - offset);
            let bytes = &mut bytes[..count * width];
            checkpoint.read_at(entry, (offset * width) as u64, bytes)?;
            store.write(place, offset, &values(bytes, entry.dtype))?;
        }
    }
    Ok(())
}

/// bf16 as f32.
pub(crate) fn widen(stored: &[bf16], wide: &mut [f32]) {
    wide.par_chunks_mut(CHUNK).zip(stored.par_chunks(CHUNK)).for_each(|(wide, stored)| {
        wide.iter_mut().zip(stored).for_each(|(wide, stored)| *wide = stored.to_f32());
    });
}

/// f32 as the nearest bf16: itself, where an update has rounded it.
pub(crate) fn narrow(wide: &[f32], stored: &mut [bf16]) {
    stored.par_chunks_mut(CHUNK).zip(wide.par_chunks(CHUNK)).for_each(|(stored, wide)| {
        stored.iter_mut().zip(wide).for_each(|(stored, &wide)| *stored = bf16::from_f32(wide));
    });
}

fn values(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let mut wide = Vec::new();
    cast(dtype, Dtype::F32, bytes, &mut wide);
    wide.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The values of a CPU tensor's storage.
pub(crate) fn host_slice(storage: &candle_core::Storage) -> Result<&[f32], TrainError> {
    match storage {
        candle_core::Storage::Cpu(storage) => Ok(storage.as_slice::<f32>()?),
        _ => Err(candle_core::Error::Msg("expected a tensor in host memory".into()).into()),
    }
}
