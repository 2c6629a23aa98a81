//! The forms of training data: JSON lines, JSON arrays, tables and plain text. What a file is wrapped in is in
//! `container`, trees of messages in `trees`, forms of single data sets in `forms`.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::data::container::{self, DataFile};
use crate::data::forms;
use crate::data::trees::Forest;
use crate::error::TrainError;
use flm_candle::ChatMessage;

/// A conversation and what of it is learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its turns.
    pub messages: Vec<ChatMessage>,
    /// For each turn whether it is learned; only assistant turns are.
    pub learned: Vec<bool>,
    /// JSON schemas of the tools that the template is given.
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation of which every assistant turn is learned.
    pub fn new(messages: Vec<ChatMessage>) -> Self {
        let learned = messages.iter().map(|message| message.role == "assistant").collect();
        Self { messages, learned, tools: None }
    }

    /// Whether nothing stands in any of the turns that are learned: no text, no tool call, no thought.
    fn says_nothing(&self) -> bool {
        let mut turns = self.messages.iter().zip(&self.learned);
        turns.all(|(turn, learned)| !learned || turn.content.trim().is_empty() && turn.rest.is_empty())
    }
}

/// What a sample holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A conversation: its assistant turns are learned, but for those that say that they are not to be.
    Chat(Conversation),
    /// A text: all of it is learned.
    Text(String),
}

/// A sample and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Line in its file, or element of its array, counted from 1.
    pub line: usize,
    /// What it holds.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples {
    /// What can be learned.
    pub samples: Vec<Sample>,
    /// Rows that say that they are not to be learned: the reason and how many.
    pub left_out: BTreeMap<String, usize>,
    /// Keys that nothing was taken from, and in how many places.
    pub unread: BTreeMap<String, usize>,
    /// Rows of which something was chosen, by what.
    pub chosen: BTreeMap<String, usize>,
}

/// Different unread keys that are kept apart; a file may hold any number of them.
const UNREAD: usize = 64;

/// Reads a file without renaming its columns; see [`read_data`].
///
/// # Errors
/// Those of [`read_data`].
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, TrainError> {
    read_data(path, &BTreeMap::new()).map(|data| data.samples)
}

/// Reads a file: `.txt` is one text; anything else holds JSON objects, one a line or all in one array, or is a
/// Parquet table. What gzip or zstd has compressed is decompressed.
///
/// A row is a conversation (`messages`, `conversations`, `conversation`, `dialog` or `data`), a question and
/// its answer (`instruction`/`output` as in Alpaca and Dolly, `prompt`/`completion`, `question`/`answer`,
/// `query`/`response`, Firefly's `input`/`target`), preference data of which `chosen` is taken, or a `text`
/// that stands alone, a tree of messages or a message of one (OpenAssistant), or a row of MOSS or COIG; which of
/// them is told by all its keys. `columns` says under which key of the file
/// a key of these stands.
///
/// # Errors
/// What is wrong, with file and line; rows of which a part would be passed over, by the name of the key.
pub fn read_data(path: &Path, columns: &BTreeMap<String, String>) -> Result<Samples, TrainError> {
    let mut rows = Rows { columns, found: Samples::default(), forest: Forest::default() };
    let mut reader = match container::open(path)? {
        DataFile::Parquet(table) => {
            for (index, row) in container::rows(path, table).enumerate() {
                let line = index + 1;
                let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
                rows.take(row?, line).map_err(wrong)?;
            }
            return Ok(rows.finish());
        }
        DataFile::Text { reader, plain: true } => return plain_text(path, reader),
        DataFile::Text { reader, .. } => reader,
    };
    let head = reader.fill_buf().map_err(TrainError::file("read", path))?;
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let array = start.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if array {
        let skip = head.len() - start.len();
        reader.consume(skip);
        let mut json = serde_json::Deserializer::from_reader(reader);
        let mut visitor = Elements { rows: &mut rows, failed: None, next: 1 };
        let done =
            serde::de::Deserializer::deserialize_seq(&mut json, &mut visitor).and_then(|()| json.end());
        let Elements { failed, next, .. } = visitor;
        let wrong = |message| TrainError::Line { path: path.into(), line: next, message };
        if let Some(message) = failed {
            return Err(wrong(format!("element {next} of the array: {message}")));
        }
        done.map_err(|e| wrong(format!("element {next} of the array: not JSON: {e}")))?;
        return Ok(rows.finish());
    }
    for (index, line) in reader.split(b'\n').enumerate() {
        let bytes = line.map_err(TrainError::file("read", path))?;
        let line = index + 1;
        let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8 text".into()))?;
        let text = if index == 0 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        rows.take(value, line).map_err(wrong)?;
    }
    Ok(rows.finish())
}

