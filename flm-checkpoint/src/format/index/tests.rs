//! Indexes: what is read, what is refused.

use crate::format::index::{IndexError, parse};

#[test]
fn an_index_without_sizes_or_with_further_keys_is_read() {
    let map = parse(br#"{"weight_map":{"b":"2.bin","a":"1.bin"},"x":[1,{}]}"#).unwrap();
    assert_eq!(
        map.into_iter().collect::<Vec<_>>(),
        [("a".into(), "1.bin".into()), ("b".into(), "2.bin".into())]
    );
}

#[test]
fn file_names_that_leave_the_directory_are_refused() {
    for file in ["", ".", "..", "../w", "/etc/passwd", "sub/w", "sub\\\\w", "w\\u0000", "a/../w"] {
        let text = format!(r#"{{"weight_map":{{"t":"{file}"}}}}"#);
        assert!(matches!(parse(text.as_bytes()), Err(IndexError::BadFileName { .. })), "{file:?}");
    }
    let long = format!(r#"{{"weight_map":{{"t":"{}"}}}}"#, "w".repeat(256));
    assert!(matches!(parse(long.as_bytes()), Err(IndexError::BadFileName { .. })));
}

#[test]
fn a_tensor_named_twice_is_refused() {
    let text = br#"{"weight_map":{"t":"1.bin","t":"2.bin"}}"#;
    assert!(matches!(parse(text), Err(IndexError::Duplicate(name)) if name == "t"));
}

#[test]
fn what_is_no_index_is_refused() {
    assert!(matches!(parse(b"{}"), Err(IndexError::NoWeightMap)));
    for text in [b"".as_slice(), b"[]", b"{\"weight_map\":[]}", b"{\"weight_map\":{\"t\":1}}", b"\xff"] {
        assert!(matches!(parse(text), Err(IndexError::Json(_))));
    }
}
