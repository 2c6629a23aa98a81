//! What training data is once it is read: samples, and what of the files was left out.

use std::collections::BTreeMap;

use flm_candle::ChatMessage;
use serde_json::Value;

use crate::error::TrainError;

/// A conversation and what of it is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its turns.
    pub messages: Vec<ChatMessage>,
    /// For each turn whether it is learned; only assistant turns are.
    pub learned: Vec<bool>,
    /// JSON schemas of the tools that the template is given.
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation of which every assistant turn is learned.
    pub fn new(messages: Vec<ChatMessage>) -> Self {
        let learned = messages.iter().map(|message| message.role == "assistant").collect();
        Self { messages, learned, tools: None }
    }

    /// Whether nothing stands in any of the turns that are learned: no text, no tool call, no thought.
    pub(super) fn says_nothing(&self) -> bool {
        let mut turns = self.messages.iter().zip(&self.learned);
        turns.all(|(turn, learned)| !learned || turn.content.trim().is_empty() && turn.rest.is_empty())
    }
}

/// What a sample holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A conversation: its assistant turns are learned, but for those that say that they are not to be.
    Chat(Conversation),
    /// A text: all of it is learned.
    Text(String),
}

/// A sample and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Line in its file, or element of its array, counted from 1.
    pub line: usize,
    /// What it holds.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples {
    /// What can be learned.
    pub samples: Vec<Sample>,
    /// Rows that say that they are not to be learned: the reason and how many.
    pub left_out: BTreeMap<String, usize>,
    /// Keys that nothing was taken from, and in how many places.
    pub unread: BTreeMap<String, usize>,
    /// Rows of which something was chosen, by what.
    pub chosen: BTreeMap<String, usize>,
}

/// Takes samples one after the other; an error ends the reading.
pub(super) type Take<'a> = dyn FnMut(Sample) -> Result<(), TrainError> + 'a;
