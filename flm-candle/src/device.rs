//! A GPU: how it is opened, and what its driver's refusals mean.
//!
//! Every thread has a stream of its own there, and nothing orders one after another: a tensor crosses threads only
//! when the thread that made it has called [`Device::synchronize`].

use candle_core::Device;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program has no code for a GPU.
    #[error("this binary was built without CUDA; build with `--features cuda`")]
    NotBuilt,
    /// The driver does not work.
    #[error("NVIDIA's driver does not answer ({0}): is it installed, and does `nvidia-smi` list a GPU?")]
    NoDriver(String),
    /// There is none.
    #[error(
        "the driver knows no GPU; `nvidia-smi` lists those that it sees, CUDA_VISIBLE_DEVICES may hide them"
    )]
    NoDevice,
    /// There are fewer.
    #[error("there is no GPU {index}: the driver knows {devices}, counted from 0")]
    NoSuch {
        /// Which was asked for.
        index: usize,
        /// How many there are.
        devices: usize,
    },
    /// Its kernels are for others.
    #[error(
        "the kernels of this binary do not run on GPU {index} ({error}): they are made for one compute capability \
         and need a driver as new as the toolkit; build with CUDA_COMPUTE_CAP as `nvidia-smi \
         --query-gpu=compute_cap --format=csv` says"
    )]
    Kernels {
        /// Which was asked for.
        index: usize,
        /// What the driver says.
        error: String,
    },
}

/// GPU `index`, counted from 0.
///
/// # Errors
/// [`DeviceError`] says what is missing.
#[cfg(feature = "cuda")]
pub fn open_gpu(index: usize) -> Result<Device, DeviceError> {
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys::CUresult};
    use candle_core::{DType, Tensor};

    let refused = |error: DriverError| match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => DeviceError::NoDevice,
        _ => DeviceError::NoDriver(error.to_string()),
    };
    let devices = CudaContext::device_count().map_err(refused)?.max(0) as usize;
    if devices == 0 {
        return Err(DeviceError::NoDevice);
    }
    if index >= devices {
        return Err(DeviceError::NoSuch { index, devices });
    }
    let device = Device::new_cuda(index).map_err(|error| DeviceError::NoDriver(error.to_string()))?;
    if let Ok(device) = device.as_cuda_device() {
        // SAFETY: events would order streams of one context that the program makes itself. It makes none: each
        // thread has its own stream, and threads hand tensors over as the head of this file says.
        #[allow(unsafe_code)]
        unsafe {
            device.disable_event_tracking();
        }
        keep_freed_memory(device.cuda_stream().context());
    }
    // kernels are compiled when the first one runs
    let one = Tensor::ones(1, DType::F32, &device).and_then(|one| one.affine(2.0, 0.0)?.to_vec1::<f32>());
    match one {
        Ok(_) => Ok(device),
        Err(error) => Err(DeviceError::Kernels { index, error: error.to_string() }),
    }
}

/// Without CUDA there is none.
///
/// # Errors
/// [`DeviceError::NotBuilt`].
#[cfg(not(feature = "cuda"))]
pub fn open_gpu(_: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// Lets the driver's pool keep what is freed: by default every synchronisation, one a token at least, gives it
/// back to the system, and the next token takes it again page by page.
#[cfg(feature = "cuda")]
fn keep_freed_memory(context: &candle_core::cuda_backend::cudarc::driver::CudaContext) {
    use candle_core::cuda_backend::cudarc::driver::sys;

    let (mut pool, mut all) = (std::ptr::null_mut(), u64::MAX);
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: both calls read and write the two locals only. A device without pools refuses the first, and the
    // second is not made.
    #[allow(unsafe_code)]
    unsafe {
        let found = sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device());
        if found == sys::CUresult::CUDA_SUCCESS {
            sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast());
        }
    }
}

/// Whether something failed because the GPU's memory is full.
pub fn is_out_of_memory(error: &dyn std::error::Error) -> bool {
    // the driver's error is boxed, and on its way wrapped in places and traces: only its text is left
    let text = error.to_string();
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|code| text.contains(code))
}
