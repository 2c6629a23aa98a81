//! Decoding: sampling, stopping, batches of prompts of different lengths, texts that grow turn by turn.

mod sampling;
pub(crate) mod session;

use candle_core::{DType, Device, Tensor};

use crate::generate::sampling::Sampler;
use crate::model::causal_lm::{CausalLm, Positions};
use crate::model::error::ModelError;

/// How to decode.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Stop a row after this many new tokens.
    pub max_new_tokens: usize,
    /// The logits are divided by it; 0 (less than 1e-5) is greedy.
    pub temperature: f64,
    /// Sample among the `k` likeliest tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have this share of what top-k has left.
    pub top_p: Option<f64>,
    /// Sample among tokens with at least this share of the likeliest one's probability.
    pub min_p: Option<f64>,
    /// Divides positive logits of tokens seen before and multiplies negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Row `i` of [`generate`] draws from a generator seeded with `seed + i`.
    pub seed: u64,
    /// Tokens that end a row; they are part of its output.
    pub stop_tokens: Vec<u32>,
    /// Size of the tokenizer: ids from here on are padding rows and never sampled.
    pub vocabulary: usize,
    /// Ids below it that no token has, and others that are never to be sampled.
    pub never: Vec<u32>,
}

impl GenerateOptions {
    /// Greedy decoding of at most `max_new_tokens` among `vocabulary` tokens.
    pub fn greedy(max_new_tokens: usize, vocabulary: usize) -> Self {
        Self {
            max_new_tokens,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
            stop_tokens: Vec::new(),
            vocabulary,
            never: Vec::new(),
        }
    }
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// `max_new_tokens` were made.
    Length,
    /// The model's `max_position_embeddings` are used up.
    Context,
    /// The caller's callback asked for it.
    Cancelled,
}

impl Finish {
    /// Its name in results: `stop`, `length`, `context` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a prompt was continued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// New tokens, a stop token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What can go wrong while decoding.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A prompt leaves no room for an answer.
    #[error("prompt {row} has {tokens} tokens, the model's context is {context}: shorten it")]
    PromptTooLong {
        /// Index of the prompt.
        row: usize,
        /// Its length.
        tokens: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// The logits are not numbers.
    #[error(
        "the logits of prompt {row} are not finite after {generated} new tokens: the weights or the dtype are broken"
    )]
    NotFinite {
        /// Index of the prompt.
        row: usize,
        /// Tokens made before.
        generated: usize,
    },
    /// A sampling setting is out of range.
    #[error("{0}")]
    Setting(String),
}

impl From<candle_core::Error> for GenerateError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Continues every prompt; `on_token(row, id)` sees each new token and ends its row by returning false.
///
/// Prompts of different lengths are padded on the left; a row's tokens do not depend on the others.
///
/// ```
/// use candle_core::{DType, Device};
/// use flm_candle::{CausalLm, GenerateOptions, Residency, generate};
///
/// let dir = "../tests/fixtures/models/teleflm-f32-st".as_ref();
/// let checkpoint = std::sync::Arc::new(flm_checkpoint::Checkpoint::open(dir)?);
/// let model = CausalLm::load(&checkpoint, &Device::Cpu, DType::F32, Residency::Resident)?;
/// let options = GenerateOptions { temperature: 0.7, seed: 3, ..GenerateOptions::greedy(8, 300) };
/// let answers = generate(&model, &[vec![1, 5, 17], vec![1, 9]], &options, |_row, _token| true)?;
/// assert_eq!(answers[1].ids.len(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn generate(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Generation>, GenerateError> {
    let of_row = |i| GenerateOptions { seed: options.seed.wrapping_add(i as u64), ..options.clone() };
    let options: Vec<_> = (0..prompts.len()).map(of_row).collect();
    generate_each(model, prompts, &options, on_token)
}

