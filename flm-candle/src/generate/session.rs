//! A text that grows, as a conversation does: what it shares with the last prompt is not computed again.

use candle_core::Device;

use crate::generate::{
    Finish, GenerateError, GenerateOptions, Generation, Prompt, Row, check_options, check_prompts,
};
use crate::model::causal_lm::{CausalLm, Positions};
use crate::model::error::ModelError;
use crate::model::kv_cache::KvCache;

/// A text that is continued again and again, such as a conversation.
///
/// Keys and values of the tokens that the next prompt begins with are kept, so that a turn costs what is
/// new in it. A prompt that begins otherwise is run from the first token that differs: the answers are
/// those of a fresh start, up to the order in which sums are rounded.
#[derive(Debug)]
pub struct Session<'a> {
    model: &'a CausalLm,
    cache: KvCache,
    /// The tokens whose keys and values are in the cache.
    seen: Vec<u32>,
    reused: usize,
}

impl<'a> Session<'a> {
    /// A session that has seen nothing.
    pub fn new(model: &'a CausalLm) -> Self {
        Self { model, cache: model.cache(vec![0], 1), seen: Vec::new(), reused: 0 }
    }

    /// How many tokens of the last prompt were not run again.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Continues `prompt`; `on_token` sees each new token and ends the answer by returning false.
    ///
    /// `cancelled` is asked before every block: a streamed model may need minutes for a token. A
    /// cancelled answer is what was made so far, and the session can go on.
    ///
    /// # Errors
    /// Those of [`generate`](super::generate); after one, too, the session can go on.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        cancelled: impl Fn() -> bool,
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<Generation, GenerateError> {
        check_options(options)?;
        check_prompts(self.model, &[prompt])?;
        let context = self.model.config().context_length();
        let mut row = Row::new(options);
        let mut next = self.rest_of(prompt).to_vec();
        while row.finish.is_none() {
            if self.model.outdates(&self.cache, next.len()) {
                next.splice(..0, self.seen.drain(..));
                self.cache.truncate(0);
            }
            let ids = self.model.tokens(&[&next])?;
            let logits = self.model.forward(&ids, Some(&mut self.cache), Positions::Last, |_, _| {
                if cancelled() { Err(ModelError::Cancelled) } else { Ok(()) }
            });
            let logits = match logits {
                Err(ModelError::Cancelled) => {
                    row.finish = Some(Finish::Cancelled);
                    break;
                }
                logits => logits?,
            };
            self.seen.append(&mut next);
            let prompt = Prompt { ids: prompt, row: 0 };
            let logits = logits.to_device(&Device::Cpu)?.get(0)?.get(0)?;
            next.push(row.step(&logits, prompt, options, context, &mut on_token)?);
        }
        Ok(Generation { ids: row.ids, finish: row.finish.unwrap_or(Finish::Length) })
    }

    /// What of `prompt` is to be run after what the cache holds of it; at least its last token, whose
    /// logits are wanted.
    fn rest_of<'p>(&mut self, prompt: &'p [u32]) -> &'p [u32] {
        let same = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        self.reused = same.min(prompt.len() - 1);
        self.cache.truncate(self.reused);
        self.seen.truncate(self.reused);
        &prompt[self.reused..]
    }
}
