//! From a sample to token ids, and which of them are learned.

use crate::data::samples::{Content, Conversation};
use crate::data::turns::Rendered;
use crate::data::{DataStatistics, Document};
#[cfg(doc)]
use flm_candle::ChatTemplate;
use flm_candle::Tokenizer;
use flm_candle::{ChatMessage, ChatPolicy, Unrendered};

/// Turns samples into token ids and marks those that are learned.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// `None` for a base model.
    policy: Option<ChatPolicy>,
    close: Option<u32>,
}

/// A text that grows, with its ids: those up to its last special token do not change any more, so that
/// a conversation costs time in proportion to its length.
#[derive(Debug, Default)]
struct Growing {
    ids: Vec<u32>,
    /// Where that token begins in the text, and its place in `ids`.
    fixed: (usize, usize),
}

impl<'a> Encoder<'a> {
    /// An encoder with a chat policy; `close` is the token that ends a text, and an answer that is the
    /// last of its conversation and that the template leaves open.
    pub fn new(tokenizer: &'a Tokenizer, policy: Option<ChatPolicy>, close: Option<u32>) -> Self {
        Self { tokenizer, policy, close }
    }

    /// Ids and targets of a sample.
    ///
    /// # Errors
    /// A chat for a base model, or one whose assistant turns cannot be found in what the template makes
    /// of it, as text.
    pub fn encode(&self, content: &Content, source: (usize, usize)) -> Result<Document, String> {
        match content {
            Content::Text(text) => self.text(text, source),
            Content::Chat(conversation) => self.chat(conversation, source),
        }
    }

    /// What of a conversation the template does not render: see [`ChatTemplate::unrendered`].
    ///
    /// # Errors
    /// Those of the template.
    pub fn unrendered(&self, content: &Content) -> Result<Unrendered, String> {
        let (Content::Chat(chat), Some(policy)) = (content, &self.policy) else {
            return Ok(Unrendered::default());
        };
        let found = policy.template().unrendered(&chat.messages, chat.tools.as_ref());
        found.map_err(|e| e.to_string())
    }

    fn text(&self, text: &str, source: (usize, usize)) -> Result<Document, String> {
        let mut ids = self.tokenizer.encode_text(text).map_err(|e| e.to_string())?;
        // a text without tokens of its own teaches nothing; BOS and the like are few
        if ids.len() < 8 && self.tokenizer.encode(text).is_ok_and(|own| own.is_empty()) {
            return Ok(Document { ids: Vec::new(), target: Vec::new(), source });
        }
        ids.extend(self.close.filter(|close| ids.last() != Some(close)));
        Ok(Document { target: vec![true; ids.len()], ids, source })
    }

    /// The text up to each answer and with it are tokenised as parts of the whole and split where their tokens
    /// begin to differ, which is how a model sees them that continues a prompt.
    fn chat(&self, chat: &Conversation, source: (usize, usize)) -> Result<Document, String> {
        let Some(policy) = &self.policy else {
            return Err("a conversation, but the model has no chat template: give data.chat_template".into());
        };
        let rendered = Rendered::new(
            &|messages: &[ChatMessage], prompt| render(policy, chat, messages, prompt),
            &chat.messages,
        )?;
        let mut document = Document { ids: Vec::new(), target: Vec::new(), source };
        let mut whole = Growing::default();
        // whether the last answer still waits for the token that ends it
        let mut open = false;
        for answer in rendered.answers {
            let start = self.grow(&mut whole, &rendered.text[..answer.start])?;
            document.take(&whole.ids, start, false);
            if open {
                // the token that follows the last answer ends it, if generation stops there
                let follows = document.target.get_mut(start..).and_then(|rest| rest.first_mut());
                let stops = whole.ids.get(start).is_some_and(|id| policy.stop_tokens().contains(id));
                follows.into_iter().for_each(|target| *target = stops);
            }
            let start = self.grow(&mut whole, &rendered.text[..answer.end])?;
            let learned = chat.learned.get(answer.turn).copied().unwrap_or(false);
            document.take(&whole.ids, start, learned);
            open = learned && !self.end_at_stop(&mut document, start, policy);
        }
        if open && let Some(close) = self.close {
            document.ids.push(close);
            document.target.push(true);
        }
        Ok(document)
    }

