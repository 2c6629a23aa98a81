//! What a user has changed or put there is kept; what is damaged is fetched again; only the model is fetched.

use std::{os::unix::fs::symlink, path::Path, process::Command};

use crate::conversion::{checkpoint, tensors};
use crate::run::{command, pull, ran};
use crate::{SHARD, complete, files, noise};
use flm_tests::hub_server::{Fault, HubServer, Options};

#[test]
fn what_a_user_changed_or_put_there_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let config = target.join("config.json");
    pull(&server, &target, &[]).succeeded();
    // of another size, of the same size, and where no pull was before
    for mine in ["{\"mine\": 1}", "[]"] {
        std::fs::write(&config, mine).unwrap();
        for more in [&[][..], &["--check"]] {
            let ran = pull(&server, &target, more);
            ran.failed(&["config.json: changed since it was verified", "--force", "--files"]);
            assert_eq!(std::fs::read_to_string(&config).unwrap(), mine);
        }
    }
    std::fs::write(&config, "{\"mine\": 1}").unwrap();
    let dry = pull(&server, &target, &["--dry-run"]);
    assert_eq!((dry.status, &dry.events("plan")[0]["files"][0]["state"]), (Some(1), &"changed".into()));
    // the rest goes on without it
    pull(&server, &target, &["--files", "*.bin", "token*"]).succeeded();
    let ran = pull(&server, &target, &["--force"]);
    assert_eq!(ran.succeeded().events("replaced")[0]["reason"], "--force");
    complete(&target, &files());

    let fresh = dir.path().join("fresh");
    std::fs::create_dir(&fresh).unwrap();
    std::fs::write(fresh.join("config.json"), "mine").unwrap();
    pull(&server, &fresh, &[]).failed(&["config.json", "never from the Hub"]);
    assert_eq!(std::fs::read_to_string(fresh.join("config.json")).unwrap(), "mine");
    assert!(!fresh.join("flm.lock").exists() && !fresh.join(SHARD).exists());
}

#[test]
fn damage_is_fetched_again_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    std::fs::create_dir(&target).unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    std::fs::write(target.join("tokenizer.model"), pointer).unwrap();
    std::fs::write(target.join(SHARD), vec![0; files()[2].1.len()]).unwrap();
    std::fs::write(target.join(format!("{SHARD}.aria2")), "").unwrap();
    let ran = pull(&server, &target, &[]);
    ran.succeeded().progress_is_honest();
    assert_eq!(ran.events("replaced")[0]["reason"], "it is a Git LFS pointer");
    assert_eq!(ran.events("mismatch")[0]["file"], SHARD);
    complete(&target, &files());
    // the disk lost a byte and no time was written: found by --check
    let path = target.join(SHARD);
    let time = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, noise(9, files()[2].1.len())).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    pull(&server, &target, &["--check"]).succeeded();
    complete(&target, &files());
}

#[test]
fn links_into_a_store_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (server, target) = (HubServer::start(&files(), Options::default()), dir.path().join("t"));
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(&target).unwrap();
    for (name, bytes) in files() {
        std::fs::write(store.join(name), bytes).unwrap();
        symlink(store.join(name), target.join(name)).unwrap();
    }
    pull(&server, &target, &[]).succeeded();
    pull(&server, &target, &[]).succeeded();
    complete(&target, &files());
    assert!(files().iter().all(|(name, _)| target.join(name).is_symlink()));
    assert_eq!(server.content_requests(), 0);
}

#[test]
fn a_conversion_writes_over_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let mut served = checkpoint(&source, 2_000_000);
    let plain = HubServer::start(&served, Options::default());
    let first = served.iter().find(|(n, _)| n.ends_with(".bin")).unwrap().0;
    let output = first.replace("pytorch_model", "model").replace(".bin", ".safetensors");
    // a user's own file
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join(&output), "mine").unwrap();
    pull(&plain, &target, &["--convert"]).failed(&[&output, "--force"]);
    assert_eq!(std::fs::read_to_string(target.join(&output)).unwrap(), "mine");
    std::fs::remove_file(target.join(&output)).unwrap();
    pull(&plain, &target, &["--convert"]).succeeded();
    pull(&plain, &target, &["--convert", "--delete-source"]).succeeded();
    assert!(tensors(&target) == tensors(&source));
    // the Hub's own
    let both = dir.path().join("both");
    served.push((&*output.clone().leak(), noise(3, 1000)));
    served.push(("checksums.json", b"{}".to_vec()));
    let server = HubServer::start(&served, Options::default());
    pull(&server, &both, &["--files", "*", "--convert"]).failed(&[&output, "checksums.json", "write over"]);
    assert!(!both.join(&output).exists());
    pull(&server, &both, &["--files", "*"]).succeeded();
    pull(&server, &both, &["--files", "*.bin", "*.json", "--convert"]).failed(&["write over"]);
    complete(&both, &served);
}

