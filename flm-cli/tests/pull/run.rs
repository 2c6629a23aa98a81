//! Running the built binary against the loopback Hub.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use flm_tests::hub_server::{HubServer, REPOSITORY};

/// `flm pull acme/tiny --dir DIR --json`, with a home of its own and a token.
pub(crate) fn command(server: &HubServer, dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(flm_tests::binary());
    command
        .args(["pull", REPOSITORY, "--json", "--retries", "3", "--dir"])
        .arg(dir)
        .args(more)
        .args(if more.contains(&"--timeout") { &[][..] } else { &["--timeout", "2"] })
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HOME", dir.with_extension("home"))
        .env("HF_TOKEN", "hf_secret")
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env_remove("ALL_PROXY")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a finished run said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) events: Vec<Value>,
    pub(crate) stderr: String,
}

pub(crate) fn pull(server: &HubServer, dir: &Path, more: &[&str]) -> Ran {
    ran(command(server, dir, more).output().unwrap())
}

pub(crate) fn ran(output: Output) -> Ran {
    let lines = String::from_utf8(output.stdout).unwrap();
    let events =
        lines.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    Ran { status: output.status.code(), events, stderr: String::from_utf8(output.stderr).unwrap() }
}

impl Ran {
    pub(crate) fn events(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|e| e["event"] == kind).collect()
    }

    pub(crate) fn succeeded(&self) -> &Self {
        assert_eq!(self.status, Some(0), "{self:#?}");
        self
    }

    /// Failed with 1 and with words that tell what to do.
    pub(crate) fn failed(&self, words: &[&str]) -> &Self {
        assert_eq!(self.status, Some(1), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        self
    }

    /// No counter of the progress lines ever falls, and none passes the total.
    pub(crate) fn progress_is_honest(&self) -> &Self {
        let lines = self.events("progress");
        for pair in lines.windows(2) {
            for counter in ["total", "downloaded", "received", "hashed", "verified", "converted"] {
                assert!(pair[0][counter].as_u64() <= pair[1][counter].as_u64(), "{counter}: {pair:?}");
            }
        }
        for line in lines {
            assert!(line["downloaded"].as_u64() <= line["total"].as_u64(), "{line}");
            assert!(line["hashed"].as_u64() <= line["downloaded"].as_u64(), "{line}");
        }
        self
    }
}
