//! Weights, gradients and moments in memory.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Result as CandleResult, Storage, Tensor, Var, bail,
};
use half::bf16;

use flm_candle::candle_dtype;

use crate::error::TrainError;
use crate::params::{Layout, Parameter, ParameterGroup, Slices};
use crate::store::host_slice;
use crate::store::{Array, ParameterStore, Place, Update, narrow, widen};

/// Everything in host memory; weights also on the device, if it is another one and has room.
///
/// 16 bytes a parameter on the host while a step runs: weights, gradient and two moments in f32; 14
/// where weights are bf16, which a CPU widens for the unit in use.
#[derive(Debug)]
pub struct MemoryStore {
    layout: Layout,
    units: Vec<UnitState>,
    device: Device,
    dtype: DType,
    on_device: bool,
}

#[derive(Debug)]
struct UnitState {
    /// In host memory, in the dtype that each parameter is stored in.
    weights: Vec<Var>,
    /// Copies for computing, where they are kept.
    copies: Option<Vec<Var>>,
    /// By slot.
    gradients: BTreeMap<usize, Vec<Vec<f32>>>,
    exp_avg: Vec<Vec<f32>>,
    exp_avg_sq: Vec<Vec<f32>>,
}

impl MemoryStore {
    /// Zeros for all parameters, to compute with in `dtype` on `device`; `on_device` keeps the weights
    /// there from step to step.
    pub fn new(layout: &Layout, device: &Device, dtype: DType, on_device: bool) -> Result<Self, TrainError> {
        let mut units = Vec::with_capacity(layout.units().len());
        for unit in layout.units() {
            let zeros = || unit.parameters.iter().map(|p| vec![0f32; p.len()]).collect::<Vec<_>>();
            let weights = unit
                .parameters
                .iter()
                .map(|p| Var::zeros(p.shape.as_slice(), candle_dtype(p.dtype), &Device::Cpu));
            units.push(UnitState {
                weights: weights.collect::<CandleResult<_>>()?,
                copies: None,
                gradients: BTreeMap::new(),
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
            });
        }
        Ok(Self { layout: layout.clone(), units, device: device.clone(), dtype, on_device })
    }

    /// Whether stored weights are what computes: f32 on the host.
    fn in_place(&self, weight: &Var) -> bool {
        self.device.is_cpu() && self.dtype == DType::F32 && weight.dtype() == DType::F32
    }
}

/// A variable for computing: matrices in `dtype`, gains in f32 (f64 for a model in f64).
///
/// Values are converted here, by all threads, and then copied to the device once.
pub(crate) fn compute_copy(
    weight: &CpuStorage,
    parameter: &Parameter,
    dtype: DType,
    device: &Device,
) -> CandleResult<Var> {
    let shape = parameter.shape.as_slice();
    let dtype = match (parameter.group, dtype) {
        (ParameterGroup::Norm, DType::BF16 | DType::F16) => DType::F32,
        (_, dtype) => dtype,
    };
    match (weight, dtype) {
        (CpuStorage::F32(values), DType::F32) => Var::from_slice(values, shape, device),
        (CpuStorage::BF16(values), DType::BF16) => Var::from_slice(values, shape, device),
        (CpuStorage::F32(values), DType::BF16) => {
            let mut narrowed = vec![bf16::ZERO; values.len()];
            narrow(values, &mut narrowed);
            Var::from_vec(narrowed, shape, device)
        }
        (CpuStorage::BF16(values), DType::F32) => {
            let mut widened = vec![0f32; values.len()];
            widen(values, &mut widened);
            Var::from_vec(widened, shape, device)
        }
        _ => {
            let stored = match weight {
                CpuStorage::F32(values) => Tensor::from_slice(values, shape, &Device::Cpu)?,
                CpuStorage::BF16(values) => Tensor::from_slice(values, shape, &Device::Cpu)?,
                _ => bail!("weights are stored in f32 or bf16"),
            };
            Var::from_tensor(&stored.to_dtype(dtype)?.to_device(device)?)
        }
    }
}

impl ParameterStore for MemoryStore {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn weights(&mut self, unit: usize) -> Result<Vec<Var>, TrainError> {
        let state = &self.units[unit];
        if let Some(copies) = &state.copies {
            return Ok(copies.clone());
        }
        let copies = state.weights.iter().zip(&self.layout.units()[unit].parameters);
        let copies = copies.map(|(weight, parameter)| {
            if self.in_place(weight) {
                return Ok(weight.clone());
            }
            match &*weight.storage_and_layout().0 {
                Storage::Cpu(values) => compute_copy(values, parameter, self.dtype, &self.device),
                _ => bail!("weights are stored in host memory"),
            }
        });
        let copies: Vec<Var> = copies.collect::<CandleResult<_>>()?;
        if self.on_device && !self.device.is_cpu() {
            self.units[unit].copies = Some(copies.clone());
        }
        Ok(copies)
    }