#[test]
fn weights_are_those_of_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("s"), dir.path().join("t"));
    let mut served = checkpoint(&source, 2_000_000);
    for stray in ["adapter_model.safetensors", "consolidated.safetensors", "pytorch_model_old.bin"] {
        served.push((stray, noise(7, 900)));
    }
    let server = HubServer::start(&served, Options::default());
    let ran = pull(&server, &target, &[]);
    let left = format!("{}", ran.succeeded().events("plan")[0]["left_out"]);
    assert!(
        left.contains("adapter_model") && left.contains("consolidated") && left.contains("_old"),
        "{left}"
    );
    assert!(!target.join("adapter_model.safetensors").exists());
    assert!(tensors(&target) == tensors(&source));

    let gguf = [("config.json", b"{}".to_vec()), ("model-q4.gguf", noise(1, 500))];
    let server = HubServer::start(&gguf, Options::default());
    pull(&server, &dir.path().join("g"), &[]).failed(&[
        "no model.safetensors",
        "only model-q4.gguf",
        "--files",
    ]);
    pull(&server, &dir.path().join("g"), &["--files", "*.gguf"]).succeeded();
}

#[test]
fn a_listing_of_two_files_of_one_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    let twice = r#"{"id": "acme/tiny", "sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
        {"rfilename": "config.json", "size": 99, "blobId": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}]}"#;
    server.fault(move |asked| match asked.file.as_str() {
        "" => Fault::Says(200, vec![("Content-Type", "application/json".into())], twice),
        _ => Fault::None,
    });
    let target = dir.path().join("t");
    for more in [&[][..], &["--dry-run"]] {
        pull(&server, &target, more).failed(&["lists config.json twice, with different content"]);
    }
    assert!(!target.join("config.json").exists());
}

#[test]
fn impossible_sizes_are_refused_and_pipes_are_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { told_size: Some((SHARD, u64::MAX - 5)), ..Options::default() };
    let server = HubServer::start(&files(), options);
    pull(&server, &dir.path().join("t"), &["--dry-run"]).failed(&["sizes that no disk holds"]);

    let server = HubServer::start(&files(), Options::default());
    let pipe = |dir: &Path, name: &str| {
        std::fs::create_dir_all(dir).unwrap();
        assert!(Command::new("mkfifo").arg(dir.join(name)).status().unwrap().success());
    };
    for name in ["flm.lock", ".flm-pull.lock", ".flm-pull.journal"] {
        let target = dir.path().join(name.trim_start_matches('.'));
        pipe(&target, name);
        pull(&server, &target, &[]).failed(&[name, "remove it"]);
    }
    server.fault(|_| Fault::None);
}

#[test]
fn what_a_repository_lacks_to_be_a_checkpoint_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    let ran = pull(&server, &dir.path().join("t"), &[]);
    assert_eq!(
        ran.succeeded().events("plan")[0]["lacking"],
        serde_json::json!(["pytorch_model.bin.index.json"])
    );
    assert!(ran.stderr.contains("has no pytorch_model.bin.index.json"), "{}", ran.stderr);
    let bare = [("model.safetensors", noise(1, 500))];
    let server = HubServer::start(&bare, Options::default());
    let ran = pull(&server, &dir.path().join("b"), &[]);
    assert!(ran.succeeded().stderr.contains("has no config.json"), "{}", ran.stderr);
    // what is asked for by name is no checkpoint
    let ran = pull(&server, &dir.path().join("n"), &["--files", "*.safetensors"]);
    assert!(!ran.succeeded().stderr.contains("config.json"), "{}", ran.stderr);

    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec();
    let index = "model.safetensors.index.json";
    let served =
        [("config.json", b"{}".to_vec()), (index, pointer), ("model-1-of-1.safetensors", noise(1, 500))];
    let server = HubServer::start(&served, Options::default());
    pull(&server, &dir.path().join("p"), &[]).failed(&[index, "Git LFS pointer"]);
}

#[test]
fn nothing_is_asked_where_the_environment_says_offline() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    let target = dir.path().join("t");
    for value in ["1", "true"] {
        let output = command(&server, &target, &[]).env("HF_HUB_OFFLINE", value).output().unwrap();
        ran(output).failed(&["HF_HUB_OFFLINE is set"]);
        assert!(!target.exists());
    }
    assert_eq!(server.content_requests(), 0);
    ran(command(&server, &target, &[]).env("HF_HUB_OFFLINE", "0").output().unwrap()).succeeded();
}
