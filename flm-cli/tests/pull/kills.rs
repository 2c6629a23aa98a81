//! kill -9 at random points, again and again.

use std::{path::Path, time::Duration};

use crate::conversion::{checkpoint, names, tensors};
use crate::run::{command, pull};
use crate::{MIB, complete, noise, nothing_wrong};
use flm_tests::hub_server::{HubServer, Options};

/// How often the process is killed: FLM_KILLS, or 25 in all.
fn kills(share: f64) -> u32 {
    let all = std::env::var("FLM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(25.0);
    (all * share) as u32
}

/// Runs the pull and kills it after a random time, so often; returns how often it was in the middle.
fn kill(
    server: &HubServer,
    dir: &Path,
    more: &[&str],
    times: u32,
    longest: Duration,
    check: impl Fn(),
) -> u32 {
    let mut seed = noise(u64::from(std::process::id()), 8 * times as usize);
    let mut hit = 0;
    for _ in 0..times {
        let random: Vec<u8> = seed.drain(..8).collect();
        let share = f64::from(u32::from_le_bytes(random[..4].try_into().unwrap())) / f64::from(u32::MAX);
        let mut child = command(server, dir, more).spawn().unwrap();
        std::thread::sleep(longest.mul_f64(share));
        hit += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait_with_output().unwrap();
        check();
    }
    hit
}

#[test]
fn a_killed_pull_goes_on_and_reads_little_twice() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |n: u64| noise(n, 12 * MIB + n as usize);
    let served: Vec<(&str, Vec<u8>)> = vec![
        ("config.json", b"{}".to_vec()),
        ("pytorch_model-00001-of-00004.bin", shard(1)),
        ("pytorch_model-00002-of-00004.bin", shard(2)),
        ("pytorch_model-00003-of-00004.bin", shard(3)),
        ("pytorch_model-00004-of-00004.bin", shard(4)),
    ];
    let size: u64 = served.iter().map(|(_, b)| b.len() as u64).sum();
    // one connection a file: about 5 seconds for all of it
    let server = HubServer::start(
        &served,
        Options { pace: Some(3 * MIB as u64), redirect: true, ..Options::default() },
    );
    let (target, times) = (dir.path().join("t"), kills(0.5));
    let check = || nothing_wrong(&target, &served);
    let hit = kill(&server, &target, &["--jobs", "4"], times, Duration::from_millis(700), check);
    let ran = pull(&server, &target, &["--jobs", "4"]);
    ran.succeeded().progress_is_honest();
    complete(&target, &served);
    let again = server.content() - size;
    println!("pull: {times} kills, {hit} in the middle, {size} bytes, {again} of them read again");
    assert!(hit > times / 3);
    assert!(again <= u64::from(times) * 64 * MIB as u64, "{again}");
}

#[test]
fn a_killed_conversion_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target, whole) = (dir.path().join("s"), dir.path().join("t"), dir.path().join("w"));
    let served = checkpoint(&source, 400_000);
    let size: u64 = served.iter().map(|(_, b)| b.len() as u64).sum();
    let server = HubServer::start(&served, Options { pace: Some(2 * MIB as u64), ..Options::default() });
    let more = ["--convert", "--delete-source", "--jobs", "2"];
    let times = kills(0.5);
    let hit =
        kill(&server, &target, &more, times, Duration::from_millis(250), || nothing_wrong(&target, &served));
    let ran = pull(&server, &target, &more);
    ran.succeeded().progress_is_honest();
    let again = server.content() - size;
    println!("convert: {times} kills, {hit} in the middle, {size} bytes, {again} of them read again");
    assert!(again <= u64::from(times) * 64 * MIB as u64, "{again}");
    // byte for byte what an uninterrupted run makes
    pull(&server, &whole, &more).succeeded();
    assert_eq!(names(&target), names(&whole));
    for name in names(&whole).iter().filter(|n| *n != "flm.lock") {
        assert!(
            std::fs::read(target.join(name)).unwrap() == std::fs::read(whole.join(name)).unwrap(),
            "{name}"
        );
    }
    assert!(tensors(&target) == tensors(&source));
}
