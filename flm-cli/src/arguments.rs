//! Arguments that several commands share.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use flm_candle::ChatPolicy;
use flm_candle::GenerateOptions;
use flm_candle::Tokenizer;
use flm_candle::{CausalLm, Residency};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::{PRESETS, preset};

/// A dtype of weights or arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => Self::F64,
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// Where and how a model runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How the model runs")]
pub(crate) struct RunArgs {
    /// Dtype of the arithmetic: f32, bf16 or f64 [default: f32 on a CPU, bf16 on a GPU].
    #[arg(long, value_name = "DTYPE", hide_possible_values = true)]
    pub(crate) dtype: Option<Dtype>,
    /// Where the arithmetic is done: cpu, cuda (the first GPU) or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub(crate) device: String,
    /// For models larger than memory: keep one block in memory at a time and read the others from disk
    /// as they are needed, for every token again.
    #[arg(long)]
    pub(crate) stream: bool,
}

impl RunArgs {
    pub(crate) fn device(&self) -> anyhow::Result<Device> {
        match self.device.split_once(':').unwrap_or((&self.device, "0")) {
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", index) => {
                let index = index
                    .parse()
                    .with_context(|| format!("--device {}: not a device number", self.device))?;
                if !candle_core::utils::cuda_is_available() {
                    bail!(
                        "--device {}: this binary was built without CUDA; build with `--features cuda`",
                        self.device
                    );
                }
                Device::new_cuda(index).with_context(|| {
                    format!(
                        "--device {}: no such GPU answers; `nvidia-smi` lists those that the driver knows",
                        self.device
                    )
                })
            }
            _ => bail!("--device {}: expected cpu, cuda or cuda:N", self.device),
        }
    }

    pub(crate) fn dtype(&self, device: &Device) -> DType {
        self.dtype.map_or(if device.is_cpu() { DType::F32 } else { DType::BF16 }, DType::from)
    }

    pub(crate) fn residency(&self) -> Residency {
        if self.stream { Residency::Streamed } else { Residency::Resident }
    }

    /// Loads the model of a checkpoint.
    pub(crate) fn load(&self, checkpoint: &Arc<Checkpoint>) -> anyhow::Result<CausalLm> {
        let device = self.device()?;
        let model = CausalLm::load(checkpoint, &device, self.dtype(&device), self.residency());
        model.with_context(|| format!("cannot load {}", checkpoint.dir().display()))
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How the next token is chosen")]
pub(crate) struct SamplingArgs {
    /// Randomness of the choice: 0 always takes the likeliest token, 0.7 is usual for free text.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Sample among the K likeliest tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the likeliest tokens with this probability together.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Make tokens seen before less likely; 1 changes nothing.
    #[arg(long, default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// Options that sample so among `vocabulary` tokens; there are no stop tokens yet.
    pub(crate) fn options(&self, max_new_tokens: usize, vocabulary: usize) -> GenerateOptions {
        GenerateOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..GenerateOptions::greedy(max_new_tokens, vocabulary)
        }
    }
}

/// How a grown or folded checkpoint is written.
#[derive(Debug, Clone, Args)]
pub(crate) struct WriteArgs {
    /// Largest file, for example 5GB or 500MiB.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_shard_size: u64,
    /// Take the optimizer's state that a training checkpoint holds along.
    #[arg(long)]
    pub(crate) optimizer_state: bool,
    /// Hash whole weight files besides their tensors, as b3sum does.
    #[arg(long)]
    pub(crate) file_digests: bool,
    /// Throw away what an unfinished run has written.
    #[arg(long)]
    pub(crate) restart: bool,
}

/// What text a command runs on.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// Run on a text file, in windows of --context tokens [default: random tokens].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Run on these token ids, for example 1,5,17.
    #[arg(long, value_parser = parse_ids, value_name = "IDS", conflicts_with = "text")]
    ids: Option<::std::vec::Vec<u32>>,
    /// Tokens in a window.
    #[arg(long, default_value_t = 64, value_name = "N")]
    context: usize,
    /// Windows to run.
    #[arg(long, default_value_t = 4, value_name = "N")]
    windows: usize,
}

/// The most tokens that two models are compared on.
const MAX_TOKENS: usize = 1 << 22;

/// Windows of tokens, and the tokenizer's size where there is one.
pub(crate) struct Texts {
    pub(crate) tokens: Vec<Vec<u32>>,
    pub(crate) tokenizer_size: Option<usize>,
}

impl TextArgs {
    /// The tokens for a checkpoint in `dir` with `rows` vocabulary rows and a context of `longest`.
    pub(crate) fn tokens(&self, dir: &Path, rows: usize, longest: usize) -> anyhow::Result<Texts> {
        ensure!(self.context > 0 && self.windows > 0, "--context and --windows must be at least 1");
        ensure!(
            self.context <= longest && self.ids.as_ref().is_none_or(|ids| ids.len() <= longest),
            "the model's context is {longest} tokens: shorten --context or --ids"
        );
        let tokens = self.windows.saturating_mul(self.context);
        ensure!(
            tokens <= MAX_TOKENS,
            "--windows × --context is {tokens} tokens: at most {MAX_TOKENS} are compared"
        );
        let tokenizer = if has_tokenizer(dir) { Some(tokenizer(dir)?) } else { None };
        let vocabulary = tokenizer.as_ref().map_or(rows, |t| t.len().min(rows));
        let tokens = match (&self.ids, &self.text) {
            (Some(ids), _) => vec![ids.clone()],
            (None, Some(path)) => {
                let tokenizer = tokenizer
                    .as_ref()
                    .context("--text needs a tokenizer beside the checkpoint; give --ids")?;
                let ids = tokenizer.encode_prompt(&read_start(path, tokens as u64 * TOKEN_BYTES)?.0)?;
                ids.chunks(self.context).take(self.windows).map(<[u32]>::to_vec).collect()
            }
            (None, None) => random_tokens(self.windows, self.context, vocabulary),
        };
        Ok(Texts { tokens, tokenizer_size: tokenizer.map(|t| t.len()) })
    }
}

