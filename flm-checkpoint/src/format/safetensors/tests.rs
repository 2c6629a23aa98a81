//! Safetensors headers: offsets, limits, and every way to lie about them.

use proptest::prelude::*;

use crate::format::safetensors::{HeaderError, read};
use flm_tests::files::safetensors;

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
    "a":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]}}"#;

fn error(header: &str, data: &[u8]) -> HeaderError {
    read(&safetensors(header, data).as_slice()).unwrap_err()
}

#[test]
fn offsets_count_from_the_start_of_the_file() {
    let found = read(&safetensors(GOOD, &[0; 8]).as_slice()).unwrap().tensors;
    let places: Vec<_> = found.iter().map(|t| (t.name.as_str(), t.offset, t.nbytes)).collect();
    let start = GOOD.len() as u64 + 8;
    assert_eq!(places, [("b", start, 4), ("a", start + 4, 4)]);
}

/// The safetensors crate, and so transformers, opens all of them.
#[test]
fn metadata_may_be_absent_empty_or_null() {
    for metadata in ["", r#""__metadata__":{},"#, r#""__metadata__":null,"#] {
        let header = format!(r#"{{{metadata}"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        assert_eq!(read(&safetensors(&header, &[0; 4]).as_slice()).unwrap().tensors.len(), 1, "{header}");
    }
}

#[test]
fn a_file_without_a_length_or_shorter_than_its_header_is_truncated() {
    assert!(matches!(read(&[1u8; 7].as_slice()), Err(HeaderError::Truncated { size: 7, needed: 8 })));
    let file = safetensors(GOOD, &[]);
    let cut = &file[..file.len() - 1];
    assert!(matches!(read(&cut), Err(HeaderError::Truncated { .. })));
}

#[test]
fn a_header_beyond_the_limit_is_refused_before_it_is_read() {
    let mut file = 100_000_001u64.to_le_bytes().to_vec();
    file.push(b'{');
    assert!(matches!(read(&file.as_slice()), Err(HeaderError::TooLong(100_000_001))));
    file[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(read(&file.as_slice()), Err(HeaderError::TooLong(u64::MAX))));
}

#[test]
fn a_header_of_100_mb_of_brackets_does_not_recurse() {
    let mut file = 100_000_000u64.to_le_bytes().to_vec();
    file.extend(br#"{"a":"#);
    file.resize(100_000_008, b'[');
    assert!(matches!(read(&file.as_slice()), Err(HeaderError::Json(_))));
}

#[test]
fn what_is_not_json_of_tensors_is_refused() {
    for header in [
        "",
        "[]",
        "{",
        r#"{"a":1}"#,
        r#"{"__metadata__":{"n":1}}"#,
        r#"{"a":{"dtype":"F31","shape":[],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        "{}x",
    ] {
        assert!(matches!(error(header, &[0; 4]), HeaderError::Json(_)), "{header}");
    }
    assert!(matches!(read(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff].as_slice()), Err(HeaderError::Json(_))));
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(matches!(error(twice, &[0; 8]), HeaderError::Duplicate(name) if name == "a"));
}

#[test]
fn dtypes_that_weights_do_not_have_are_refused_by_name() {
    let int = r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    let error = error(int, &[0; 8]);
    assert_eq!(error.to_string(), "tensor a has dtype I64; supported are BF16, F16, F32 and F64");
}

#[test]
fn rotary_buffers_are_skipped_but_their_bytes_count() {
    let header = r#"{"model.layers.0.self_attn.rotary_emb.inv_freq":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},
        "w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    let found = read(&safetensors(header, &[0; 12]).as_slice()).unwrap().tensors;
    assert_eq!((found.len(), found[0].offset), (1, header.len() as u64 + 16));
}

#[test]
fn overlap_hole_and_wrong_length_are_refused() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{first}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{second}}}}}"#
        )
    };
    for (first, second) in [
        ("[0,4]", "[0,4]"),
        ("[0,4]", "[2,6]"),
        ("[0,4]", "[6,10]"),
        ("[1,5]", "[5,9]"),
        ("[4,0]", "[4,8]"),
        ("[0,4]", "[4,9]"),
        ("[0,4]", "[4,18446744073709551615]"),
    ] {
        let error = error(&two(first, second), &[0; 8]);
        assert!(matches!(error, HeaderError::Offsets { .. }), "{first} {second}: {error}");
    }
}

#[test]
fn shapes_whose_product_overflows_are_refused() {
    for shape in ["[4294967296,4294967296]", "[18446744073709551615]", "[9223372036854775807,1]"] {
        let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
        assert!(matches!(error(&header, &[0; 4]), HeaderError::Overflow { .. }));
    }
}

#[test]
fn a_file_shorter_or_longer_than_its_header_says_is_refused() {
    assert!(error(GOOD, &[0; 7]).to_string().ends_with("download it again"));
    assert!(error(GOOD, &[0; 9]).to_string().ends_with("something was appended"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic_and_never_reach_outside(
        flips in prop::collection::vec((0usize..160, any::<u8>()), 1..4),
    ) {
        let mut file = safetensors(GOOD, &[0; 8]);
        for (at, byte) in flips {
            let len = file.len();
            file[at % len] = byte;
        }
        if let Ok(found) = read(&file.as_slice()).map(|found| found.tensors) {
            for t in found {
                prop_assert!(t.offset + t.nbytes <= file.len() as u64);
            }
        }
    }

    #[test]
    fn what_the_crate_writes_is_read(
        tensors in prop::collection::btree_map("[a-z.\"\\\\\u{e9}]{1,8}", prop::collection::vec(0usize..4, 0..4), 0..8),
    ) {
        let data = vec![7u8; 4 * 81];
        let views = tensors.iter().map(|(name, shape)| {
            let nbytes = 4 * shape.iter().product::<usize>();
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &data[..nbytes]);
            (name, view.unwrap())
        });
        let file = safetensors::serialize(views, None).unwrap();
        let mut found = read(&file.as_slice()).unwrap().tensors;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let found: Vec<_> = found.into_iter().map(|t| (t.name, t.shape)).collect();
        prop_assert_eq!(found, tensors.into_iter().collect::<Vec<_>>());
    }
}
