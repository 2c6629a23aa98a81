//! `flm inspect OWNER/NAME`: a checkpoint on the Hub by its headers.

use std::{
    path::Path,
    process::{Command, Output},
};

use flm_checkpoint::preset;
use flm_growth::{ConvertOptions, convert};
use flm_tests::pytorch_writer::write_pytorch_checkpoint;
use serde_json::Value;

use flm_tests::hub_server::{Asked, COMMIT, Fault, HubServer, Options, REPOSITORY};

/// `flm inspect ARGUMENTS` in `dir`, with a token.
fn inspect(server: &HubServer, dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(flm_tests::binary());
    command.arg("inspect").args(arguments).current_dir(dir).env("HF_ENDPOINT", &server.endpoint);
    command.env("HF_HOME", dir.join("home")).env("HF_TOKEN", "hf_secret");
    for name in ["HF_HUB_CACHE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

fn json(out: &Output) -> Value {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn fails(out: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("signature"), "a signed URL is shown: {stderr}");
}

/// nano-52b in PyTorch shards, in `dir/local`.
fn checkpoint(dir: &Path) -> std::path::PathBuf {
    let config = preset("nano-52b").unwrap();
    let tensors: Vec<_> = config.tensors().map(|t| (t.name, t.shape)).collect();
    let local = dir.join("local");
    write_pytorch_checkpoint(&local, &config.to_json(), &tensors, 1 << 20, |shape, out| {
        out.resize(shape.iter().product::<usize>() * 2, 1);
    })
    .unwrap();
    local
}

/// A Hub that has what is in `local`.
fn serve(local: &Path, options: Options) -> HubServer {
    let files: Vec<(String, Vec<u8>)> = std::fs::read_dir(local)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    HubServer::start(&files, options)
}

/// What does not depend on where the checkpoint is.
fn content(mut report: Value) -> Value {
    let report_map = report.as_object_mut().unwrap();
    report_map.remove("dir");
    report_map.remove("transferred");
    report
}

#[test]
fn the_report_is_that_of_the_directory_and_few_bytes_are_moved() {
    let dir = tempfile::tempdir().unwrap();
    let local = checkpoint(dir.path());
    let converted = dir.path().join("converted");
    let options = ConvertOptions { max_shard_size: 1 << 20, ..ConvertOptions::default() };
    let source = flm_checkpoint::Checkpoint::open(&local).unwrap();
    convert(&source, &converted, &options, &|_| ()).unwrap();
    for (local, redirect, most) in
        [(&local, true, 100_000), (&converted, true, 40_000), (&local, false, 100_000)]
    {
        let server = serve(local, Options { redirect, ..Options::default() });
        let here = json(&inspect(&server, dir.path(), &[local.to_str().unwrap(), "--tensors", "--json"]));
        assert!(server.log().is_empty());
        let seen = json(&inspect(&server, dir.path(), &[REPOSITORY, "--tensors", "--json"]));
        let transferred = seen["transferred"].clone();
        assert_eq!((&transferred["commit"], &transferred["revision"]), (&COMMIT.into(), &"main".into()));
        // Counted by both sides, to the byte.
        assert_eq!(transferred["bytes"].as_u64(), Some(server.content()));
        let shards = seen["files"].as_u64().unwrap();
        assert!(shards >= 5, "{seen}");
        assert!(server.content() < shards * most + 20_000, "{} for {shards} shards", server.content());
        assert!(transferred["requests"].as_u64().unwrap() <= 2 * shards + 2, "{transferred}");
        assert_eq!(content(seen), content(here));
        // The token goes to the Hub alone.
        for asked in server.log() {
            let token = asked.authorization.as_deref();
            assert_eq!(token, (!asked.on_cdn).then_some("Bearer hf_secret"), "{asked:?}");
        }
        assert_eq!(server.log().iter().any(|asked| asked.on_cdn), redirect);
    }
}

#[test]
fn a_directory_of_that_name_has_precedence() {
    let dir = tempfile::tempdir().unwrap();
    let local = checkpoint(dir.path());
    let server = serve(&local, Options::default());
    std::fs::create_dir(dir.path().join("acme")).unwrap();
    std::fs::rename(&local, dir.path().join(REPOSITORY)).unwrap();
    let seen = json(&inspect(&server, dir.path(), &[REPOSITORY, "--json"]));
    assert!(seen.get("transferred").is_none() && server.log().is_empty());
    fails(&inspect(&server, dir.path(), &[REPOSITORY, "--revision", "main"]), &["--revision", "Hub"]);
}

#[test]
fn faults_are_tried_again_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let local = checkpoint(dir.path());
    let server = serve(&local, Options { redirect: true, ..Options::default() });
    let run = |more: &[&str]| inspect(&server, dir.path(), &[&[REPOSITORY, "--json"], more].concat());
    let shard = |asked: &Asked| asked.file.starts_with("pytorch_model-00002");

    server.fault(move |asked| match asked.on_cdn && shard(asked) && asked.nth == 0 {
        true => Fault::Truncate(100),
        false => Fault::None,
    });
    json(&run(&[]));
    let second = server.log().iter().filter(|l| l.on_cdn && l.path.contains("00002-of")).count();
    assert_eq!(second, 3);

    server.fault(move |asked| if asked.on_cdn && shard(asked) { Fault::NoRanges } else { Fault::None });
    fails(&run(&[]), &["pytorch_model-00002", "flm pull"]);
    server.fault(|asked| if asked.file.is_empty() { Fault::Gated(403) } else { Fault::None });
    fails(&run(&[]), &["gated", "HF_TOKEN", "there is no directory acme/tiny"]);
    server.fault(|_| Fault::None);
    fails(&run(&["--revision", "nowhere"]), &["nowhere"]);
    fails(&run(&["--values"]), &["flm pull acme/tiny"]);
    fails(&inspect(&server, dir.path(), &["acme/other"]), &["acme/other"]);
    fails(&inspect(&server, dir.path(), &["tele-flm-102b"]), &["never released"]);

    // A header that is none.
    let names = std::fs::read_dir(&local).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let second = names.into_iter().find(|name| name.starts_with("pytorch_model-00002")).unwrap();
    server.replace(&second, vec![7; 5000]);
    let listed = server.log().len();
    let out = run(&[]);
    assert!(server.log().len() > listed);
    fails(&out, &["pytorch_model-00002", "not a PyTorch file"]);
}
