//! End-to-end tests of the flm binary; the tests are in `tests/`.

#![allow(missing_docs, clippy::unwrap_used, reason = "for tests only")]

pub mod files;
pub mod hub_server;
pub mod judge_server;
pub mod pytorch_writer;
pub mod word_model;

use std::{
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

/// Runs `flm` with the arguments, in two threads.
///
/// # Panics
/// If it cannot be started.
pub fn flm<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    let run = Command::new(binary()).args(arguments).env("RAYON_NUM_THREADS", "2").output();
    run.unwrap_or_else(|error| panic!("flm does not start: {error}"))
}

/// Runs `flm … --json` and returns what it printed.
///
/// # Panics
/// If it fails or prints something else than JSON.
pub fn flm_json<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> serde_json::Value {
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
