//! What an endpoint answers: a chat completion whole or in a stream, a refusal, or an error in other clothes.

use serde_json::Value;

use crate::judge::Verdict;

/// Why a reply holds no judgment.
#[derive(Debug, PartialEq)]
pub(super) enum Unusable {
    /// Asked again, it may come.
    Passing(String),
    /// Asked once more it may come; more often it is a waste.
    Doubtful(String),
    /// It will not come.
    Hopeless(String),
}

/// Reads the body of a reply with status 200.
pub(super) fn read(body: &[u8]) -> Result<Verdict, Unusable> {
    let text = String::from_utf8_lossy(body);
    let json = if text.trim_start().starts_with("data:") || text.trim_start().starts_with(':') {
        stream(&text)?
    } else {
        serde_json::from_slice(body).map_err(|error| {
            let why = format!("malformed JSON ({error}): {}", excerpt(body));
            if text.trim_start().starts_with('<') { Unusable::Doubtful(why) } else { Unusable::Passing(why) }
        })?
    };
    let error = json.get("error").or(json.pointer("/choices/0/error")).filter(|error| !error.is_null());
    if let Some(error) = error {
        return match permanent(error) {
            _ if is_about_content(&error.to_string()) => {
                Ok(Verdict::refused(format!("the endpoint reports an error: {error}")))
            }
            true => Err(Unusable::Hopeless(format!("the endpoint reports an error: {error}"))),
            false => Err(Unusable::Passing(format!("the endpoint reports an error: {error}"))),
        };
    }
    let choice = json.pointer("/choices/0").unwrap_or(&Value::Null);
    let finish = choice.get("finish_reason").and_then(Value::as_str).map(ToOwned::to_owned);
    let reported = json.get("model").and_then(Value::as_str).map(ToOwned::to_owned);
    let usage = json.get("usage").filter(|usage| !usage.is_null()).cloned();
    let verdict = Verdict {
        judgment: content(choice.pointer("/message/content")),
        reported_model: reported,
        finish_reason: finish.clone(),
        usage,
        refused: None,
    };
    if let Some(why) = choice.pointer("/message/refusal").and_then(Value::as_str) {
        let refused = Some(format!("refusal: {why}"));
        return Ok(Verdict { judgment: String::new(), refused, ..verdict });
    }
    match finish.as_deref() {
        Some("content_filter") => {
            let refused = Some("finish_reason content_filter".to_owned());
            Ok(Verdict { judgment: String::new(), refused, ..verdict })
        }
        Some("length" | "max_tokens") => Err(Unusable::Hopeless(
            "the judgment was cut by the judge's token limit: raise --judge-max-tokens".into(),
        )),
        None | Some("stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn")
            if !verdict.judgment.trim().is_empty() =>
        {
            Ok(verdict)
        }
        None | Some("stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn") => {
            let what = if choice.is_null() {
                excerpt(body)
            } else {
                format!("finish_reason {}", finish.as_deref().unwrap_or("not stated"))
            };
            Err(Unusable::Doubtful(format!("the judgment is empty ({what})")))
        }
        Some(other) => Err(Unusable::Passing(format!("the judgment ended by {other:?}, not by itself"))),
    }
}

/// Whether an error that came with status 200 comes again: by the status that it names, or by its kind.
fn permanent(error: &Value) -> bool {
    let number = |key: &str| {
        let value = error.get(key)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let status = number("code").or_else(|| number("status")).or_else(|| number("status_code"));
    let kinds = ["type", "code"].into_iter().filter_map(|key| error.get(key)?.as_str());
    match status {
        Some(408 | 409 | 425 | 429) => false,
        Some(400..=499) => true,
        _ => kinds.into_iter().any(|kind| {
            ["invalid_request", "insufficient_quota", "authentication", "permission", "not_found"]
                .iter()
                .any(|part| kind.contains(part))
        }),
    }
}

/// The text of a message: a string, or a list of parts of which some are text.
fn content(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
        }
        _ => String::new(),
    }
}

