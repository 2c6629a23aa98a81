//! Where the answers stand in what a chat template makes of a conversation.
//!
//! An answer is what the template puts after the turns before it and the opening of an answer: to know it, a
//! template has to be given the conversation up to each answer, which takes time in the square of its length.
//! A long conversation is therefore rendered answer by answer after its first turns alone; what comes of that
//! has to be what the template makes of the whole, and of the conversation up to its answers 2, 4, 8 and so on.
//! Where it is not, the whole is rendered up to each of them.

use flm_candle::ChatMessage;

/// Answers from which on a conversation is long.
const LONG: usize = 8;

/// A conversation's text up to its last answer, and the answers in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    /// What the template makes of it.
    pub text: String,
    /// Its answers, in their order.
    pub answers: Vec<Answer>,
}

/// A turn of the assistant in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// Which of the messages it is.
    pub turn: usize,
    /// Bytes of the text at which it begins, behind its header, and ends.
    pub start: usize,
    pub end: usize,
}

impl Rendered {
    /// Renders `messages`; `render` is given messages, and whether the opening of an answer is to follow.
    ///
    /// # Errors
    /// Those of the template; answers that it leaves out or does not put after what was said before.
    pub(super) fn new(
        render: &impl Fn(&[ChatMessage], bool) -> Result<String, String>,
        messages: &[ChatMessage],
    ) -> Result<Self, String> {
        let long = turns(messages).count() >= LONG;
        match long.then(|| Self::in_short_contexts(render, messages)).flatten() {
            Some(found) => Ok(found),
            None => Self::by_prefixes(render, messages),
        }
    }

    /// Every answer after all that was said before it.
    fn by_prefixes(
        render: &impl Fn(&[ChatMessage], bool) -> Result<String, String>,
        messages: &[ChatMessage],
    ) -> Result<Self, String> {
        let mut found = Self::default();
        for turn in turns(messages) {
            let (before, answer) = last_answer(render, &messages[..=turn], turn, &found.text)?;
            found.push(turn, &before, &answer);
        }
        Ok(found)
    }

    /// Every answer after the first one and what was said since the one before it; `None` where that is not known
    /// to be the same.
    fn in_short_contexts(
        render: &impl Fn(&[ChatMessage], bool) -> Result<String, String>,
        messages: &[ChatMessage],
    ) -> Option<Self> {
        let last = turns(messages).last()?;
        let (mut found, mut begun, mut from) = (Self::default(), String::new(), 0);
        let mut context: Vec<ChatMessage> = Vec::new();
        let mut first = 0;
        for (index, turn) in turns(messages).enumerate() {
            context.truncate(first);
            context.extend_from_slice(&messages[from..=turn]);
            let (before, answer) = last_answer(render, &context, turn, &begun).ok()?;
            // after the first two the context is shorter than what was said
            if index > 1 && (turn == last || (index + 1).is_power_of_two()) {
                let whole = last_answer(render, &messages[..=turn], turn, &found.text).ok()?;
                if (&whole.0, &whole.1) != (&before, &answer) {
                    return None;
                }
            }
            found.push(turn, &before, &answer);
            if index == 0 {
                (begun, first) = (found.text.clone(), context.len());
            }
            from = turn + 1;
        }
        Some(found)
    }

    fn push(&mut self, turn: usize, before: &str, answer: &str) {
        self.text.push_str(before);
        let start = self.text.len();
        self.text.push_str(answer);
        self.answers.push(Answer { turn, start, end: self.text.len() });
    }
}

fn turns(messages: &[ChatMessage]) -> impl Iterator<Item = usize> {
    messages.iter().enumerate().filter(|(_, message)| message.role == "assistant").map(|(turn, _)| turn)
}

/// What the last of `messages`, an answer, adds to the text `begun`: what stands before it, and itself. `turn` is
/// its place in the conversation, for errors.
fn last_answer(
    render: &impl Fn(&[ChatMessage], bool) -> Result<String, String>,
    messages: &[ChatMessage],
    turn: usize,
    begun: &str,
) -> Result<(String, String), String> {
    let Some((answer, asked)) = messages.split_last() else { return Ok(Default::default()) };
    let with = render(messages, false)?;
    let mut before = render(asked, true)?;
    if !with.starts_with(&before) {
        before = render(asked, false)?;
    }
    if !before.starts_with(begun) || !with.starts_with(&before) {
        return Err(format!(
            "the chat template does not put assistant turn {turn} after the turns before it: \
             its tokens cannot be told apart"
        ));
    }
    if with.len() == before.len() && !answer.content.trim().is_empty() {
        return Err(format!("the chat template leaves assistant turn {turn} out"));
    }
    // the header of a template that knows no generation prompt is no part of the answer
    let header = header(render, answer, asked, &before);
    let header = header.filter(|header| with[before.len()..].starts_with(header.as_str()));
    before.push_str(&header.unwrap_or_default());
    Ok((before[begun.len()..].to_owned(), with[before.len()..].to_owned()))
}

