//! `flm models`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::output::{Output, count, size, table};
use flm_checkpoint::ModelType;
use flm_growth::gguf_architecture;
use flm_hub::default_dir;
use flm_hub::{Manifest, Model};
use flm_hub::{OnDisk, on_disk};

/// List the checkpoints that flm knows by name, with what of them is on disk.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  flm models --dir /data\n  flm models tele-flm-1t --json\n  flm models --families"
)]
pub(crate) struct Models {
    /// Only this one, with its files.
    name: Option<String>,
    /// Directory that holds the models, each in a directory of its name.
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Custom manifest.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// List the families of models that flm opens, runs, grows and trains, instead.
    #[arg(long, conflicts_with_all = ["name", "dir", "manifest"])]
    families: bool,
}

/// A family of models.
#[derive(Debug, Serialize)]
struct FamilyRow {
    model_type: &'static str,
    architecture: &'static str,
    differs_from_llama: Vec<&'static str>,
    gguf: &'static str,
    gguf_limits: String,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    model: Model,
    files_with_digest: usize,
    on_disk: Option<Here>,
}

/// What of a model is on disk.
#[derive(Debug, Serialize)]
struct Here {
    dir: PathBuf,
    #[serde(flatten)]
    found: OnDisk,
}

impl Models {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if self.families {
            let rows: Vec<FamilyRow> = ModelType::all().map(family).collect();
            output.result(&rows, |rows| families(rows))?;
            return Ok(true);
        }
        let manifest = Manifest::load(self.manifest.as_deref())?;
        if let Some(name) = self.name.as_deref().filter(|name| manifest.find(name).is_none()) {
            let known: Vec<&str> = manifest.models.iter().map(|m| m.name.as_str()).collect();
            anyhow::bail!("no model {name:?}: known are {}", known.join(", "));
        }
        let wanted = |m: &&Model| {
            self.name.as_deref().is_none_or(|n| m.name == n || m.repository.as_deref() == Some(n))
        };
        let rows = manifest
            .models
            .iter()
            .filter(wanted)
            .map(|model| self.row(model))
            .collect::<Result<Vec<_>, _>>()?;
        output.result(&rows, |rows| match rows.as_slice() {
            [row] if self.name.is_some() => one(row),
            rows => all(rows),
        })?;
        Ok(true)
    }

    /// A model with what is found under its name, or under its repository's.
    fn row(&self, model: &Model) -> anyhow::Result<Row> {
        let repository = model.repository.clone().unwrap_or_default();
        let mut here = None;
        for dir in [self.dir.join(&model.name), self.dir.join(default_dir(&repository)), self.dir.clone()] {
            let found = on_disk(&dir)?.filter(|found| found.repository == repository);
            here = here.or(found.map(|found| Here { dir, found }));
        }
        let files_with_digest = model.files.iter().filter(|f| f.sha256.is_some()).count();
        Ok(Row { model: model.clone(), files_with_digest, on_disk: here })
    }
}

fn family(family: ModelType) -> FamilyRow {
    let (gguf, gguf_limits) = gguf_architecture(family);
    FamilyRow {
        model_type: family.as_str(),
        architecture: family.architecture(),
        differs_from_llama: family.differences(),
        gguf,
        gguf_limits,
    }
}

fn families(rows: &[FamilyRow]) -> String {
    let cells = |row: &FamilyRow| {
        let limits = if row.gguf_limits.is_empty() { String::new() } else { format!(" {}", row.gguf_limits) };
        vec![
            row.model_type.to_owned(),
            format!("{}{limits}", row.gguf),
            match row.differs_from_llama.as_slice() {
                [] => "–".to_owned(),
                words => words.join(", "),
            },
        ]
    };
    let header = ["model_type", "GGUF", "differs from Llama in"];
    let text = table(&header, rows.iter().map(cells), false);
    format!("{text}\nEach opens, runs, grows, folds and trains. Any other model_type is refused by name.")
}

fn here(row: &Row) -> String {
    match &row.on_disk {
        None => "–".into(),
        Some(here) if here.found.bytes_verified == here.found.bytes => {
            format!("all, {}", size(here.found.bytes))
        }
        Some(here) => {
            let f = &here.found;
            format!("{} of {}", size(f.bytes_verified + f.bytes_partial), size(f.bytes))
        }
    }
}

fn all(rows: &[Row]) -> String {
    let header =
        ["name", "repository", "layers", "hidden", "heads", "ffn", "vocab", "parameters", "bytes", "on disk"];
    let cells = |row: &Row| {
        let m = &row.model;
        let number = |n: Option<u64>| n.map_or_else(|| "–".into(), |n| n.to_string());
        let shape = |f: fn(&flm_hub::Shape) -> u64| number(m.shape.as_ref().map(f));
        vec![
            m.name.clone(),
            m.repository.clone().unwrap_or_else(|| "– (a shape only)".into()),
            shape(|s| s.layers),
            shape(|s| s.hidden),
            shape(|s| s.heads),
            shape(|s| s.ffn),
            shape(|s| s.vocab),
            m.parameters.map_or_else(|| "–".into(), count),
            m.bytes.map_or_else(|| "–".into(), size),
            here(row),
        ]
    };
    table(&header, rows.iter().map(cells), true)
}

fn one(row: &Row) -> String {
    let m = &row.model;
    let text = |t: &Option<String>| t.clone().unwrap_or_else(|| "–".into());
    let mut rows = vec![
        ("model", format!("{} ({})", m.name, m.title)),
        ("repository", text(&m.repository)),
        ("revision", text(&m.revision)),
        ("licence", text(&m.licence)),
        ("papers", m.papers.join(", ")),
        ("parameters", m.parameters.map_or_else(|| "–".into(), count)),
        ("weights", m.bytes.map_or_else(|| "–".into(), size)),
    ];
    if let Some(s) = &m.shape {
        rows.push((
            "shape",
            format!(
                "{} layers, {} heads, hidden {}, ffn {}, vocabulary {}, context {}",
                s.layers, s.heads, s.hidden, s.ffn, s.vocab, s.context
            ),
        ));
        rows.push((
            "multipliers",
            format!("input {}, output {}, µP scale {}", s.input_mult, s.output_mult, s.mup_scale_factor),
        ));
    }
    rows.push(("files", format!("{}, {} with a known SHA-256", m.files.len(), row.files_with_digest)));
    let place = row.on_disk.as_ref().map(|h| format!(" in {}", h.dir.display())).unwrap_or_default();
    rows.push(("on disk", here(row) + &place));
    let mut text = table(&[], rows.into_iter().map(|(k, v)| vec![k.into(), v]), false);
    if !m.files.is_empty() {
        let file = |f: &flm_hub::ManifestFile| {
            let dash = || "–".to_owned();
            vec![f.name.clone(), f.bytes.map_or_else(dash, count), f.sha256.clone().unwrap_or_else(dash)]
        };
        text += &format!("\n{}", table(&["file", "bytes", "SHA-256"], m.files.iter().map(file), false));
    }
    text
}
