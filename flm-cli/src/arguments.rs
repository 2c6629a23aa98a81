//! Arguments that several commands share.

pub(crate) mod part;
mod quantities;
mod reading;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device};
use clap::Args;
use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use flm_candle::ChatPolicy;
use flm_candle::Tokenizer;
use flm_candle::{CausalLm, Residency, candle_dtype};
use flm_candle::{GenerateOptions, GenerationDefaults};
use flm_checkpoint::{Checkpoint, Dtype, TeleFlmConfig};
use flm_checkpoint::{PRESETS, cached_snapshots, preset};

use crate::output::Output;

pub(crate) use crate::arguments::quantities::{parse_flops, parse_ids, parse_rate, parse_size};
pub(crate) use crate::arguments::reading::{RECIPE_BYTES, TOKEN_BYTES, read_start, read_text};

/// Reads a dtype of weights or arithmetic.
pub(crate) fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(Dtype::ALL.map(Dtype::as_str)).try_map(|name| name.parse())
}

/// Where and how a model runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Execution")]
pub(crate) struct RunArgs {
    /// Compute dtype: f32, bf16 or f64 [default: f32 on a CPU, bf16 on a GPU].
    #[arg(long, value_parser = dtypes(), value_name = "DTYPE", hide_possible_values = true)]
    pub(crate) dtype: Option<Dtype>,
    /// Device to run on: cpu, cuda (the first GPU) or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub(crate) device: String,
    /// Stream the weights from disk, one layer at a time, for models larger than memory; every forward pass reads
    /// them again.
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
                flm_candle::open_gpu(index).with_context(|| format!("--device {}", self.device))
            }
            _ => bail!("--device {}: expected cpu, cuda or cuda:N", self.device),
        }
    }

    pub(crate) fn dtype(&self, device: &Device) -> DType {
        self.dtype.map_or(if device.is_cpu() { DType::F32 } else { DType::BF16 }, candle_dtype)
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

/// Sampling. What is not given is as the model's generation_config.json says.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Sampling temperature: 0 is greedy decoding, 0.7 is usual for free text
    /// [default: generation_config.json's where it samples, else 0].
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample from the K most likely tokens; 0 or -1 is all of them [default: generation_config.json's, else all].
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    top_k: Option<i64>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities, after --top-k, add up to P
    /// [default: generation_config.json's, else 1].
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample from tokens with at least this fraction of the most likely one's probability
    /// [default: generation_config.json's, else 0].
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Penalty on tokens that occurred before; 1 is none [default: generation_config.json's, else 1].
    #[arg(long, value_name = "R")]
    repetition_penalty: Option<f32>,
    /// Random seed of the sampling.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

impl SamplingArgs {
    /// Options that sample so among the tokens of a checkpoint's tokenizer; there are no stop tokens yet.
    /// Without a tokenizer (a prompt of ids) they are the `rows` of the model. What generation_config.json
    /// decides is said, and what of it is not followed.
    pub(crate) fn options(
        &self,
        file: &GenerationDefaults,
        tokenizer: Option<&Tokenizer>,
        rows: usize,
        max_new_tokens: usize,
        output: &Output,
    ) -> GenerateOptions {
        let mut taken: Vec<String> = Vec::new();
        let mut default = |name: &str, given: bool, value: Option<f64>| {
            let value = value.filter(|_| !given);
            taken.extend(value.map(|value| format!("{name} {value}")));
            value
        };
        let drawn = if file.do_sample { Some(file.temperature.unwrap_or(1.0)) } else { None };
        let temperature = default("temperature", self.temperature.is_some(), drawn);
        let temperature = self.temperature.or(temperature).unwrap_or(0.0);
        let penalty = file.repetition_penalty.filter(|&r| r != 1.0);
        let penalty = default("repetition penalty", self.repetition_penalty.is_some(), penalty);
        let mut options = GenerateOptions {
            temperature,
            repetition_penalty: self.repetition_penalty.or(penalty.map(|r| r as f32)).unwrap_or(1.0),
            seed: self.seed,
            never: [&tokenizer.map(Tokenizer::unused_ids).unwrap_or_default()[..], &file.suppress_tokens]
                .concat(),
            ..GenerateOptions::greedy(max_new_tokens, tokenizer.map_or(rows, Tokenizer::len))
        };
        let top_k = self.top_k.map(|k| usize::try_from(k).unwrap_or(0));
        if temperature > 0.0 && file.do_sample {
            let some = |k: usize| k as f64;
            options.top_k = default("top-k", top_k.is_some(), file.top_k.filter(|&k| k > 0).map(some))
                .map(|k| k as usize);
            options.top_p = default("top-p", self.top_p.is_some(), file.top_p.filter(|&p| p < 1.0));
            options.min_p = default("min-p", self.min_p.is_some(), file.min_p.filter(|&p| p > 0.0));
        }
        options.top_k = top_k.or(options.top_k);
        options.top_p = self.top_p.or(options.top_p);
        options.min_p = self.min_p.or(options.min_p);
        if !taken.is_empty() {
            output.note(&format!("generation_config.json: {}", taken.join(", ")));
        }
        if !file.not_followed.is_empty() {
            output.log(&format!("generation_config.json: {} not followed", file.not_followed.join(", ")));
        }
        options
    }
}

/// Raw text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Raw text")]
pub(crate) struct RawTextArgs {
    /// Do not begin raw text with BOS, even where the tokenizer does.
    #[arg(long)]
    no_bos: bool,
    /// Read the names of special tokens in raw text (`<s>`, `<|im_end|>`) as text; otherwise they are those
    /// tokens, as in transformers.
    #[arg(long)]
    no_parse_special: bool,
}

impl RawTextArgs {
    /// Refuses what would do nothing where no raw text is read.
    pub(crate) fn refuse_without_raw_text(&self) -> anyhow::Result<()> {
        ensure!(
            *self == Self::default(),
            "--no-bos and --no-parse-special are about raw text, and there is none here: drop them"
        );
        Ok(())
    }

    /// The tokenizer that reads raw text so.
    pub(crate) fn apply(&self, mut tokenizer: Tokenizer) -> Tokenizer {
        if self.no_bos {
            tokenizer.set_add_bos(false);
        }
        // otherwise as the folder says
        if self.no_parse_special {
            tokenizer.set_parse_special(false);
        }
        tokenizer
    }
}

/// Chat template.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Chat template")]
pub(crate) struct TemplateArgs {
    /// Chat template: the name of one of the model's, or a .jinja file.
    #[arg(long, value_name = "NAME|FILE")]
    chat_template: Option<String>,
    /// Set a variable of the chat template, for example enable_thinking=false; JSON, else text.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_template_argument)]
    template_arg: Vec<(String, serde_json::Value)>,
    /// Date that the chat template sees, for example 2026-01-31 [default: today, or SOURCE_DATE_EPOCH].
    #[arg(long, value_name = "DATE")]
    date: Option<String>,
}

impl TemplateArgs {
    /// Refuses what would do nothing where no conversation is rendered; `how` gives one.
    pub(crate) fn refuse_without_chat(&self, how: &str) -> anyhow::Result<()> {
        ensure!(
            *self == Self::default(),
            "--chat-template, --template-arg and --date are about a conversation: {how}, or drop them"
        );
        Ok(())
    }

    /// The tokenizer with the chat template that is asked for.
    pub(crate) fn apply(&self, mut tokenizer: Tokenizer) -> anyhow::Result<Tokenizer> {
        match self.chat_template.as_deref() {
            None => {}
            Some(file) if file.ends_with(".jinja") => {
                let text = read_text(Path::new(file), MAX_TEMPLATE)?;
                let template = tokenizer.compile_template(&text).with_context(|| file.to_owned())?;
                tokenizer.set_chat_template(template);
            }
            Some(name) => tokenizer.choose_chat_template(name)?,
        }
        if let Some(mut template) = tokenizer.chat_template().cloned() {
            if let Some(date) = &self.date {
                template = template.at(date).context("--date")?;
            }
            let arguments = self.template_arg.iter().cloned().collect();
            tokenizer.set_chat_template(template.with_arguments(arguments));
        }
        Ok(tokenizer)
    }
}

/// The largest chat template from a file, in bytes.
const MAX_TEMPLATE: u64 = 1 << 20;

fn parse_template_argument(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    if matches!(name, "messages" | "tools" | "add_generation_prompt") {
        return Err(format!("`{name}` is what the template is rendered from"));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

/// How a grown or folded checkpoint is written.
#[derive(Debug, Clone, Args)]
pub(crate) struct WriteArgs {
    /// Maximum file size, for example 5GB or 500MiB.
    #[arg(long, default_value = "5GB", value_parser = parse_size, value_name = "SIZE")]
    pub(crate) max_shard_size: u64,
    /// Carry over the optimizer state of a training checkpoint.
    #[arg(long)]
    pub(crate) optimizer_state: bool,
    /// Also hash whole weight files, as b3sum does.
    #[arg(long)]
    pub(crate) file_digests: bool,
    /// Discard the output of an unfinished run.
    #[arg(long)]
    pub(crate) restart: bool,
}

/// What text a command runs on.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// Read a text file, in windows of --context tokens [default: random tokens].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Token ids, for example 1,5,17.
    #[arg(long, value_parser = parse_ids, value_name = "IDS", conflicts_with = "text")]
    ids: Option<::std::vec::Vec<u32>>,
    /// Tokens per window.
    #[arg(long, default_value_t = 64, value_name = "N")]
    context: usize,
    /// Number of windows.
    #[arg(long, default_value_t = 4, value_name = "N")]
    windows: usize,
    #[command(flatten)]
    raw: RawTextArgs,
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
        let tokenizer = if has_tokenizer(dir) { Some(self.raw.apply(tokenizer(dir)?)) } else { None };
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

/// Reads the path of a checkpoint's directory; a repository of the Hub's cache that has one snapshot is that.
pub(crate) fn checkpoint_dir() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|dir| {
        let elsewhere = !dir.join("config.json").exists();
        match &cached_snapshots(&dir)[..] {
            [only] if elsewhere => only.clone(),
            _ => dir,
        }
    })
}

/// Says which code a copy of a checkpoint in `dir` leaves behind, so that its config.json does not name it.
pub(crate) fn tell_of_code(config: &TeleFlmConfig, dir: &Path, output: &Output) {
    let files = config.code_files();
    if !files.is_empty() {
        output.log(&format!(
            "auto_map of config.json is left out, since its code is not copied: {}; to open the result in \
             transformers with that code, copy both from {}",
            files.join(", "),
            dir.display()
        ));
    }
}

/// What is said of a part of a conversation that the chat template does not render, such as `messages[0].system`.
pub(crate) fn unrendered(what: &str) -> String {
    match what.ends_with(".system") {
        true => "this model's chat template has no place for a system message: it is ignored".to_owned(),
        false => format!("this model's chat template does not render `{what}`: it is ignored"),
    }
}

/// Opens a checkpoint directory.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Arc<Checkpoint>> {
    Checkpoint::open(dir).map(Arc::new).with_context(|| format!("cannot open {}", dir.display()))
}

/// How a model that answers questions is asked.
#[derive(Debug, Default)]
pub(crate) enum Asking {
    /// Through its own chat template.
    #[default]
    Chat,
    /// Through a chat template as the arguments have it.
    Template(TemplateArgs),
    /// Without a chat template.
    Plain(RawTextArgs),
}

/// A model that answers questions.
pub(crate) fn local_model(
    dir: &Path,
    run: &RunArgs,
    asking: &Asking,
) -> anyhow::Result<flm_eval::LocalModel> {
    let checkpoint = open(dir)?;
    let mut tokenizer = tokenizer(dir)?;
    match asking {
        Asking::Chat => {}
        Asking::Template(template) => tokenizer = template.apply(tokenizer)?,
        Asking::Plain(raw) => tokenizer = raw.apply(tokenizer),
    }
    let policy = match asking {
        Asking::Plain(_) => None,
        _ => Some(chat_policy(dir, &tokenizer, &checkpoint.config().eos_token_ids)?),
    };
    let model = run.load(&checkpoint)?;
    flm_eval::LocalModel::new(&checkpoint, model, tokenizer, policy, run.residency())
}

/// Opens the tokenizer of a checkpoint directory.
pub(crate) fn tokenizer(dir: &Path) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_dir(dir).with_context(|| format!("cannot open the tokenizer of {}", dir.display()))
}

/// Whether a directory has a tokenizer at all, be it a link that leads nowhere: opening it says so.
pub(crate) fn has_tokenizer(dir: &Path) -> bool {
    ["tokenizer.json", "tokenizer.model"].iter().any(|name| dir.join(name).symlink_metadata().is_ok())
}

/// How the checkpoint in `dir` is talked with; `eos` are its config.json's end-of-text tokens.
pub(crate) fn chat_policy(dir: &Path, tokenizer: &Tokenizer, eos: &[u32]) -> anyhow::Result<ChatPolicy> {
    ChatPolicy::new(tokenizer, None, eos).with_context(|| {
        format!(
            "{} cannot be talked with; a base model is run by `flm generate --prompt` and \
             `flm eval alignbench --plain`",
            dir.display()
        )
    })
}
