//! Pickles: tensors are described, everything else is refused by name, every cut is an error.

use crate::dtype::Dtype;
use proptest::prelude::*;

use crate::format::pickle::error::PickleError;
use crate::format::pickle::read;
use flm_tests::files::{Pickle, Saved};

fn program(
    ops: impl FnOnce(Pickle) -> Pickle,
) -> Result<Vec<crate::format::pickle::PickledTensor>, PickleError> {
    read(&ops(Pickle::default().op(b"\x80\x02")).op(b".").0)
}

fn one(saved: Saved<'_>) -> Result<crate::format::pickle::PickledTensor, PickleError> {
    read(&Pickle::state_dict(&[saved])).map(|mut found| found.remove(0))
}

fn malformed(result: Result<impl std::fmt::Debug, PickleError>) -> &'static str {
    match result.unwrap_err() {
        PickleError::Malformed { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn a_tensor_is_described_in_bytes() {
    let found = one(Saved {
        class: "BFloat16Storage",
        storage: "7",
        elements: 20,
        offset: 3,
        shape: &[2, 1, 3],
        stride: &[3, 99, 1],
        ..Saved::default()
    })
    .unwrap();
    assert_eq!(
        (found.element.dtype, found.shape, found.storage.as_str()),
        (Some(Dtype::BF16), vec![2, 1, 3], "7")
    );
    assert_eq!((found.storage_bytes, found.offset, found.nbytes), (40, 6, 12));
}

#[test]
fn opcodes_that_tensors_do_not_need_are_refused_by_number_and_place() {
    for opcode in 0..=255u8 {
        if b"\x80(})N\x88\x89KMJ\x8aXcqrhjt\x85\x86\x87QRbsu.".contains(&opcode) {
            continue;
        }
        let error = read(&[0x80, 2, opcode, 0, 0, 0, 0]).unwrap_err();
        assert!(matches!(error, PickleError::Opcode { opcode: o, at: 2 } if o == opcode), "{error}");
    }
}

#[test]
fn functions_that_tensors_do_not_need_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "ComplexFloatStorage"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("collections", "Counter"),
        ("torch.BFloat16Storage", ""),
    ] {
        match program(|p| p.global(module, name)).unwrap_err() {
            PickleError::Global { global, at: 2 } => assert_eq!(global, format!("{module}.{name}")),
            other => panic!("{other}"),
        }
    }
    assert!(malformed(program(|p| p.op(b"c").op(&[b'x'; 300]))).contains("class name"));
}

#[test]
fn other_protocols_are_refused() {
    assert!(matches!(read(b"\x80\x04."), Err(PickleError::Protocol(4))));
}

#[test]
fn every_cut_is_an_error() {
    let whole = Pickle::state_dict(&[Saved::default()]);
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "{len}");
    }
    assert!(matches!(read(b"X\xff\xff\xff\xff"), Err(PickleError::Truncated(_))));
}

#[test]
fn numbers_have_at_most_64_bits() {
    // candle's reader overflows a shift here.
    assert!(malformed(program(|p| p.op(b"\x8a\x09").op(&[0; 9]))).contains("64 bits"));
    // -1 in one byte is a number, but no size; none at all is zero.
    let size = |bytes: &[u8]| {
        let shape = |p: Pickle| p.op(b"(").op(bytes).op(b"t");
        let tensor = Pickle::default().op(b"\x80\x02}").str("w").global("torch._utils", "_rebuild_tensor_v2");
        let tensor =
            tensor.op(b"((").str("storage").global("torch", "FloatStorage").str("0").str("cpu").int(6);
        read(&shape(shape(tensor.op(b"tQ").int(0))).op(b"\x89}tRs.").0).map(|found| found[0].shape.clone())
    };
    assert!(malformed(size(b"\x8a\x01\xff")).contains("not a number ≥ 0"));
    assert_eq!(size(b"\x8a\x00").unwrap(), [0]);
    assert_eq!(size(b"\x8a\x01\x01").unwrap(), [1]);
}

