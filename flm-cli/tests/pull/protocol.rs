//! What is asked for, what is believed, what is kept.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    process::Stdio,
    time::Duration,
};

use crate::run::{command, pull, ran};
use crate::{SHARD, complete, files, noise};
use flm_tests::hub_server::{COMMIT, Fault, HubServer, Options, sha256};

#[test]
fn a_plain_pull_reads_every_byte_once_and_a_second_one_none() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let size: u64 = files().iter().map(|(_, b)| b.len() as u64).sum();
    let first = pull(&server, &target, &[]);
    first.succeeded().progress_is_honest();
    complete(&target, &files());
    assert_eq!(server.content(), size);
    assert_eq!(first.events("verified").len(), 4);
    let done = first.events("done")[0].clone();
    assert_eq!((done["received"].as_u64(), done["bytes"].as_u64()), (Some(size), Some(size)));

    let lock = std::fs::read_to_string(target.join("flm.lock")).unwrap();
    for word in [COMMIT, "acme/tiny", &sha256(&files()[2].1), "git_sha1", "bytes = 5243003"] {
        assert!(lock.contains(word), "{word}: {lock}");
    }
    server.forget_log();
    pull(&server, &target, &[]).succeeded();
    assert_eq!(server.content_requests(), 0);
    // a file that was touched is hashed, and fetched again only because it is wrong and that is asked for
    std::fs::write(target.join(SHARD), noise(99, files()[2].1.len())).unwrap();
    pull(&server, &target, &[]).failed(&[SHARD, "changed since it was verified", "--force"]);
    assert!(std::fs::read(target.join(SHARD)).unwrap() == noise(99, files()[2].1.len()));
    let again = pull(&server, &target, &["--force"]);
    again.succeeded().progress_is_honest();
    assert_eq!((again.events("mismatch").len(), server.content()), (1, files()[2].1.len() as u64));
    complete(&target, &files());
}

#[test]
fn sizes_and_digests_come_from_headers_where_the_listing_has_none() {
    for redirect in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { bare_listing: true, redirect, ..Options::default() };
        let (server, target) = (HubServer::start(&files(), options), dir.path().join("t"));
        pull(&server, &target, &[]).succeeded();
        complete(&target, &files());
        assert_eq!(server.log().iter().filter(|l| l.method == "HEAD").count(), 4);
    }
}

#[test]
fn a_lock_is_held_to() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    pull(&server, &target, &[]).succeeded();
    server.replace(SHARD, noise(77, 5 << 20));
    let ran = pull(&server, &target, &[]);
    ran.failed(&[SHARD, "the Hub has size 5242880", "flm.lock says 5243003", "--revision", "--dir"]);
    complete(&target, &files());
    server.replace(SHARD, noise(77, files()[2].1.len()));
    pull(&server, &target, &[]).failed(&["the Hub has SHA-256", "flm.lock says", &sha256(&files()[2].1)]);
    pull(&server, &target, &["--revision", "v2"]).failed(&["flm.lock holds this directory to", COMMIT, "v2"]);
}

#[test]
fn a_manifest_pins_digests_and_names() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let manifest = dir.path().join("m.toml");
    let write = |digest: &str| {
        let text = format!(
            "version = 1\n[[model]]\nname = \"tiny\"\nrepository = \"acme/tiny\"\nrevision = \"main\"\n\
             files = [{{ name = \"{SHARD}\", sha256 = \"{digest}\" }}, {{ name = \"added_tokens.json\" }}]\n"
        );
        std::fs::write(&manifest, text).unwrap();
    };
    let more = ["--manifest", manifest.to_str().unwrap()];
    write(&"0".repeat(64));
    pull(&server, &target, &more).failed(&[SHARD, "weights-manifest.toml says 0000"]);
    assert!(!target.join(SHARD).exists() && !target.join("flm.lock").exists());
    write(&sha256(&files()[2].1));
    let ran = pull(&server, &target, &more);
    assert_eq!(ran.succeeded().events("plan")[0]["absent"][0], "added_tokens.json");
    assert_eq!(ran.events("verified").len(), 1);
}