fn plain_text(path: &Path, mut reader: impl Read) -> Result<Samples, TrainError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(TrainError::file("read", path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        TrainError::Line { path: path.into(), line, message: "not UTF-8 text".into() }
    })?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let samples = vec![Sample { line: 1, content: Content::Text(text) }];
    Ok(Samples { samples, ..Samples::default() })
}

/// Takes the elements of an array one by one, so that the whole is never in memory as JSON.
struct Elements<'r, 'c> {
    rows: &'r mut Rows<'c>,
    failed: Option<String>,
    next: usize,
}

impl<'de> serde::de::Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(value) = elements.next_element::<Value>()? {
            if let Err(message) = self.rows.take(value, self.next) {
                self.failed = Some(message);
                return Err(serde::de::Error::custom("a wrong element"));
            }
            self.next += 1;
        }
        Ok(())
    }
}

/// A row that is being read: what is taken from it is removed, what is left is unread.
type Object = Map<String, Value>;

struct Rows<'c> {
    columns: &'c BTreeMap<String, String>,
    found: Samples,
    forest: Forest,
}

/// A question's key and its answer's.
const PAIRS: [(&str, &str); 9] = [
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "chosen"),
    ("question", "answer"),
    ("question", "chosen"),
    ("query", "response"),
    ("input", "target"),
];
/// A question and its answer as one turn of a list: Firefly's, COIG's.
const PAIR_TURNS: [[&str; 2]; 2] = [["human", "assistant"], ["question", "answer"]];
/// Keys under which a list of turns stands.
const TURNS: [&str; 6] = ["messages", "conversations", "conversation", "dialog", "chosen", "data"];
/// Keys of a row that holds more than the text beside them.
const NOT_TEXT: [&str; 7] =
    ["replies", "role", "parent_id", "message_tree_id", "messages", "conversations", "chosen"];