#[test]
fn negative_sizes_strides_and_offsets_are_refused() {
    for saved in [
        Saved { shape: &[-2, 3], ..Saved::default() },
        Saved { stride: &[-3, 1], ..Saved::default() },
        Saved { offset: -1, ..Saved::default() },
        Saved { elements: -6, ..Saved::default() },
    ] {
        malformed(one(saved));
    }
}

#[test]
fn a_tensor_must_lie_inside_its_storage() {
    for (offset, elements) in [(1, 6), (0, 5), (i64::MAX, 6), (0, 0)] {
        let error = one(Saved { offset, elements, ..Saved::default() }).unwrap_err();
        assert!(matches!(error, PickleError::OutsideStorage { .. }), "{error}");
    }
}

#[test]
fn gaps_and_transposed_tensors_are_refused() {
    for stride in [[1, 2], [4, 1], [3, 2], [0, 1]] {
        let error = one(Saved { stride: &stride, elements: 20, ..Saved::default() }).unwrap_err();
        assert!(error.to_string().ends_with("save it with .contiguous()"), "{error}");
    }
    assert!(malformed(one(Saved { stride: &[1], ..Saved::default() })).contains("strides"));
}

#[test]
fn sizes_that_overflow_are_refused() {
    let big = i64::MAX / 2;
    malformed(one(Saved { shape: &[big, 3], ..Saved::default() }));
    malformed(one(Saved { shape: &[big], stride: &[1], elements: big, ..Saved::default() }));
    malformed(one(Saved { elements: i64::MAX, ..Saved::default() }));
    let error = one(Saved { shape: &[1; 9], stride: &[1; 9], ..Saved::default() }).unwrap_err();
    assert!(matches!(error, PickleError::TooMany { .. }));
}

#[test]
fn the_result_is_a_dict_of_named_tensors() {
    assert!(matches!(program(|p| p.op(b"N")), Err(PickleError::NotADict)));
    assert!(matches!(program(|p| p.tensor(&Saved::default())), Err(PickleError::NotADict)));
    let error = program(|p| p.op(b"}").str("epoch").int(3).op(b"s")).unwrap_err();
    assert_eq!(error.to_string(), "data.pkl: epoch is not a tensor but a number: save model.state_dict()");
    assert!(matches!(program(|p| p.op(b"}").int(1).int(3).op(b"s")), Err(PickleError::BadName)));
    assert!(matches!(program(|p| p.op(b"}").str("").op(b"Ns")), Err(PickleError::BadName)));
    assert!(matches!(program(|p| p.op(b"}").str(&"w".repeat(1025)).op(b"Ns")), Err(PickleError::BadName)));
    assert!(program(|p| p.op(b"}")).unwrap().is_empty());
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let error = read(&Pickle::state_dict(&[Saved::default(), Saved::default()])).unwrap_err();
    assert!(matches!(error, PickleError::Duplicate(name) if name == "w"));
}

#[test]
fn only_metadata_may_be_attached_and_only_to_an_ordered_dict() {
    let attach = |target: &'static [u8], key: &'static str| {
        program(move |p| {
            let p = if target == b"ordered" {
                p.global("collections", "OrderedDict").op(b")R")
            } else {
                p.op(target)
            };
            p.op(b"}").str(key).op(b"}sb")
        })
    };
    assert!(attach(b"ordered", "_metadata").unwrap().is_empty());
    assert!(malformed(attach(b"ordered", "__class__")).contains("_metadata"));
    assert!(malformed(attach(b"}", "_metadata")).contains("_metadata"));
    assert!(malformed(attach(b"N", "_metadata")).contains("not a dict"));
}

