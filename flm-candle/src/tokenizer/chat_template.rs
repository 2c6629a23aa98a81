//! Chat templates: a list of messages becomes the text of a prompt.
//!
//! Templates are Jinja as transformers renders them (`utils/chat_template_utils.py`): blocks are
//! trimmed, Python's string and dict methods exist, so do `raise_exception` and a `tojson` that
//! escapes no HTML. They come with a checkpoint and are not trusted: they see no files and no other
//! templates, and a budget of fuel bounds time and memory.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::tokenizer::error::TokenizerError;

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
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(template)?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.add_function("raise_exception", raise_exception);
        env.add_filter("tojson", tojson);
        for (name, token) in tokens {
            env.add_global(name.to_owned(), token.to_owned());
        }
        env.add_template_owned(NAME, unix(source)).map_err(template)?;
        Ok(Self { env: Arc::new(env), source: source.to_owned() })
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
        env.add_template_owned(NAME, unix(&source)).map_err(template)?;
        Ok(Self { env: Arc::new(env), source })
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
        // transformers passes these two as None where there are none.
        let none = || Value::from(());
        let messages = Value::from(Serde(messages));
        let tools = tools.map_or_else(none, |tools| Value::from(Serde(tools)));
        let variables = context! { messages, add_generation_prompt, tools, documents => none() };
        prompt.render(variables).map_err(template)
    }
}

/// The source with line ends as Jinja2's lexer reads them, and without `generation` blocks, which tell a
/// trainer what is an answer and render as what is in them.
fn unix(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    for name in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            // a block that does nothing, with the same control of white space
            text = text.replace(&format!("{open} {name} {close}"), &format!("{open} set _ = none {close}"));
        }
    }
    text
}

fn template(e: Error) -> TokenizerError {
    let message = match e.kind() {
        ErrorKind::OutOfFuel => "ran out of fuel: it loops without end or makes too much text".to_owned(),
        _ => e.to_string(),
    };
    TokenizerError::Template(message)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)` of Python.
fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) if n > 16 => {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is above 16"));
        }
        Some(n) => {
            let spaces = " ".repeat(n);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    let bad = |e: String| Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| bad(e.to_string()))?;
    String::from_utf8(out).map_err(|e| bad(e.to_string()))
}

/// Python puts a space after `,` and `:`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}