    /// Leaves out of the targets from `start` on what comes after the token that stops generation; whether
    /// there is such a token at the end of the answer, white space aside.
    fn end_at_stop(&self, document: &mut Document, start: usize, policy: &ChatPolicy) -> bool {
        let turn = &document.ids[start..];
        let Some(stop) = turn.iter().rposition(|id| policy.stop_tokens().contains(id)) else { return false };
        let after = self.tokenizer.decode_with_special(&turn[stop + 1..]).unwrap_or_default();
        if !after.trim().is_empty() {
            return false;
        }
        document.target[start + stop + 1..].fill(false);
        true
    }

    /// Lets the text grow to `longer`, which begins with it; returns from where on the ids are new.
    fn grow(&self, whole: &mut Growing, longer: &str) -> Result<usize, String> {
        let (text_at, ids_at) = whole.fixed;
        let tail = self.tokenizer.encode_special(&longer[text_at..]).map_err(|e| e.to_string())?;
        let old = &whole.ids[ids_at..];
        let common = ids_at + tail.iter().zip(old).take_while(|(a, b)| a == b).count();
        whole.ids.truncate(ids_at);
        whole.ids.extend(tail);
        // what stands before a special token is encoded by itself
        let last = (ids_at..whole.ids.len()).rev().find(|&at| self.tokenizer.is_special(whole.ids[at]));
        if let Some(at) = last.filter(|&at| at > ids_at)
            && let Some(name) = self.tokenizer.id_to_token(whole.ids[at])
            && let Some(place) = longer[text_at..].rfind(&name)
        {
            whole.fixed = (text_at + place, at);
        }
        Ok(common)
    }
}

impl Document {
    /// Makes its ids `ids`, of which those from `start` on are new.
    fn take(&mut self, ids: &[u32], start: usize, target: bool) {
        self.ids.truncate(start);
        self.target.truncate(start);
        self.ids.extend(&ids[start..]);
        self.target.resize(self.ids.len(), target);
    }
}

fn render(
    policy: &ChatPolicy,
    chat: &Conversation,
    messages: &[ChatMessage],
    prompt: bool,
) -> Result<String, String> {
    if messages.is_empty() {
        return Ok(String::new());
    }
    policy.template().render_with_tools(messages, chat.tools.as_ref(), prompt).map_err(|e| e.to_string())
}

/// What happens to a sample of which the chat template does not render a part that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnrendered {
    /// It is an error.
    #[default]
    Error,
    /// The sample is left out.
    Drop,
    /// The rest of it is learned.
    Ignore,
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
            let mut parts = Vec::new();
            let mut start = 0;
            while start < len {
                let end = (start + context).min(len);
                // a last token alone is predicted from the one before it
                let first = if end - start == 1 && start > 0 && context > 1 { start - 1 } else { start };
                if end - first > 1 {
                    parts.push(Document {
                        ids: document.ids[first..end].into(),
                        target: document.target[first..end].into(),
                        source: document.source,
                    });
                }
                start = end;
            }
            if parts.is_empty() {
                statistics.leave_out("texts of less than two tokens", 1);
            }
            return Ok(parts);
        }
        if len > context {
            match self {
                Self::Error => {
                    return Err(format!("{len} tokens are more than the context length of {context}"));
                }
                Self::Drop => {
                    statistics.leave_out("longer than the context", 1);
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
            let why = if len > context { "nothing to learn within the context" } else { "nothing to learn" };
            statistics.leave_out(why, 1);
            return Ok(Vec::new());
        }
        Ok(vec![document])
    }
}
