//! Every form of row, and what is refused.

use flm_candle::ChatMessage;

use super::*;
use crate::data::samples::Conversation;

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
    let expected = Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
    assert_eq!(samples.len(), 8);
    for sample in &samples {
        assert_eq!(chat(sample), &expected, "line {}", sample.line);
    }
    let found = data(r#"{"instruction":"c","output":"d","history":[["a","b"]],"system":"s"}"#);
    let said: Vec<&str> = chat(&found.samples[0]).messages.iter().map(|m| m.content.as_str()).collect();
    assert_eq!(said, ["s", "a", "b", "c", "d"]);
    let found =
        data(r#"{"system":"s","conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}"#);
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
fn what_has_no_end_is_read_no_further_than_a_row_may_be_long() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let endless = "a".repeat(2 * MAX_LINE as usize);
    for (begin, says) in [
        ("[{\"text\":\"", "endless.json:1: element 1 of the array: cannot be read: more than 1048576 bytes"),
        ("[{\"text\":\"b\"},{\"text\":\"", "element 2 of the array: cannot be read: more than"),
        ("{\"text\":\"", "endless.json:1: more than 1048576 bytes in one line"),
    ] {
        let path = dir.path().join("endless.json");
        let mut file =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), Default::default());
        file.write_all(format!("{begin}{endless}").as_bytes()).unwrap();
        file.finish().unwrap();
        let error = read_samples(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // each element has the bound to itself
    let row = format!("{{\"text\":\"{}\"}}", "a".repeat(MAX_LINE as usize / 2));
    let path = dir.path().join("long.json");
    std::fs::write(&path, format!("[{row},{row},{row}]")).unwrap();
    assert_eq!(read_samples(&path).unwrap().len(), 3);
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
fn conversations_without_an_answer_are_left_out_and_counted() {
    let found = data(
        r#"{"messages":[{"role":"user","content":"a"}]}
{"messages":[]}
{"conversations":[{"from":"system","value":"a"},{"from":"human","value":"b"}]}
{"prompt":[{"role":"user","content":"a"}],"completion":[]}
{"instruction":"a","output":"b"}"#,
    );
    assert_eq!(found.samples.iter().map(|s| s.line).collect::<Vec<_>>(), [5]);
    assert_eq!(found.left_out, BTreeMap::from([("conversations without an assistant turn".into(), 4)]));
}

#[test]
fn prompts_and_completions_may_be_lists_of_turns() {
    let found = data(
        r#"{"prompt":[{"role":"user","content":"a"}],"completion":[{"role":"assistant","content":"b"}]}
{"prompt":[{"role":"user","content":"a"}],"completion":"b"}
{"prompt":"a","response":[{"role":"assistant","content":"b"}]}"#,
    );
    let expected = Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
    assert_eq!(found.samples.len(), 3);
    assert!(found.samples.iter().all(|sample| chat(sample) == &expected), "{found:?}");
    // the completion is learned, however many turns it has, and nothing of the prompt
    let found = data(
        r#"{"system":"s","prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"y"}],"completion":[{"role":"assistant","content":"b"},{"role":"tool","content":"c"},{"role":"assistant","content":"d"}],"tools":"[{\"name\":\"f\"}]"}"#,
    );
    let chat = chat(&found.samples[0]);
    assert_eq!(chat.messages[0], ChatMessage::new("system", "s"));
    assert_eq!(chat.learned, [false, false, false, false, true, false, true]);
    assert_eq!(chat.tools, Some(serde_json::json!([{"name": "f"}])));
    let wrong = read(r#"{"prompt":[{"role":"user","content":"a"}],"completion":7}"#).unwrap_err();
    assert!(wrong.contains("`completion` is not a list"), "{wrong}");
}

#[test]
fn an_empty_list_of_tools_is_none_in_every_form() {
    for tools in ["[]", "null", r#""""#, r#""[]""#, r#"" [ ] ""#, r#""null""#] {
        let found = data(&format!(r#"{{"instruction":"a","output":"b","tools":{tools}}}"#));
        assert_eq!(chat(&found.samples[0]).tools, None, "{tools}");
    }
    for (tools, says) in [(r#""{}""#, "`tools` is not a list"), (r#""[""#, "`tools` is not JSON")] {
        let error = read(&format!(r#"{{"instruction":"a","output":"b","tools":{tools}}}"#)).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
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
    for (text, says) in [(&b"\xff\xfea\0"[..], "UTF-16"), (b"a\0b\0\n\0", "c.txt:1: a NUL character")] {
        let path = dir.path().join("c.txt");
        std::fs::write(&path, text).unwrap();
        let error = read_samples(&path).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
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
    let expected = Conversation::new(vec![ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]);
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
        ("{\"images\":[\"a.png\"],\"prompt\":\"a\",\"response\":\"b\"}", "`images`: only text is learned"),
        ("{\"messages\":[{\"from\":\"function_call\",\"value\":\"a\"}]}", "role `function_call`"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}
