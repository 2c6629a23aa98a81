//! A template's source, made one that minijinja reads as Jinja2 does.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Tuple, Value};
use minijinja::{Error, ErrorKind};

/// The filter that stands for `%` after a text.
pub(super) const PERCENT: &str = "__percent__";

/// The source with line ends as Jinja2's lexer reads them, without `generation` blocks, which tell a trainer
/// what is an answer and render as what is in them, and with `'text' % value` as a filter, since minijinja's
/// `%` is for numbers alone.
pub(crate) fn normalized(source: &str) -> String {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    for name in ["generation", "endgeneration"] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            // a block that does nothing, with the same control of white space
            text = text.replace(&format!("{open} {name} {close}"), &format!("{open} set _ = none {close}"));
        }
    }
    with_percent_filter(&text)
}

/// `text % value` of Python: the values of a tuple one by one, else the one value.
pub(super) fn percent(text: &str, value: &Value) -> Result<String, Error> {
    match value.downcast_object_ref::<Tuple>() {
        Some(_) => format(FormatStyle::Printf, text, &value.try_iter()?.collect::<Vec<_>>()),
        None => format(FormatStyle::Printf, text, std::slice::from_ref(value)),
    }
    .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Rewrites `'text' % operand` to `'text'|__percent__(operand)` inside tags.
fn with_percent_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let end = if tag.starts_with("{#") {
            tag.find("#}").map_or(tag.len(), |at| at + 2)
        } else {
            rewrite_tag(tag, &mut out)
        };
        if tag.starts_with("{#") {
            out.push_str(&tag[..end]);
        }
        rest = &tag[end..];
    }
    out + rest
}

/// Writes the tag that `text` begins with to `out`; the bytes that it takes.
fn rewrite_tag(text: &str, out: &mut String) -> usize {
    let close = if text.starts_with("{{") { "}}" } else { "%}" };
    out.push_str(&text[..2]);
    let mut at = 2;
    let mut after_text = false;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(close) {
            out.push_str(close);
            return at + close.len();
        }
        if let Some(len) = literal(rest) {
            out.push_str(&rest[..len]);
            (at, after_text) = (at + len, true);
            continue;
        }
        if after_text && rest.starts_with('%') && !rest.starts_with("%}") {
            let blank = rest[1..].len() - rest[1..].trim_start().len();
            let operand = &rest[1 + blank..];
            if let Some(len) = operand_len(operand) {
                out.push_str(&format!("|{PERCENT}({})", &operand[..len]));
                at += 1 + blank + len;
                after_text = false;
                continue;
            }
        }
        let c = rest.chars().next().unwrap_or_default();
        after_text = after_text && c.is_whitespace();
        out.push(c);
        at += c.len_utf8();
    }
    at
}

/// The length of the quoted text at the start.
fn literal(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of a group in brackets, a text, a number or a name, with the attributes, indices and calls
/// that follow it.
fn operand_len(text: &str) -> Option<usize> {
    let word = |text: &str| text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let mut at = match text.chars().next()? {
        '(' | '[' | '{' => group(text)?,
        '\'' | '"' => literal(text)?,
        c if c.is_alphanumeric() || c == '_' => word(text),
        _ => return None,
    };
    loop {
        let rest = &text[at..];
        at += match rest.chars().next() {
            Some('(' | '[') => group(rest)?,
            Some('.') => 1 + word(&rest[1..]),
            _ => return Some(at),
        };
    }
}

/// The length of the brackets that `text` begins with and what is in them.
fn group(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if let Some(len) = literal(&text[at..]) {
            at += len;
            continue;
        }
        let c = text[at..].chars().next()?;
        at += c.len_utf8();
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_after_a_text_becomes_a_filter_and_nothing_else_changes() {
        for (source, wanted) in [
            ("{{ '%s=%d' % ('n', 3) }}", "{{ '%s=%d' |__percent__(('n', 3)) }}"),
            ("{{ \"%s\"%m['a)'].b(1) ~ 'x' }}", "{{ \"%s\"|__percent__(m['a)'].b(1)) ~ 'x' }}"),
            ("{% set a = '%d' % n %}b", "{% set a = '%d' |__percent__(n) %}b"),
            ("{{ 'a' }}% 3 {{ n % 2 }}", "{{ 'a' }}% 3 {{ n % 2 }}"),
            ("{%- if m == 'a' %}b{% endif %}", "{%- if m == 'a' %}b{% endif %}"),
            ("{# 'a' % b #}'a' % b", "{# 'a' % b #}'a' % b"),
            ("{{ 'it\\'s %s' % x", "{{ 'it\\'s %s' |__percent__(x)"),
            ("{{ '}}' }}{{ '%' }}", "{{ '}}' }}{{ '%' }}"),
        ] {
            assert_eq!(with_percent_filter(source), wanted);
        }
    }
}
