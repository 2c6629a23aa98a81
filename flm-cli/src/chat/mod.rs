//! A conversation with a model, line by line.

pub(crate) mod conversation;
pub(crate) mod input;
pub(crate) mod request;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use flm_candle::Session;
use flm_candle::TextStream;
use flm_candle::Tokenizer;
use flm_candle::{Finish, GenerateOptions};
use serde::Serialize;

use crate::arguments::unrendered;
use crate::chat::conversation::Conversation;
use crate::chat::input::Input;

use crate::chat::input::Line;
use crate::chat::request::{HELP, Request};
use crate::output::{Output, count};

/// A model at the other end of a terminal or a pipe.
pub(crate) struct Chat<'a> {
    pub(crate) session: Session<'a>,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) conversation: Conversation,
    pub(crate) options: GenerateOptions,
    /// The model's `max_position_embeddings`.
    pub(crate) context: usize,
    /// Set by Ctrl-C.
    pub(crate) interrupted: Arc<AtomicBool>,
    pub(crate) output: &'a Output,
}

/// An answer, where JSON is asked for: one line each.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    answer: &'a str,
    finish: &'static str,
    prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were still there.
    reused_tokens: usize,
    new_tokens: usize,
    /// Messages that no longer fit in the model's context.
    dropped_messages: usize,
}

impl Chat<'_> {
    /// Answers until the input ends or asks for the end; whether everything could be done.
    pub(crate) fn run(&mut self, input: &mut Input) -> anyhow::Result<bool> {
        // waiting for a terminal, an interrupt is a key; waiting for a pipe, it ends the program
        let while_waiting = !input.is_terminal();
        let mut good = true;
        loop {
            self.interrupted.store(while_waiting, Ordering::Relaxed);
            let line = match input.read()? {
                Line::Text(line) => line,
                Line::Interrupted => {
                    self.output.say("Ctrl-D or /quit leaves, /help lists the commands");
                    continue;
                }
                Line::End => return Ok(good),
            };
            let done = match Request::parse(&line) {
                Request::Nothing => Ok(()),
                Request::Quit => return Ok(good),
                Request::Help => {
                    self.output.say(HELP);
                    Ok(())
                }
                Request::Say(text) => self.answer(&text),
                Request::Reset => {
                    self.conversation.reset();
                    self.output.note("the conversation starts anew");
                    Ok(())
                }
                Request::System(text) => self.set_system(text),
                Request::Save(path) => self.conversation.save(&path).map(|messages| {
                    self.output.say(&format!("{messages} messages added to {}", path.display()));
                }),
                Request::Wrong(why) => Err(anyhow::anyhow!(why)),
            };
            if let Err(error) = done {
                self.output.error(&error);
                // a person sees it and goes on; a script must be told
                good &= input.is_terminal();
            }
        }
    }

    /// Sets the system message, or none; says so where the chat template would drop it.
    pub(crate) fn set_system(&mut self, text: Option<String>) -> anyhow::Result<()> {
        let given = text.is_some();
        if !self.conversation.set_system(text)? && given {
            self.output.warn(&unrendered("messages[0].system"));
        }
        Ok(())
    }

    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        self.conversation.ask(text);
        let answered = self.continued();
        if answered.is_err() {
            self.conversation.take_back();
        }
        answered
    }

    fn continued(&mut self) -> anyhow::Result<()> {
        let room = self.options.max_new_tokens;
        let prompt = self.conversation.prompt(self.tokenizer, self.context, room)?;
        if prompt.dropped > 0 {
            self.output.say(&format!(
                "(the conversation is longer than the model's context of {} tokens: its oldest {} messages \
                 are no longer read)",
                count(self.context as u64),
                prompt.dropped
            ));
        }
        let mut stream = TextStream::new(self.tokenizer);
        let (mut text, mut failure) = (String::new(), None);
        let (output, json, stop_tokens) =
            (self.output, self.output.json(), self.options.stop_tokens.as_slice());
        let mut show = |part: &str| {
            text.push_str(part);
            if json { Ok(()) } else { output.text(part) }
        };
        self.interrupted.store(false, Ordering::Relaxed);
        let cancelled = || self.interrupted.load(Ordering::Relaxed);
        let generated = self.session.generate(&prompt.ids, &self.options, cancelled, |id| {
            if stop_tokens.contains(&id) {
                return true;
            }
            let part = stream.push(id).map_err(anyhow::Error::from);
            let shown = part.and_then(|part| part.map_or(Ok(()), |part| show(&part)));
            shown.map_err(|error| failure = Some(error)).is_ok() && !cancelled()
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        show(&stream.finish()?)?;
        // another answer to the same question is another draw
        self.options.seed = self.options.seed.wrapping_add(1);
        if json {
            output.event(&Answer {
                answer: &text,
                finish: generated.finish.as_str(),
                prompt_tokens: prompt.ids.len(),
                reused_tokens: self.session.reused(),
                new_tokens: generated.ids.len(),
                dropped_messages: prompt.dropped,
            })?;
        } else {
            output.text("\n")?;
        }
        match generated.finish {
            Finish::Stop => {}
            Finish::Length => output.note("(cut at --max-new-tokens)"),
            Finish::Context => output.note("(cut: the model's context is full)"),
            Finish::Cancelled => output.note("(stopped)"),
        }
        if text.is_empty() && generated.finish == Finish::Cancelled {
            self.conversation.take_back();
        } else {
            self.conversation.answered(text);
        }
        Ok(())
    }
}
