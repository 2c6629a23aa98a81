//! Text out of ids as they are generated.

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::json::JsonDecodeState;
use crate::tokenizer::sentencepiece::decoder::DecodeState;
use crate::tokenizer::{Backend, Tokenizer};

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
