//! The `flm` command; see `flm --help`.

fn main() -> std::process::ExitCode {
    flm_cli::run()
}