impl Rows<'_> {
    fn take(&mut self, value: Value, line: usize) -> Result<(), String> {
        let Value::Object(mut row) = value else { return Err("expected a JSON object".into()) };
        for (name, column) in self.columns {
            let value = row.shift_remove(column).ok_or_else(|| {
                format!("no key `{column}`, where data.columns says that `{name}` is; {}", keys_of(&row))
            })?;
            row.insert(name.clone(), value);
        }
        if self.forest.take(&mut row, line, &mut self.found.left_out)? {
            return Ok(());
        }
        if let Some((key, false)) = mark(&mut row)? {
            *self.found.left_out.entry(format!("rows whose `{key}` is false or 0")).or_default() += 1;
            return Ok(());
        }
        for key in ["image", "images", "audio", "audios", "video", "videos"] {
            let empty = row.get(key).is_none_or(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty));
            if !empty {
                return Err(format!("`{key}`: only text is learned"));
            }
            row.shift_remove(key);
        }
        let content = self.content(&mut row)?;
        row.retain(|_, value| !value.is_null());
        for key in row.keys() {
            self.unread(key);
        }
        let why = match &content {
            Content::Chat(chat) if !chat.learned.contains(&true) => "conversations without a turn to learn",
            // the end of a turn alone would be learned
            Content::Chat(chat) if chat.says_nothing() => "rows with an empty answer",
            Content::Chat(_) | Content::Text(_) => {
                self.found.samples.push(Sample { line, content });
                return Ok(());
            }
        };
        *self.found.left_out.entry(why.into()).or_default() += 1;
        Ok(())
    }

    /// What the file holds, its trees of messages as conversations.
    fn finish(mut self) -> Samples {
        self.forest.finish(&mut self.found);
        self.found
    }

    fn unread(&mut self, key: &str) {
        let unread = &mut self.found.unread;
        let name = if unread.len() < UNREAD || unread.contains_key(key) { key } else { "(others)" };
        *unread.entry(name.to_owned()).or_default() += 1;
    }

    fn content(&mut self, row: &mut Object) -> Result<Content, String> {
        if let Some(messages) = forms::take(row)? {
            return Ok(Content::Chat(Conversation::new(messages)));
        }
        let has = |row: &Object, key: &str| row.get(key).is_some_and(|value| !value.is_null());
        let turns = |key: &&str| match row.get(*key) {
            // UltraChat's; anything else of that name is not a conversation
            Some(Value::Array(list)) if *key == "data" => list.len() > 1 && list.iter().all(Value::is_string),
            Some(value) => *key != "data" && (value.is_array() || value.is_object()),
            None => false,
        };
        if let Some(key) = TURNS.into_iter().find(turns) {
            let list = row.shift_remove(key).unwrap_or_default();
            // COIG's conversations have what they are about beside them
            let pairs = list.pointer("/0/question").is_some() && list.pointer("/0/answer").is_some();
            if let Some(text) = string(row, "instruction")?.filter(|text| pairs && !text.trim().is_empty()) {
                row.entry("system").or_insert(text.into());
            }
            let (mut messages, mut learned) = self.turns(list, key)?;
            let apart = messages.last().is_some_and(|last| last.role != "assistant") && has(row, "chosen");
            if apart {
                // LLaMA-Factory: both answers to the last turn stand beside the conversation
                let answer = match row.shift_remove("chosen").unwrap_or_default() {
                    Value::String(text) => serde_json::json!([{"role": "assistant", "content": text}]),
                    one @ Value::Object(_) => Value::Array(vec![one]),
                    list => list,
                };
                let (answer, learns) = self.turns(answer, "chosen")?;
                // as after a `prompt`: what was said before is not learned
                learned.fill(false);
                learned.extend(learns);
                messages.extend(answer);
            }
            if key == "chosen" {
                // what was asked may stand beside both sides
                let asked = row.shift_remove("prompt").filter(|value| !value.is_null());
                match asked {
                    Some(Value::String(text)) if messages.iter().all(|m| m.role == "assistant") => {
                        messages.insert(0, ChatMessage::new("user", text));
                        learned.insert(0, false);
                    }
                    Some(list @ Value::Array(_)) if messages.iter().all(|m| m.role == "assistant") => {
                        let (asked, _) = self.turns(list, "prompt")?;
                        learned.splice(0..0, asked.iter().map(|_| false));
                        messages.splice(0..0, asked);
                    }
                    // the dialogue repeats it
                    _ => {}
                }
            }
            self.preference(row, if apart { "chosen" } else { key });
            if let Some(text) = string(row, "system")? {
                match messages.first() {
                    Some(first) if first.role == "system" && first.content != text => {
                        return Err("two different system messages: `system` and the first turn".into());
                    }
                    Some(first) if first.role == "system" => {}
                    _ => {
                        messages.insert(0, ChatMessage::new("system", text));
                        learned.insert(0, false);
                    }
                }
            }
            if !messages.iter().any(|message| message.role == "assistant") {
                return Err(format!("`{key}` has no assistant turn: there is nothing to learn"));
            }
            return Ok(Content::Chat(Conversation { messages, learned, tools: tools(row)? }));
        }
        if let Some(key) = TURNS[..4].iter().find(|key| has(row, key)) {
            return Err(format!("`{key}` is not a list"));
        }
        if let Some((question, answer)) =
            PAIRS.into_iter().find(|(q, a)| row.contains_key(*q) && row.contains_key(*a))
        {
            return self.pair(row, question, answer);
        }
        if has(row, "text") {
            if let Some(key) = NOT_TEXT.into_iter().find(|key| has(row, key)) {
                return Err(format!(
                    "`text` beside `{key}`: the row is a part of something larger, such as a tree of messages; \
                     make conversations of it, `{{\"messages\": [{{\"role\", \"content\"}}…]}}`"
                ));
            }
            let text = string(row, "text")?.unwrap_or_default();
            return Ok(Content::Text(text));
        }
        Err(format!(
            "expected `messages`, `conversations`, `instruction` with `output`, `prompt` with `completion`, or \
             `text`; {}; data.columns names others, for example data.columns.prompt = \"q\"",
            keys_of(row)
        ))
    }

    /// A question and its answer, with what was said before.
    fn pair(&mut self, row: &mut Object, question: &str, answer: &str) -> Result<Content, String> {
        let needed = |row: &mut Object, key: &str| {
            string(row, key)?.ok_or_else(|| format!("`{key}` is null: there is nothing to learn"))
        };
        let (mut asked, answered) = (needed(row, question)?, needed(row, answer)?);
        if question != "input" {
            for key in ["input", "context"] {
                if let Some(more) = string(row, key)?.filter(|more| !more.is_empty()) {
                    asked = format!("{asked}\n\n{more}");
                }
            }
        }
        self.preference(row, answer);
        let mut messages = Vec::new();
        if let Some(text) = string(row, "system")? {
            messages.push(ChatMessage::new("system", text));
        }
        for turn in list(row, "history")? {
            let pair: Option<[String; 2]> = serde_json::from_value(turn).ok();
            let [before, reply] =
                pair.ok_or("`history` is not a list of pairs of a question and its answer")?;
            messages.extend([ChatMessage::new("user", before), ChatMessage::new("assistant", reply)]);
        }
        messages.extend([ChatMessage::new("user", asked), ChatMessage::new("assistant", answered)]);
        Ok(Content::Chat(Conversation { tools: tools(row)?, ..Conversation::new(messages) }))
    }

    /// Notes that one side of preference data is taken.
    fn preference(&mut self, row: &mut Object, taken: &str) {
        let other = ["rejected", "rejected_response", "rejected_messages"]
            .into_iter()
            .find(|key| row.get(*key).is_some_and(|value| !value.is_null()));
        if let Some(other) = other {
            row.shift_remove(other);
            *self.found.chosen.entry(format!("`{taken}` of preference data, not `{other}`")).or_default() +=
                1;
        }
    }

    fn turns(&mut self, list: Value, name: &str) -> Result<(Vec<ChatMessage>, Vec<bool>), String> {
        let Value::Array(list) = list else { return Err(format!("`{name}` is not a list")) };
        let (mut messages, mut learned) = (Vec::new(), Vec::new());
        for (index, turn) in list.into_iter().enumerate() {
            let at = |message: String| format!("{name}[{index}]: {message}");
            match turn {
                // LIMA and UltraChat: who speaks takes turns
                Value::String(text) => {
                    let role = if index % 2 == 0 { "user" } else { "assistant" };
                    messages.push(ChatMessage::new(role, text));
                    learned.push(role == "assistant");
                }
                Value::Object(mut turn)
                    if PAIR_TURNS.iter().any(|pair| pair.iter().all(|key| turn.contains_key(*key))) =>
                {
                    let pair = if turn.contains_key("human") { PAIR_TURNS[0] } else { PAIR_TURNS[1] };
                    for (key, role) in pair.into_iter().zip(["user", "assistant"]) {
                        let text = string(&mut turn, key)
                            .map_err(at)?
                            .ok_or_else(|| at(format!("`{key}` is null")))?;
                        messages.push(ChatMessage::new(role, text));
                        learned.push(role == "assistant");
                    }
                    turn.keys().for_each(|key| self.unread(&format!("{name}[].{key}")));
                }
                Value::Object(turn) => {
                    let (message, learns) = message(turn).map_err(at)?;
                    messages.push(message);
                    learned.push(learns);
                }
                _ => return Err(at("expected an object with `role` and `content`".into())),
            }
        }
        Ok((messages, learned))
    }
}

