//! Builders of files for tests: small, and easy to make wrong.

use std::path::{Path, PathBuf};

/// A file of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A safetensors file of this header and these data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A zip file and where its records begin.
pub struct Zip {
    pub bytes: Vec<u8>,
    pub locals: Vec<usize>,
    pub centrals: Vec<usize>,
    pub end: usize,
}

impl Zip {
    /// Stored entries with the sizes in both headers, no extra fields.
    pub fn new(entries: &[(&str, &[u8])]) -> Self {
        let (mut bytes, mut central) = (Vec::new(), Vec::new());
        let (mut locals, mut centrals) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            let offset = bytes.len() as u32;
            // Flags, method, time, date, CRC-32, two sizes, length of the name, of the extra field.
            let mut shared = [0u8; 24];
            shared[8..12].copy_from_slice(&crc32fast::hash(data).to_le_bytes());
            shared[12..16].copy_from_slice(&(data.len() as u32).to_le_bytes());
            shared[16..20].copy_from_slice(&(data.len() as u32).to_le_bytes());
            shared[20..22].copy_from_slice(&(name.len() as u16).to_le_bytes());
            locals.push(bytes.len());
            bytes.extend(b"PK\x03\x04\x14\x00");
            bytes.extend(shared);
            bytes.extend(name.as_bytes());
            bytes.extend(*data);
            centrals.push(central.len());
            central.extend(b"PK\x01\x02\x14\x00\x14\x00");
            central.extend(shared);
            central.extend([0; 10]);
            central.extend(offset.to_le_bytes());
            central.extend(name.as_bytes());
        }
        let directory = bytes.len();
        let end = directory + central.len();
        centrals.iter_mut().for_each(|at| *at += directory);
        bytes.extend(&central);
        bytes.extend(b"PK\x05\x06\x00\x00\x00\x00");
        bytes.extend([entries.len() as u16; 2].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend((central.len() as u32).to_le_bytes());
        bytes.extend((directory as u32).to_le_bytes());
        bytes.extend([0; 2]);
        Self { bytes, locals, centrals, end }
    }

    pub fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

/// A tensor as a pickle describes it.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    pub name: &'a str,
    pub class: &'a str,
    pub storage: &'a str,
    pub elements: i64,
    pub offset: i64,
    pub shape: &'a [i64],
    pub stride: &'a [i64],
}

impl Default for Saved<'_> {
    /// Six floats, `[2, 3]`, the whole storage `0`.
    fn default() -> Self {
        Self {
            name: "w",
            class: "FloatStorage",
            storage: "0",
            elements: 6,
            offset: 0,
            shape: &[2, 3],
            stride: &[3, 1],
        }
    }
}

/// The opcodes of a pickle.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn str(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub fn int(self, n: i64) -> Self {
        self.op(b"\x8a\x08").op(&n.to_le_bytes())
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn ints(self, list: &[i64]) -> Self {
        list.iter().fold(self.op(b"("), |p, &n| p.int(n)).op(b"t")
    }

    /// Leaves a tensor on the stack.
    pub fn tensor(self, t: &Saved<'_>) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .str("storage")
            .global("torch", t.class)
            .str(t.storage)
            .str("cpu")
            .int(t.elements)
            .op(b"tQ")
            .int(t.offset)
            .ints(t.shape)
            .ints(t.stride)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    /// A whole state dict.
    pub fn state_dict(tensors: &[Saved<'_>]) -> Vec<u8> {
        let start = Self::default().op(b"\x80\x02").global("collections", "OrderedDict").op(b")R(");
        tensors.iter().fold(start, |p, t| p.str(t.name).tensor(t)).op(b"u.").0
    }
}

/// A PyTorch file of these tensors; `storages` are the entries below `data/`.
pub fn pytorch(tensors: &[Saved<'_>], storages: &[(&str, &[u8])]) -> Zip {
    let pickle = Pickle::state_dict(tensors);
    let names: Vec<String> = storages.iter().map(|(key, _)| format!("archive/data/{key}")).collect();
    let mut entries = vec![("archive/data.pkl", pickle.as_slice()), ("archive/byteorder", b"little")];
    entries.extend(names.iter().zip(storages).map(|(name, (_, data))| (name.as_str(), *data)));
    Zip::new(&entries)
}
