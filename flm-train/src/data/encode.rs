//! From a sample to token ids, and which of them are learned.

use crate::data::format::Content;
use crate::data::{DataStatistics, Document};
use flm_candle::Tokenizer;
use flm_candle::{ChatMessage, ChatTemplate};

/// Turns samples into token ids and marks those that are learned.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    close: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// An encoder with the tokenizer's own chat template, or Tele-FLM's where it has none; with
    /// `close_turns` an assistant turn ends in the end-of-text token.
    pub fn new(tokenizer: &'a Tokenizer, close_turns: bool) -> Self {
        let template = tokenizer.chat_template().cloned().unwrap_or_else(ChatTemplate::tele_flm);
        Self { tokenizer, template, close: if close_turns { tokenizer.eos_id() } else { None } }
    }

    /// The same encoder with another chat template.
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = template;
        self
    }

    /// Ids and targets of a sample.
    ///
    /// # Errors
    /// A chat whose assistant turns cannot be found in what the template makes of it, as text.
    pub fn encode(&self, content: &Content, source: (usize, usize)) -> Result<Document, String> {
        match content {
            Content::Text(text) => self.text(text, source),
            Content::Chat(messages) => self.chat(messages, source),
        }
    }

    fn text(&self, text: &str, source: (usize, usize)) -> Result<Document, String> {
        let mut ids: Vec<u32> =
            self.tokenizer.bos_id().filter(|_| self.tokenizer.add_bos()).into_iter().collect();
        ids.extend(self.tokenizer.encode(text).map_err(|e| e.to_string())?);
        ids.extend(self.close);
        Ok(Document { target: vec![true; ids.len()], ids, source })
    }

    /// The template is rendered up to each assistant turn, as for generating it, and with it; what the
    /// second text has more is the turn.
    fn chat(&self, messages: &[ChatMessage], source: (usize, usize)) -> Result<Document, String> {
        let mut document = Document { ids: Vec::new(), target: Vec::new(), source };
        let mut done = String::new();
        for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
            let with = self.render(&messages[..=index], false)?;
            let mut before = self.render(&messages[..index], true)?;
            if !with.starts_with(&before) {
                before = self.render(&messages[..index], false)?;
            }
            let no_span = || {
                format!(
                    "the chat template does not put assistant turn {index} after the turns before it: \
                     its tokens cannot be told apart"
                )
            };
            if !before.starts_with(&done) || !with.starts_with(&before) {
                return Err(no_span());
            }
            if with.len() == before.len() && !message.content.trim().is_empty() {
                return Err(format!("the chat template leaves assistant turn {index} out"));
            }
            self.push(&mut document, &done, &before, false)?;
            let start = document.ids.len();
            self.push(&mut document, &before, &with, true)?;
            if let Some(eos) = self.close.filter(|eos| !document.ids[start..].contains(eos)) {
                document.ids.push(eos);
                document.target.push(true);
            }
            done = with;
        }
        Ok(document)
    }

    fn render(&self, messages: &[ChatMessage], prompt: bool) -> Result<String, String> {
        if messages.is_empty() {
            return Ok(String::new());
        }
        self.template.render(messages, prompt).map_err(|e| e.to_string())
    }

    /// Adds the tokens that `longer` has more than `shorter`: those after the tokens of `shorter`, which
    /// is how a model sees them that continues a prompt; where a token crosses the border, those of the
    /// additional text alone.
    fn push(&self, document: &mut Document, shorter: &str, longer: &str, target: bool) -> Result<(), String> {
        let encode = |text: &str| self.tokenizer.encode_special(text).map_err(|e| e.to_string());
        let all = encode(longer)?;
        let ids = match all.strip_prefix(encode(shorter)?.as_slice()) {
            Some(more) => more.to_vec(),
            None => encode(&longer[shorter.len()..])?,
        };
        document.target.extend(std::iter::repeat_n(target, ids.len()));
        document.ids.extend(ids);
        Ok(())
    }
}

/// What happens to a sample that is longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// Its end is cut off.
    #[default]
    Right,
    /// It is left out.
    Drop,
    /// It is an error.
    Error,
}

impl Truncation {
    /// The parts of a document that are trained on; a `text` is always cut into rows.
    pub fn apply(
        self,
        mut document: Document,
        context: usize,
        text: bool,
        statistics: &mut DataStatistics,
    ) -> Result<Vec<Document>, String> {
        let len = document.ids.len();
        if text {
            let parts = document.ids.chunks(context).zip(document.target.chunks(context));
            // one token alone has nothing to predict
            return Ok(parts
                .filter(|(ids, _)| ids.len() > 1)
                .map(|(ids, target)| Document {
                    ids: ids.into(),
                    target: target.into(),
                    source: document.source,
                })
                .collect());
        }
        if len > context {
            match self {
                Self::Error => {
                    return Err(format!("{len} tokens are more than the context length of {context}"));
                }
                Self::Drop => {
                    statistics.dropped += 1;
                    return Ok(Vec::new());
                }
                Self::Right => {
                    statistics.truncated += 1;
                    document.ids.truncate(context);
                    document.target.truncate(context);
                }
            }
        }
        if document.targets() == 0 {
            statistics.dropped += 1;
            return Ok(Vec::new());
        }
        Ok(vec![document])
    }
}
