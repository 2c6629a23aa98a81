//! Chat templates: a list of messages becomes the text of a prompt.
//!
//! Templates are Jinja as transformers renders them (module `jinja`). They come with a checkpoint and are not
//! trusted: they see no files and no other templates, and a budget of fuel bounds time and memory.

use std::collections::HashMap;
use std::sync::Arc;

use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::jinja::{self, Clock};

/// The budget of one rendering, in minijinja's fuel: one unit is an instruction or 64 bytes of data.
/// A long conversation takes some ten thousand.
const FUEL: u64 = 10_000_000;

/// The name under which errors speak of the template.
const NAME: &str = "chat_template";

/// Tele-FLM's published serving template on one line (on several lines it renders stray
/// whitespace). It drops system messages, and a user's turn already ends in `<_bot>`.
/// Source: `examples/template_teleflm.jinja` of vllm-project/vllm.
const TELE_FLM: &str = concat!(
    "{% for message in messages %}",
    "{% if message['role'] == 'user' %}{{ '<_user>' + message['content'].strip() + '<_bot>' }}",
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}",
    "{% endif %}{% endfor %}"
);

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// What else a template may render: `reasoning_content`, `tool_calls`, `name` and the like.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl ChatMessage {
    /// A turn of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), rest: serde_json::Map::new() }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: String,
    /// What the caller gives the template beside messages and tools: `enable_thinking` and the like.
    arguments: serde_json::Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Compiles a template. The tokens become its variables `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] for wrong syntax. Filters and functions that do not exist are
    /// found on rendering.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TokenizerError> {
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        Self::with_tokens(source, tokens.into_iter().filter_map(|(name, token)| Some((name, token?))))
    }

    /// Compiles a template with any variables of the kind `bos_token`, `pad_token`, `unk_token`.
    pub fn with_tokens<'t>(
        source: &str,
        tokens: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Result<Self, TokenizerError> {
        let mut env = jinja::environment(FUEL).map_err(template)?;
        for (name, token) in tokens {
            env.add_global(name.to_owned(), token.to_owned());
        }
        env.add_function("strftime_now", |format: String| Clock::Now.strftime(&format));
        env.add_template_owned(NAME, jinja::normalized(source)).map_err(template)?;
        Ok(Self { env: Arc::new(env), source: source.to_owned(), arguments: serde_json::Map::new() })
    }

    /// The same template with variables of the caller's, which templates ask for by name
    /// (`enable_thinking`), beside those that it has.
    pub fn with_arguments(mut self, arguments: serde_json::Map<String, serde_json::Value>) -> Self {
        self.arguments.extend(arguments);
        self
    }

    /// The same template at a fixed time: what `strftime_now` answers, and `date_string` where the template
    /// asks for one. Otherwise it is local time, or that of the environment's `SOURCE_DATE_EPOCH`.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] for what is neither `YYYY-MM-DD` nor `YYYY-MM-DDTHH:MM:SS`.
    pub fn at(mut self, date: &str) -> Result<Self, TokenizerError> {
        let clock = Clock::parse(date).map_err(template)?;
        let mut env = (*self.env).clone();
        env.add_function("strftime_now", move |format: String| clock.strftime(&format));
        self.env = Arc::new(env);
        let date_string = clock.strftime("%d %b %Y").map_err(template)?;
        self.arguments.entry("date_string").or_insert_with(|| date_string.into());
        Ok(self)
    }

    /// What tells this template's prompts from another's: its text, and the variables that it was given.
    pub fn identity(&self) -> String {
        if self.arguments.is_empty() {
            return self.source.clone();
        }
        format!("{}\n{}", self.source, serde_json::Value::from(self.arguments.clone()))
    }

    /// The template of the Tele-FLM instruct models:
    /// `<_user>` + stripped user message + `<_bot>` + answer.
    pub fn tele_flm() -> Self {
        Self::new(TELE_FLM, None, None).unwrap_or_else(|e| unreachable!("the built-in template: {e}"))
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The template with `end` after the content of every assistant turn.
    pub(crate) fn with_closed_answers(&self, end: &str) -> Result<Self, TokenizerError> {
        let end = Value::from(end).to_string().replace('\\', "\\\\").replace('\'', "\\'");
        // other keys are kept for templates that know some; llama.cpp's Jinja has no `dict`
        let known = ["tool_calls", "reasoning_content", "thinking", "tool_call_id"];
        let turn = if known.iter().any(|key| self.source.contains(key)) {
            format!("dict(message, content=message['content'] + '{end}')")
        } else {
            format!("{{'role': message['role'], 'content': message['content'] + '{end}'}}")
        };
        let source = format!(
            "{{%- set closed = namespace(messages=[]) -%}}\
             {{%- for message in messages -%}}\
             {{%- if message['role'] == 'assistant' -%}}{{%- set closed.messages = closed.messages + [{turn}] -%}}\
             {{%- else -%}}{{%- set closed.messages = closed.messages + [message] -%}}{{%- endif -%}}\
             {{%- endfor -%}}\
             {{%- set messages = closed.messages -%}}{{{{- '' }}}}{}",
            self.source
        );
        let mut env = (*self.env).clone();
        env.add_template_owned(NAME, jinja::normalized(&source)).map_err(template)?;
        Ok(Self { env: Arc::new(env), source, arguments: self.arguments.clone() })
    }

    /// The prompt of a conversation. `add_generation_prompt` asks for the opening of an answer;
    /// templates without such a branch ignore it.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] if the template raises an exception, uses what does not exist,
    /// or runs out of fuel.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// The same for a model that is told of `tools`, a list of their JSON schemas.
    ///
    /// # Errors
    /// Those of [`Self::render`].
    pub fn render_with_tools(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let prompt = self.env.get_template(NAME).map_err(template)?;
        // transformers passes tools and documents as None where there are none
        let own = [
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("tools", tools.map_or_else(|| Value::from(()), |tools| Value::from(Serde(tools)))),
            ("documents", Value::from(())),
        ];
        let given = self.arguments.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let given =
            given.filter(|(name, _)| !matches!(*name, "messages" | "add_generation_prompt" | "tools"));
        let variables: HashMap<&str, Value> = own.into_iter().chain(given).collect();
        prompt.render(Value::from(variables)).map_err(template)
    }
}

fn template(e: Error) -> TokenizerError {
    let message = match e.kind() {
        ErrorKind::OutOfFuel => "ran out of fuel: it loops without end or makes too much text".to_owned(),
        _ => e.to_string(),
    };
    TokenizerError::Template(message)
}