/// What a template puts before an answer that follows `before`: found with the answer's content alone, since
/// reasoning and tool calls may stand before it.
fn header(
    render: &impl Fn(&[ChatMessage], bool) -> Result<String, String>,
    answer: &ChatMessage,
    asked: &[ChatMessage],
    before: &str,
) -> Option<String> {
    let content = match answer.content.trim() {
        "" if answer.rest.is_empty() => return None,
        "" => "answer",
        content => content,
    };
    let mut bare = asked.to_vec();
    bare.push(ChatMessage::new(answer.role.clone(), content));
    let text = render(&bare, false).ok()?;
    let turn = text.strip_prefix(before)?;
    turn.find(content).map(|at| turn[..at].to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use flm_candle::ChatTemplate;
    use proptest::prelude::*;

    use super::*;

    const CHATML: &str = "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nhelp\
        <|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// Templates that render an answer alike wherever it stands.
    const ALIKE: [&str; 6] = [
        CHATML,
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
         {{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant\
         <|end_header_id|>\n\n{% endif %}",
        // no generation prompt
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}<_user>{{ m.content.strip() }}<_bot>\
         {% elif m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
        // roles take turns; the system's message is in the first user's
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}\
         {% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}{% for m in messages %}\
         {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}\
         {% if m.role == 'user' %}[INST] {{ said if loop.first else '' }}{{ m.content }} [/INST]\
         {% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        // looks at its neighbours
        "{% for m in messages %}{% if m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != \
         'tool' %}<|im_start|>user{% endif %}\n<tool>{{ m.content }}</tool>{% if loop.last or \
         messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% else %}<|im_start|>{{ m.role }}\n\
         {{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c | tojson }}</call>{% endfor %}<|im_end|>\n\
         {% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ];
    /// Templates to which it matters where an answer stands.
    const OTHERS: [&str; 7] = [
        // numbered turns
        "{% for m in messages %}{% if m.role == 'user' %}[Round {{ loop.index0 // 2 }}] {{ m.content }}\n\
         {% else %}{{ m.content }}\n{% endif %}{% endfor %}",
        // thoughts of earlier answers are left out, the last one is marked
        "{% for m in messages %}{{ m.role }}: {% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}\
         {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        "{% for m in messages %}{{ m.role }}: {% if '</think>' in m.content and not loop.last %}\
         {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
        // only the last turns are kept
        "{% for m in messages[-6:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
        // something else from the ninth message on
        "{% for m in messages %}{{ m.role }}{{ '!' if loop.index > 8 else '' }}: {{ m.content }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant: {% endif %}",
        // a note behind a long conversation
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if messages | length > 9 %}(long)\
         {% endif %}{% if add_generation_prompt %}assistant: {% endif %}",
        // answers are left out
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    ];

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap()
    }

    /// A conversation that begins with a system's message or not; tools are called, users speak twice and end it.
    fn conversation(system: bool, turns: &[(u8, String, String)]) -> Vec<ChatMessage> {
        let mut messages = Vec::new();
        messages.extend(system.then(|| ChatMessage::new("system", "be short")));
        for (kind, asked, answered) in turns {
            messages.push(ChatMessage::new("user", asked));
            let mut answer = ChatMessage::new("assistant", answered);
            match kind {
                0 => messages.push(ChatMessage::new("user", "and?")),
                1 => {
                    let calls = serde_json::json!([{"name": "f", "arguments": {"a": 1}}]);
                    let mut call = ChatMessage::new("assistant", "");
                    call.rest.insert("tool_calls".into(), calls);
                    messages.extend([call, ChatMessage::new("tool", "7")]);
                }
                2 => answer.content = format!("<think>so</think>{answered}"),
                _ => {}
            }
            messages.push(answer);
        }
        messages
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// The oracle is the way that renders everything up to each answer.
        #[test]
        fn short_contexts_give_what_whole_conversations_give(
            system in any::<bool>(),
            turns in prop::collection::vec((0u8..20, "[a-z \n]{0,12}", "[a-z \n<>/]{0,12}"), 1..20),
            plain in any::<bool>(),
        ) {
            let mut turns = turns;
            if plain {
                turns.iter_mut().for_each(|turn| turn.0 = 9);
            }
            let messages = conversation(system, &turns);
            for source in ALIKE.iter().chain(&OTHERS) {
                let template = template(source);
                let render = |messages: &[ChatMessage], prompt: bool| {
                    if messages.is_empty() {
                        return Ok(String::new());
                    }
                    template.render(messages, prompt).map_err(|e| e.to_string())
                };
                let right = Rendered::by_prefixes(&render, &messages);
                if let Some(found) = Rendered::in_short_contexts(&render, &messages) {
                    prop_assert_eq!(Ok(&found), right.as_ref(), "{}", source);
                }
                prop_assert_eq!(Rendered::new(&render, &messages), right, "{}", source);
            }
        }
    }

    #[test]
    fn a_long_conversation_is_rendered_in_proportion_to_its_length() {
        for source in ALIKE {
            let template = template(source);
            let rendered = |count: usize| {
                let turns: Vec<_> =
                    (0..count).map(|i| (9, format!("q {i}"), format!("answer {i}"))).collect();
                let messages = conversation(true, &turns);
                let done = Cell::new(0);
                let render = |messages: &[ChatMessage], prompt: bool| {
                    done.set(done.get() + messages.len());
                    template.render(messages, prompt).map_err(|e| e.to_string())
                };
                assert_eq!(Rendered::new(&render, &messages).unwrap().answers.len(), count);
                done.get()
            };
            let (few, many) = (rendered(64), rendered(256));
            assert!(many < 5 * few && many < 256 * 60, "{few} and {many} messages: {source}");
        }
    }
}
