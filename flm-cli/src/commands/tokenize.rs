//! `flm tokenize`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use flm_candle::{ChatMessage, ChatPolicy, Tokenizer};
use flm_checkpoint::TeleFlmConfig;
use serde::Serialize;

use crate::arguments::{
    RawTextArgs, TemplateArgs, chat_policy, checkpoint_dir, read_text, tokenizer, unrendered,
};
use crate::output::{Output, count, table};

/// The largest text that is tokenised, in bytes.
const MAX_TEXT: u64 = 64 << 20;

/// The most tokens that a table shows; --json has all.
const SHOWN: usize = 1000;

/// Show what a text or a conversation is to a model: the rendered prompt, token ids and pieces, which tokens are
/// special, and where BOS and EOS come from.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm tokenize ./SmolLM2-135M 'The capital of France is'\n  \
    flm tokenize ./Qwen3-0.6B --chat talk.json \\\n    \
    \x20 --template-arg enable_thinking=false\n  \
    echo '[{\"role\": \"user\", \"content\": \"hi\"}]' | \\\n    \
    \x20 flm tokenize ./FLM-2-52B-Instruct --chat - --json")]
pub(crate) struct Tokenize {
    /// Directory of a checkpoint or of its tokenizer alone.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// Text to tokenise.
    #[arg(required_unless_present_any = ["text_file", "chat"])]
    text: Option<String>,
    /// Read the text from a file (- is standard input).
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    text_file: Option<PathBuf>,
    /// Render a conversation: a JSON file with a list of messages, or with an object of messages and tools (- is
    /// standard input).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "text_file"])]
    chat: Option<PathBuf>,
    /// Do not add the generation prompt after the last message.
    #[arg(long, requires = "chat")]
    no_generation_prompt: bool,
    #[command(flatten)]
    raw: RawTextArgs,
    #[command(flatten)]
    template: TemplateArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The text of the prompt, for a conversation.
    rendered: Option<String>,
    ids: Vec<u32>,
    tokens: Vec<Token>,
    bos: Option<Named>,
    /// Whether raw text begins with BOS, and what says so.
    add_bos: bool,
    add_bos_from: &'static str,
    /// Tokens that end an answer or a text.
    stop: Vec<Named>,
    /// Names of the chat templates that there are.
    chat_templates: Vec<String>,
    /// First id after the last token.
    vocabulary: usize,
}

#[derive(Debug, Serialize)]
struct Token {
    id: u32,
    /// As it stands in the vocabulary.
    piece: String,
    special: bool,
}

#[derive(Debug, Serialize)]
struct Named {
    id: u32,
    piece: String,
    /// What says so.
    from: Vec<&'static str>,
}

impl Tokenize {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if self.chat.is_some() {
            self.raw.refuse_without_raw_text()?;
        } else {
            self.template.refuse_without_chat("give --chat")?;
        }
        let mut tokenizer = tokenizer(&self.dir)?;
        let config_path = self.dir.join("config.json");
        let config = config_path.is_file().then(|| TeleFlmConfig::from_file(&config_path)).transpose()?;
        let eos = config.as_ref().map_or(&[][..], |config| &config.eos_token_ids);
        let (rendered, ids, policy) = if let Some(path) = &self.chat {
            tokenizer = self.template.apply(tokenizer)?;
            let policy = chat_policy(&self.dir, &tokenizer, eos)?;
            let text = self.render(&policy, path, output)?;
            let ids = tokenizer.encode_special(&text)?;
            (Some(text), ids, Some(policy))
        } else {
            tokenizer = self.raw.apply(tokenizer);
            let text = match (&self.text, &self.text_file) {
                (Some(text), _) => text.clone(),
                (None, Some(path)) => read_text(path, MAX_TEXT)?,
                (None, None) => String::new(),
            };
            (None, tokenizer.encode_text(&text)?, ChatPolicy::new(&tokenizer, None, eos).ok())
        };
        let tokens = ids.iter().map(|&id| Token {
            id,
            piece: piece(&tokenizer, id),
            special: tokenizer.is_special(id),
        });
        let origins = tokenizer.origins();
        let report = Report {
            tokens: tokens.collect(),
            rendered,
            ids,
            bos: tokenizer.bos_id().map(|id| named(&tokenizer, id, origins.bos)),
            add_bos: tokenizer.add_bos(),
            add_bos_from: origins.add_bos,
            stop: stop(&tokenizer, policy.as_ref(), eos),
            chat_templates: tokenizer.chat_template_names().map(str::to_owned).collect(),
            vocabulary: tokenizer.len(),
        };
        output.result(&report, human)?;
        Ok(true)
    }

    fn render(&self, policy: &ChatPolicy, path: &std::path::Path, output: &Output) -> anyhow::Result<String> {
        let wrong = || {
            format!(
                "{} is neither a JSON list of messages with role and content nor an object with `messages`",
                path.display()
            )
        };
        let file: serde_json::Value =
            serde_json::from_str(&read_text(path, MAX_TEXT)?).with_context(wrong)?;
        let (messages, tools) = match &file {
            serde_json::Value::Object(file) => (file.get("messages").with_context(wrong)?, file.get("tools")),
            list => (list, None),
        };
        let messages: Vec<ChatMessage> = serde_json::from_value(messages.clone()).with_context(wrong)?;
        let template = policy.template();
        let found = template.unrendered(&messages, tools)?;
        for what in found.matters.into_iter().chain(found.others) {
            output.warn(&unrendered(&what));
        }
        Ok(template.render_with_tools(&messages, tools, !self.no_generation_prompt)?)
    }
}

