//! Jinja2's filters and globals where minijinja has none or others.
//!
//! Source: `jinja2/filters.py` and `jinja2/utils.py` of Jinja2 3.1, Python's `pprint`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

use crate::tokenizer::jinja::{float, methods};

/// Columns that `pprint` fills.
const PRINTED_WIDTH: usize = 80;
/// The longest indentation: fuel does not count it.
const MAX_INDENT: usize = 256;

/// Adds them to an environment.
pub(super) fn add(env: &mut Environment<'static>) {
    env.add_filter("truncate", truncate);
    env.add_filter("striptags", minijinja_contrib::filters::striptags);
    env.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    env.add_filter("wordcount", |text: String| methods::words(&text));
    env.add_filter("center", |text: String, width: Option<i64>| {
        methods::center(&text, width.unwrap_or(80), ' ')
    });
    env.add_filter("string", |value: &Value| text_of(value));
    env.add_filter("trim", |value: &Value, chars: Option<String>| {
        methods::strip(&text_of(value), chars.as_deref()).to_owned()
    });
    for name in ["e", "escape"] {
        env.add_filter(name, |value: &Value| if value.is_safe() { value.clone() } else { escape(value) });
    }
    env.add_filter("forceescape", escape);
    env.add_filter("pprint", |value: &Value| {
        let mut out = String::new();
        print(value, 0, 0, &mut out);
        out
    });
    env.add_filter("indent", indent);
    env.add_filter("dictsort", dict_sort);
    env.add_filter("urlencode", url_encode);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("cycler", cycler);
    env.add_function("dict", dict);
}

/// A value as Python's `str` writes it.
fn text_of(value: &Value) -> String {
    float(value).unwrap_or_else(|| value.to_string())
}

/// markupsafe's `escape`.
fn escape(value: &Value) -> Value {
    let mut out = String::new();
    for c in text_of(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// A value as Python's `repr` writes it, with dicts in the order of their keys, as `pprint` has them.
fn repr(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value.kind() {
        ValueKind::Map => {
            let pairs = sorted_pairs(value).into_iter();
            format!("{{{}}}", list(pairs.map(|(key, v)| format!("{}: {}", repr(&key), repr(&v))).collect()))
        }
        ValueKind::Seq => {
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(|item| repr(&item)).collect();
            match (value.downcast_object_ref::<Tuple>(), items.len()) {
                (Some(_), 1) => format!("({},)", items[0]),
                (Some(_), _) => format!("({})", list(items)),
                (None, _) => format!("[{}]", list(items)),
            }
        }
        ValueKind::Number => text_of(value),
        // the engine writes what is in a list as Python does
        _ => {
            let text = Value::from(vec![value.clone()]).to_string();
            text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(&text).to_owned()
        }
    }
}

fn sorted_pairs(map: &Value) -> Vec<(Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    let mut pairs: Vec<_> = keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default())).collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs
}

/// `pprint.pformat`, of dicts, lists and tuples: on one line where that fits, else an item a line. `indent` columns
/// stand before the value and `after` characters behind it. Long texts are not split.
fn print(value: &Value, indent: usize, after: usize, out: &mut String) {
    let whole = repr(value);
    let fits = whole.chars().count() + indent + after <= PRINTED_WIDTH;
    let kind = value.kind();
    if fits || !matches!(kind, ValueKind::Map | ValueKind::Seq) {
        return out.push_str(&whole);
    }
    let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
    let pairs = match kind {
        ValueKind::Map => {
            sorted_pairs(value).into_iter().map(|(key, item)| (Some(repr(&key)), item)).collect()
        }
        _ => value.try_iter().into_iter().flatten().map(|item| (None, item)).collect::<Vec<_>>(),
    };
    let (open, close) = match (kind, is_tuple) {
        (ValueKind::Map, _) => ("{", "}"),
        (_, false) => ("[", "]"),
        (_, true) => ("(", if pairs.len() == 1 { ",)" } else { ")" }),
    };
    out.push_str(open);
    let count = pairs.len();
    for (at, (key, item)) in pairs.into_iter().enumerate() {
        if at > 0 {
            out.push_str(",\n");
            out.extend(std::iter::repeat_n(' ', indent + 1));
        }
        let mut column = indent + 1;
        if let Some(key) = key {
            column += key.chars().count() + 2;
            out.push_str(&format!("{key}: "));
        }
        print(&item, column, if at + 1 == count { after + close.len() } else { 1 }, out);
    }
    out.push_str(close);
}

