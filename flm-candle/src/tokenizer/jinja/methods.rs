//! Methods of Python's `str`, `list` and `dict` that templates call and minijinja-contrib does not have.
//!
//! Source: Python's documentation of built-in types. Positions and widths count characters.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// The longest text that a method may pad to: fuel does not count it.
const MAX_WIDTH: usize = 1 << 16;

/// Answers methods that values do not have themselves.
pub(super) fn unknown_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) => string_method(text, method, args)?,
        (None, ValueKind::Map) if method == "copy" => Some(value.clone()),
        (None, ValueKind::Seq) if method == "copy" => Some(value.clone()),
        (None, ValueKind::Seq) if method == "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let mut items = value.try_iter()?;
            let at = items.position(|item| item == *what);
            Some(Value::from(at.ok_or_else(|| invalid(format!("{what} is not in list")))?))
        }
        _ => None,
    };
    match own {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value: Value = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<String>,) = from_args(args)?;
            let cut = |c: char| is_cut(c, chars.as_deref());
            match method {
                "lstrip" => text.trim_start_matches(cut),
                "rstrip" => text.trim_end_matches(cut),
                _ => strip(text, chars.as_deref()),
            }
            .into()
        }
        "removeprefix" | "removesuffix" => {
            let (fix,): (String,) = from_args(args)?;
            let rest =
                if method == "removeprefix" { text.strip_prefix(&fix) } else { text.strip_suffix(&fix) };
            rest.unwrap_or(text).into()
        }
        "partition" | "rpartition" => {
            let (separator,): (String,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let found = if method == "partition" {
                text.split_once(&*separator)
            } else {
                text.rsplit_once(&*separator)
            };
            let parts = match found {
                Some((before, after)) => [before, &separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Tuple::from(parts.map(Value::from)).into()
        }
        "rsplit" => {
            let (separator, most): (Option<String>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
            rsplit(text, separator.as_deref(), most)?.into()
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            let fill = fill.unwrap_or(' ');
            match method {
                "center" => center(text, width, fill)?,
                "ljust" => format!("{text}{}", padding(text, width, fill)?),
                _ => format!("{}{text}", padding(text, width, fill)?),
            }
            .into()
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let sign = text.len() - text.strip_prefix(['+', '-']).unwrap_or(text).len();
            let (sign, digits) = text.split_at(sign);
            format!("{sign}{}{digits}", padding(text, width, '0')?).into()
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            expand_tabs(text, size.unwrap_or(8))?.into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().replace('ß', "ss").into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| {
                if c.is_lowercase() { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() }
            };
            text.chars().map(swap).collect::<String>().into()
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "index" | "rindex" | "find" | "rfind" | "count" => {
            let (what, start, end): (String, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, offset) = slice(text, start, end);
            if method == "count" {
                return Ok(Some(
                    match what.is_empty() {
                        true => part.chars().count() + 1,
                        false => part.matches(&*what).count(),
                    }
                    .into(),
                ));
            }
            let at = if method.starts_with('r') { part.rfind(&*what) } else { part.find(&*what) };
            match at {
                Some(at) => (offset + part[..at].chars().count()).into(),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(invalid("substring not found")),
            }
        }
        "startswith" | "endswith" if args.len() > 1 => {
            let (fix, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
            let (part, _) = slice(text, start, end);
            let has =
                |fix: &str| if method == "startswith" { part.starts_with(fix) } else { part.ends_with(fix) };
            match fix.as_str() {
                Some(fix) => has(fix).into(),
                None => fix.try_iter()?.any(|fix| fix.as_str().is_some_and(has)).into(),
            }
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            split_lines(text, keep.unwrap_or(false)).into()
        }
        "istitle" => {
            let () = from_args(args)?;
            (text.chars().any(char::is_alphabetic) && title(text) == text).into()
        }
        "isdecimal" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()
        }
        "isidentifier" => {
            let () = from_args(args)?;
            let start = |c: char| c.is_alphabetic() || c == '_';
            (text.starts_with(start) && text.chars().all(|c| start(c) || c.is_numeric())).into()
        }
        "isprintable" => {
            let () = from_args(args)?;
            text.chars().all(|c| c == ' ' || !(c.is_control() || c.is_whitespace())).into()
        }
        "encode" => {
            return Err(invalid("templates see text, not bytes: `encode` is not supported"));
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// What Python takes for white space: Unicode's, and the separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether Python's `strip` cuts this character off.
fn is_cut(c: char, chars: Option<&str>) -> bool {
    chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

/// `str.strip`: without white space at both ends, or without any of `chars`.
pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>) -> &'t str {
    text.trim_matches(|c: char| is_cut(c, chars))
}

/// Jinja2's `truncate`: a text of more than `length` and `leeway` characters is cut, between words unless
/// `kill_words`, and ends in `end`.
pub(super) fn truncate(text: &str, length: usize, kill_words: bool, end: &str, leeway: usize) -> String {
    if text.chars().count() <= length.saturating_add(leeway) {
        return text.to_owned();
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let words = kept.rsplit_once(' ').map_or(kept.as_str(), |(words, _)| words);
    format!("{}{end}", if kill_words { kept.as_str() } else { words })
}

/// The number of words.
pub(super) fn words(text: &str) -> usize {
    let in_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let mut before = false;
    text.chars().filter(|c| !std::mem::replace(&mut before, in_word(c)) && in_word(c)).count()
}

/// `fill` as often as `text` lacks characters to `width`.
fn padding(text: &str, width: i64, fill: char) -> Result<String, Error> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    if missing > MAX_WIDTH {
        return Err(invalid(format!("a width of {width} is too large")));
    }
    Ok(std::iter::repeat_n(fill, missing).collect())
}

/// `str.center`.
pub(super) fn center(text: &str, width: i64, fill: char) -> Result<String, Error> {
    let both = padding(text, width, fill)?;
    let missing = both.chars().count();
    // Python puts the odd one in front where the width is odd
    let front = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
    let side = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(format!("{}{text}{}", side(front), side(missing - front)))
}

fn rsplit(text: &str, separator: Option<&str>, most: usize) -> Result<Vec<Value>, Error> {
    let mut parts = Vec::new();
    let mut rest = text;
    match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => {
            while parts.len() < most
                && let Some((before, after)) = rest.rsplit_once(separator)
            {
                parts.push(Value::from(after));
                rest = before;
            }
            parts.push(Value::from(rest));
        }
        None => {
            rest = rest.trim_end_matches(is_space);
            while parts.len() < most
                && let Some((at, c)) = rest.char_indices().rev().find(|(_, c)| is_space(*c))
            {
                parts.push(Value::from(&rest[at + c.len_utf8()..]));
                rest = rest[..at].trim_end_matches(is_space);
            }
            if !rest.trim_start_matches(is_space).is_empty() {
                parts.push(Value::from(rest));
            }
        }
    }
    parts.reverse();
    Ok(parts)
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    if size > MAX_WIDTH {
        return Err(invalid(format!("a tab of {size} spaces is too large")));
    }
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                if out.len() + spaces > MAX_WIDTH.max(text.len() * 8) {
                    return Err(invalid("expandtabs makes too much text"));
                }
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// Each letter after one that is none in upper case, all others in lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// `text[start:end]` and how many characters stand before it.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (&str, usize) {
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let len = text.chars().count();
    let at = |index: i64| {
        let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
        if index < 0 { len.saturating_sub(from_end) } else { from_end.min(len) }
    };
    let (start, end) = (at(start.unwrap_or(0)), end.map_or(len, at));
    let byte = |chars: usize| text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    (&text[byte(start)..byte(end.max(start))], start)
}

/// Python ends lines at more than line feeds.
pub(super) fn split_lines(text: &str, keep: bool) -> Vec<Value> {
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| ends.contains(c)) {
        let end = at + if rest[at..].starts_with("\r\n") { 2 } else { c.len_utf8() };
        lines.push(Value::from(&rest[..if keep { end } else { at }]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    lines
}
