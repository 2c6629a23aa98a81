//! The forms of training data: JSON lines and plain text.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde_json::Value;

use crate::error::TrainError;
use flm_candle::ChatMessage;

/// What a sample holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A conversation: its assistant turns are learned.
    Chat(Vec<ChatMessage>),
    /// A text: all of it is learned.
    Text(String),
}

/// A sample and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Line in its file, counted from 1.
    pub line: usize,
    /// What it holds.
    pub content: Content,
}

/// Reads a file: `.txt` is one text, anything else JSONL.
///
/// A JSON line is `{"messages": [{"role", "content"}…]}`, ShareGPT's `{"conversations": [{"from",
/// "value"}…]}`, Alpaca's `{"instruction", "input", "output"}` or `{"text"}`; which of them is told by
/// its keys.
///
/// # Errors
/// What is wrong, with file and line.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, TrainError> {
    if path.extension().is_some_and(|extension| extension == "txt") {
        let bytes = std::fs::read(path).map_err(TrainError::file("read", path))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line =
                1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            TrainError::Line { path: path.into(), line, message: "not UTF-8 text".into() }
        })?;
        return Ok(vec![Sample { line: 1, content: Content::Text(text) }]);
    }
    let file = File::open(path).map_err(TrainError::file("open", path))?;
    let mut samples = Vec::new();
    for (index, line) in BufReader::new(file).split(b'\n').enumerate() {
        let bytes = line.map_err(TrainError::file("read", path))?;
        let line = index + 1;
        let wrong = |message: String| TrainError::Line { path: path.into(), line, message };
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8 text".into()))?;
        let text = if index == 0 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_str(text).map_err(|e| wrong(format!("not JSON: {e}")))?;
        samples.push(Sample { line, content: content(&value).map_err(wrong)? });
    }
    Ok(samples)
}

fn content(value: &Value) -> Result<Content, String> {
    let Some(object) = value.as_object() else { return Err("expected a JSON object".into()) };
    let has = |key: &str| object.get(key).is_some_and(|v| !v.is_null());
    if has("messages") {
        return turns(&object["messages"], "messages", "role", "content").map(Content::Chat);
    }
    if has("conversations") {
        return turns(&object["conversations"], "conversations", "from", "value").map(Content::Chat);
    }
    if has("instruction") && has("output") {
        let (instruction, output) = (text(value, "instruction")?, text(value, "output")?);
        let input = if has("input") { text(value, "input")? } else { String::new() };
        let question = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
        let mut messages = Vec::new();
        if has("system") {
            messages.push(ChatMessage::new("system", text(value, "system")?));
        }
        messages.push(ChatMessage::new("user", question));
        messages.push(ChatMessage::new("assistant", output));
        return Ok(Content::Chat(messages));
    }
    if has("text") {
        return text(value, "text").map(Content::Text);
    }
    let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
    Err(format!(
        "expected `messages`, `conversations`, `instruction` with `output`, or `text`; found keys: {}",
        keys.join(", ")
    ))
}

fn text(value: &Value, key: &str) -> Result<String, String> {
    let found = &value[key];
    found.as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is not a string"))
}

fn turns(list: &Value, name: &str, role_key: &str, content_key: &str) -> Result<Vec<ChatMessage>, String> {
    let list = list.as_array().ok_or_else(|| format!("`{name}` is not a list"))?;
    let turn = |(index, turn): (usize, &Value)| {
        let at = |message: String| format!("{name}[{index}]: {message}");
        let role = text(turn, role_key).map_err(at)?;
        let role = match role.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "bot" => "assistant",
            "system" => "system",
            "tool" | "function" | "observation" => "tool",
            other => {
                return Err(at(format!("unknown role {other:?}: expected system, user, assistant or tool")));
            }
        };
        Ok(ChatMessage::new(role, text(turn, content_key).map_err(at)?))
    };
    let messages = list.iter().enumerate().map(turn).collect::<Result<Vec<_>, _>>()?;
    if !messages.iter().any(|message| message.role == "assistant") {
        return Err(format!("`{name}` has no assistant turn: there is nothing to learn"));
    }
    Ok(messages)
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
        let chat = vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")];
        assert_eq!(samples.iter().map(|s| s.line).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert!(samples[..3].iter().all(|s| s.content == Content::Chat(chat.clone())));
        assert_eq!(samples[3].content, Content::Text("天地".into()));
        let with_input = read("{\"instruction\":\"a\",\"input\":\"c\",\"output\":\"b\"}").unwrap();
        assert!(matches!(&with_input[0].content, Content::Chat(m) if m[0].content == "a\n\nc"));
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
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
