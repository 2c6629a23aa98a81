//! How a model is talked with: its chat template, and the tokens that end an answer. One policy for chat,
//! generation, evaluation and training, so that what is trained is what is prompted.

use crate::tokenizer::Tokenizer;
use crate::tokenizer::chat_template::{ChatMessage, ChatTemplate};
use crate::tokenizer::error::TokenizerError;

/// The special tokens of Tele-FLM's chat template: they open a user's turn and an answer.
const TELE_FLM_TURNS: [&str; 2] = ["<_user>", "<_bot>"];

/// An answer that no template and no tokenizer has a rule for.
const PROBE: &str = "qxzjv";

/// A chat template with the tokens that end an answer.
#[derive(Debug, Clone)]
pub struct ChatPolicy {
    template: ChatTemplate,
    stop: Vec<u32>,
    end_of_turn: Option<u32>,
}

impl ChatPolicy {
    /// The policy of a tokenizer's folder, or with another `template`. A folder without a template has
    /// Tele-FLM's if its tokenizer has that template's tokens. `eos` are config.json's end-of-text tokens.
    ///
    /// # Errors
    /// [`TokenizerError::NoTemplate`] for a base model, and where the template cannot be rendered at all.
    pub fn new(
        tokenizer: &Tokenizer,
        template: Option<ChatTemplate>,
        eos: &[u32],
    ) -> Result<Self, TokenizerError> {
        let known = || TELE_FLM_TURNS.iter().all(|token| tokenizer.token_to_id(token).is_some());
        let template = match template.or_else(|| tokenizer.chat_template().cloned()) {
            Some(template) => template,
            None if tokenizer.chat_template_names().next().is_some() => {
                return Err(tokenizer.no_template("default"));
            }
            None if known() => ChatTemplate::tele_flm(),
            None => return Err(TokenizerError::NoTemplate { tokens: TELE_FLM_TURNS.join(" and ") }),
        };
        let mut stop = tokenizer.stop_tokens(eos);
        let end_of_turn = end_of_turn(tokenizer, &template);
        stop.extend(end_of_turn);
        // where nothing closes an answer, the token that opens the user's next turn does
        if end_of_turn.is_none() && template.source().contains(TELE_FLM_TURNS[0]) {
            stop.extend(tokenizer.token_to_id(TELE_FLM_TURNS[0]));
        }
        stop.sort_unstable();
        stop.dedup();
        Ok(Self { template, stop, end_of_turn })
    }

    /// The policy with answers that end in `eos`, where the template puts no token of its own after them:
    /// what a model is trained on and what it is prompted with are then the same text. The same policy where
    /// the template closes answers, or where no text stands for the token.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn with_closed_answers(self, tokenizer: &Tokenizer, eos: u32) -> Result<Self, TokenizerError> {
        let text = tokenizer
            .id_to_token(eos)
            .filter(|text| tokenizer.encode_special(text).is_ok_and(|ids| ids == [eos]));
        match text {
            Some(text) if self.end_of_turn.is_none() => {
                Self::new(tokenizer, Some(self.template.with_closed_answers(&text)?), &self.stop)
            }
            _ => Ok(self),
        }
    }

    /// The chat template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The tokens that end an answer, sorted.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }

    /// The special token that the template itself puts after an answer.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of_turn
    }
}

/// The special token right after an answer, in what the template makes of a question and an answer.
fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Option<u32> {
    let messages = [ChatMessage::new("user", "a"), ChatMessage::new("assistant", PROBE)];
    let text = template.render(&messages, false).ok()?;
    let after = &text[text.rfind(PROBE)? + PROBE.len()..];
    let first = *tokenizer.encode_special(after).ok()?.first()?;
    tokenizer.is_special(first).then_some(first)
}
