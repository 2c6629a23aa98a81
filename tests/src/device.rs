//! The device that tests run on, and what it was asked to do.
//!
//! `FLM_TEST_DEVICE=cuda` (a binary of its own features: `scripts/test-cuda.sh`) runs them on a GPU, or on the
//! software device of `tests/softcuda`, which counts calls and bytes.

use std::cell::OnceCell;
use std::ffi::{CStr, c_char, c_long};

use candle_core::{Device, Tensor};

thread_local! {
    /// One a test: tensors of two devices do not meet, and it goes with the test's thread.
    static DEVICE: OnceCell<Device> = const { OnceCell::new() };
}

/// What `FLM_TEST_DEVICE` asks for: `cpu`, `cuda` or `cuda:N`.
pub fn device_name() -> String {
    std::env::var("FLM_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// Whether tests run on the CPU, where more is equal to the bit.
pub fn on_cpu() -> bool {
    device_name() == "cpu"
}

/// The device that tests run on: always the same one in a thread.
///
/// # Panics
/// If it cannot be opened.
pub fn device() -> Device {
    let name = device_name();
    if name == "cpu" {
        return Device::Cpu;
    }
    let index = name.split_once(':').map_or(0, |(_, index)| index.parse().unwrap());
    let open = || Device::new_cuda(index).unwrap_or_else(|error| panic!("FLM_TEST_DEVICE={name}: {error}"));
    DEVICE.with(|device| device.get_or_init(open).clone())
}

/// A tensor where stored values are.
///
/// # Panics
/// If it cannot be copied.
pub fn to_cpu(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap()
}

/// What the software device has counted so far: calls of a driver function by its name, or `launches`,
/// `bytes up`, `bytes down`, `bytes inside`, `bytes live`, `bytes peak`.
///
/// # Panics
/// On any other device.
pub fn counted(what: &CStr) -> i64 {
    // SAFETY: the name ends with 0; the symbol, where there is one, is tests/softcuda's, a function of a
    // string that it only reads.
    #[allow(unsafe_code)]
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"softcuda_count".as_ptr());
        assert!(!symbol.is_null(), "only the software device counts: run scripts/test-cuda.sh");
        let count: extern "C" fn(*const c_char) -> c_long = std::mem::transmute(symbol);
        count(what.as_ptr())
    }
}

/// What a pass over the model asks of a device: work, memory, copies to it and from it, and waits.
pub const CALLS: [&CStr; 8] = [
    c"launches",
    c"cublasGemmStridedBatchedEx",
    c"cuMemAllocAsync",
    c"cuMemcpyHtoDAsync",
    c"cuMemcpyDtoHAsync",
    c"cuStreamSynchronize",
    c"cuEventCreate",
    c"cuMemsetD8Async",
];

/// How much the software device counts of each of `what` while `work` runs.
pub fn counts<const N: usize>(what: [&CStr; N], work: impl FnOnce()) -> [i64; N] {
    let before = what.map(counted);
    work();
    let mut after = what.map(counted);
    after.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    after
}
