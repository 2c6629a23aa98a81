//! The `flm` command; see `flm --help`.

fn main() -> std::process::ExitCode {
    keep_small_memory();
    flm_cli::run()
}

/// Activations of some megabytes come and go with every operation. glibc would give each back to the
/// kernel and take it again page by page, which costs a third of the speed of reading a prompt. What
/// is larger than this (weights) still goes back at once, so that the bounds on memory hold.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_small_memory() {
    const LARGE: libc::c_int = 4 << 20;
    const KEPT: libc::c_int = 64 << 20;
    // SAFETY: mallopt sets a number; no other thread runs yet.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_small_memory() {}
