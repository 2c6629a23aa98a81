//! `flm generate`.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, bail};
use clap::Args;
use flm_candle::TextStream;
use flm_candle::Tokenizer;
use flm_candle::{ChatMessage, ChatPolicy, ChatTemplate};
use flm_candle::{GenerationDefaults, generate};
use serde::Serialize;

use crate::arguments::{
    RawTextArgs, RunArgs, SamplingArgs, TOKEN_BYTES, TemplateArgs, chat_policy, checkpoint_dir, open,
    parse_ids, read_text, tokenizer, unrendered,
};
use crate::output::Output;

/// Continue a prompt, or answer one message with --chat; the text goes to stdout.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm generate ./Tele-FLM --prompt 'The capital of France is'\n  \
    flm generate ./FLM-2-52B-Instruct --chat --prompt 'Who wrote 红楼梦?' \\\n    \
    \x20 --repetition-penalty 1.03 --stream")]
pub(crate) struct Generate {
    /// Checkpoint directory.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// Text to continue; with --chat, the message to answer.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "ids"])]
    prompt: Option<String>,
    /// Read the prompt from a file (- is standard input).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "ids"])]
    prompt_file: Option<PathBuf>,
    /// Give the prompt as token ids; the answer is printed as ids.
    #[arg(long, value_parser = parse_ids, value_name = "IDS", conflicts_with_all = ["prompt", "chat"])]
    ids: Option<::std::vec::Vec<u32>>,
    /// Format the prompt as a user message with the chat template.
    #[arg(long)]
    chat: bool,
    /// System message for --chat.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Maximum number of new tokens.
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Continue after the end-of-text token.
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    raw: RawTextArgs,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Serialize)]
struct Answer {
    text: Option<String>,
    ids: Vec<u32>,
    prompt_tokens: usize,
    new_tokens: usize,
    finish: &'static str,
    sampling: Sampling,
    prompt_tokens_per_second: f64,
    tokens_per_second: f64,
}

/// How the tokens were chosen.
#[derive(Debug, Serialize)]
struct Sampling {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: f32,
    seed: u64,
}

impl Generate {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        if !self.chat {
            self.template.refuse_without_chat("give --chat")?;
        }
        if self.chat || self.ids.is_some() {
            self.raw.refuse_without_raw_text()?;
        }
        let checkpoint = open(&self.dir)?;
        let tokenizer = match (&self.ids, self.chat) {
            (Some(_), _) => None,
            (None, true) => Some(self.template.apply(tokenizer(&self.dir)?)?),
            (None, false) => Some(self.raw.apply(tokenizer(&self.dir)?)),
        };
        let policy = match &tokenizer {
            Some(tokenizer) if self.chat => {
                Some(chat_policy(&self.dir, tokenizer, &checkpoint.config().eos_token_ids)?)
            }
            _ => None,
        };
        let template = policy.as_ref().map(ChatPolicy::template);
        let prompt =
            self.prompt_ids(tokenizer.as_ref(), template, checkpoint.config().context_length(), output)?;
        let model = self.run.load(&checkpoint)?;
        let rows = model.config().vocab_size;
        let generation = match &tokenizer {
            Some(tokenizer) => tokenizer.generation().clone(),
            None => GenerationDefaults::from_dir(&self.dir)?,
        };
        let mut options =
            self.sampling.options(&generation, tokenizer.as_ref(), rows, self.max_new_tokens, output);
        if !self.ignore_eos {
            let eos = &model.config().eos_token_ids;
            options.stop_tokens = match (&policy, &tokenizer) {
                (Some(policy), _) => policy.stop_tokens().to_vec(),
                (None, Some(tokenizer)) => tokenizer.stop_tokens(eos),
                (None, None) => [&eos[..], &generation.eos_token_ids].concat(),
            };
        }
        // the text of a chat's answer begins anew, a continuation keeps the space before its first word
        let mut stream = match &tokenizer {
            Some(tokenizer) if self.chat => Some(TextStream::new(tokenizer)),
            Some(tokenizer) => Some(TextStream::after(tokenizer, &prompt)?),
            None => None,
        };
        let mut said = String::new();
        let (start, mut first, mut failure) = (Instant::now(), None, None);
        let prompts = std::slice::from_ref(&prompt);
        let mut answers = generate(&model, prompts, &options, |_, id| {
            first.get_or_insert_with(|| start.elapsed().as_secs_f64());
            // a stop token gives no text, whatever piece it is
            if options.stop_tokens.contains(&id) {
                return true;
            }
            let text = match &mut stream {
                Some(stream) => stream.push(id).map_err(anyhow::Error::from).map(Option::unwrap_or_default),
                None => Ok(format!("{id} ")),
            };
            let shown = text.and_then(|text| {
                said.push_str(&text);
                if output.json() { Ok(()) } else { output.text(&text) }
            });
            shown.map_err(|error| failure = Some(error)).is_ok()
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let (total, first) = (start.elapsed().as_secs_f64(), first.unwrap_or(f64::NAN));
        let answer = answers.remove(0);
        let rest = stream.map(TextStream::finish).transpose()?;
        if output.json() {
            let answer = Answer {
                text: rest.map(|rest| said + &rest),
                prompt_tokens: prompt.len(),
                new_tokens: answer.ids.len(),
                finish: answer.finish.as_str(),
                sampling: Sampling {
                    temperature: options.temperature,
                    top_k: options.top_k,
                    top_p: options.top_p,
                    min_p: options.min_p,
                    repetition_penalty: options.repetition_penalty,
                    seed: options.seed,
                },
                prompt_tokens_per_second: prompt.len() as f64 / first,
                tokens_per_second: (answer.ids.len() - 1) as f64 / (total - first),
                ids: answer.ids,
            };
            return output.result(&answer, |_| String::new()).map(|()| true);
        }
        output.text(&rest.unwrap_or_default())?;
        output.text("\n")?;
        let (new, prompt) = (answer.ids.len(), prompt.len());
        let (read, write) = (prompt as f64 / first, (new - 1) as f64 / (total - first));
        output.note(&format!("{prompt} tokens read at {read:.1}/s, {new} written at {write:.1}/s"));
        Ok(true)
    }

    fn prompt_ids(
        &self,
        tokenizer: Option<&Tokenizer>,
        template: Option<&ChatTemplate>,
        context: usize,
        output: &Output,
    ) -> anyhow::Result<Vec<u32>> {
        if let Some(ids) = &self.ids {
            return Ok(ids.clone());
        }
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read_text(path, context as u64 * TOKEN_BYTES)
                .with_context(|| format!("a prompt for a context of {context} tokens"))?,
            (None, None) => bail!("no prompt: give --prompt, --prompt-file or --ids"),
        };
        let tokenizer = tokenizer.context("no tokenizer")?;
        let Some(template) = template else {
            let ids = tokenizer.encode_prompt(&text)?;
            if let [first, second, ..] = ids[..]
                && first == second
                && tokenizer.bos_id() == Some(first)
            {
                output
                    .warn("the prompt begins with BOS twice: its text names it already (--no-bos adds none)");
            }
            return Ok(ids);
        };
        let mut messages: Vec<_> =
            self.system.iter().map(|system| ChatMessage::new("system", system)).collect();
        messages.push(ChatMessage::new("user", text));
        for what in template.unrendered(&messages, None)?.matters {
            output.warn(&unrendered(&what));
        }
        Ok(tokenizer.encode_special(&template.render(&messages, true)?)?)
    }
}
