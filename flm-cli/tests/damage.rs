//! Damage that a checkpoint's own digests show is named by every command that passes its bytes on, and
//! nothing is made of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use flm_tests::{flm, flm_json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The files of a checkpoint whose bytes its checksums tell, by name.
fn covered(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "checksums.json");
    names.sort();
    names
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A recipe that trains the model beside it for a step.
fn recipe(dir: &Path) -> PathBuf {
    fs::write(dir.join("data.txt"), "一二三四五六七八九十".repeat(20)).unwrap();
    let path = dir.join("recipe.toml");
    let recipe = "model = \"damaged\"\noutput = \"made\"\n[data]\nfiles = [\"data.txt\"]\ncontext_length = 16\n\
                  [train]\nmax_steps = 1\n";
    fs::write(&path, recipe).unwrap();
    path
}

#[test]
fn one_bit_in_any_file_is_named_by_every_command_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (damaged, made) = (dir.path().join("damaged"), dir.path().join("made"));
    flm_json(["demo", "--dir", text(&dir.path().join("demo")), "--until", "convert"]);
    let plain = dir.path().join("demo/nano-52b");
    let masked = dir.path().join("masked");
    flm_json(["grow", text(&plain), text(&masked), "--ffn", "320"]);
    let recipe = recipe(dir.path());
    let (d, m) = (text(&damaged), text(&made));
    let run_on_a_text = ["--windows", "1", "--context", "8"];
    let commands: [(&Path, Vec<&str>); 6] = [
        (&plain, vec!["convert", d, m]),
        (&plain, vec!["grow", d, m, "--layers", "17"]),
        (&plain, vec!["export", "gguf", d, m]),
        (&plain, vec!["sft", text(&recipe)]),
        (&plain, [&["distance", d, "--picture", m], &run_on_a_text[..]].concat()),
        (&masked, vec!["fold", d, m]),
    ];
    let mut places = 0;
    for (source, command) in &commands {
        for (index, name) in covered(source).iter().enumerate() {
            copy(source, &damaged);
            // early in one file, late in another
            flip(&damaged.join(name), 7 + index * 1031);
            let out = flm(command);
            let said = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(1), "{command:?} with {name}: {said}");
            // of weights the tensor may be named, of an index what it says
            let named = said.contains(name)
                || name.ends_with(".safetensors") && (said.contains("tensor ") || said.contains(".weight"))
                || name.ends_with(".index.json") && said.contains("by the index");
            assert!(named, "{command:?} with {name}: {said}");
            assert!(!made.exists(), "{command:?} with {name}");
            fs::remove_dir_all(&damaged).unwrap();
            places += 1;
        }
        // the same command on a whole copy does its work
        copy(source, &damaged);
        let out = flm(command);
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(made.exists(), "{command:?}");
        if made.is_dir() { fs::remove_dir_all(&made) } else { fs::remove_file(&made) }.unwrap();
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert!(places >= 20, "{places}");
}

/// An edit on purpose goes on with a switch.
#[test]
fn an_edited_file_is_taken_on_request() {
    let dir = tempfile::tempdir().unwrap();
    flm_json(["demo", "--dir", text(&dir.path().join("demo")), "--until", "convert"]);
    let (model, made) = (dir.path().join("demo/nano-52b"), dir.path().join("damaged"));
    let card = fs::read_to_string(model.join("README.md")).unwrap();
    fs::write(model.join("README.md"), card + "\nMine.\n").unwrap();
    for command in [&["convert"][..], &["grow"], &["export", "gguf"]] {
        let mut command = [command, &[text(&model), text(&made)]].concat();
        if command[0] == "grow" {
            command.extend(["--layers", "17"]);
        }
        let said = String::from_utf8(flm(&command).stderr).unwrap();
        assert!(said.contains("README.md has ") && said.contains("--no-source-digests"), "{said}");
        assert!(flm([&command[..], &["--no-source-digests"]].concat()).status.success(), "{command:?}");
        if made.is_dir() { fs::remove_dir_all(&made) } else { fs::remove_file(&made) }.unwrap();
    }
}

/// A PyTorch archive has CRC-32 of its own: whoever reads a tensor whole compares it.
#[test]
fn damage_in_an_archive_is_found_by_whoever_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-bf16-shbin");
    let (model, made) = (dir.path().join("m"), dir.path().join("made"));
    copy(&fixture, &model);
    let commands: [&[&str]; 4] = [
        &["logits", text(&model), "--ids", "1,5", "--out", text(&made)],
        &["logits", text(&model), "--ids", "1,5", "--out", text(&made), "--stream"],
        &["generate", text(&model), "--ids", "1,5", "--max-new-tokens", "1"],
        &["verify", text(&model), text(&model), "--windows", "1", "--context", "8"],
    ];
    for command in commands {
        assert!(flm(command).status.success(), "{command:?}");
    }
    fs::remove_file(&made).unwrap();
    let shard = fs::read_dir(&model).unwrap().map(|e| e.unwrap().path());
    let shard = shard.filter(|p| p.extension().is_some_and(|e| e == "bin")).min().unwrap();
    flip(&shard, fs::metadata(&shard).unwrap().len() as usize / 2);
    for command in commands {
        let out = flm(command);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("CRC-32") && said.contains("tensor "), "{command:?}: {said}");
        assert!(!made.exists());
    }
}

/// Matrices of zeros in full length: what a download leaves that was never filled.
#[test]
fn weights_that_were_never_filled_are_named_and_not_converted() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-f32-st");
    let (model, made) = (dir.path().join("m"), dir.path().join("made"));
    copy(&fixture, &model);
    let file = model.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    fs::write(&file, bytes).unwrap();
    let out = flm(["inspect", text(&model)]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stdout).unwrap().contains("zero throughout"));
    let out = flm(["convert", text(&model), text(&made)]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(1) && said.contains("zero throughout, the first is "), "{said}");
    assert!(!made.exists());
    assert!(flm(["convert", text(&model), text(&made), "--allow-zero"]).status.success());

    // growth has zeros by right: new layers add nothing, and rows and columns of old ones
    let grown = dir.path().join("grown");
    for sizes in
        [&["--layers", "5"][..], &["--ffn", "320"], &["--layers", "6", "--hidden", "80", "--heads", "5"]]
    {
        let grow = ["grow", text(&fixture), text(&grown), "--operator", "zero"];
        let out = flm(grow.iter().chain(sizes));
        assert!(out.status.success(), "{sizes:?}: {}", String::from_utf8_lossy(&out.stderr));
        let said = flm_json(["inspect", text(&grown)]);
        assert_eq!(said["problems"], serde_json::json!([]), "{sizes:?}");
        let again = dir.path().join("again");
        assert!(flm(["convert", text(&grown), text(&again)]).status.success(), "{sizes:?}");
        fs::remove_dir_all(&again).unwrap();
        fs::remove_dir_all(&grown).unwrap();
    }
}
