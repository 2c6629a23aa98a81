//! One checkpoint by several processes: the bytes of one, whoever dies.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use flm_tests::files::fixture;
use flm_tests::{binary, flm_json};

/// A command in `dir`, so that provenance.json of all runs names the same paths.
fn flm(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--quiet").current_dir(dir).env("RAYON_NUM_THREADS", "1");
    command
}

fn ran(dir: &Path, arguments: &[&str]) -> Output {
    flm(dir, arguments).output().unwrap()
}

#[track_caller]
fn stdout(out: &Output) -> &str {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::str::from_utf8(&out.stdout).unwrap()
}

fn stderr(out: &Output) -> &str {
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stdout));
    std::str::from_utf8(&out.stderr).unwrap()
}

/// Every file of a directory, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().into(), std::fs::read(&path).unwrap()))
        .collect()
}

/// A folder with a plain model `plain`, one with masks, `masked`, and a PyTorch one, `pickled`.
fn sources() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let link = |name: &str, to: &str| {
        std::os::unix::fs::symlink(fixture("models").join(to), root.join(name)).unwrap()
    };
    link("plain", "teleflm-gqa-f32-shst");
    link("pickled", "teleflm-gqa-bf16-shbin");
    let (plain, masked) = (root.join("plain"), root.join("masked"));
    flm_json(["grow", plain.to_str().unwrap(), masked.to_str().unwrap(), "--ffn", "300", "--layers", "7"]);
    (dir, root)
}

/// Sizes that divide nothing.
const COMMANDS: [&[&str]; 4] = [
    &[
        "grow",
        "../plain",
        "out",
        "--operator",
        "zero",
        "--ffn",
        "301",
        "--layers",
        "7",
        "--max-shard-size",
        "300kB",
    ],
    &["grow", "../plain", "out", "--ffn", "301", "--vocab", "400"],
    &["fold", "../masked", "out", "--file-digests"],
    &["convert", "../pickled", "out", "--dtype", "f32", "--max-shard-size", "200kB"],
];

