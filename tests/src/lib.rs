//! End-to-end tests of the flm binary; the tests are in `tests/`.

#![allow(missing_docs, clippy::unwrap_used, reason = "for tests only")]

pub mod device;
pub mod files;
pub mod hub_server;
pub mod judge_server;
pub mod pytorch_writer;
pub mod word_model;

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The binary that was built beside the tests, `target/<profile>/flm`.
///
/// # Panics
/// If it is not there: `cargo test --workspace` builds it, a test of this package alone does not.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let profile = test.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let path = profile.join(format!("flm{}", std::env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace` first", path.display());
    path
}

/// Runs `flm` with the arguments, in two threads, on the device that tests run on.
///
/// # Panics
/// If it cannot be started.
pub fn flm<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let arguments: Vec<OsString> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
    let device = on_device(&arguments);
    let run = Command::new(binary()).args(arguments).args(device).env("RAYON_NUM_THREADS", "2").output();
    run.unwrap_or_else(|error| panic!("flm does not start: {error}"))
}

/// What puts a command on the device that tests run on, unless it chooses one: there it computes in f32, as it
/// does on a CPU.
pub fn on_device<S: AsRef<OsStr>>(arguments: &[S]) -> Vec<String> {
    let given = |name: &str| arguments.iter().any(|a| a.as_ref().to_string_lossy().starts_with(name));
    let word = |at: usize| arguments.get(at).map_or_else(Default::default, |a| a.as_ref().to_string_lossy());
    let runs = match &*word(0) {
        "generate" | "logits" | "verify" => true,
        // a plan for another machine has no device
        "sft" => !given("--from-config"),
        "eval" => matches!(&*word(1), "alignbench" | "perplexity"),
        _ => false,
    };
    if device::on_cpu() || !runs || given("--device") {
        return Vec::new();
    }
    let mut more = vec!["--device".to_owned(), device::device_name()];
    if !given("--dtype") {
        more.extend(["--dtype".into(), "f32".into()]);
    }
    more
}

/// Runs `flm … --json` and returns what it printed.
///
/// # Panics
/// If it fails or prints something else than JSON.
pub fn flm_json<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> serde_json::Value {
    let arguments: Vec<_> = arguments.into_iter().map(|a| a.as_ref().to_owned()).collect();
    let out = flm(arguments.iter().cloned().chain(["--json".into()]));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "flm {arguments:?}: {stderr}{stdout}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("flm {arguments:?}: {error}: {stdout}"))
}

/// `tests/fixtures/<name>`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}
