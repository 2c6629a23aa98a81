//! Trees of messages, as OpenAssistant has them: nested `replies`, or a row a message that names its parent.
//!
//! Each way from the first message to a last one is a conversation; a reply that several of them share is
//! learned in the first alone, so that every reply is learned once.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::data::samples::{Content, Conversation, Sample, Samples};
use flm_candle::ChatMessage;

/// A message of a tree.
#[derive(Debug)]
struct Node {
    line: usize,
    id: Option<String>,
    parent: Option<String>,
    /// `user` or `assistant`.
    role: &'static str,
    text: String,
    children: Vec<usize>,
}

/// The messages of a file.
#[derive(Debug, Default)]
pub(super) struct Forest {
    nodes: Vec<Node>,
    /// Messages that begin a conversation and came with all replies to them.
    roots: Vec<usize>,
    /// Messages that came in rows of their own.
    flat: Vec<usize>,
}

/// Why a message is left out, with all that follows from it.
const REJECTED: &str = "messages that were deleted or did not pass review, and what answers them";

impl Forest {
    /// Takes a row, if it is a tree or a message of one; its keys are gone then.
    pub(super) fn take(
        &mut self,
        row: &mut Map<String, Value>,
        line: usize,
        left_out: &mut BTreeMap<String, usize>,
    ) -> Result<bool, String> {
        let is_message = |row: &Map<String, Value>| {
            row.get("text").is_some() && row.get("role").is_some_and(Value::is_string)
        };
        // the file of whole trees has the first message under `prompt`
        if row.get("prompt").and_then(Value::as_object).is_some_and(is_message) {
            let Some(Value::Object(mut first)) = row.shift_remove("prompt") else { return Ok(false) };
            row.clear();
            let root = self.tree(&mut first, line, left_out)?;
            self.roots.extend(root);
            return Ok(true);
        }
        if !is_message(row) {
            return Ok(false);
        }
        if row.get("replies").is_some_and(Value::is_array) {
            let root = self.tree(row, line, left_out)?;
            self.roots.extend(root);
        } else if row.contains_key("message_id") && row.contains_key("parent_id") {
            let node = self.node(row, line, left_out)?;
            self.flat.extend(node);
        } else {
            return Ok(false);
        }
        row.clear();
        Ok(true)
    }