#[test]
fn calls_take_exactly_their_arguments() {
    for ops in [b")R".as_slice(), b"NR", b"}R", b"(NNtR", b"(NNNNNNtR", b"R"] {
        malformed(program(|p| p.global("torch._utils", "_rebuild_tensor_v2").op(ops)));
        malformed(program(|p| p.global("torch._utils", "_rebuild_parameter").op(ops)));
        malformed(program(|p| p.global("torch", "FloatStorage").op(ops)));
    }
    assert!(malformed(program(|p| p.op(b"N)R"))).contains("not a function"));
    assert!(malformed(program(|p| p.op(b")Q"))).contains("storage"));
}

#[test]
fn nothing_reaches_below_a_mark_or_an_empty_stack() {
    for ops in [
        b"t".as_slice(),
        b"u",
        b"\x85",
        b"N\x86",
        b"N(\x85",
        b"R",
        b"b",
        b"Q",
        b"s",
        b"q\x00",
        b"h\x00",
        b"(u",
        b"N(u",
        b"}(Nu",
        b"}N(s",
    ] {
        malformed(program(|p| p.op(ops)));
    }
    assert!(malformed(program(|p| p.op(b"NN"))).contains("left over"));
    assert!(malformed(program(|p| p.op(b"(N"))).contains("left over"));
    assert!(malformed(read(b"\x80\x02}..")).contains("follow the end"));
    assert!(matches!(read(b"\x80\x02."), Err(PickleError::Malformed { .. })));
}

#[test]
fn a_memo_bomb_stays_small() {
    // Each level is a tuple of the level below, four times: candle's reader copies 4²⁷ values.
    let bomb = (0..27u8).fold(Pickle::default().op(b"\x80\x02)q\x00"), |p, level| {
        p.op(&[b'(', b'h', level, b'h', level, b'h', level, b'h', level, b't', b'q', level + 1])
    });
    assert!(malformed(read(&bomb.op(b".").0)).contains("left over"));
}

#[test]
fn a_huge_memo_is_refused_and_huge_keys_take_no_room() {
    let put = |key: u32| [[b'r'].as_slice(), &key.to_le_bytes()].concat();
    assert!(program(|p| p.op(b"}").op(&put(u32::MAX))).unwrap().is_empty());
    let many: Vec<u8> = (0..=crate::format::pickle::MAX_MEMO as u32).flat_map(put).collect();
    let error = program(|p| p.op(b"}").op(&many)).unwrap_err();
    assert!(matches!(error, PickleError::TooMany { .. }), "{error}");
}

#[test]
fn deep_nesting_does_not_recurse() {
    let deep = [b"\x80\x02N".as_slice(), &vec![0x85; 4 << 20], b"."].concat();
    assert!(matches!(read(&deep), Err(PickleError::NotADict)));
}

#[test]
fn dicts_and_what_they_hold_are_limited() {
    // a dict takes one byte of the file and many of memory, also where a tuple holds it
    let dicts = [b"(".as_slice(), &[b'}'; 1000], b"t"].concat().repeat(2000);
    let items = [b"(".as_slice(), &[b'N'; 1000], b"u"].concat().repeat(5000);
    for ops in [dicts, [b"}".as_slice(), &items].concat()] {
        let error = program(|p| p.op(&ops)).unwrap_err();
        assert!(matches!(error, PickleError::TooMany { .. }), "{error}");
    }
}

#[test]
fn stack_marks_and_length_are_limited() {
    for op in [b'N', b'('] {
        let error = read(&[b"\x80\x02".as_slice(), &vec![op; 2 << 20], b"."].concat()).unwrap_err();
        assert!(matches!(error, PickleError::TooMany { .. }));
    }
    assert!(matches!(read(&vec![b'N'; (16 << 20) + 1]), Err(PickleError::TooLong(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut bytes = Pickle::state_dict(&[Saved::default(), Saved { name: "v", ..Saved::default() }]);
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for tensor in read(&bytes).unwrap_or_default() {
            prop_assert!(tensor.offset + tensor.nbytes <= tensor.storage_bytes);
        }
    }
}