    fn expect(&mut self, _: usize) {}

    fn put_gradient(&mut self, unit: usize, slot: usize, gradient: Vec<Vec<f32>>) -> Result<(), TrainError> {
        self.units[unit].gradients.insert(slot, gradient);
        Ok(())
    }

    fn take_gradient(&mut self, unit: usize, slot: usize) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.units[unit].gradients.remove(&slot).unwrap_or_default())
    }

    fn update(&mut self, update: &mut Update<'_>) -> Result<(), TrainError> {
        for (index, (unit, state)) in self.layout.units().iter().zip(&mut self.units).enumerate() {
            state.copies = None;
            let gradients = std::mem::take(&mut state.gradients).remove(&0).unwrap_or_default();
            let arrays =
                state.weights.iter().zip(&gradients).zip(&mut state.exp_avg).zip(&mut state.exp_avg_sq);
            for ((((weights, gradient), exp_avg), exp_avg_sq), parameter) in arrays.zip(&unit.parameters) {
                change(weights, |offset, weights| {
                    let range = offset..offset + weights.len();
                    update(
                        parameter,
                        Slices {
                            unit: index,
                            offset,
                            weights,
                            gradient: &gradient[range.clone()],
                            exp_avg: &mut exp_avg[range.clone()],
                            exp_avg_sq: &mut exp_avg_sq[range],
                        },
                    );
                })?;
            }
        }
        Ok(())
    }

    fn read(&self, at: Place, offset: usize, values: &mut [f32]) -> Result<(), TrainError> {
        let state = &self.units[at.unit];
        let range = offset..offset + values.len();
        match at.array {
            Array::Weights => {
                let (storage, _) = state.weights[at.parameter].storage_and_layout();
                match &*storage {
                    Storage::Cpu(CpuStorage::BF16(stored)) => widen(&stored[range], values),
                    storage => values.copy_from_slice(&host_slice(storage)?[range]),
                }
            }
            Array::ExpAvg => values.copy_from_slice(&state.exp_avg[at.parameter][range]),
            Array::ExpAvgSq => values.copy_from_slice(&state.exp_avg_sq[at.parameter][range]),
        }
        Ok(())
    }

    fn write(&mut self, at: Place, offset: usize, values: &[f32]) -> Result<(), TrainError> {
        let state = &mut self.units[at.unit];
        let range = offset..offset + values.len();
        match at.array {
            Array::Weights => {
                state.copies = None;
                change(&state.weights[at.parameter], |first, weights| {
                    let end = first + weights.len();
                    let (from, to) = (range.start.max(first), range.end.min(end));
                    if from < to {
                        let values = &values[from - offset..to - offset];
                        weights[from - first..to - first].copy_from_slice(values);
                    }
                })?;
            }
            Array::ExpAvg => state.exp_avg[at.parameter][range].copy_from_slice(values),
            Array::ExpAvgSq => state.exp_avg_sq[at.parameter][range].copy_from_slice(values),
        }
        Ok(())
    }
}

/// Values of a bf16 variable that are widened at once.
const PART: usize = 1 << 20;

/// Changes a variable's values where they are: in parts, each with the index of its first value.
fn change(variable: &Var, change: impl FnMut(usize, &mut [f32]) + Send) -> Result<(), TrainError> {
    Ok(variable.inplace_op1(&InPlace(Mutex::new(change)))?)
}

struct InPlace<F>(Mutex<F>);

impl<F: FnMut(usize, &mut [f32])> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &candle_core::Layout) -> CandleResult<()> {
        let Ok(mut change) = self.0.lock() else { bail!("a change of weights failed before") };
        match storage {
            CpuStorage::F32(values) => change(0, values),
            CpuStorage::BF16(stored) => {
                let mut wide = vec![0f32; PART.min(stored.len())];
                for (index, stored) in stored.chunks_mut(PART).enumerate() {
                    let wide = &mut wide[..stored.len()];
                    widen(stored, wide);
                    change(index * PART, wide);
                    narrow(wide, stored);
                }
            }
            _ => bail!("weights are stored in f32 or bf16"),
        }
        Ok(())
    }
}
