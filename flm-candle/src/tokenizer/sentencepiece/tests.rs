//! Against the goldens of the `sentencepiece` library, and against damaged models.

use super::*;
use crate::tokenizer::sentencepiece::proto::{NormalizerSpec, PieceProto, TrainerSpec};
use crate::tokenizer::tests::{MODELS, fixture, golden, model_bytes};
use proptest::prelude::*;

#[test]
fn every_golden_row_normalizes_encodes_and_decodes_as_in_the_library() {
    for name in MODELS {
        let model = SentencePiece::from_bytes(&model_bytes(name)).unwrap();
        assert_eq!((model.len(), model.bos(), model.eos()), (2000, Some(1), Some(2)));
        let rows = golden(name);
        assert_eq!(rows.len(), 222);
        for row in rows {
            assert_eq!(model.normalize(&row.text, false), row.normalized, "{name} normalizes {:?}", row.text);
            assert_eq!(model.encode(&row.text), row.ids, "{name} encodes {:?}", row.text);
            let pieces: Vec<_> = row.ids.iter().map(|&id| model.id_to_token(id).unwrap()).collect();
            assert_eq!(pieces, row.pieces, "{name} {:?}", row.text);
            assert_eq!(model.decode(&row.ids, false).unwrap(), row.decoded, "{name} decodes {:?}", row.text);
        }
    }
}

#[test]
fn a_text_in_parts_has_the_ids_of_the_whole() {
    for name in MODELS {
        let model = SentencePiece::from_bytes(&model_bytes(name)).unwrap();
        let rows = golden(name);
        let mut texts: Vec<String> = rows.iter().map(|row| row.text.clone()).collect();
        texts.push(texts.join(" ") + &texts.join("\n"));
        let mut cut = 0;
        for text in &texts {
            let encode = |part| {
                let mut ids = Vec::new();
                model.encode_parts(text, false, part, &mut ids);
                ids
            };
            let whole = encode(usize::MAX);
            assert!([1, 2, 7, 50].into_iter().all(|part| encode(part) == whole), "{name}: {text:?}");
            cut += model.boundaries.parts(&model.normalize(text, false), 1).count();
        }
        assert!(cut > texts.len() * 2, "{name}: {cut} parts");
    }
    // a piece that spans words forbids the cut
    let model = small(&[("a\u{2581}b", -1.0, 1), ("a", -2.0, 1), ("b", -2.0, 1)], false);
    let model = open(&model).unwrap();
    assert_eq!(model.boundaries.parts("a\u{2581}b", 1).count(), 1);
}