/// A stream of server-sent events as one completion.
fn stream(text: &str) -> Result<Value, Unusable> {
    let (mut whole, mut finish, mut done) = (String::new(), Value::Null, false);
    let (mut model, mut usage) = (Value::Null, Value::Null);
    for data in text.lines().filter_map(|line| line.strip_prefix("data:")) {
        if data.trim() == "[DONE]" {
            done = true;
            break;
        }
        let event: Value = serde_json::from_str(data)
            .map_err(|error| Unusable::Passing(format!("malformed JSON in the stream ({error})")))?;
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Ok(event);
        }
        whole += &content(event.pointer("/choices/0/delta/content"));
        for (kept, found) in [
            (&mut finish, event.pointer("/choices/0/finish_reason")),
            (&mut model, event.get("model")),
            (&mut usage, event.get("usage")),
        ] {
            if let Some(found) = found.filter(|found| !found.is_null()) {
                *kept = found.clone();
            }
        }
    }
    if !done && finish.is_null() {
        return Err(Unusable::Passing("the stream ended before the judgment did".into()));
    }
    Ok(serde_json::json!({
        "model": model, "usage": usage,
        "choices": [{"message": {"content": whole}, "finish_reason": finish}],
    }))
}

/// Whether an error of the client's is about what the answer says, not about how it is asked.
pub(super) fn is_about_content(body: &str) -> bool {
    const WORDS: [&str; 13] = [
        "content_filter",
        "content filter",
        "content_policy",
        "content policy",
        "moderation",
        "flagged",
        "data_inspection",
        "responsibleai",
        "safety",
        "sensitive",
        "context_length_exceeded",
        "maximum context length",
        "prompt is too long",
    ];
    let body = body.to_lowercase();
    WORDS.iter().any(|word| body.contains(word))
}

/// The beginning of a body, on one line.
pub(super) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(message: Value, finish: &str) -> Result<Verdict, Unusable> {
        let usage = json!({"prompt_tokens": 10});
        let choice = json!({"message": message, "finish_reason": finish});
        read(json!({"model": "m-1", "choices": [choice], "usage": usage}).to_string().as_bytes())
    }

    #[test]
    fn only_what_ended_by_itself_is_a_judgment() {
        let good = of(json!({"content": "{'综合得分': 7}"}), "stop").unwrap();
        assert_eq!(
            (good.judgment.as_str(), good.reported_model.as_deref()),
            ("{'综合得分': 7}", Some("m-1"))
        );
        assert_eq!(good.usage.unwrap()["prompt_tokens"], 10);
        let cut = of(json!({"content": "<think>{'综合得分': 9}"}), "length");
        assert!(matches!(cut, Err(Unusable::Hopeless(why)) if why.contains("--judge-max-tokens")));
        for refused in [
            of(json!({"content": "{'综合得分': 7}"}), "content_filter"),
            of(json!({"content": null, "refusal": "no"}), "stop"),
        ] {
            let refused = refused.unwrap();
            assert!(refused.judgment.is_empty() && refused.refused.is_some());
        }
        assert!(matches!(of(json!({"content": null}), "stop"), Err(Unusable::Doubtful(_))));
        assert!(matches!(of(json!({"content": "x"}), "error"), Err(Unusable::Passing(_))));
        assert!(matches!(read(b"<!doctype html>"), Err(Unusable::Doubtful(_))));
        for (error, hopeless) in [
            (json!({"code": 502}), false),
            (json!({"code": 429, "type": "rate_limit"}), false),
            (json!("overloaded"), false),
            (json!({"code": 400, "message": "no such parameter"}), true),
            (json!({"code": "401"}), true),
            (json!({"type": "invalid_request_error"}), true),
            (json!({"code": "insufficient_quota"}), true),
        ] {
            let found = read(json!({ "error": error }).to_string().as_bytes());
            let right = match found {
                Err(Unusable::Hopeless(_)) => hopeless,
                Err(Unusable::Passing(_)) => !hopeless,
                _ => false,
            };
            assert!(right, "{error}: {found:?}");
        }
        let flagged = read(br#"{"error": {"code": 400, "message": "flagged by moderation"}}"#);
        assert!(flagged.unwrap().refused.is_some());
    }

    #[test]
    fn parts_and_streams_are_put_together() {
        let parts =
            json!({"content": [{"type": "text", "text": "a"}, {"type": "x"}, {"type": "text", "text": "b"}]});
        assert_eq!(of(parts, "stop").unwrap().judgment, "ab");
        let delta = |text: &str| format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}));
        let stream = |end: &str| read(format!("{}{}{end}", delta("甲"), delta("乙")).as_bytes());
        assert_eq!(stream("data: [DONE]\n\n").unwrap().judgment, "甲乙");
        assert!(matches!(stream(""), Err(Unusable::Passing(_))));
    }
}