/// The same tokens every time: a full-period linear congruential sequence, high bits.
fn random_tokens(rows: usize, len: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let mut state: u64 = 0x2407_0278_3000_0001;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary as u64) as u32
    };
    (0..rows).map(|_| (0..len).map(|_| next()).collect()).collect()
}

/// A preset's config, or that of a file or checkpoint directory.
pub(crate) fn config(name: &str) -> anyhow::Result<TeleFlmConfig> {
    if let Some(config) = preset(name) {
        return Ok(config);
    }
    let path = Path::new(name);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    ensure!(path.is_file(), "{name} is neither a preset ({}) nor a config.json", PRESETS.join(", "));
    Ok(TeleFlmConfig::from_file(&path)?)
}

/// Opens a checkpoint directory.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Arc<Checkpoint>> {
    Checkpoint::open(dir).map(Arc::new).with_context(|| format!("cannot open {}", dir.display()))
}

/// A model that answers questions; `plain` asks it without a chat template.
pub(crate) fn local_model(dir: &Path, run: &RunArgs, plain: bool) -> anyhow::Result<flm_eval::LocalModel> {
    let checkpoint = open(dir)?;
    let tokenizer = tokenizer(dir)?;
    let policy = if plain { None } else { Some(chat_policy(dir, &tokenizer, checkpoint.config())?) };
    let model = run.load(&checkpoint)?;
    flm_eval::LocalModel::new(&checkpoint, model, tokenizer, policy, run.residency())
}

/// Opens the tokenizer of a checkpoint directory.
pub(crate) fn tokenizer(dir: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_dir(dir).with_context(|| format!("cannot open the tokenizer of {}", dir.display()))
}

/// Whether a directory has a tokenizer at all.
pub(crate) fn has_tokenizer(dir: &Path) -> bool {
    ["tokenizer.json", "tokenizer.model"].iter().any(|name| dir.join(name).is_file())
}

/// How the checkpoint in `dir` is talked with.
pub(crate) fn chat_policy(
    dir: &Path,
    tokenizer: &Tokenizer,
    config: &TeleFlmConfig,
) -> anyhow::Result<ChatPolicy> {
    ChatPolicy::new(tokenizer, None, &config.eos_token_ids).with_context(|| {
        format!(
            "{} cannot be talked with; a base model is run by `flm generate --prompt` and \
             `flm eval alignbench --plain`",
            dir.display()
        )
    })
}

/// A size such as `5GB`, `500MiB` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("unknown unit {unit:?}: use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("{digits:?} is not a number"))?;
    let bytes = number * scale as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text} is not a usable size")) }
}

/// Bytes a second, such as `50GB/s`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let bytes = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is no rate such as 50GB/s"))?;
    parse_size(bytes).map(|bytes| bytes as f64)
}

/// Token ids separated by commas or spaces.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let ids: Vec<u32> = parts
        .map(|part| part.parse().map_err(|_| format!("{part:?} is not a token id")))
        .collect::<Result<_, _>>()?;
    if ids.is_empty() { Err("no token ids: write them as 1,5,17".into()) } else { Ok(ids) }
}

/// The text of a file, or of standard input for `-`.
pub(crate) fn read_text(path: &Path, limit: u64) -> anyhow::Result<String> {
    let (text, whole) = read_start(path, limit)?;
    ensure!(whole, "{} has more than {limit} bytes", path.display());
    Ok(text)
}

/// The first `limit` bytes of a UTF-8 file, or of standard input for `-`, cut at a character; and whether
/// that is all of it.
pub(crate) fn read_start(path: &Path, limit: u64) -> anyhow::Result<(String, bool)> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    let whole = bytes.len() as u64 <= limit;
    bytes.truncate(limit as usize);
    let cut = match std::str::from_utf8(&bytes) {
        // the last character is cut
        Err(error) if !whole && error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    };
    bytes.truncate(cut);
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    Ok((text, whole))
}

/// The most bytes that a token is taken to have, where a text is read for so many tokens only.
pub(crate) const TOKEN_BYTES: u64 = 256;
/// The most bytes of a recipe.
pub(crate) const RECIPE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ids_are_parsed_or_named() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5MiB"), Ok(1_572_864));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "0", "GB", "5XB", "-1GB", "1e30GB", "nanGB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_ids("1,5, 17"), Ok(vec![1, 5, 17]));
        assert!(parse_ids("1,x").is_err_and(|e| e.contains("\"x\"")));
        assert!(parse_ids(" ").is_err());
    }
}
