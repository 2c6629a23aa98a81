use clap::Args;
use flm_candle::config::{PRESETS, preset};
use serde::Serialize;

use crate::output::{Output, count, size, table};

/// List the shapes that flm knows by name.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flm models --json")]
pub(crate) struct Models {}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    repository: Option<&'static str>,
    layers: usize,
    hidden: usize,
    heads: usize,
    ffn: usize,
    vocab: usize,
    parameters: u64,
    bf16_bytes: u64,
    logit_scale: f64,
}

impl Models {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let rows: Vec<Row> = PRESETS
            .iter()
            .filter_map(|&name| {
                let c = preset(name)?;
                let repository = match name {
                    "tele-flm-52b" => Some("CofeAI/Tele-FLM"),
                    "tele-flm-1t" => Some("CofeAI/Tele-FLM-1T"),
                    _ => None,
                };
                Some(Row {
                    name,
                    repository,
                    layers: c.num_hidden_layers,
                    hidden: c.hidden_size,
                    heads: c.num_attention_heads,
                    ffn: c.intermediate_size,
                    vocab: c.vocab_size,
                    parameters: c.parameter_count(),
                    bf16_bytes: c.parameter_count() * 2,
                    logit_scale: c.logit_scale(),
                })
            })
            .collect();
        output.result(&rows, |rows| {
            let header = [
                "name",
                "repository",
                "layers",
                "hidden",
                "heads",
                "ffn",
                "vocab",
                "parameters",
                "bf16",
                "logit scale",
            ];
            let cells = |r: &Row| {
                vec![
                    r.name.into(),
                    r.repository.unwrap_or("–").into(),
                    r.layers.to_string(),
                    r.hidden.to_string(),
                    r.heads.to_string(),
                    r.ffn.to_string(),
                    r.vocab.to_string(),
                    count(r.parameters),
                    size(r.bf16_bytes),
                    r.logit_scale.to_string(),
                ]
            };
            table(&header, rows.iter().map(cells), true)
        })?;
        Ok(true)
    }
}