#[test]
fn any_number_of_parts_gives_the_bytes_of_one_process() {
    let (_dir, root) = sources();
    for (number, command) in COMMANDS.iter().enumerate() {
        let folder = |name: &str| {
            let folder = root.join(format!("{number}-{name}"));
            std::fs::create_dir(&folder).unwrap();
            folder
        };
        let alone = folder("alone");
        stdout(&ran(&alone, command));
        let expected = files(&alone.join("out"));
        assert!(expected.contains_key("checksums.json"));
        for count in [1, 2, 3, 4, 7] {
            let together = folder(&format!("of-{count}"));
            let parts: Vec<String> = (0..count).map(|index| format!("{index}/{count}")).collect();
            let part = |index: usize| [command, &["--part", &parts[index]][..]].concat();
            // one after another, the last first; of 4 all at once
            if count == 4 {
                let start = |i| {
                    flm(&together, &part(i)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
                };
                let children: Vec<Child> = (0..count).map(start).collect();
                for child in children {
                    stdout(&child.wait_with_output().unwrap());
                }
            } else {
                for index in (0..count).rev() {
                    assert!(!together.join("out").exists());
                    let out = ran(&together, &part(index));
                    assert_eq!(stdout(&out).contains("still waits for"), index > 0, "{index} of {count}");
                }
            }
            assert!(files(&together.join("out")) == expected, "{command:?} in {count} parts");
            assert_eq!(
                std::fs::read_dir(&together).unwrap().count(),
                1,
                "{command:?}: nothing is left beside it"
            );
        }
    }
}

#[test]
fn a_part_that_dies_is_run_again_alone() {
    let rounds = std::env::var("FLM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8u64);
    let (_dir, root) = sources();
    let command = COMMANDS[0];
    let folder = |name: String| {
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let alone = folder("alone".into());
    stdout(&ran(&alone, command));
    let expected = files(&alone.join("out"));
    for round in 0..rounds {
        let together = folder(format!("round-{round}"));
        let part = |index: usize| [command, &["--part", ["0/3", "1/3", "2/3"][index]][..]].concat();
        let start = |i| flm(&together, &part(i)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut children: Vec<Child> = (0..3).map(start).collect();
        let victim = (round % 3) as usize;
        std::thread::sleep(Duration::from_millis((round * 7) % 60));
        children[victim].kill().unwrap();
        for child in &mut children {
            child.wait().unwrap();
        }
        if !together.join("out").exists() {
            stdout(&ran(&together, &part(victim)));
        }
        assert!(files(&together.join("out")) == expected, "round {round}");
    }
}

#[test]
fn parts_of_other_runs_are_never_mixed() {
    let (_dir, root) = sources();
    let together = root.join("together");
    std::fs::create_dir(&together).unwrap();
    let grow = |more: &[&'static str]| [&["grow", "../plain", "out", "--ffn", "300"], more].concat();
    let told = |more: &[&'static str]| stderr(&ran(&together, &grow(more))).to_owned();
    assert!(told(&["--finish"]).contains("no parts of out"));
    stdout(&ran(&together, &grow(&["--part", "1/3"])));
    for (more, says) in [
        (&["--part", "0/4"][..], "another number of parts (3, now 4)"),
        (&["--part", "0/3", "--seed", "5"], "another seed (0, now 5)"),
        (&["--part", "1/3", "--seed", "5"], "another seed (0, now 5)"),
        (&[], "--part, of 3"),
    ] {
        assert!(told(more).contains(says), "{more:?}: {}", told(more));
    }
    let convert = ["convert", "../plain", "out", "--part", "0/3"];
    assert!(
        stderr(&ran(&together, &convert)).contains("another program"),
        "{}",
        stderr(&ran(&together, &convert))
    );
    // what is finished stays, and counts
    assert!(stdout(&ran(&together, &grow(&["--finish"]))).contains("still waits for 0/3 and 2/3"));
    stdout(&ran(&together, &grow(&["--part", "2/3"])));
    stdout(&ran(&together, &grow(&["--part", "0/3"])));
    assert!(together.join("out").is_dir());
    assert!(told(&["--part", "0/3"]).contains("exists"));

    // begun again with other settings, and with another number
    let again = root.join("again");
    std::fs::create_dir(&again).unwrap();
    stdout(&ran(&again, &grow(&["--part", "1/3"])));
    for index in ["0/2", "1/2"] {
        let restart: &[&str] = if index == "0/2" { &["--restart"] } else { &[] };
        let command = [&grow(&["--part", index])[..], restart].concat();
        stdout(&ran(&again, &command));
    }
    let named = |dir: &Path| {
        files(&dir.join("out"))
            .into_iter()
            .filter(|(name, _)| name != "provenance.json" && name != "checksums.json")
            .collect::<Vec<_>>()
    };
    assert!(named(&again) == named(&together));

    for (more, says) in [
        (&["--part", "0/2", "--optimizer-state"][..], "--optimizer-state is done by one process"),
        (&["--part", "0/2", "--to", "nano-102b", "--to", "nano-1t"], "several stages"),
    ] {
        assert!(told(more).contains(says), "{more:?}: {}", told(more));
    }
    let wrong = ran(&together, &grow(&["--part", "2/2"]));
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no part: I/N"));
}

/// A source that was damaged is found by the part that reads there.
#[test]
fn every_part_compares_its_share_of_the_source() {
    let (_dir, root) = sources();
    let source = root.join("source");
    flm_json(["convert", root.join("plain").to_str().unwrap(), source.to_str().unwrap()]);
    let file = source.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let folder = root.join("damage");
    std::fs::create_dir(&folder).unwrap();
    let part = |index: &'static str| {
        ran(&folder, &["convert", "../source", "out", "--dtype", "f64", "--part", index])
    };
    let outs: Vec<Output> = ["0/3", "1/3", "2/3"].map(part).into();
    let failed: Vec<&Output> = outs.iter().filter(|out| !out.status.success()).collect();
    assert_eq!(failed.len(), 1, "one part reads the damaged tensor");
    assert!(stderr(failed[0]).contains("is damaged"), "{}", stderr(failed[0]));
    assert!(!folder.join("out").exists());
    // and so it is where nothing is written
    let verify = |index: &'static str| ran(&root, &["verify", "source", "--part", index]);
    let outs: Vec<Output> = ["0/3", "1/3", "2/3"].map(verify).into();
    let failed: Vec<&Output> = outs.iter().filter(|out| !out.status.success()).collect();
    assert_eq!(failed.len(), 1);
    assert!(String::from_utf8_lossy(&failed[0].stdout).contains("is damaged"));
}