/// A turn with all that a template may render of it, and whether it is learned.
fn message(mut turn: Object) -> Result<(ChatMessage, bool), String> {
    let key_of = |turn: &Object, names: [&'static str; 2]| {
        names.into_iter().find(|name| turn.get(*name).is_some_and(|v| !v.is_null())).unwrap_or(names[0])
    };
    let role_key = key_of(&turn, ["role", "from"]);
    let role = string(&mut turn, role_key)?.ok_or_else(|| format!("`{role_key}` is not a string"))?;
    let role = match role.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" | "bot" => "assistant",
        "system" | "developer" => "system",
        "tool" | "function" | "observation" => "tool",
        "function_call" => {
            return Err("role `function_call`: give it as an assistant turn with `tool_calls`".into());
        }
        other => {
            return Err(format!("unknown role {other:?}: expected system, user, assistant or tool"));
        }
    };
    let mark = mark(&mut turn)?;
    if let (Some((key, true)), false) = (mark, role == "assistant") {
        return Err(format!("`{key}` asks to learn a {role} turn: only assistant turns are learned"));
    }
    let calls =
        ["tool_calls", "function_call"].iter().any(|key| turn.get(*key).is_some_and(|v| !v.is_null()));
    let content_key = key_of(&turn, ["content", "value"]);
    let content = match turn.shift_remove(content_key) {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => joined(parts, content_key)?,
        None | Some(Value::Null) if calls => String::new(),
        _ => return Err(format!("`{content_key}` is not a string")),
    };
    turn.retain(|_, value| !value.is_null());
    let learns = role == "assistant" && mark.is_none_or(|(_, learns)| learns);
    Ok((ChatMessage { role: role.into(), content, rest: turn }, learns))
}

