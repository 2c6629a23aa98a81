//! Forms of single public data sets whose rows are told by keys of their own: MOSS and COIG.

use serde_json::{Map, Value};

use flm_candle::ChatMessage;

/// A conversation of MOSS or COIG, if the row is one: what is read of it is gone then.
pub(super) fn take(row: &mut Map<String, Value>) -> Result<Option<Vec<ChatMessage>>, String> {
    if row.get("chat").is_some_and(Value::is_object) && row.contains_key("meta_instruction") {
        return moss_turns(row).map(Some);
    }
    if row.contains_key("plain_text") && row.contains_key("prefix") {
        return moss_text(row).map(Some);
    }
    if row.contains_key("trans_instruction") && row.contains_key("trans_output") {
        return translated(row).map(Some);
    }
    if row.contains_key("textbox_question") && row.contains_key("textbox_answer") {
        return exam(row).map(Some);
    }
    Ok(None)
}

fn text(row: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match row.shift_remove(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{key}` is not a string")),
    }
}

fn with_system(system: &str, turns: Vec<ChatMessage>) -> Vec<ChatMessage> {
    let system = (!system.trim().is_empty()).then(|| ChatMessage::new("system", system.trim()));
    system.into_iter().chain(turns).collect()
}

/// moss-003: `chat.turn_1.Human`, `chat.turn_1.MOSS`, and what the assistant does in between.
fn moss_turns(row: &mut Map<String, Value>) -> Result<Vec<ChatMessage>, String> {
    let system = text(row, "meta_instruction")?;
    row.shift_remove("num_turns");
    let Some(Value::Object(mut chat)) = row.shift_remove("chat") else { return Ok(Vec::new()) };
    let mut turns = Vec::new();
    for number in 1..=chat.len() {
        let key = format!("turn_{number}");
        let Some(Value::Object(mut turn)) = chat.shift_remove(&key) else {
            return Err(format!("chat: `{key}` is missing or no object"));
        };
        for what in ["Commands", "Tool Responses"] {
            let said = text(&mut turn, what)?;
            if !matches!(without_marks(&said), "" | "None") {
                return Err(format!(
                    "chat.{key}: `{what}`: MOSS's tools are not rendered; leave such rows out"
                ));
            }
        }
        for (name, role) in [("Human", "user"), ("MOSS", "assistant")] {
            let said = text(&mut turn, name)?;
            if said.is_empty() {
                return Err(format!("chat.{key}: there is no `{name}`"));
            }
            turns.push(ChatMessage::new(role, without_marks(&said)));
        }
    }
    Ok(with_system(&system, turns))
}

/// `<|MOSS|>: text<eom>` without its marks.
fn without_marks(text: &str) -> &str {
    let text = text.trim();
    let text = match text.strip_prefix("<|").and_then(|rest| rest.split_once("|>:")) {
        Some((name, rest)) if !name.contains(char::is_whitespace) || name.len() < 20 => rest,
        _ => text,
    };
    let end = ["<eoh>", "<eom>", "<eoa>", "<eoc>", "<eor>", "<eot>"]
        .iter()
        .find_map(|end| text.trim_end().strip_suffix(end));
    end.unwrap_or(text).trim()
}

/// moss-002: `plain_text` is "[Human]: …<eoh> [MOSS]: …<eoa> …".
fn moss_text(row: &mut Map<String, Value>) -> Result<Vec<ChatMessage>, String> {
    let (system, all) = (text(row, "prefix")?, text(row, "plain_text")?);
    row.shift_remove("num_turns");
    let mut turns = Vec::new();
    let mut rest = all.trim();
    while !rest.is_empty() {
        let (mark, end, role) = if turns.len() % 2 == 0 {
            ("[Human]:", "<eoh>", "user")
        } else {
            ("[MOSS]:", "<eoa>", "assistant")
        };
        let said = rest
            .strip_prefix(mark)
            .ok_or_else(|| format!("`plain_text`: turn {} does not begin with {mark}", turns.len() + 1))?;
        // the last mark may be missing
        let (said, after) = said.split_once(end).unwrap_or((said, ""));
        turns.push(ChatMessage::new(role, said.trim()));
        rest = after.trim_start();
    }
    Ok(with_system(&system, turns))
}

/// COIG's translated instructions.
fn translated(row: &mut Map<String, Value>) -> Result<Vec<ChatMessage>, String> {
    let parts = [text(row, "trans_instruction")?, text(row, "trans_input")?];
    let answer = text(row, "trans_output")?;
    asked(&parts, answer)
}

/// COIG's exams: an instruction, what is given, the question.
fn exam(row: &mut Map<String, Value>) -> Result<Vec<ChatMessage>, String> {
    let parts = [
        text(row, "textbox_q_instruction")?,
        text(row, "textbox_q_context")?,
        text(row, "textbox_question")?,
    ];
    let answer = text(row, "textbox_answer")?;
    asked(&parts, answer)
}

fn asked(parts: &[String], answer: String) -> Result<Vec<ChatMessage>, String> {
    let parts: Vec<&str> = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() || answer.trim().is_empty() {
        return Err("there is no question or no answer: there is nothing to learn".into());
    }
    Ok(vec![ChatMessage::new("user", parts.join("\n\n")), ChatMessage::new("assistant", answer)])
}

#[cfg(test)]
mod tests {
    use crate::data::format::read_samples;
    use crate::data::samples::Content;

    fn turns(line: &str) -> Result<Vec<(String, String)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, line).unwrap();
        let samples = read_samples(&path).map_err(|e| e.to_string())?;
        match samples.into_iter().next().map(|sample| sample.content) {
            Some(Content::Chat(chat)) => Ok(chat.messages.into_iter().map(|m| (m.role, m.content)).collect()),
            other => Err(format!("{other:?}")),
        }
    }

    fn said(role: &str, text: &str) -> (String, String) {
        (role.to_owned(), text.to_owned())
    }

    #[test]
    fn rows_of_moss_and_coig_are_conversations() {
        let expected = [
            said("system", "s"),
            said("user", "a"),
            said("assistant", "b"),
            said("user", "c"),
            said("assistant", "d"),
        ];
        let moss3 = r#"{"conversation_id":"1","meta_instruction":"s\n","num_turns":2,"chat":{
            "turn_1":{"Human":"<|Human|>: a<eoh>\n","Inner Thoughts":"<|Inner Thoughts|>: None<eot>\n","Commands":"<|Commands|>: None<eoc>\n","Tool Responses":"<|Results|>: None<eor>\n","MOSS":"<|MOSS|>: b<eom>\n"},
            "turn_2":{"Human":"<|Human|>: c<eoh>\n","Inner Thoughts":"None","Commands":"None","Tool Responses":"None","MOSS":"<|MOSS|>: d<eom>\n"}}}"#.replace('\n', "");
        assert_eq!(turns(&moss3).unwrap(), expected);
        let tools = moss3.replacen("<|Commands|>: None", "<|Commands|>: Search(1)", 1);
        assert!(turns(&tools).unwrap_err().contains("`Commands`"));
        let moss2 = r#"{"id":1,"prefix":"s","num_turns":2,"plain_text":"[Human]: a<eoh> [MOSS]: b<eoa> [Human]: c<eoh> [MOSS]: d<eoa>"}"#;
        assert_eq!(turns(moss2).unwrap(), expected);
        assert!(
            turns(&moss2.replace("[MOSS]: b", "b"))
                .unwrap_err()
                .contains("turn 2 does not begin with [MOSS]")
        );

        let pair = |question: &str| [said("user", question), said("assistant", "b")];
        let coig = r#"{"task_id":"1","trans_instruction":"a","trans_input":"c","trans_output":"b","old_instruction":"x"}"#;
        assert_eq!(turns(coig).unwrap(), pair("a\n\nc"));
        let exam = r#"{"textbox_q_instruction":"i","textbox_q_context":"","textbox_question":"a","textbox_answer":"b","textbox_answer_analysis":"x"}"#;
        assert_eq!(turns(exam).unwrap(), pair("i\n\na"));
        assert!(turns(&exam.replace("\"textbox_answer\":\"b\"", "\"textbox_answer\":null")).is_err());
        let unified = r#"{"instruction":"s","conversations":[{"question":"a","answer":"b"},{"question":"c","answer":"d"}]}"#;
        assert_eq!(turns(unified).unwrap(), expected);
        let unified = r#"{"instruction":"","conversations":[{"question":"a","answer":"b"}]}"#;
        assert_eq!(turns(unified).unwrap(), pair("a"));
    }
}