#[test]
fn odd_models_encode_and_decode_as_in_the_library() {
    #[derive(serde::Deserialize)]
    struct Rules {
        byte_fallback: bool,
        add_dummy_prefix: bool,
        remove_extra_whitespaces: bool,
        escape_whitespaces: bool,
        unk_surface: String,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        rules: Rules,
        pieces: Vec<(String, f32, i32)>,
        encoded: Vec<(String, String, Vec<u32>)>,
        decoded: Vec<(Vec<u32>, String)>,
    }
    let text = std::fs::read_to_string(fixture("spm/odd_models.jsonl")).unwrap();
    let mut compared = 0;
    for line in text.lines() {
        let Case { rules, mut pieces, encoded, decoded } = serde_json::from_str(line).unwrap();
        if rules.byte_fallback {
            pieces.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
        }
        let piece =
            |(text, score, kind)| PieceProto { piece: Some(text), score: Some(score), kind: Some(kind) };
        let model = ModelProto {
            pieces: pieces.into_iter().map(piece).collect(),
            trainer_spec: Some(TrainerSpec {
                model_type: Some(BPE),
                byte_fallback: Some(rules.byte_fallback),
                unk_surface: Some(rules.unk_surface),
                ..Default::default()
            }),
            normalizer_spec: Some(NormalizerSpec {
                precompiled_charsmap: None,
                add_dummy_prefix: Some(rules.add_dummy_prefix),
                remove_extra_whitespaces: Some(rules.remove_extra_whitespaces),
                escape_whitespaces: Some(rules.escape_whitespaces),
            }),
            denormalizer_spec: None,
        };
        let tokenizer = open(&model).unwrap();
        for (text, normalized, ids) in encoded {
            assert_eq!(tokenizer.normalize(&text, false), normalized, "{text:?} by {model:?}");
            assert_eq!(tokenizer.encode(&text), ids, "{text:?} by {model:?}");
            compared += 1;
        }
        for (ids, text) in decoded {
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{ids:?} by {model:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 48 * (24 + 36));
}

/// A model of normal pieces with these scores, identity normalisation, no dummy prefix.
fn small(pieces: &[(&str, f32, i32)], byte_fallback: bool) -> ModelProto {
    let all = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
    let piece = |&(text, score, kind): &(&str, f32, i32)| PieceProto {
        piece: Some(text.into()),
        score: Some(score),
        kind: Some(kind),
    };
    ModelProto {
        pieces: all.iter().chain(pieces).map(piece).collect(),
        trainer_spec: Some(TrainerSpec {
            model_type: Some(BPE),
            byte_fallback: Some(byte_fallback),
            ..Default::default()
        }),
        normalizer_spec: Some(NormalizerSpec {
            add_dummy_prefix: Some(false),
            remove_extra_whitespaces: Some(false),
            ..Default::default()
        }),
        denormalizer_spec: None,
    }
}

fn open(model: &ModelProto) -> Result<SentencePiece, TokenizerError> {
    SentencePiece::from_bytes(&model.encode_to_vec())
}

fn cut(model: &ModelProto, text: &str) -> Vec<String> {
    let model = open(model).unwrap();
    model.encode(text).into_iter().map(|id| model.id_to_token(id).unwrap()).collect()
}

// The expected pieces of the next five tests come from the sentencepiece library (0.2.3) run on the
// same models.

#[test]
fn of_equal_scores_the_leftmost_merge_goes_first() {
    let model = small(
        &[
            ("a", -9.0, 1),
            ("b", -9.0, 1),
            ("ab", -1.0, 1),
            ("ba", -2.0, 1),
            ("aba", -3.0, 1),
            ("bb", -2.0, 1),
        ],
        false,
    );
    assert_eq!(cut(&model, "ababa"), ["ab", "aba"]);
    assert_eq!(cut(&model, "abbba"), ["ab", "bb", "a"]);
}

#[test]
fn a_character_without_a_piece_can_still_be_merged() {
    let model = small(&[("a", -9.0, 1), ("ax", -1.0, 1)], false);
    assert_eq!(cut(&model, "aaxx"), ["a", "ax", "<unk>"]);
}

#[test]
fn without_byte_pieces_a_run_of_unknown_characters_is_one_unknown_piece() {
    let model = small(&[("a", -9.0, 1)], false);
    assert_eq!(cut(&model, "a中文a龘"), ["a", "<unk>", "a", "<unk>"]);
    assert_eq!(open(&model).unwrap().decode(&[3, 0, 3], false).unwrap(), "a \u{2047} a");
}

#[test]
fn unused_pieces_are_taken_apart_again() {
    let model = small(
        &[("a", -9.0, 1), ("b", -9.0, 1), ("ab", -1.0, 5), ("abab", -2.0, 5), ("ababa", -3.0, 1)],
        false,
    );
    assert_eq!(cut(&model, "ababab"), ["a", "b", "a", "b", "a", "b"]);
    assert_eq!(cut(&model, "ababa"), ["ababa"]);
}

#[test]
fn the_longest_user_defined_piece_wins_and_is_not_merged() {
    let model = small(&[("a", -9.0, 1), ("<x", 0.0, 4), ("<x>", 0.0, 4), ("a<x>", -1.0, 1)], false);
    assert_eq!(cut(&model, "a<x>a<xa"), ["a", "<x>", "a", "<x", "a"]);
}

#[test]
fn malformed_models_are_refused_with_the_reason() {
    let reason = |model: &ModelProto| open(model).unwrap_err().to_string();
    let good = small(&[("a", -1.0, 1)], false);
    open(&good).unwrap();
    let with = |change: &dyn Fn(&mut ModelProto)| {
        let mut model = good.clone();
        change(&mut model);
        reason(&model)
    };
    let trainer = |change: &dyn Fn(&mut TrainerSpec)| with(&|m| change(m.trainer_spec.as_mut().unwrap()));
    assert!(reason(&ModelProto::default()).contains("no pieces"));
    assert!(with(&|m| m.pieces.push(m.pieces[3].clone())).contains("pieces 3 and 4 are both \"a\""));
    assert!(with(&|m| m.pieces[3].score = Some(f32::NAN)).contains("has the score NaN"));
    assert!(with(&|m| m.pieces[3].score = Some(f32::NEG_INFINITY)).contains("has the score -inf"));
    assert!(with(&|m| m.pieces[3].piece = None).contains("piece 3 is empty"));
    assert!(with(&|m| m.pieces[3].piece = Some("a\0".into())).contains("null character"));
    assert!(with(&|m| m.pieces[3].kind = Some(9)).contains("unknown type 9"));
    assert!(with(&|m| m.pieces[3].kind = Some(2)).contains("both the unknown piece"));
    assert!(with(&|m| drop(m.pieces.remove(0))).contains("no unknown piece"));
    assert!(with(&|m| m.pieces[3].kind = Some(6)).contains("byte_fallback is false"));
    assert!(trainer(&|t| t.byte_fallback = Some(true)).contains("<0x00> is not a piece"));
    assert!(trainer(&|t| t.model_type = None).contains("UNIGRAM"));
    assert!(trainer(&|t| t.model_type = Some(7)).contains("model_type 7"));
    assert!(trainer(&|t| t.treat_whitespace_as_suffix = Some(true)).contains("treat_whitespace_as_suffix"));
    let denormalizer = NormalizerSpec { precompiled_charsmap: Some(vec![1]), ..Default::default() };
    assert!(with(&|m| m.denormalizer_spec = Some(denormalizer.clone())).contains("denormalizer"));
    let mut bytes = small(&[("<0xG0>", 0.0, 6)], true);
    assert!(reason(&bytes).contains("not the name of a byte"));
    bytes.pieces.truncate(3);
    bytes.pieces.extend((0..255u8).map(|b| PieceProto {
        piece: Some(format!("<0x{b:02X}>")),
        score: None,
        kind: Some(6),
    }));
    assert!(reason(&bytes).contains("<0xFF> is not a piece"));
    assert!(matches!(SentencePiece::from_bytes(b"PK\x03\x04"), Err(TokenizerError::Protobuf(_))));
}

#[test]
fn damaged_charsmaps_are_refused_with_the_reason() {
    let reason = |blob: &[u8]| {
        let mut model = small(&[("a", -1.0, 1)], false);
        model.normalizer_spec.as_mut().unwrap().precompiled_charsmap = Some(blob.to_vec());
        open(&model).unwrap_err().to_string()
    };
    assert!(reason(&[1, 2]).contains("shorter than its header"));
    assert!(reason(&[0, 0, 0, 0, 0]).contains("0 bytes"));
    assert!(reason(&[3, 0, 0, 0, 1, 2, 3, 0]).contains("3 bytes is not a list"));
    assert!(reason(&[8, 0, 0, 0, 1, 2, 3, 4]).contains("does not fit"));
    assert!(reason(&[4, 0, 0, 0, 1, 2, 3, 4, 0xff]).contains("not UTF-8"));
    assert!(reason(&[4, 0, 0, 0, 1, 2, 3, 4, b'a']).contains("not closed"));
    assert!(reason(&[4, 0, 0, 0, 0, 0, 0, 0x80, b'a', 0]).contains("no rule"));
    // The real table, its replacements cut off.
    let real = ModelProto::decode(&model_bytes("tokenizer")[..]).unwrap();
    let mut blob = real.normalizer_spec.unwrap().precompiled_charsmap.unwrap();
    let trie_len = u32::from_le_bytes([blob[0], blob[1], blob[2], blob[3]]) as usize;
    blob.truncate(4 + trie_len);
    assert!(reason(&blob).contains("has no replacement"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn truncated_models_never_panic(cut in 0.0..1.0f64) {
        for name in MODELS {
            let bytes = model_bytes(name);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let len = (bytes.len() as f64 * cut) as usize;
            // A cut between two fields leaves a message, of which a piece or a setting is missing.
            if let Ok(model) = SentencePiece::from_bytes(&bytes[..len]) {
                prop_assert!(model.len() <= 2000);
            }
        }
    }

    #[test]
    fn models_with_flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = model_bytes("tokenizer");
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(model) = SentencePiece::from_bytes(&bytes) {
            let ids = model.encode(" Ａ ﬁ 你好<_user> \u{ad}①😀");
            model.decode(&ids, false).unwrap();
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SentencePiece::from_bytes(&bytes);
        let mut model = small(&[("a", -1.0, 1)], false);
        model.normalizer_spec.as_mut().unwrap().precompiled_charsmap = Some(bytes);
        if let Ok(model) = open(&model) {
            model.encode("Ａ ﬁ 你好");
        }
    }

    #[test]
    fn random_tries_never_panic(units in prop::collection::vec(any::<u32>(), 1..600), text in ".{0,20}") {
        let mut blob = u32::try_from(units.len() * 4).unwrap().to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|u| (u & 0x0003_ffff).to_le_bytes()));
        blob.extend(b"a\0b\0");
        let mut model = small(&[("a", -1.0, 1)], false);
        model.normalizer_spec.as_mut().unwrap().precompiled_charsmap = Some(blob);
        if let Ok(model) = open(&model) {
            model.encode(&text);
        }
    }

    #[test]
    fn with_byte_pieces_and_identity_rules_any_text_survives(text in "\\PC{0,40}") {
        // The model writes spaces as U+2581, so that character itself comes back as a space.
        let model = SentencePiece::from_bytes(&model_bytes("tokenizer_llama")).unwrap();
        let back = model.decode(&model.encode(&text), false).unwrap();
        prop_assert_eq!(back, text.replace('\u{2581}', " "));
    }
}