    /// A message and all replies to it. JSON is nested no deeper than its reader allows.
    fn tree(
        &mut self,
        message: &mut Map<String, Value>,
        line: usize,
        left_out: &mut BTreeMap<String, usize>,
    ) -> Result<Option<usize>, String> {
        let replies = message.shift_remove("replies");
        let Some(index) = self.node(message, line, left_out)? else { return Ok(None) };
        for reply in replies.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let Value::Object(reply) = reply else {
                return Err("`replies` holds something else than messages".into());
            };
            let child = self.tree(&mut reply.clone(), line, left_out)?;
            self.nodes[index].children.extend(child);
        }
        Ok(Some(index))
    }

    fn node(
        &mut self,
        message: &Map<String, Value>,
        line: usize,
        left_out: &mut BTreeMap<String, usize>,
    ) -> Result<Option<usize>, String> {
        let text = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_owned);
        let rejected = message.get("deleted").and_then(Value::as_bool) == Some(true)
            || message.get("review_result").and_then(Value::as_bool) == Some(false);
        let (Some(said), false) = (text("text"), rejected) else {
            *left_out.entry(REJECTED.into()).or_default() += 1;
            return Ok(None);
        };
        let role = match text("role").as_deref() {
            Some("prompter" | "user" | "human") => "user",
            Some("assistant") => "assistant",
            other => {
                return Err(format!("role {other:?} in a tree of messages: expected prompter or assistant"));
            }
        };
        let (id, parent) = (text("message_id"), text("parent_id"));
        self.nodes.push(Node { line, id, parent, role, text: said, children: Vec::new() });
        Ok(Some(self.nodes.len() - 1))
    }

    /// The conversations, once the file is read.
    pub(super) fn finish(mut self, found: &mut Samples) {
        let ids: HashMap<String, usize> =
            self.flat.iter().filter_map(|&i| Some((self.nodes[i].id.clone()?, i))).collect();
        let mut orphans = 0;
        for &index in &self.flat {
            match self.nodes[index].parent.as_ref().map(|parent| ids.get(parent)) {
                None => self.roots.push(index),
                Some(Some(&parent)) => self.nodes[parent].children.push(index),
                Some(None) => orphans += 1,
            }
        }
        if orphans > 0 {
            *found.left_out.entry("messages whose parent is not in the file".into()).or_default() += orphans;
        }
        let mut learned = vec![false; self.nodes.len()];
        for &root in &self.roots {
            self.conversations(root, &mut learned, found);
        }
    }

    fn conversations(&self, root: usize, learned: &mut [bool], found: &mut Samples) {
        // ways that are not at their end, the last first
        let mut ways = vec![vec![root]];
        while let Some(way) = ways.pop() {
            let last = way[way.len() - 1];
            let children = &self.nodes[last].children;
            // a message that answers itself is on no way
            let next: Vec<usize> = children.iter().copied().filter(|child| !way.contains(child)).collect();
            ways.extend(next.iter().rev().map(|&child| [way.as_slice(), &[child]].concat()));
            if !next.is_empty() {
                continue;
            }
            let end = way.iter().rposition(|&at| self.nodes[at].role == "assistant").map_or(0, |at| at + 1);
            let turns = &way[..end];
            let learns: Vec<bool> =
                turns.iter().map(|&at| self.nodes[at].role == "assistant" && !learned[at]).collect();
            if !learns.contains(&true) {
                continue;
            }
            turns.iter().zip(&learns).for_each(|(&at, &learns)| learned[at] |= learns);
            let said = |&at: &usize| ChatMessage::new(self.nodes[at].role, self.nodes[at].text.clone());
            let chat =
                Conversation { messages: turns.iter().map(said).collect(), learned: learns, tools: None };
            found.samples.push(Sample { line: self.nodes[root].line, content: Content::Chat(chat) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::data::format::read_data;
    use crate::data::samples::{Content, Samples};

    fn data(text: &str) -> Samples {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        read_data(&path, &BTreeMap::new()).unwrap()
    }

    /// Each conversation as its turns, those that are learned with a star.
    fn ways(found: &Samples) -> Vec<String> {
        let way = |sample: &crate::data::samples::Sample| match &sample.content {
            Content::Chat(chat) => {
                let turns = chat.messages.iter().zip(&chat.learned);
                turns
                    .map(|(m, &l)| format!("{}{}", m.content, if l { "*" } else { "" }))
                    .collect::<Vec<_>>()
                    .join(" ")
            }
            Content::Text(text) => panic!("a text: {text}"),
        };
        found.samples.iter().map(way).collect()
    }

    const TREE: &str = r#"{"message_id":"1","role":"prompter","text":"q","replies":[
        {"message_id":"2","role":"assistant","text":"a","replies":[
            {"message_id":"3","role":"prompter","text":"r","replies":[{"message_id":"4","role":"assistant","text":"b","replies":[]}]},
            {"message_id":"5","role":"prompter","text":"s","replies":[{"message_id":"6","role":"assistant","text":"c","replies":[]}]},
            {"message_id":"7","role":"prompter","text":"t","replies":[]}]},
        {"message_id":"8","role":"assistant","text":"d","replies":[]},
        {"message_id":"9","role":"assistant","text":"e","deleted":true,"replies":[{"role":"prompter","text":"x","replies":[]}]}]}"#;

    #[test]
    fn every_reply_of_a_tree_is_learned_once() {
        let expected = ["q a* r b*", "q a s c*", "q d*"];
        let whole = TREE.replace('\n', "");
        let found = data(&whole);
        assert_eq!(ways(&found), expected);
        assert_eq!(found.left_out.values().sum::<usize>(), 1);
        assert!(found.unread.is_empty(), "{:?}", found.unread);
        let found =
            data(&format!("{{\"message_tree_id\":\"1\",\"tree_state\":\"ready\",\"prompt\":{whole}}}"));
        assert_eq!(ways(&found), expected);
    }

    #[test]
    fn rows_that_name_their_parents_are_the_same_trees_in_any_order() {
        let row = |id: &str, parent: &str, role: &str, text: &str| {
            let parent = if parent.is_empty() { "null".into() } else { format!("\"{parent}\"") };
            format!(
                "{{\"message_id\":\"{id}\",\"parent_id\":{parent},\"role\":\"{role}\",\"text\":\"{text}\",\"lang\":\"en\"}}"
            )
        };
        let rows = [
            row("4", "3", "assistant", "b"),
            row("1", "", "prompter", "q"),
            row("2", "1", "assistant", "a"),
            row("3", "2", "prompter", "r"),
            row("5", "2", "prompter", "s"),
            row("6", "5", "assistant", "c"),
            row("8", "1", "assistant", "d"),
            row("10", "11", "assistant", "lost"),
            // each the other's parent
            row("12", "13", "assistant", "x"),
            row("13", "12", "prompter", "y"),
        ];
        let found = data(&rows.join("\n"));
        assert_eq!(ways(&found), ["q a* r b*", "q a s c*", "q d*"]);
        assert_eq!(found.left_out["messages whose parent is not in the file"], 1);
        assert_eq!(found.samples[0].line, 2);
    }

    #[test]
    fn a_long_thread_takes_no_stack() {
        let rows: String = (0..5000)
            .map(|i| {
                let parent = if i == 0 { "null".into() } else { format!("\"{}\"", i - 1) };
                let role = if i % 2 == 0 { "prompter" } else { "assistant" };
                format!(
                    "{{\"message_id\":\"{i}\",\"parent_id\":{parent},\"role\":\"{role}\",\"text\":\"{i}\"}}\n"
                )
            })
            .collect();
        let found = data(&rows);
        assert_eq!(found.samples.len(), 1);
    }
}