/// [`generate`] with options for every prompt; each row draws from its own `seed`.
///
/// One pass over the weights advances all rows, whatever their temperatures.
///
/// # Errors
/// When there are not as many options as prompts, and those of [`generate`].
pub fn generate_each(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    options: &[GenerateOptions],
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Generation>, GenerateError> {
    if prompts.len() != options.len() {
        return Err(GenerateError::Setting(format!(
            "{} prompts and {} sets of options: there must be as many",
            prompts.len(),
            options.len()
        )));
    }
    for options in options {
        check_options(options)?;
    }
    check_prompts(model, prompts)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let context = model.config().context_length();
    let new_tokens = options.iter().map(|o| o.max_new_tokens).max().unwrap_or(0);
    let padding: Vec<usize> = prompts.iter().map(|p| longest - p.len()).collect();
    let mut cache = model.cache(padding.clone(), longest + new_tokens.min(context));
    let mut rows: Vec<Row> = options.iter().map(Row::new).collect();
    let mut next: Vec<Vec<u32>> =
        prompts.iter().zip(&padding).map(|(prompt, &pad)| [vec![0; pad], prompt.clone()].concat()).collect();
    let mut fed: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    while rows.iter().any(|row| row.finish.is_none()) {
        if model.outdates(&cache, next.first().map_or(0, Vec::len)) {
            next = fed.iter_mut().zip(next).map(|(fed, next)| [std::mem::take(fed), next].concat()).collect();
            cache.truncate(0);
        }
        let slices: Vec<&[u32]> = next.iter().map(Vec::as_slice).collect();
        let logits =
            model.forward(&model.tokens(&slices)?, Some(&mut cache), Positions::Last, |_, _| Ok(()))?;
        // once for all rows: each question to a GPU would wait for all that it was given
        let logits = logits.to_device(&Device::Cpu)?;
        fed.iter_mut().zip(&next).for_each(|(fed, next)| fed.extend(next));
        for (i, row) in rows.iter_mut().enumerate() {
            // a finished row is fed its last token until the others are done; nobody reads it
            if row.finish.is_none() {
                row.step(
                    &logits.get(i)?.get(0)?,
                    Prompt { ids: &prompts[i], row: i },
                    &options[i],
                    context,
                    |id| on_token(i, id),
                )?;
            }
            next[i] = row.ids.last().map_or_else(|| vec![0], |&id| vec![id]);
        }
    }
    let done = |row: Row| Generation { ids: row.ids, finish: row.finish.unwrap_or(Finish::Length) };
    Ok(rows.into_iter().map(done).collect())
}

pub(crate) fn check_options(options: &GenerateOptions) -> Result<(), GenerateError> {
    let setting = |text: &str| Err(GenerateError::Setting(text.into()));
    if !options.temperature.is_finite() || options.temperature < 0.0 {
        return setting("temperature must be a number ≥ 0 (0 is greedy)");
    }
    if options.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
        return setting("top-p must be in (0, 1]");
    }
    if options.min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
        return setting("min-p must be in [0, 1]");
    }
    if !(options.repetition_penalty.is_finite() && options.repetition_penalty > 0.0) {
        return setting("repetition penalty must be a number > 0 (1 changes nothing)");
    }
    if options.max_new_tokens == 0 || options.vocabulary == 0 {
        return setting("there must be room for at least one new token");
    }
    Ok(())
}

pub(crate) fn check_prompts(model: &CausalLm, prompts: &[impl AsRef<[u32]>]) -> Result<(), GenerateError> {
    let context = model.config().context_length();
    for (row, prompt) in prompts.iter().map(AsRef::as_ref).enumerate() {
        if prompt.is_empty() {
            return Err(ModelError::Empty.into());
        }
        if prompt.len() >= context {
            return Err(GenerateError::PromptTooLong { row, tokens: prompt.len(), context });
        }
    }
    Ok(())
}

pub(crate) struct Row {
    sampler: Sampler,
    ids: Vec<u32>,
    finish: Option<Finish>,
}

/// What a row continues, and its index among the prompts.
#[derive(Clone, Copy)]
pub(crate) struct Prompt<'a> {
    ids: &'a [u32],
    row: usize,
}

impl Row {
    fn new(options: &GenerateOptions) -> Self {
        Self { sampler: Sampler::new(options), ids: Vec::new(), finish: None }
    }

    /// Takes the next token from `logits`, `[vocab_size]`, and sees whether it is the last.
    fn step(
        &mut self,
        logits: &Tensor,
        prompt: Prompt<'_>,
        options: &GenerateOptions,
        context: usize,
        on_token: impl FnOnce(u32) -> bool,
    ) -> Result<u32, GenerateError> {
        let vocabulary = options.vocabulary.min(logits.dim(0)?);
        let id = self.sample(&logits.narrow(0, 0, vocabulary)?, prompt, options)?;
        let go_on = on_token(id);
        self.finish = if options.stop_tokens.contains(&id) {
            Some(Finish::Stop)
        } else if !go_on {
            Some(Finish::Cancelled)
        } else if self.ids.len() == options.max_new_tokens {
            Some(Finish::Length)
        } else if prompt.ids.len() + self.ids.len() == context {
            Some(Finish::Context)
        } else {
            None
        };
        Ok(id)
    }

    /// `logits` is `[vocabulary]`.
    fn sample(
        &mut self,
        logits: &Tensor,
        prompt: Prompt<'_>,
        options: &GenerateOptions,
    ) -> Result<u32, GenerateError> {
        let logits = logits.to_dtype(DType::F32)?;
        // a maximum that is not a number shows in the sum of the logits
        if !logits.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(GenerateError::NotFinite { row: prompt.row, generated: self.ids.len() });
        }
        let seen = || [prompt.ids, &self.ids].concat();
        let id = self.sampler.next(&logits, seen, options)?;
        self.ids.push(id);
        Ok(id)
    }
}
