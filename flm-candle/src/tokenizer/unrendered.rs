//! What of a conversation a chat template leaves out.

use serde_json::Value;

use crate::tokenizer::chat_template::{ChatMessage, ChatTemplate};
use crate::tokenizer::error::TokenizerError;

/// Keys of a message that are a part of what it says.
const MATTERS: [&str; 13] = [
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "tools",
];

/// What a template does not render.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unrendered {
    /// A part of what is said, such as `messages[0].system` or `tools`: without it, the conversation is another.
    pub matters: Vec<String>,
    /// Any other keys of messages, each as often as it stands there.
    pub others: Vec<String>,
}

impl ChatTemplate {
    /// What of a conversation the template does not render: whole messages of other roles than user and
    /// assistant, keys that are a part of what is said, and other keys.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn unrendered(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
    ) -> Result<Unrendered, TokenizerError> {
        let mut found = Unrendered::default();
        let turn = |message: &ChatMessage| ["user", "assistant"].contains(&message.role.as_str());
        if tools.is_none() && messages.iter().all(|message| message.rest.is_empty() && turn(message)) {
            return Ok(found);
        }
        let whole = self.render_with_tools(messages, tools, false)?;
        // a template that fails without it renders it
        let same = |messages: &[ChatMessage], tools| {
            self.render_with_tools(messages, tools, false).is_ok_and(|text| text == whole)
        };
        if tools.is_some() && same(messages, None) {
            found.matters.push("tools".into());
        }
        for (index, message) in messages.iter().enumerate() {
            if !turn(message) && !message.content.trim().is_empty() {
                let mut without = messages.to_vec();
                without.remove(index);
                if same(&without, tools) {
                    found.matters.push(format!("messages[{index}].{}", message.role));
                    continue;
                }
            }
            for (key, value) in &message.rest {
                let empty = match value {
                    Value::Array(list) => list.is_empty(),
                    Value::String(text) => text.is_empty(),
                    _ => false,
                };
                if empty {
                    continue;
                }
                if !MATTERS.contains(&key.as_str()) {
                    if !self.source().contains(key.as_str()) {
                        found.others.push(key.clone());
                    }
                    continue;
                }
                let mut without = messages.to_vec();
                without[index].rest.shift_remove(key);
                if same(&without, tools) {
                    found.matters.push(format!("messages[{index}].{key}"));
                }
            }
        }
        Ok(found)
    }
}
