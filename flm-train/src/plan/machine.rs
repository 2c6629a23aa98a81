//! The machine that a run is planned for: memories, links, rates.

use candle_core::{DType, Device};
use serde::Serialize;

use crate::error::TrainError;
use crate::options::Options;
use flm_checkpoint::available_memory;

/// The machine that a run is planned for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Memory of the GPU that computes; `None` where the CPU does.
    pub device_memory: Option<u64>,
    /// Host memory to stay within.
    pub memory: u64,
    /// Space for files of parameters and block inputs, where it is known.
    pub disk_space: Option<u64>,
    /// Bytes a second between host and device.
    pub pcie: f64,
    /// Bytes a second of the disk.
    pub disk: f64,
    /// Bytes a second of the host's memory, over all cores.
    pub memory_bandwidth: f64,
    /// Operations a second that training reaches: a part of the peak rate.
    pub flops: f64,
    /// Whether a GPU computes in f32.
    pub device_f32: bool,
}

/// The part of a GPU's peak rate that is planned with. Large bf16 products reach 65 to 80 % of an H100's or
/// H200's peak; norms, attention and launches take the rest.
const REACHED: f64 = 0.5;

impl Machine {
    /// A machine whose CPU computes, within `memory` bytes. Its rates only weigh plans against each other.
    pub fn cpu(memory: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        Self {
            device_memory: None,
            memory,
            disk_space: None,
            pcie: f64::INFINITY,
            disk: 1e9,
            memory_bandwidth: 10e9,
            flops: 40e9 * cores,
            device_f32: false,
        }
    }

    /// A machine with a GPU of this memory and peak rate, by default those of an H100's links.
    pub fn gpu(device_memory: u64, memory: u64, peak_flops: Option<f64>) -> Self {
        Self {
            device_memory: Some(device_memory),
            memory,
            disk_space: None,
            pcie: 50e9,
            disk: 3e9,
            memory_bandwidth: 100e9,
            flops: REACHED * peak_flops.unwrap_or(989e12),
            device_f32: false,
        }
    }

    /// This machine, within a run's budgets, for arithmetic in `dtype` on `device`.
    pub(crate) fn of(options: &Options, device: &Device, dtype: DType) -> Result<Self, TrainError> {
        let free = || available_memory().map_or(u64::MAX, |free| free / 10 * 9);
        let memory = options.memory.budget.unwrap_or_else(free);
        if device.is_cpu() {
            return Ok(Self::cpu(memory));
        }
        let Some(on_device) = options.memory.device_budget.or_else(|| free_on_device(device)) else {
            let message = "memory.device_budget is not given, and the GPU does not say what it has free";
            return Err(TrainError::Setting(message.into()));
        };
        let machine = Self::gpu(on_device, memory, options.train.peak_flops);
        Ok(Self { device_f32: dtype != DType::BF16, ..machine })
    }

    /// Bytes of a value of the arithmetic.
    pub(crate) fn compute_bytes(&self) -> u64 {
        if self.device_memory.is_some() && !self.device_f32 { 2 } else { 4 }
    }
}

/// Nine tenths of the memory that a GPU has free.
#[cfg(feature = "cuda")]
fn free_on_device(device: &Device) -> Option<u64> {
    let (free, _) = device.as_cuda_device().ok()?.cuda_stream().context().mem_get_info().ok()?;
    Some(free as u64 / 10 * 9)
}

/// Without CUDA there is none.
#[cfg(not(feature = "cuda"))]
fn free_on_device(_: &Device) -> Option<u64> {
    None
}