/// The tokens that end a text, each with the first file that says so; `config` are config.json's.
fn stop(tokenizer: &Tokenizer, policy: Option<&ChatPolicy>, config: &[u32]) -> Vec<Named> {
    let own = tokenizer.eos_id().map(|id| (id, tokenizer.origins().eos));
    let turn = policy.and_then(ChatPolicy::end_of_turn);
    let all = own
        .into_iter()
        .chain(tokenizer.generation().eos_token_ids.iter().map(|&id| (id, "generation_config.json")))
        .chain(config.iter().map(|&id| (id, "config.json")))
        .chain(turn.map(|id| (id, "the chat template, after an answer")))
        .chain(policy.into_iter().flat_map(|p| p.stop_tokens()).map(|&id| (id, "the chat template")));
    let mut stop: Vec<Named> = Vec::new();
    for (id, from) in all {
        match stop.iter_mut().find(|named| named.id == id) {
            None => stop.push(named(tokenizer, id, from)),
            Some(known) if known.from.contains(&from) || from == "the chat template" => {}
            Some(known) => known.from.push(from),
        }
    }
    stop
}

fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.id_to_token(id).unwrap_or_default()
}

fn named(tokenizer: &Tokenizer, id: u32, from: &'static str) -> Named {
    Named { id, piece: piece(tokenizer, id), from: vec![from] }
}

fn human(report: &Report) -> String {
    let mut text = String::new();
    if let Some(rendered) = &report.rendered {
        text = format!("{rendered}\n\n");
    }
    let shown = report.tokens.iter().take(SHOWN).enumerate();
    let rows = shown.map(|(at, token)| {
        let special = if token.special { "special" } else { "" };
        // control characters would reach the terminal
        vec![at.to_string(), token.id.to_string(), format!("{:?}", token.piece), special.to_owned()]
    });
    text += &table(&["", "id", "piece", ""], rows, false);
    let left_out = report.tokens.len().saturating_sub(SHOWN);
    if left_out > 0 {
        text += &format!("\n… and {} more: --json has all", count(left_out as u64));
    }
    let show = |token: &Named| format!("{} ({}), from {}", token.piece, token.id, token.from.join(", "));
    text += &format!("\n\n{} tokens of {}", count(report.ids.len() as u64), count(report.vocabulary as u64));
    let bos = report.bos.as_ref().map_or("none".to_owned(), show);
    let added = if report.add_bos { "put before raw text" } else { "not put before raw text" };
    text += &format!("\nBOS  {bos}; {added} ({})", report.add_bos_from);
    for (at, token) in report.stop.iter().enumerate() {
        text += &format!("\n{}  {}", if at == 0 { "EOS" } else { "   " }, show(token));
    }
    if report.stop.is_empty() {
        text += "\nEOS  none";
    }
    if !report.chat_templates.is_empty() {
        text += &format!("\nchat templates: {}", report.chat_templates.join(", "));
    }
    text
}
