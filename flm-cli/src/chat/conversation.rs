//! What was said, put into the chat template, and cut to what the context holds.

use std::{
    fs::OpenOptions,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, ensure};
use flm_candle::Tokenizer;
use flm_candle::{ChatMessage, ChatTemplate};
use serde_json::json;

use crate::output_file;

/// What was said so far, and how it is put to the model.
#[derive(Debug)]
pub(crate) struct Conversation {
    template: ChatTemplate,
    system: Option<String>,
    /// Turns of the user and of the model.
    turns: Vec<ChatMessage>,
    /// The first turn that the model still reads.
    first: usize,
}

/// The tokens that the model is to continue.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    /// Messages that the model read before and reads no more.
    pub(crate) dropped: usize,
}

impl Conversation {
    pub(crate) fn new(template: ChatTemplate) -> Self {
        Self { template, system: None, turns: Vec::new(), first: 0 }
    }

    /// Sets the system message, or none; whether it makes a difference to the prompt.
    ///
    /// # Errors
    /// When the chat template refuses it; the message is then the one before.
    pub(crate) fn set_system(&mut self, text: Option<String>) -> anyhow::Result<bool> {
        let question = ChatMessage::new("user", "?");
        let plain = self.template.render(std::slice::from_ref(&question), true)?;
        if let Some(text) = &text {
            let with = self.template.render(&[ChatMessage::new("system", text), question], true);
            let with = with.context("this model's chat template refuses a system message")?;
            self.system = Some(text.clone());
            return Ok(with != plain);
        }
        Ok(self.system.take().is_some())
    }

    /// Forgets everything but the system message.
    pub(crate) fn reset(&mut self) {
        self.turns.clear();
        self.first = 0;
    }

    /// The user says something.
    pub(crate) fn ask(&mut self, text: &str) {
        self.turns.push(ChatMessage::new("user", text));
    }

    /// The model has said something.
    pub(crate) fn answered(&mut self, text: String) {
        self.turns.push(ChatMessage::new("assistant", text));
    }

    /// Forgets a question that has no answer.
    pub(crate) fn take_back(&mut self) {
        self.turns.pop_if(|turn| turn.role == "user");
        self.first = self.first.min(self.turns.len());
    }

    /// The prompt for the next answer, for which `room` tokens are kept free, but no more than a quarter
    /// of the model's `context`.
    ///
    /// When that is too little, the oldest turns go, and some more than need to: each time that the
    /// beginning changes, the model has to read everything again.
    ///
    /// # Errors
    /// When the last message alone is too long.
    pub(crate) fn prompt(
        &mut self,
        tokenizer: &Tokenizer,
        context: usize,
        room: usize,
    ) -> anyhow::Result<Prompt> {
        let limit = context - room.min(context / 4);
        let mut first = self.first;
        let mut ids = self.encoded(tokenizer, first)?;
        if ids.len() > limit {
            while ids.len() > limit * 3 / 4
                && let Some(next) = self.next_question(first)
            {
                first = next;
                ids = self.encoded(tokenizer, first)?;
            }
        }
        ensure!(
            ids.len() < context,
            "the message takes {} tokens with what the chat template puts around it, and the model's context \
             is {context}: shorten it",
            ids.len()
        );
        let dropped = first - self.first;
        self.first = first;
        Ok(Prompt { ids, dropped })
    }

    fn encoded(&self, tokenizer: &Tokenizer, first: usize) -> anyhow::Result<Vec<u32>> {
        let messages = self.messages(first);
        Ok(tokenizer.encode_special(&self.template.render(&messages, true)?)?)
    }

    fn next_question(&self, after: usize) -> Option<usize> {
        (after + 1..self.turns.len()).find(|&turn| self.turns[turn].role == "user")
    }

    fn messages(&self, first: usize) -> Vec<ChatMessage> {
        let system = self.system.iter().map(|text| ChatMessage::new("system", text));
        system.chain(self.turns[first..].iter().cloned()).collect()
    }

    /// Adds the whole conversation to a file, as a line of JSON with `messages`; returns how many.
    ///
    /// # Errors
    /// When there is no answer yet, or the file cannot be written.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<usize> {
        ensure!(!self.turns.is_empty(), "there is nothing to save yet");
        output_file::check_appended(path, |first| first.starts_with('{'))?;
        let messages = self.messages(0);
        let line = format!("{}\n", json!({ "messages": messages }));
        append(path, &line).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(messages.len())
    }
}

/// Adds a line to a file whose last line may lack its end.
fn append(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let start = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{start}{line}").as_bytes())?;
    file.sync_all()
}
