//! `flm chat`.

use std::path::PathBuf;

use clap::Args;
use flm_candle::Session;

use crate::arguments::{RunArgs, SamplingArgs, TemplateArgs, chat_policy, checkpoint_dir, open, tokenizer};
use crate::chat::conversation::Conversation;
use crate::chat::input::Input;
use crate::output::Output;
use crate::{chat, exit as interrupt};

/// Talk with a model in the terminal.
///
/// The model reads the whole conversation through its chat template, but works only on what is new in
/// each turn. When the conversation outgrows the model's context, its oldest turns are dropped. Ctrl-C
/// stops an answer, Ctrl-D leaves, /help lists the commands. Lines may also come through a pipe: the
/// answers go to stdout, with --json as one object a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    flm chat ./FLM-2-52B-Instruct --stream --repetition-penalty 1.03\n  \
    echo 'Who wrote 红楼梦?' | flm chat ./SmolLM2-135M-Instruct \\\n    \
    \x20 --system 'Answer in one sentence.'")]
pub(crate) struct Chat {
    /// Checkpoint directory of a chat model.
    #[arg(value_parser = checkpoint_dir())]
    dir: PathBuf,
    /// System message to begin with.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Maximum number of new tokens of an answer.
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// File that keeps the input history between conversations.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

impl Chat {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let checkpoint = open(&self.dir)?;
        let tokenizer = self.template.apply(tokenizer(&self.dir)?)?;
        let policy = chat_policy(&self.dir, &tokenizer, &checkpoint.config().eos_token_ids)?;
        let model = self.run.load(&checkpoint)?;
        let rows = model.config().vocab_size;
        let most = self.max_new_tokens as usize;
        let mut options = self.sampling.options(tokenizer.generation(), Some(&tokenizer), rows, most, output);
        options.stop_tokens = policy.stop_tokens().to_vec();
        let mut input = Input::open(self.history.as_deref())?;
        let mut chat = chat::Chat {
            session: Session::new(&model),
            tokenizer: &tokenizer,
            conversation: Conversation::new(policy.template().clone()),
            options,
            context: model.config().context_length(),
            interrupted: interrupt::watch()?,
            output,
        };
        if self.system.is_some() {
            chat.set_system(self.system.clone())?;
        }
        if input.is_terminal() {
            output.note("/help lists the commands, Ctrl-D leaves");
        }
        chat.run(&mut input)
    }
}