/// The text of content in parts.
fn joined(parts: Vec<Value>, key: &str) -> Result<String, String> {
    let part = |part: Value| match part {
        Value::String(text) => Ok(text),
        Value::Object(part) => match (part.get("text"), part.get("type").and_then(Value::as_str)) {
            (Some(Value::String(text)), None | Some("text")) => Ok(text.clone()),
            (_, kind) => {
                Err(format!("`{key}` has a part of type {:?}: only text is learned", kind.unwrap_or("?")))
            }
        },
        _ => Err(format!("`{key}` is not a string")),
    };
    parts.into_iter().map(part).collect()
}

/// What says whether a turn or a row is learned, in the forms of OpenAI (`weight`), Axolotl (`train`),
/// ms-swift (`loss`), and of KTO's rows (`label`).
fn mark(object: &mut Object) -> Result<Option<(&'static str, bool)>, String> {
    let mut found = None;
    for key in ["weight", "train", "training", "loss", "loss_mask", "label"] {
        let learns = match object.get(key) {
            Some(Value::Bool(learns)) => *learns,
            // the label of a text is its class
            Some(_) if key == "label" && object.contains_key("text") => continue,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => false,
            Some(Value::Number(number)) if number.as_f64() == Some(1.0) => true,
            // other labels are classes
            Some(_) if key == "label" => continue,
            None | Some(Value::Null) => continue,
            Some(other) => {
                return Err(format!("`{key}` is {other}: a turn or a row is learned or not, 1 or 0"));
            }
        };
        object.shift_remove(key);
        found = match found {
            Some((other, before)) if before != learns => {
                return Err(format!("`{other}` and `{key}` say different things"));
            }
            _ => Some((key, learns)),
        };
    }
    Ok(found)
}

fn tools(row: &mut Object) -> Result<Option<Value>, String> {
    match row.shift_remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(tools @ Value::Array(_)) => Ok(Some(tools)),
        // as LLaMA-Factory and the Hub's Parquet files store them
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map(Some).map_err(|e| format!("`tools` is not JSON: {e}"))
        }
        Some(_) => Err("`tools` is not a list".into()),
    }
}

/// Takes a text that may be absent.
fn string(row: &mut Object, key: &str) -> Result<Option<String>, String> {
    match row.shift_remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("`{key}` is not a string")),
    }
}

/// Takes a list that may be absent.
fn list(row: &mut Object, key: &str) -> Result<Vec<Value>, String> {
    match row.shift_remove(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(format!("`{key}` is not a list")),
    }
}

