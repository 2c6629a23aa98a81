//! `--convert`: shards become safetensors as they arrive.

use std::{collections::BTreeMap, path::Path};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::preset;
use flm_tests::pytorch_writer::write_pytorch_checkpoint;

use crate::noise;
use crate::run::pull;
use flm_tests::hub_server::{HubServer, Options};

/// A sharded PyTorch checkpoint with Tele-FLM's tensor names, as the Hub would serve it.
pub(crate) fn checkpoint(dir: &Path, max_shard_size: u64) -> Vec<(&'static str, Vec<u8>)> {
    let config = preset("nano-52b").unwrap();
    let tensors: Vec<_> = config.tensors().map(|t| (t.name, t.shape)).collect();
    let mut seed = 0;
    write_pytorch_checkpoint(dir, &config.to_json(), &tensors, max_shard_size, |shape, bytes| {
        seed += 1;
        bytes.extend(noise(seed, shape.iter().product::<usize>() * 2));
    })
    .unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let read = |name: String| {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        (&*name.leak(), bytes)
    };
    names.into_iter().map(read).collect()
}

/// Every tensor's bytes.
pub(crate) fn tensors(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    checkpoint.check().unwrap();
    checkpoint.entries().map(|e| (e.name.clone(), checkpoint.read(e).unwrap())).collect()
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with('.'))
        .collect();
    names.sort();
    names
}

#[test]
fn shards_become_safetensors_and_go_away() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let served = checkpoint(&source, 700_000);
    let server = HubServer::start(&served, Options::default());
    let ran = pull(&server, &target, &["--convert", "--delete-source"]);
    ran.succeeded().progress_is_honest();
    assert!(tensors(&target) == tensors(&source));
    let shards = served.iter().filter(|(n, _)| n.ends_with(".bin")).count();
    assert!(shards > 4);
    assert_eq!((ran.events("converted").len(), ran.events("removed").len()), (shards, shards));
    let left = names(&target);
    assert!(left.iter().all(|n| !n.starts_with("pytorch_model") && !n.ends_with(".part")), "{left:?}");
    assert_eq!(left.iter().filter(|n| n.ends_with(".safetensors")).count(), shards);
    manifest_is_true(&source, &target);
    // nothing is left to do, and nothing is fetched
    server.forget_log();
    pull(&server, &target, &["--convert", "--delete-source"]).succeeded();
    pull(&server, &target, &[]).succeeded();
    assert_eq!(server.content_requests(), 0);
    assert_eq!(names(&target), left);
}

/// The digests are those of the source's tensors, and damage is found by them when the source is gone.
fn manifest_is_true(source: &Path, target: &Path) {
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(target.join("checksums.json")).unwrap()).unwrap();
    for (name, bytes) in tensors(source) {
        let from = &manifest["sources"][&name];
        let number = |key: &str| from[key].as_u64().unwrap() as usize;
        let file = std::fs::read(source.join(from["file"].as_str().unwrap())).unwrap();
        assert!(file[number("offset")..][..number("bytes")] == bytes, "{name}");
        assert!(from["entry"].as_str().unwrap().contains("/data/") && from["dtype"] == "bfloat16");
    }
    let report = flm_tests::flm_json(["verify", target.to_str().unwrap()]);
    assert_eq!(report["passed"], true, "{report:#}");
    let copy = target.with_extension("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in names(target) {
        std::fs::copy(target.join(&name), copy.join(&name)).unwrap();
    }
    let weights = names(&copy).into_iter().rfind(|n| n.ends_with(".safetensors")).unwrap();
    let mut bytes = std::fs::read(copy.join(&weights)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(copy.join(&weights), bytes).unwrap();
    let found = flm_tests::flm(["verify", copy.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8(found.stdout).unwrap().contains("is damaged"));
}

#[test]
fn sources_are_kept_unless_asked_and_converted_later() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let served = checkpoint(&source, 2_000_000);
    let server = HubServer::start(&served, Options::default());
    pull(&server, &target, &[]).succeeded();
    server.forget_log();
    pull(&server, &target, &["--convert"]).succeeded();
    assert_eq!(server.content_requests(), 0);
    crate::complete(&target, &served);
    assert!(tensors(&target) == tensors(&source));
    assert!(target.join("model.safetensors.index.json").exists());
    pull(&server, &target, &["--convert", "--delete-source"]).succeeded();
    assert!(names(&target).iter().all(|n| !n.ends_with(".bin")));
    assert!(tensors(&target) == tensors(&source));
    assert_eq!(server.content_requests(), 0);
}

#[test]
fn a_selection_of_shards_gets_no_index() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let served = checkpoint(&source, 2_000_000);
    let server = HubServer::start(&served, Options::default());
    let some = ["--files", "*.json", "*-00001-of-*", "--convert", "--delete-source"];
    pull(&server, &target, &some).succeeded();
    assert!(!target.join("model.safetensors.index.json").exists());
    pull(&server, &target, &["--convert", "--delete-source"]).succeeded();
    assert!(tensors(&target) == tensors(&source));
}

#[test]
fn a_shard_that_disagrees_with_the_index_is_not_converted() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let mut served = checkpoint(&source, 2_000_000);
    let index = served.iter_mut().find(|(n, _)| n.ends_with(".index.json")).unwrap();
    index.1 =
        String::from_utf8(index.1.clone()).unwrap().replace("model.norm.weight", "model.norn.weight").into();
    let server = HubServer::start(&served, Options::default());
    let ran = pull(&server, &target, &["--convert", "--delete-source"]);
    ran.failed(&["holds model.norm.weight, which the index does not place there"]);
    assert!(!target.join("model.safetensors.index.json").exists());
    // the shard that is wrong is kept
    let last = served.iter().rfind(|(n, _)| n.ends_with(".bin")).unwrap();
    assert!(target.join(last.0).exists());
}

#[test]
fn a_shard_that_is_no_archive_stops_the_conversion() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&crate::files(), Options::default());
    let ran = pull(&server, &dir.path().join("t"), &["--convert", "--delete-source"]);
    ran.failed(&["pytorch_model-0000", ".bin"]);
    let left = names(&dir.path().join("t"));
    assert!(
        left.iter().any(|n| n.ends_with(".bin")) && left.iter().all(|n| !n.ends_with(".safetensors")),
        "{left:?}"
    );
}
