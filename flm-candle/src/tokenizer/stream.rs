//! Text out of ids as they are generated.

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::json::JsonDecodeState;
use crate::tokenizer::sentencepiece::decoder::DecodeState;
use crate::tokenizer::{Backend, Tokenizer};

/// How many ids a stream looks back: a character takes at most four, and decoders look at one neighbour.
const CONTEXT: usize = 16;

/// Decodes ids one at a time.
///
/// The parts put together equal [`Tokenizer::decode`] of all ids. A part never ends inside a
/// character: bytes are held back until the character is complete or can no longer become one.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tokenizer = flm_candle::Tokenizer::from_dir("Tele-FLM".as_ref())?;
/// let mut text = String::new();
/// let mut stream = tokenizer.stream();
/// for id in [345, 678] {
///     text.extend(stream.push(id)?);
/// }
/// text.push_str(&stream.finish()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    SentencePiece(DecodeState),
    Json(JsonDecodeState),
}

impl<'a> TextStream<'a> {
    /// A stream at the start of a text; special tokens give no text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        let state = match tokenizer.backend {
            Backend::SentencePiece(_) => State::SentencePiece(DecodeState::default()),
            Backend::Json(_) => State::Json(JsonDecodeState::default()),
        };
        Self { tokenizer, state }
    }

    /// A stream that goes on after the ids of a text, so that the space before its first word is kept. After a
    /// special token a text begins anew.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary.
    pub fn after(tokenizer: &'a Tokenizer, ids: &[u32]) -> Result<Self, TokenizerError> {
        let mut stream = Self::new(tokenizer);
        if ids.last().is_some_and(|&id| tokenizer.is_special(id)) {
            return Ok(stream);
        }
        for &id in &ids[ids.len().saturating_sub(CONTEXT)..] {
            stream.push(id)?;
        }
        if let (Backend::Json(model), State::Json(state)) = (&tokenizer.backend, &mut stream.state) {
            model.settle(state)?;
        }
        Ok(stream)
    }

    /// Takes the next id; the text that it completes, if any.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownId`] for an id outside the vocabulary; the stream stays as it was.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        let mut out = String::new();
        match (&self.tokenizer.backend, &mut self.state) {
            (Backend::SentencePiece(model), State::SentencePiece(state)) => {
                model.decode_step(state, id, false, &mut out)?;
            }
            (Backend::Json(model), State::Json(state)) => model.decode_step(state, id, false, &mut out)?,
            _ => unreachable!("the state is made from the backend"),
        }
        Ok((!out.is_empty()).then_some(out))
    }

    /// Ends the text; what was held back, bytes without the rest of their character as U+FFFD.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let mut out = String::new();
        match (&self.tokenizer.backend, &mut self.state) {
            (Backend::SentencePiece(model), State::SentencePiece(state)) => {
                model.decode_rest(state, &mut out)
            }
            (Backend::Json(model), State::Json(state)) => model.decode_rest(state, false, &mut out)?,
            _ => unreachable!("the state is made from the backend"),
        }
        Ok(out)
    }
}
