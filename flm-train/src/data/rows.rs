//! A row of data: its form is told from its keys, and what nothing is taken from is counted.

use std::collections::BTreeMap;

use flm_candle::ChatMessage;
use serde_json::{Map, Value};

use crate::data::forms;
use crate::data::samples::{Content, Conversation, Sample, Samples, Take};
use crate::data::trees::Forest;
use crate::error::TrainError;

/// Different unread keys that are kept apart; a file may hold any number of them.
const UNREAD: usize = 64;

/// A row that is being read: what is taken from it is removed, what is left is unread.
type Object = Map<String, Value>;

/// The rows of a file, as they come.
pub(super) struct Rows<'c> {
    pub(super) columns: &'c BTreeMap<String, String>,
    pub(super) found: Samples,
    pub(super) forest: Forest,
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
    pub(super) fn take(&mut self, value: Value, line: usize) -> Result<(), String> {
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
            Content::Chat(chat) if !chat.messages.iter().any(|turn| turn.role == "assistant") => {
                "conversations without an assistant turn"
            }
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

    /// Gives away what was taken since the last call.
    pub(super) fn give(&mut self, take: &mut Take<'_>) -> Result<(), TrainError> {
        self.found.samples.drain(..).try_for_each(take)
    }

    /// Gives away the trees of messages as conversations; returns what else the file holds.
    pub(super) fn finish(mut self, take: &mut Take<'_>) -> Result<Samples, TrainError> {
        std::mem::take(&mut self.forest).finish(&mut self.found);
        self.give(take)?;
        Ok(self.found)
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
            return Ok(Content::Chat(Conversation { messages, learned, tools: tools(row)? }));
        }
        if let Some(key) = TURNS[..4].iter().find(|key| has(row, key)) {
            return Err(format!("`{key}` is not a list"));
        }
        if let Some((question, answer)) =
            PAIRS.into_iter().find(|(q, a)| row.contains_key(*q) && row.contains_key(*a))
        {
            if row[question].is_array() || row[answer].is_array() {
                return self.lists(row, question, answer);
            }
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

    /// TRL's prompt and completion as lists of turns: those of the completion are learned.
    fn lists(&mut self, row: &mut Object, question: &str, answer: &str) -> Result<Content, String> {
        let mut chat = Conversation::new(Vec::new());
        for (key, role) in [(question, "user"), (answer, "assistant")] {
            let list = match row.shift_remove(key).unwrap_or_default() {
                Value::String(text) => serde_json::json!([{"role": role, "content": text}]),
                list => list,
            };
            let (messages, learned) = self.turns(list, key)?;
            chat.messages.extend(messages);
            chat.learned.extend(learned.into_iter().map(|learned| learned && key == answer));
        }
        self.preference(row, answer);
        if let Some(text) = string(row, "system")? {
            chat.messages.insert(0, ChatMessage::new("system", text));
            chat.learned.insert(0, false);
        }
        Ok(Content::Chat(Conversation { tools: tools(row)?, ..chat }))
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
    let tools = match row.shift_remove("tools") {
        // as LLaMA-Factory and the Hub's Parquet files store them
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|e| format!("`tools` is not JSON: {e}"))?
        }
        tools => tools.unwrap_or_default(),
    };
    match tools {
        Value::Null => Ok(None),
        Value::Array(tools) if tools.is_empty() => Ok(None),
        Value::Array(_) => Ok(Some(tools)),
        _ => Err("`tools` is not a list".into()),
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
