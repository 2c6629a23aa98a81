//! Room, memory and traffic of a conversion on the fly. FLM_PULL_MB sets the size: 96 here, 4000 by hand.

use std::{
    path::Path,
    process::Child,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::preset;
use flm_tests::pytorch_writer::write_pytorch_checkpoint;
use std::os::unix::fs::MetadataExt;

use crate::noise;
use crate::run::{command, ran};
use flm_tests::hub_server::{HubServer, Options, REPOSITORY};

const MORE: [&str; 2] = ["--convert", "--delete-source"];

/// A checkpoint of nine shards and about so many MB, with Tele-FLM's tensor names.
fn checkpoint(dir: &Path, megabytes: u64) {
    let mut json = serde_json::Value::Object(preset("nano-52b").unwrap().raw().clone());
    let layers = (megabytes.saturating_sub(17) / 25).max(2);
    let shape = [("hidden_size", 1024), ("intermediate_size", 2728), ("num_hidden_layers", layers)];
    let heads = [("num_attention_heads", 8), ("num_key_value_heads", 8)];
    for (key, value) in shape.into_iter().chain(heads) {
        json[key] = value.into();
    }
    let config = TeleFlmConfig::from_json(&json.to_string()).unwrap();
    let tensors: Vec<_> = config.tensors().map(|t| (t.name, t.shape)).collect();
    let even = config.parameter_count() * 2 / 9;
    let nine = |most: &u64| {
        let (mut shards, mut filled) = (1, 0);
        for bytes in tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64 * 2) {
            filled += bytes;
            if filled > *most {
                (shards, filled) = (shards + 1, bytes);
            }
        }
        shards == 9
    };
    let shard = (0..200).map(|i| even + i * even / 100).find(nine).unwrap();
    let mut seed = 0;
    write_pytorch_checkpoint(dir, &config.to_json(), &tensors, shard, |shape, bytes| {
        seed += 1;
        bytes.extend(noise(seed, shape.iter().product::<usize>() * 2));
    })
    .unwrap();
}

/// Bytes of disk that a directory takes.
fn taken(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| Some(e.metadata().ok()?.blocks() * 512)).sum()
}

/// The largest resident set so far, in bytes.
fn peak_memory(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let kilobytes = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB");
    Some(kilobytes.parse::<u64>().ok()? * 1024)
}

#[test]
fn a_conversion_takes_little_room_little_memory_and_no_byte_twice() {
    let megabytes = std::env::var("FLM_PULL_MB").ok().and_then(|n| n.parse().ok()).unwrap_or(96);
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    checkpoint(&source, megabytes);
    let names: Vec<String> =
        std::fs::read_dir(&source).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let served: Vec<(&str, Vec<u8>)> =
        names.iter().map(|n| (n.as_str(), std::fs::read(source.join(n)).unwrap())).collect();
    let size: u64 = served.iter().map(|(_, b)| b.len() as u64).sum();
    let largest = served.iter().map(|(_, b)| b.len() as u64).max().unwrap();
    let shards = served.iter().filter(|(n, _)| n.ends_with(".bin")).count();
    assert_eq!(shards, 9);
    let server = HubServer::start(&served, Options { redirect: true, ..Options::default() });
    drop(served);

    let (done, start) = (AtomicBool::new(false), Instant::now());
    let (peak_disk, memory, result) = std::thread::scope(|scope| {
        let disk = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(taken(&target));
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        let mut child = command(&server, &target, &MORE).spawn().unwrap();
        let mut memory = 0;
        while child.try_wait().unwrap().is_none() {
            memory = memory.max(peak_memory(&child).unwrap_or(0));
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
        (disk.join().unwrap(), memory, ran(child.wait_with_output().unwrap()))
    });
    let seconds = start.elapsed().as_secs_f64();
    result.succeeded().progress_is_honest();
    let output = taken(&target);
    println!(
        "{REPOSITORY}: {size} bytes in {shards} shards, {seconds:.1} s; read {}, peak disk {peak_disk} = output + \
         {:.2} shards, peak memory {memory}",
        server.content(),
        peak_disk.saturating_sub(output) as f64 / largest as f64
    );
    // the plan reads the index, to know the shards; the pull reads every byte once
    let index = server.served("pytorch_model.bin.index.json");
    assert_eq!(server.content(), size + index);
    assert!(peak_disk <= output + 2 * largest + (1 << 20), "{peak_disk}, {output}, {largest}");
    assert!(memory <= 500 << 20, "{memory}");
    let (a, b) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(&target).unwrap());
    assert_eq!(a.entries().count(), b.entries().count());
    for entry in a.entries() {
        assert!(a.read(entry).unwrap() == b.read(b.entry(&entry.name).unwrap()).unwrap(), "{}", entry.name);
    }

    // the same again, with ten kills
    server.forget_log();
    std::fs::remove_dir_all(&target).unwrap();
    for i in 0..10 {
        let mut child = command(&server, &target, &MORE).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(seconds * f64::from(i % 5 + 1) / 20.0));
        child.kill().unwrap();
        child.wait_with_output().unwrap();
    }
    ran(command(&server, &target, &MORE).output().unwrap()).succeeded();
    println!("with ten kills: {} bytes read, {} of them again", server.content(), server.content() - size);
    assert!(server.content() <= size + 10 * (64 << 20));
    Checkpoint::open(&target).unwrap().check().unwrap();
}
