//! A checkpoint that answers: batches of chat prompts, one pass over the weights for all of them.

use std::{path::Path, time::Instant};

use anyhow::Context;
use flm_candle::Tokenizer;
use flm_candle::{CausalLm, Positions, Residency};
use flm_candle::{ChatMessage, ChatPolicy};
use flm_candle::{Finish, GenerateOptions, generate_each};
use flm_checkpoint::Checkpoint;
use serde::Serialize;

/// A loaded checkpoint with its tokenizer.
#[derive(Debug)]
pub struct LocalModel {
    model: CausalLm,
    tokenizer: Tokenizer,
    policy: Option<ChatPolicy>,
    /// The directory's name.
    pub name: String,
    /// Digest of configuration, tokenizer and weights: see [`flm_checkpoint::fingerprint`].
    pub digest: String,
    /// Whether its blocks stay on disk.
    pub streamed: bool,
}

/// A prompt to continue.
#[derive(Debug, Clone)]
pub struct Job {
    pub prompt: Vec<u32>,
    pub temperature: f64,
    pub seed: u64,
}

/// How to continue all of them.
#[derive(Debug, Clone, Copy)]
pub struct Decoding {
    /// Maximum number of tokens of an answer.
    pub max_new_tokens: usize,
    /// Share of the probability that is sampled from; all of it where absent.
    pub top_p: Option<f64>,
    /// Divisor of the logits of tokens that stand in the text already; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Prompts that are continued together.
    pub batch: usize,
}

/// What a prompt was continued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    pub text: String,
    pub tokens: usize,
    /// `stop`, `length`, `context`, or `prompt-too-long` where the prompt alone fills the context.
    pub finish: &'static str,
}

/// What answering will take.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Of one pass over the weights with a single token.
    pub seconds_per_pass: f64,
    /// Upper bound, reached when every prompt runs to its limit.
    pub passes: usize,
    /// Upper bound, reached when every prompt runs to its limit.
    pub seconds: f64,
    /// Memory of the keys and values of the largest batch.
    pub kv_cache_bytes: u64,
}

/// What a run of questions tells whoever watches it.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// So many of all are done already.
    Begun {
        /// Questions that are done.
        done: usize,
        /// All questions.
        total: usize,
    },
    /// One more is done.
    One,
    /// What answering will cost, before it begins.
    Cost {
        /// Questions that are left.
        questions: usize,
        /// What they cost.
        cost: Cost,
        /// How they are answered.
        decoding: Decoding,
    },
}

impl LocalModel {
    /// A loaded model, under the name of the directory that it was opened from.
    ///
    /// # Errors
    /// Where its files cannot be read for their digest.
    pub fn new(
        checkpoint: &Checkpoint,
        model: CausalLm,
        tokenizer: Tokenizer,
        policy: Option<ChatPolicy>,
        residency: Residency,
    ) -> anyhow::Result<Self> {
        let dir = checkpoint.dir();
        let digest = flm_checkpoint::fingerprint(checkpoint)
            .with_context(|| format!("cannot read {}", dir.display()))?;
        let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let name = folder_name(&whole);
        Ok(Self { model, tokenizer, policy, name, digest, streamed: residency == Residency::Streamed })
    }

    /// What tells the chat template in use from another.
    pub fn template(&self) -> Option<String> {
        self.policy.as_ref().map(|policy| policy.template().identity())
    }

    /// How raw text is read, where questions are asked without a chat template.
    pub fn raw_text(&self) -> Option<serde_json::Value> {
        let (bos, parse_special) = (self.tokenizer.add_bos(), self.tokenizer.parse_special());
        self.policy.is_none().then(|| serde_json::json!({ "bos": bos, "parse_special": parse_special }))
    }

