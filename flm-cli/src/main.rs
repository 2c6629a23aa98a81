//! The `flm` command; see `flm --help`.

/// Activations of a few megabytes come and go with every operation. The system's allocator gives each
/// back to the kernel and takes it again, page by page: reading a prompt is half as fast again without.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    flm_cli::run()
}
