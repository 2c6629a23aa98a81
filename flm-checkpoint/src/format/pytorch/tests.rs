//! Against files that PyTorch itself wrote, and against hostile ones.

use crate::dtype::Dtype;
use half::{bf16, f16};

use crate::format::pytorch::{PyTorchError, read};
use flm_tests::files::{Saved, Zip, fixture, pytorch};

fn load(name: &str) -> Vec<u8> {
    std::fs::read(fixture("pytorch").join(name)).unwrap()
}

/// Name, dtype, shape and values of each tensor.
fn values(file: &[u8]) -> Vec<(String, Dtype, Vec<usize>, Vec<f64>)> {
    let tensors = read(&file).unwrap().tensors.into_iter();
    tensors
        .map(|t| {
            let bytes = &file[t.offset as usize..(t.offset + t.nbytes) as usize];
            let chunks = bytes.chunks_exact(t.dtype.size_in_bytes());
            let values = chunks.map(|c| match t.dtype {
                Dtype::BF16 => bf16::from_le_bytes(c.try_into().unwrap()).to_f64(),
                Dtype::F16 => f16::from_le_bytes(c.try_into().unwrap()).to_f64(),
                Dtype::F32 => f32::from_le_bytes(c.try_into().unwrap()).into(),
                _ => f64::from_le_bytes(c.try_into().unwrap()),
            });
            (t.name, t.dtype, t.shape, values.collect())
        })
        .collect()
}

fn error(file: &[u8]) -> String {
    match read(&file).unwrap_err() {
        PyTorchError::Zip(e) => e.to_string(),
        PyTorchError::Pickle(e) => e.to_string(),
    }
}

/// -2, -1.75, …: what the fixtures' script writes.
fn quarters(n: usize) -> Vec<f64> {
    (0..n).map(|i| i as f64 / 4.0 - 2.0).collect()
}

#[test]
fn state_dicts_and_parameters_of_a_module_are_read() {
    for name in ["state-dict.bin", "parameters.bin"] {
        let found = values(&load(name));
        assert_eq!(found[0], ("a.weight".into(), Dtype::F32, vec![2, 3], quarters(6)));
        assert_eq!(found[1], ("b.weight".into(), Dtype::F32, vec![2], quarters(2)));
        assert_eq!(found.len(), 2);
    }
}

#[test]
fn all_four_dtypes_are_read_also_from_other_zip_writers() {
    for name in ["dtypes.bin", "repacked-zip64.bin"] {
        let found = values(&load(name));
        let dtypes: Vec<_> = found.iter().map(|t| t.1).collect();
        assert_eq!(dtypes, [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64]);
        assert!(found.iter().all(|t| t.2 == [2, 3] && t.3 == quarters(6)), "{name}");
    }
}

#[test]
fn tensors_may_share_a_storage() {
    let file = load("shared.bin");
    let found = values(&file);
    let all = quarters(12);
    let expect = [
        ("whole", vec![3, 4], &all[..]),
        ("slice", vec![2, 4], &all[4..]),
        ("row", vec![4], &all[8..]),
        ("one", vec![1, 4], &all[4..8]),
    ];
    assert_eq!(found.len(), 4);
    for (tensor, (name, shape, values)) in found.iter().zip(expect) {
        assert_eq!((tensor.0.as_str(), &tensor.2, tensor.3.as_slice()), (name, &shape, values));
    }
    assert_eq!(read(&file.as_slice()).unwrap().storages.len(), 1);
}

#[test]
fn empty_tensors_scalars_and_strides_of_single_elements_are_read() {
    let shapes: Vec<_> = values(&load("empty-and-scalar.bin")).into_iter().map(|t| (t.2, t.3)).collect();
    assert_eq!(shapes, [(vec![0, 4], vec![]), (vec![], vec![1.25]), (vec![1, 1], vec![-2.0])]);
}

#[test]
fn rotary_buffers_are_skipped() {
    let file = load("inv-freq.bin");
    assert_eq!(values(&file).into_iter().map(|t| t.0).collect::<Vec<_>>(), ["w"]);
    assert_eq!(read(&file.as_slice()).unwrap().storages.len(), 2);
}

#[test]
fn everything_else_that_pytorch_writes_is_an_error_that_says_why() {
    for (name, says) in [
        ("bad-transposed.bin", "tensor w has shape [3, 2] and strides [1, 3]: save it with .contiguous()"),
        ("bad-int.bin", "torch.LongStorage"),
        ("bad-nested.bin", "model is not a tensor but a dict: save model.state_dict()"),
        ("bad-list.bin", "opcode 0x5d"),
        ("bad-tensor.bin", "does not hold a dict of tensors"),
        ("bad-legacy.bin", "before 1.6"),
        ("bad-protocol4.bin", "protocol 4"),
        ("bad-call.bin", "posix.system"),
        ("bad-torchscript.bin", "is compressed"),
        ("bad-compressed.bin", "is compressed"),
        ("bad-big-endian.bin", "byte order is \"big\""),
    ] {
        let text = error(&load(name));
        assert!(text.contains(says), "{name}: {text}");
    }
}

#[test]
fn storages_must_be_there_with_their_length_and_be_used() {
    let data = [0u8; 24];
    assert!(read(&pytorch(&[Saved::default()], &[("0", &data)]).bytes.as_slice()).is_ok());
    let error = |storages: &[(&str, &[u8])]| error(&pytorch(&[Saved::default()], storages).bytes);
    assert!(error(&[]).contains("which the archive does not have"));
    assert!(error(&[("0", &data[..20])]).contains("has 20 bytes in the archive, data.pkl says 24"));
    assert!(error(&[("0", &data), ("1", &data)]).contains("which no tensor uses"));
}

#[test]
fn the_archive_must_have_one_pickle() {
    assert!(error(&Zip::new(&[("x", b"")]).bytes).contains("no data.pkl"));
    assert!(error(&Zip::new(&[("data.pkl", b"\x80\x02}.")]).bytes).contains("no data.pkl"));
    let two = Zip::new(&[("a/data.pkl", b"\x80\x02}."), ("b/data.pkl", b"\x80\x02}.")]);
    assert!(error(&two.bytes).contains("more than one"));
    let script = Zip::new(&[("a/data.pkl", b"\x80\x02}."), ("a/constants.pkl", b"\x80\x02).")]);
    assert!(error(&script.bytes).contains("TorchScript"));
    let one = Zip::new(&[("a/data.pkl", b"\x80\x02}.")]);
    assert!(read(&one.bytes.as_slice()).unwrap().tensors.is_empty());
}

#[test]
fn a_pickle_beyond_the_limit_is_refused() {
    let long = vec![b'N'; (16 << 20) + 1];
    assert!(error(&Zip::new(&[("a/data.pkl", &long)]).bytes).contains("more than any checkpoint"));
}

#[test]
fn a_changed_pickle_is_found_by_its_checksum() {
    let zip = pytorch(&[Saved::default()], &[("0", &[0; 24])]);
    let at = zip.locals[0] + 30 + "archive/data.pkl".len() + 2;
    assert!(error(&zip.set(at, b"X").bytes).contains("CRC-32"));
}