    /// The dtype of the arithmetic.
    pub fn dtype(&self) -> &'static str {
        self.model.dtype().as_str()
    }

    /// The ids of a user's message.
    pub fn prompt(&self, message: &str) -> anyhow::Result<Vec<u32>> {
        let Some(policy) = &self.policy else { return Ok(self.tokenizer.encode_prompt(message)?) };
        let messages = [ChatMessage::new("user", message)];
        Ok(self.tokenizer.encode_special(&policy.template().render(&messages, true)?)?)
    }

    /// What continuing `jobs` will take; measures one pass.
    pub fn cost(&self, jobs: &[Job], decoding: &Decoding) -> anyhow::Result<Cost> {
        let start = Instant::now();
        self.model.forward(&self.model.tokens(&[&[0]])?, None, Positions::Last, |_, _| Ok(()))?;
        // a GPU is given the pass, and has not made it yet
        self.model.device().synchronize()?;
        let seconds_per_pass = start.elapsed().as_secs_f64();
        let passes = jobs.len().div_ceil(decoding.batch) * decoding.max_new_tokens;
        let config = self.model.config();
        let longest = jobs.iter().map(|job| job.prompt.len()).max().unwrap_or(0);
        let tokens = (longest + decoding.max_new_tokens).min(config.context_length());
        let token =
            2 * config.num_hidden_layers * config.key_value_width() * self.model.dtype().size_in_bytes();
        Ok(Cost {
            seconds_per_pass,
            passes,
            seconds: seconds_per_pass * passes as f64,
            kv_cache_bytes: (token * tokens * jobs.len().min(decoding.batch)) as u64,
        })
    }

    /// Continues every job; `done` gets each as soon as it ends. Returns the passes over the weights.
    pub fn complete(
        &self,
        jobs: &[Job],
        decoding: &Decoding,
        done: &mut dyn FnMut(usize, Completion) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let context = self.model.config().context_length();
        let (mut order, too_long): (Vec<usize>, Vec<usize>) =
            (0..jobs.len()).partition(|&i| jobs[i].prompt.len() < context);
        for index in too_long {
            done(index, Completion { text: String::new(), tokens: 0, finish: "prompt-too-long" })?;
        }
        // prompts of like length together: less padding
        order.sort_by_key(|&i| jobs[i].prompt.len());
        let before = self.model.passes();
        for batch in order.chunks(decoding.batch.max(1)) {
            self.complete_batch(jobs, batch, decoding, done)?;
        }
        Ok(self.model.passes() - before)
    }

    fn complete_batch(
        &self,
        jobs: &[Job],
        batch: &[usize],
        decoding: &Decoding,
        done: &mut dyn FnMut(usize, Completion) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let stop_tokens = match &self.policy {
            Some(policy) => policy.stop_tokens().to_vec(),
            None => self.tokenizer.stop_tokens(&self.model.config().eos_token_ids),
        };
        let never = self.tokenizer.unused_ids();
        let options: Vec<_> = batch
            .iter()
            .map(|&i| GenerateOptions {
                never: never.clone(),
                temperature: jobs[i].temperature,
                top_p: decoding.top_p,
                repetition_penalty: decoding.repetition_penalty,
                seed: jobs[i].seed,
                stop_tokens: stop_tokens.clone(),
                ..GenerateOptions::greedy(decoding.max_new_tokens, self.tokenizer.len())
            })
            .collect();
        let prompts: Vec<_> = batch.iter().map(|&i| jobs[i].prompt.clone()).collect();
        let context = self.model.config().context_length();
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
        let mut failure = None;
        generate_each(&self.model, &prompts, &options, |row, id| {
            // the others of the batch may go on for hours: a row is handed over when it ends
            rows[row].push(id);
            let finish = if stop_tokens.contains(&id) {
                Finish::Stop
            } else if rows[row].len() == decoding.max_new_tokens {
                Finish::Length
            } else if prompts[row].len() + rows[row].len() == context {
                Finish::Context
            } else {
                return failure.is_none();
            };
            let handed = self.completion(&rows[row], finish).and_then(|text| done(batch[row], text));
            handed.map_err(|error| failure.get_or_insert(error).to_string()).is_ok()
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn completion(&self, ids: &[u32], finish: Finish) -> anyhow::Result<Completion> {
        // a stop token gives no text, whatever piece it is
        let said = &ids[..ids.len() - usize::from(finish == Finish::Stop)];
        let text = self.tokenizer.decode(said)?;
        // a character that the last token has cut
        let text = text.trim_end_matches('\u{FFFD}').trim().to_owned();
        Ok(Completion { text, tokens: ids.len(), finish: finish.as_str() })
    }
}

/// A model's name by its folder; every training run's result is called `final`, so there it is the run's.
fn folder_name(dir: &Path) -> String {
    let name = |dir: &Path| dir.file_name().map(|name| name.to_string_lossy().into_owned());
    match name(dir) {
        Some(last) if last == "final" => dir.parent().and_then(name).unwrap_or(last),
        found => found.unwrap_or_else(|| "model".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuned_models_are_named_by_their_runs() {
        let of = |dir: &str| folder_name(Path::new(dir));
        assert_eq!(
            (of("/a/run-7/final"), of("/a/run-7"), of("/final")),
            ("run-7".into(), "run-7".into(), "final".into())
        );
    }
}
