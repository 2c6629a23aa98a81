//! The Jinja that transformers renders chat templates with: minijinja with what Python's `str`, `json.dumps`
//! and Jinja2's own filters have beside it.
//!
//! Source of what there is: transformers' `utils/chat_template_utils.py` (trimmed blocks, `raise_exception`,
//! `strftime_now`, a `tojson` that escapes no HTML), Jinja2's list of built-in filters, Python's `str`.

mod clock;
mod filters;
mod json;
mod methods;
mod source;

pub(super) use clock::Clock;
pub(super) use source::normalized;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, escape_formatter};

/// An environment without templates. It sees no files; `fuel` bounds time and memory of a rendering.
///
/// # Errors
/// Never, by the fixed settings.
pub(super) fn environment(fuel: u64) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(methods::unknown_method);
    env.set_fuel(Some(fuel));
    env.set_formatter(|out, state, value| match float(value) {
        Some(text) => out.write_str(&text).map_err(|e| Error::new(ErrorKind::WriteFailure, e.to_string())),
        None => escape_formatter(out, state, value),
    });
    env.add_function("raise_exception", raise_exception);
    env.add_filter("tojson", json::tojson);
    env.add_filter(source::PERCENT, |text: String, value: &Value| source::percent(&text, value));
    filters::add(&mut env);
    // to Python None is no iterable, to minijinja it is an empty one
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        value.as_str().is_some() || minijinja::tests::is_sequence(value)
    });
    Ok(env)
}

/// A float as Python prints it; `None` for anything else.
fn float(value: &Value) -> Option<String> {
    let float = value.is_number() && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|_| float).map(json::float)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
