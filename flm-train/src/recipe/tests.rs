//! Reading recipes: overrides, unknown keys, wrong values.

use toml::Value;

use super::*;
use crate::recipe::keys::KEYS;

fn read(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    Recipe::from_file(&path, &overrides).map_err(|e| e.to_string())
}

const MINIMAL: &str = "model = \"m\"\noutput = \"/o\"\n[data]\nfiles = [\"a.jsonl\"]\n";

#[test]
fn every_known_key_can_be_set_and_no_other_exists() {
    let recipe = read(MINIMAL, &[]).unwrap();
    assert!(recipe.model.ends_with("m") && recipe.model.is_absolute());
    assert_eq!((recipe.output.to_str(), recipe.train.epochs), (Some("/o"), 4));
    let mut full = recipe;
    (full.data.context_length, full.train.max_steps) = (Some(8), Some(3));
    full.data.chat_template = Some("t".into());
    full.data.columns.insert("prompt".into(), "q".into());
    let mut keys = Vec::new();
    fn walk(value: &Value, path: &str, keys: &mut Vec<String>) {
        match value {
            Value::Table(t) if !KEYS.contains(&path) => {
                t.iter().for_each(|(k, v)| walk(v, format!("{path}.{k}").trim_start_matches('.'), keys));
            }
            _ => keys.push(path.to_owned()),
        }
    }
    walk(&Value::try_from(&full).unwrap(), "", &mut keys);
    keys.sort();
    let mut known = KEYS.to_vec();
    known.sort_unstable();
    assert_eq!(keys, known);
}

#[test]
fn overrides_are_toml_values_or_words() {
    let recipe = read(
        MINIMAL,
        &[
            "optimizer.learning_rate=1e-4",
            "memory.placement=disk",
            "data.packing=false",
            "memory.budget=2GiB",
            "optimizer.multipliers.norm=0.5",
        ],
    )
    .unwrap();
    assert_eq!((recipe.optimizer.learning_rate, recipe.memory.placement), (1e-4, Placement::Disk));
    assert_eq!((recipe.data.packing, recipe.budget().unwrap()), (false, Some(2 << 30)));
    assert_eq!(recipe.optimizer.multipliers, Multipliers { norm: 0.5, ..Multipliers::default() });
    assert_eq!(recipe.peak_flops().unwrap(), None);
    for (text, rate) in [("989T", 989e12), ("989 TFLOPS", 989e12), ("1.5e12", 1.5e12), ("40gflop/s", 4e10)] {
        let recipe = read(MINIMAL, &[&format!("train.peak_flops=\"{text}\"")]).unwrap();
        assert_eq!(recipe.peak_flops().unwrap(), Some(rate));
    }
}

#[test]
fn unknown_keys_suggest_the_nearest_and_wrong_values_are_named() {
    for (text, change, says) in [
        ("[train]\nbach_size = 3\n", None, "unknown key `train.bach_size`; did you mean `train.batch_size`?"),
        ("learning_rate = 3\n", None, "did you mean `optimizer.learning_rate`?"),
        ("[optimiser]\nbeta1 = 0.9\n", None, "did you mean `optimizer"),
        ("", Some("train.epoch=2"), "did you mean `train.epochs`?"),
        ("", Some("train.epochs"), "not of the form key=value"),
        ("", Some("train.batch_size=0"), "train.batch_size must be at least 1"),
        ("", Some("optimizer.beta2=1.5"), "optimizer.beta2"),
        ("", Some("optimizer.learning_rate=-1"), "optimizer.learning_rate"),
        ("", Some("optimizer.multipliers.head=nan"), "optimizer.multipliers.head is NaN"),
        ("", Some("optimizer.multipliers.norm=inf"), "optimizer.multipliers.norm is inf"),
        ("", Some("data.validation=2"), "data.validation"),
        ("", Some("memory.budget=8X"), "memory.budget"),
        ("", Some("memory.placement=gpu"), "unknown variant"),
        ("", Some("save.dtype=int8"), "save.dtype"),
        ("", Some("train.peak_flops=fast"), "train.peak_flops"),
        ("", Some("optimizer.clip=layer"), "unknown variant"),
        ("", Some("optimizer.weights=f16"), "unknown variant"),
        ("", Some("data.files=[]"), "data.files"),
    ] {
        // keys of the top level stand before the sections
        let text =
            if text.starts_with('[') { format!("{MINIMAL}{text}") } else { format!("{text}{MINIMAL}") };
        let error = read(&text, &change.into_iter().collect::<Vec<_>>()).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn columns_are_a_table_of_any_names() {
    let text = format!("{MINIMAL}columns = {{ prompt = \"q\", response = \"a\" }}\n");
    assert_eq!(read(&text, &[]).unwrap().data.columns["prompt"], "q");
    let changed = read(MINIMAL, &["data.columns={ prompt = \"z\" }"]).unwrap();
    assert_eq!(changed.data.columns["prompt"], "z");
}