fn keys_of(row: &Object) -> String {
    let keys: Vec<&str> = row.keys().map(String::as_str).take(8).collect();
    format!("found keys: {}", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Sample>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        read_samples(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn the_forms_are_told_by_their_keys() {
        let samples = read(
            "\u{feff}{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n\n\
             {\"conversations\":[{\"from\":\"human\",\"value\":\"a\"},{\"from\":\"gpt\",\"value\":\"b\"}]}\r\n\
             {\"instruction\":\"a\",\"input\":\"\",\"output\":\"b\"}\n{\"text\":\"天地\"}",
        )
        .unwrap();
        let chat = Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
        assert_eq!(samples.iter().map(|s| s.line).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert!(samples[..3].iter().all(|s| s.content == Content::Chat(chat.clone())));
        assert_eq!(samples[3].content, Content::Text("天地".into()));
        let with_input = read("{\"instruction\":\"a\",\"input\":\"c\",\"output\":\"b\"}").unwrap();
        assert!(matches!(&with_input[0].content, Content::Chat(m) if m.messages[0].content == "a\n\nc"));
    }

    fn data(text: &str) -> Samples {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        read_data(&path, &BTreeMap::new()).unwrap()
    }

    fn chat(sample: &Sample) -> &Conversation {
        match &sample.content {
            Content::Chat(chat) => chat,
            Content::Text(text) => panic!("a text: {text}"),
        }
    }

    #[test]
    fn forms_of_public_files_are_conversations() {
        // UltraChat, LIMA, Firefly (both), Dolly, prompt with completion, TeleChat, Alpaca with history
        let samples = read(
            r#"{"id":"1","data":["a","b"]}
{"conversations":["a","b"]}
{"kind":"k","input":"a","target":"b"}
{"conversation":[{"human":"a","assistant":"b"}]}
{"instruction":"a","context":"","response":"b","category":"open_qa"}
{"prompt":"a","completion":"b"}
{"dialog":[{"role":"user","content":"a"},{"role":"bot","content":"b"}]}
{"instruction":"a","input":"","output":"b","history":[]}"#,
        )
        .unwrap();
        let expected =
            Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
        assert_eq!(samples.len(), 8);
        for sample in &samples {
            assert_eq!(chat(sample), &expected, "line {}", sample.line);
        }
        let found = data(r#"{"instruction":"c","output":"d","history":[["a","b"]],"system":"s"}"#);
        let said: Vec<&str> = chat(&found.samples[0]).messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(said, ["s", "a", "b", "c", "d"]);
        let found = data(
            r#"{"system":"s","conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#,
        );
        assert_eq!(chat(&found.samples[0]).messages[0], ChatMessage::new("system", "s"));
    }

    #[test]
    fn arrays_and_compressed_files_are_read_and_other_formats_named() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let text = "\u{feff} [{\"text\": \"a\"},\n {\"text\": \"b\"}]\n";
        let packed = dir.path().join("data.json.gz");
        let mut encoder =
            flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), Default::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        let samples = read_samples(&packed).unwrap();
        assert_eq!(samples.iter().map(|s| s.line).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(samples[1].content, Content::Text("b".into()));
        for (bytes, says) in [
            (&b"PAR1\x15\x00"[..], "not a whole Parquet file"),
            (b"\x28\xb5\x2f\xfd\x00", "cannot read"),
            (b"\x1f\x8b\x08", "cannot read"),
            (b"PK\x03\x04", "a ZIP archive"),
            (b"[{\"text\":\"a\"}", "element 2 of the array: not JSON"),
            (b"[{\"text\":\"a\"}] {}", "trailing characters"),
            (b"[{\"text\":\"a\"},{\"text\":1}]", "element 2 of the array: `text` is not a string"),
        ] {
            let path = dir.path().join("data.json");
            std::fs::write(&path, bytes).unwrap();
            let error = read_samples(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        // by their first bytes, whatever the name
        let zst = dir.path().join("data.json.zst");
        std::fs::write(&zst, zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
        for (from, to) in [(&zst, "data.jsonl"), (&packed, "unnamed")] {
            assert_eq!(read_samples(from).unwrap(), samples);
            let to = dir.path().join(to);
            std::fs::copy(from, &to).unwrap();
            assert_eq!(read_samples(&to).unwrap(), samples);
        }
        let plain = dir.path().join("text.txt.zst");
        std::fs::write(&plain, zstd::encode_all(&b"[1]"[..], 3).unwrap()).unwrap();
        assert_eq!(read_samples(&plain).unwrap()[0].content, Content::Text("[1]".into()));
        let whole = std::fs::read(&zst).unwrap();
        std::fs::write(&zst, &whole[..whole.len() - 6]).unwrap();
        assert!(read_samples(&zst).is_err());
        let cut = std::fs::read(&packed).unwrap();
        std::fs::write(&packed, &cut[..cut.len() - 12]).unwrap();
        assert!(read_samples(&packed).is_err());
    }

    #[test]
    fn rows_of_parquet_tables_are_those_of_json_lines() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parquet");
        for codec in ["snappy", "zstd", "gzip"] {
            let path = folder.join(format!("{codec}.parquet"));
            let found = read_data(&path, &BTreeMap::new()).unwrap();
            assert_eq!(found.samples.len(), 5, "{codec}");
            for (index, sample) in found.samples.iter().enumerate() {
                let expected = Conversation::new(vec![
                    ChatMessage::new("user", format!("question {index} 问")),
                    ChatMessage::new("assistant", format!("answer {index} 答")),
                ]);
                assert_eq!((sample.line, chat(sample)), (index + 1, &expected), "{codec}");
            }
            assert_eq!(
                found.unread,
                BTreeMap::from([("n".into(), 5), ("score".into(), 5), ("source".into(), 3)])
            );
            // wrong columns are told with the row, a cut table as a whole
            let columns = BTreeMap::from([("prompt".into(), "q".into())]);
            let error = read_data(&path, &columns).unwrap_err().to_string();
            assert!(error.contains(&format!("{codec}.parquet:1: no key `q`")), "{error}");
            let dir = tempfile::tempdir().unwrap();
            let cut = dir.path().join("cut.parquet");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&cut, &bytes[..bytes.len() - 20]).unwrap();
            let error = read_samples(&cut).unwrap_err().to_string();
            assert!(error.contains("not a whole Parquet file"), "{error}");
        }
    }

    #[test]
    fn what_is_not_to_be_learned_is_not() {
        for mark in [r#""weight":0"#, r#""train":false"#, r#""loss":false"#, r#""loss_mask":0"#] {
            let found = data(&format!(
                r#"{{"messages":[{{"role":"user","content":"a"}},{{"role":"assistant","content":"b",{mark}}},{{"role":"user","content":"c"}},{{"role":"assistant","content":"d"}}]}}"#
            ));
            assert_eq!(chat(&found.samples[0]).learned, [false, false, false, true], "{mark}");
            assert!(chat(&found.samples[0]).messages.iter().all(|m| m.rest.is_empty()));
        }
        let found = data(
            "{\"prompt\":\"a\",\"completion\":\"b\",\"label\":false}\n{\"prompt\":\"a\",\"completion\":\"c\",\"label\":true}",
        );
        assert_eq!(found.samples.len(), 1);
        assert_eq!(found.left_out.values().sum::<usize>(), 1);
        for (line, says) in [
            (r#"{"messages":[{"role":"assistant","content":"b","weight":0.5}]}"#, "`weight` is 0.5"),
            (r#"{"messages":[{"role":"user","content":"b","train":true}]}"#, "only assistant turns"),
            (r#"{"messages":[{"role":"assistant","content":"b","train":true,"loss":false}]}"#, "different"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn empty_answers_are_left_out_with_their_reason() {
        let found = data(
            r#"{"instruction":"a","output":""}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":" "}]}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"","tool_calls":[{"name":"f"}]}]}
{"instruction":"a","output":"b"}"#,
        );
        assert_eq!(found.samples.iter().map(|s| s.line).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(found.left_out, BTreeMap::from([("rows with an empty answer".into(), 2)]));
    }

    #[test]
    fn labels_of_answers_are_0_or_1_too_and_those_of_texts_are_classes() {
        let found = data(
            r#"{"prompt":"a","completion":"b","label":0}
{"prompt":"a","completion":"b","label":1}
{"prompt":"a","completion":"b","label":3}
{"text":"a","label":0}"#,
        );
        assert_eq!(found.samples.iter().map(|s| s.line).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(found.left_out, BTreeMap::from([("rows whose `label` is false or 0".into(), 1)]));
        assert_eq!(found.unread, BTreeMap::from([("label".into(), 2)]));
    }

    #[test]
    fn what_is_no_data_is_named_and_a_byte_order_mark_is_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        for (name, text, says) in [
            ("a.jsonl", pointer, "Git LFS pointer"),
            ("a.txt", pointer, "Git LFS pointer"),
            ("a.csv", "prompt,completion\na,b\n", "a table of separated values"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = read_samples(&path).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
        let path = dir.path().join("b.txt");
        std::fs::write(&path, "\u{feff}天地").unwrap();
        assert_eq!(read_samples(&path).unwrap()[0].content, Content::Text("天地".into()));
    }

    #[test]
    fn preference_data_gives_its_chosen_side_and_says_so() {
        let found = data(
            r#"{"prompt":"a","chosen":"b","rejected":"c"}
{"prompt":"a","chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"rejected":[{"role":"user","content":"a"},{"role":"assistant","content":"c"}]}
{"prompt":[{"role":"user","content":"a"}],"chosen":[{"role":"assistant","content":"b"}],"rejected":[{"role":"assistant","content":"c"}]}
{"conversations":[{"from":"human","value":"a"}],"chosen":{"from":"gpt","value":"b"},"rejected":{"from":"gpt","value":"c"}}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"rejected_response":"c"}"#,
        );
        let expected =
            Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
        assert!(found.samples.iter().all(|sample| chat(sample) == &expected), "{found:?}");
        assert_eq!(found.chosen.values().sum::<usize>(), 5);
        // what was said before the two answers is not learned
        let found = data(
            r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"x"},{"from":"human","value":"y"}],
            "chosen":{"from":"gpt","value":"b"},"rejected":{"from":"gpt","value":"c"}}"#
                .replace('\n', "")
                .as_str(),
        );
        let chat = chat(&found.samples[0]);
        assert_eq!(chat.messages.last().unwrap().content, "b");
        assert_eq!(chat.learned, [false, false, false, true]);
    }

    #[test]
    fn keys_that_nothing_is_taken_from_are_counted_and_columns_renamed() {
        let found = data(
            "{\"instruction\":\"a\",\"output\":\"b\",\"text\":\"a b\",\"topic\":1}\n{\"text\":\"a\",\"topic\":null}",
        );
        assert_eq!(found.unread, BTreeMap::from([("text".into(), 1), ("topic".into(), 1)]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, "{\"q\":\"a\",\"a\":\"b\"}").unwrap();
        assert!(read_samples(&path).unwrap_err().to_string().contains("data.columns"));
        let columns = BTreeMap::from([("prompt".into(), "q".into()), ("response".into(), "a".into())]);
        assert_eq!(chat(&read_data(&path, &columns).unwrap().samples[0]).messages[1].content, "b");
        let columns = BTreeMap::from([("prompt".into(), "z".into())]);
        assert!(read_data(&path, &columns).unwrap_err().to_string().contains("no key `z`"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, says) in [
            ("{\"text\":\"a\"}\n{\"text\":", "data.jsonl:2: not JSON"),
            ("{\"text\":\"a\"}\n\n[1]", "data.jsonl:3: expected a JSON object"),
            ("{\"prompt\":\"a\"}", "data.jsonl:1: expected `messages`"),
            ("{\"text\":1}", "`text` is not a string"),
            ("{\"messages\":{}}", "`messages` is not a list"),
            ("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}", "no assistant turn"),
            ("{\"messages\":[{\"role\":\"usr\",\"content\":\"a\"}]}", "messages[0]: unknown role \"usr\""),
            ("{\"messages\":[{\"role\":\"user\"}]}", "messages[0]: `content` is not a string"),
            ("{\"instruction\":\"a\",\"input\":3,\"output\":\"b\"}", "`input` is not a string"),
            ("{\"text\":\"a\",\"role\":\"prompter\"}", "`text` beside `role`"),
            ("{\"text\":\"a\",\"role\":\"cat\",\"replies\":[]}", "in a tree of messages"),
            ("{\"instruction\":\"a\",\"output\":null,\"text\":\"a\"}", "`output` is null"),
            (
                "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
                "a part of type \"image_url\"",
            ),
            (
                "{\"images\":[\"a.png\"],\"prompt\":\"a\",\"response\":\"b\"}",
                "`images`: only text is learned",
            ),
            ("{\"messages\":[{\"from\":\"function_call\",\"value\":\"a\"}]}", "role `function_call`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