#[test]
fn dry_runs_touch_nothing_and_globs_select() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let ran = pull(&server, &target, &["--dry-run"]);
    let plan = ran.succeeded().events("plan")[0].clone();
    assert_eq!(plan["files"].as_array().unwrap().len(), 4);
    assert_eq!(plan["bytes_to_fetch"], plan["bytes"]);
    assert!(plan["disk_free"].as_u64() > Some(0) && plan["dry_run"] == true);
    assert!(!target.exists() && server.content_requests() == 0);
    pull(&server, &target, &["--files", "*.json", "token*"]).succeeded();
    assert!(target.join("tokenizer.model").exists() && !target.join(SHARD).exists());
    pull(&server, &target, &["--files", "*.gguf"]).failed(&["no file of acme/tiny"]);
}

#[test]
fn names_that_leave_the_target_are_refused() {
    for name in ["../evil.txt", "/tmp/evil.txt", "a/../../evil", "a\\..\\evil", "flm.lock"] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { evil_name: Some(name), ..Options::default() };
        let server = HubServer::start(&files(), options);
        pull(&server, &dir.path().join("t"), &[]).failed(&["refused", "plain relative path"]);
        assert_eq!(server.content_requests(), 0, "{name}");
        assert!(!dir.path().join("evil.txt").exists());
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    pull(&server, &target, &["--revision", "nope"]).failed(&["this revision of acme/tiny is not on the Hub"]);
    let other = |name: &str| {
        let mut other = command(&server, &target, &[]);
        let arguments: Vec<_> = other.get_args().map(ToOwned::to_owned).collect();
        let program = other.get_program().to_owned();
        let mut fresh = std::process::Command::new(program);
        fresh.args(arguments.iter().map(|a| if a == "acme/tiny" { name.as_ref() } else { a.as_os_str() }));
        fresh.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", dir.path());
        other = fresh;
        ran(other.output().unwrap())
    };
    other("acme/none").failed(&["acme/none does not exist or is private"]);
    other("none").failed(&["no model \"none\"", "tele-flm-52b", "OWNER/NAME"]);
    other("tele-flm-102b").failed(&["never released"]);
}

#[test]
fn a_shard_in_the_hubs_cache_is_not_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let blobs = dir.path().join("t.home/hub/models--acme--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = blobs.join(sha256(&files()[2].1));
    std::fs::write(&blob, &files()[2].1).unwrap();
    // right name and size, wrong bytes: seen, and fetched
    std::fs::write(blobs.join(sha256(&files()[3].1)), noise(5, files()[3].1.len())).unwrap();
    pull(&server, &target, &[]).succeeded();
    complete(&target, &files());
    assert!(!server.log().iter().any(|l| l.path.ends_with(SHARD)));
    assert_eq!(blob.metadata().unwrap().ino(), target.join(SHARD).metadata().unwrap().ino());
}

#[test]
fn a_second_process_is_told_who_holds_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    server.fault(|asked| if asked.file == SHARD { Fault::Stall(1000) } else { Fault::None });
    let mut first = command(&server, &target, &["--timeout", "60"]).stdout(Stdio::null()).spawn().unwrap();
    while !target.join("tokenizer.model").exists() {
        assert!(first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    pull(&server, &target, &[]).failed(&["is in use by process", &first.id().to_string(), "--wait"]);
    let mut waits = command(&server, &target, &["--wait"]).spawn().unwrap();
    let mut said = BufReader::new(waits.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["event"], &event["holder"]), (&"waiting".into(), &first.id().to_string().into()));
    // Ctrl-C ends the first at once, with 130, and the next goes on
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130));
    server.fault(|_| Fault::None);
    std::io::copy(&mut said, &mut std::io::sink()).unwrap();
    assert!(waits.wait().unwrap().success());
    complete(&target, &files());
}