/// Arguments of a filter by place and by name, as Python takes them.
struct Arguments {
    places: Vec<Value>,
    named: Kwargs,
}

impl Arguments {
    fn get(&self, at: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.places.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => self.named.get(name),
        }
    }

    fn is_true(&self, at: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(at, name)?.is_some_and(|value| value.is_true()))
    }

    fn number(&self, at: usize, name: &str, default: usize) -> Result<usize, Error> {
        let value = self.get(at, name)?.filter(|value| !value.is_none());
        value.map_or(Ok(default), usize::try_from)
    }
}

/// `truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(text: String, places: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments { places: places.0, named };
    let length = args.number(0, "length", 255)?;
    let kill_words = args.is_true(1, "killwords")?;
    let end = args.get(2, "end")?.map_or("...".to_owned(), |end| end.to_string());
    let leeway = args.number(3, "leeway", 5)?;
    args.named.assert_all_used()?;
    Ok(methods::truncate(&text, length, kill_words, &end, leeway))
}

/// `indent(width=4, first=false, blank=false)`; the width may be the text that stands before a line.
fn indent(text: String, places: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments { places: places.0, named };
    let before = match args.get(0, "width")? {
        Some(width) if width.as_str().is_some() => width.to_string(),
        width => " ".repeat(width.map_or(Ok(4), usize::try_from)?.min(MAX_INDENT + 1)),
    };
    let (first, blank) = (args.is_true(1, "first")?, args.is_true(2, "blank")?);
    args.named.assert_all_used()?;
    if before.len() > MAX_INDENT {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("indent is at most {MAX_INDENT} wide")));
    }
    let mut out = String::new();
    // with a line end of its own, a last empty line counts
    for (at, line) in methods::split_lines(&format!("{text}\n"), false).iter().enumerate() {
        let line = line.as_str().unwrap_or_default();
        out.push_str(if at > 0 { "\n" } else { "" });
        let wanted = if at > 0 { blank || !line.is_empty() } else { first };
        out.push_str(if wanted { &before } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// `dictsort(case_sensitive=false, by='key', reverse=false)`.
fn dict_sort(map: &Value, places: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let args = Arguments { places: places.0, named };
    let names = ["case_sensitive", "by", "reverse"];
    let mut given = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        given.extend(args.get(at, name)?.map(|value| (name, value)));
    }
    args.named.assert_all_used()?;
    minijinja::filters::dictsort(map, Kwargs::from_iter(given))
}

/// Of a dict a query, in which a space is `+`; of anything else a part of a path.
fn url_encode(value: &Value) -> Result<String, Error> {
    let text = minijinja::filters::urlencode(value)?;
    let query = value.kind() == ValueKind::Map;
    Ok(if query { text.replace("%20", "+").replace('/', "%2F") } else { text })
}

/// `dict` of a dict or of pairs, and of names.
fn dict(of: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut put = |key: Value, value: Value| match pairs.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => *known = value,
        None => pairs.push((key, value)),
    };
    if let Some(of) = of.filter(|of| !of.is_undefined()) {
        let is_map = of.kind() == ValueKind::Map;
        for item in of.try_iter()? {
            if is_map {
                put(item.clone(), of.get_item(&item)?);
            } else {
                put(item.get_item_by_index(0)?, item.get_item_by_index(1)?);
            }
        }
    }
    for name in named.args() {
        put(Value::from(name), named.get(name)?);
    }
    Ok(Value::from_pairs(pairs))
}

/// Jinja2's `Cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = key.as_str() == Some("current");
        current.then(|| self.items[self.at.load(Ordering::Relaxed)].clone())
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = from_args(args)?;
        let at = self.at.load(Ordering::Relaxed);
        match method {
            "next" => {
                self.at.store((at + 1) % self.items.len(), Ordering::Relaxed);
                Ok(self.items[at].clone())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

fn cycler(items: Rest<Value>) -> Result<Value, Error> {
    match items.0.is_empty() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "cycler needs an item")),
        false => Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) })),
    }
}
