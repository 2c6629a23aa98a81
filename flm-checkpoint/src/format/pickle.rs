//! A reader for the pickles of `torch.save(state_dict)`. It executes nothing: it knows the opcodes
//! that such pickles have and the four functions that rebuild tensors, as data.
//!
//! All values live in arenas and are copied by index, so that a small file cannot grow in memory and
//! nothing recurses. Opcodes: CPython, `Lib/pickletools.py`, protocol 2.

pub(crate) mod error;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};

use crate::dtype::Dtype;

use crate::format::pickle::error::PickleError;

/// Longest pickle that is read; that of the largest 1T shard has some 20 kB.
pub(crate) const MAX_PICKLE: u64 = 16 << 20;
const MAX_STACK: usize = 1 << 20;
pub(crate) const MAX_MEMO: usize = 1 << 20;
/// Values in tuples, and as many in dicts; a tensor takes some fifteen of them and over a hundred bytes.
const MAX_ITEMS: usize = 1 << 22;
const MAX_DICTS: usize = 1 << 20;
const MAX_TENSORS: usize = 1 << 20;
const MAX_RANK: usize = 8;
pub(crate) const MAX_NAME: usize = 1024;

type Result<T> = std::result::Result<T, PickleError>;

/// A tensor as the pickle describes it: contiguous, inside its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickledTensor {
    pub name: String,
    pub element: Element,
    pub shape: Vec<usize>,
    /// Key of the storage: the archive's entry `data/KEY`.
    pub storage: String,
    /// Length of the storage in bytes.
    pub storage_bytes: u64,
    /// First byte in the storage.
    pub offset: u64,
    pub nbytes: u64,
}

/// What a storage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element {
    /// Name of torch's class of such storages.
    pub storage: &'static str,
    /// Bytes of one.
    pub width: u64,
    /// `None` for what weights are not.
    pub dtype: Option<Dtype>,
}

/// The storages of torch.
const STORAGES: [(&str, u64, Option<Dtype>); 10] = [
    ("BFloat16Storage", 2, Some(Dtype::BF16)),
    ("HalfStorage", 2, Some(Dtype::F16)),
    ("FloatStorage", 4, Some(Dtype::F32)),
    ("DoubleStorage", 8, Some(Dtype::F64)),
    ("LongStorage", 8, None),
    ("IntStorage", 4, None),
    ("ShortStorage", 2, None),
    ("CharStorage", 1, None),
    ("ByteStorage", 1, None),
    ("BoolStorage", 1, None),
];

/// The classes and functions that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Storage(Element),
}

/// A value on the stack: small, copied; strings are ranges of the pickle, the rest indexes arenas.
#[derive(Debug, Clone, Copy)]
enum Value {
    None,
    Bool,
    Int(i64),
    Str { start: u32, len: u32 },
    Global(Global),
    Tuple { start: u32, len: u32 },
    Dict(u32),
    Storage { element: Element, key: (u32, u32), elements: u64 },
    Tensor(u32),
}

impl Value {
    fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "a number",
            Self::Str { .. } => "a string",
            Self::Global(_) => "a class",
            Self::Tuple { .. } => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Storage { .. } => "a bare storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

#[derive(Debug, Default)]
struct Dict {
    ordered: bool,
    items: Vec<(Value, Value)>,
}

#[derive(Debug, Clone, Copy)]
struct Tensor {
    element: Element,
    key: (u32, u32),
    storage_elements: u64,
    offset: u64,
    /// Tuples of the tuple arena.
    shape: (u32, u32),
    stride: (u32, u32),
}

struct Machine<'a> {
    bytes: &'a [u8],
    /// Position of the next byte, and of the opcode being executed.
    next: usize,
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    items: Vec<Value>,
    dicts: Vec<Dict>,
    /// Pairs in all dicts.
    pairs: usize,
    tensors: Vec<Tensor>,
}

/// The tensors of a pickled dict, in its order.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<PickledTensor>> {
    if bytes.len() as u64 > MAX_PICKLE {
        return Err(PickleError::TooLong(bytes.len() as u64));
    }
    let mut machine = Machine {
        bytes,
        next: 0,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        items: Vec::new(),
        dicts: Vec::new(),
        pairs: 0,
        tensors: Vec::new(),
    };
    let Value::Dict(root) = machine.run()? else { return Err(PickleError::NotADict) };
    machine.describe(&machine.dicts[root as usize])
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Value> {
        loop {
            self.at = self.next;
            let opcode = self.take(1)?[0];
            match opcode {
                0x80 => match self.take(1)?[0] {
                    2 => {}
                    other => return Err(PickleError::Protocol(other)),
                },
                b'(' => {
                    if self.marks.len() >= MAX_STACK {
                        return Err(self.too_many("marks"));
                    }
                    self.marks.push(self.stack.len());
                }
                b'}' => self.push_dict(false)?,
                b')' => self.push(Value::Tuple { start: 0, len: 0 })?,
                b'N' => self.push(Value::None)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'K' => {
                    let n = self.take(1)?[0];
                    self.push(Value::Int(n.into()))?;
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))?;
                }
                0x8a => {
                    let n = self.long()?;
                    self.push(Value::Int(n))?;
                }
                b'X' => {
                    let len = u32::from_le_bytes(self.array()?);
                    let start = self.next as u32;
                    if std::str::from_utf8(self.take(len as usize)?).is_err() {
                        return Err(self.malformed("a string is not UTF-8"));
                    }
                    self.push(Value::Str { start, len })?;
                }
                b'c' => {
                    let global = self.global()?;
                    self.push(Value::Global(global))?;
                }
                b'q' => {
                    let key = self.take(1)?[0];
                    self.memoize(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.memoize(key)?;
                }
                b'h' => {
                    let key = self.take(1)?[0];
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key)?;
                }
                b't' => {
                    let start = self.pop_mark()?;
                    self.push_tuple(start)?;
                }
                0x85..=0x87 => {
                    let len = usize::from(opcode - 0x84);
                    self.require(len)?;
                    self.push_tuple(self.stack.len() - len)?;
                }
                b'Q' => self.persistent_id()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b's' => {
                    self.require(2)?;
                    self.set_items(self.stack.len() - 2)?;
                }
                b'u' => {
                    let start = self.pop_mark()?;
                    self.set_items(start)?;
                }
                b'.' => {
                    let value = self.pop()?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return Err(self.malformed("values are left over at the end"));
                    }
                    if self.next != self.bytes.len() {
                        return Err(self.malformed("bytes follow the end"));
                    }
                    return Ok(value);
                }
                opcode => return Err(PickleError::Opcode { opcode, at: self.at }),
            }
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.next.checked_add(len);
        let bytes = end.and_then(|end| self.bytes.get(self.next..end));
        let bytes = bytes.ok_or(PickleError::Truncated(self.bytes.len()))?;
        self.next += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Two's complement of up to eight bytes.
    fn long(&mut self) -> Result<i64> {
        let len = usize::from(self.take(1)?[0]);
        if len > 8 {
            return Err(self.malformed("a number has more than 64 bits"));
        }
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut out = if negative { [0xFF; 8] } else { [0; 8] };
        out[..len].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(out))
    }

    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.next..];
        let len = rest.iter().take(256).position(|&b| b == b'\n');
        let len = len.ok_or_else(|| self.malformed("a class name is cut off or too long"))?;
        let line = self.take(len)?;
        self.take(1)?;
        Ok(line)
    }

    fn global(&mut self) -> Result<Global> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(match (module, name) {
            (b"torch._utils", b"_rebuild_tensor_v2") => Global::RebuildTensor,
            (b"torch._utils", b"_rebuild_parameter") => Global::RebuildParameter,
            (b"collections", b"OrderedDict") => Global::OrderedDict,
            _ => {
                let known = STORAGES.iter().find(|known| module == b"torch" && name == known.0.as_bytes());
                if let Some(&(storage, width, dtype)) = known {
                    return Ok(Global::Storage(Element { storage, width, dtype }));
                }
                let text = |part: &[u8]| String::from_utf8_lossy(part).escape_debug().to_string();
                let global = format!("{}.{}", text(module), text(name));
                return Err(PickleError::Global { global, at: self.at });
            }
        })
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.too_many("values on the stack"));
        }
        self.stack.push(value);
        Ok(())
    }

    /// Fails unless `len` values lie above the last mark.
    fn require(&self, len: usize) -> Result<()> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() < floor + len { Err(self.malformed("the stack is too short")) } else { Ok(()) }
    }

    fn pop(&mut self) -> Result<Value> {
        self.require(1)?;
        self.stack.pop().ok_or_else(|| self.malformed("the stack is empty"))
    }

    fn pop_mark(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(|| self.malformed("there is no mark"))
    }

    fn push_tuple(&mut self, start: usize) -> Result<()> {
        if self.items.len() + self.stack.len() > MAX_ITEMS {
            return Err(self.too_many("values in tuples"));
        }
        let first = self.items.len() as u32;
        self.items.extend(self.stack.drain(start..));
        let len = self.items.len() as u32 - first;
        self.push(Value::Tuple { start: first, len })
    }

    fn push_dict(&mut self, ordered: bool) -> Result<()> {
        if self.dicts.len() >= MAX_DICTS {
            return Err(self.too_many("dicts"));
        }
        self.dicts.push(Dict { ordered, items: Vec::new() });
        self.push(Value::Dict(self.dicts.len() as u32 - 1))
    }

    fn memoize(&mut self, key: u32) -> Result<()> {
        self.require(1)?;
        let value = self.stack[self.stack.len() - 1];
        if self.memo.len() >= MAX_MEMO {
            return Err(self.too_many("memo entries"));
        }
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = self.memo.get(&key).copied();
        self.push(value.ok_or_else(|| self.malformed("a memo entry does not exist"))?)
    }

    fn pop_tuple(&mut self) -> Result<(u32, u32)> {
        match self.pop()? {
            Value::Tuple { start, len } => Ok((start, len)),
            _ => Err(self.malformed("expected a tuple")),
        }
    }

    fn tuple(&self, (start, len): (u32, u32)) -> &[Value] {
        &self.items[start as usize..(start + len) as usize]
    }

    fn text(&self, (start, len): (u32, u32)) -> &'a str {
        let bytes = &self.bytes[start as usize..(start + len) as usize];
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// `("storage", torch.XStorage, key, location, elements)`, see torch/serialization.py.
    fn persistent_id(&mut self) -> Result<()> {
        let id = self.pop_tuple()?;
        let value = match *self.tuple(id) {
            [
                Value::Str { start, len },
                Value::Global(Global::Storage(element)),
                Value::Str { start: key_start, len: key_len },
                Value::Str { .. },
                Value::Int(elements),
            ] if self.text((start, len)) == "storage" && elements >= 0 => {
                Value::Storage { element, key: (key_start, key_len), elements: elements as u64 }
            }
            _ => return Err(self.malformed("not a reference to a storage")),
        };
        self.push(value)
    }

    fn reduce(&mut self) -> Result<()> {
        let args = self.pop_tuple()?;
        let Value::Global(function) = self.pop()? else {
            return Err(self.malformed("something that is not a function is called"));
        };
        match (function, self.tuple(args)) {
            (Global::OrderedDict, []) => self.push_dict(true),
            // storage, offset, shape, strides, requires_grad, hooks[, metadata]
            (
                Global::RebuildTensor,
                &[
                    Value::Storage { element, key, elements },
                    Value::Int(offset),
                    Value::Tuple { start, len },
                    Value::Tuple { start: stride_start, len: stride_len },
                    Value::Bool,
                    Value::Dict(hooks),
                    ref metadata @ ..,
                ],
            ) if offset >= 0
                && matches!(metadata, [] | [Value::None])
                && self.dicts[hooks as usize].items.is_empty() =>
            {
                if self.tensors.len() >= MAX_TENSORS {
                    return Err(self.too_many("tensors"));
                }
                let tensor = Tensor {
                    element,
                    key,
                    storage_elements: elements,
                    offset: offset as u64,
                    shape: (start, len),
                    stride: (stride_start, stride_len),
                };
                self.tensors.push(tensor);
                self.push(Value::Tensor(self.tensors.len() as u32 - 1))
            }
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), Value::Bool, Value::Dict(hooks)])
                if self.dicts[hooks as usize].items.is_empty() =>
            {
                self.push(tensor)
            }
            _ => Err(self.malformed("a function is called with unexpected arguments")),
        }
    }

    /// The attributes of a dict: only `_metadata`, the versions that `state_dict()` attaches.
    fn build(&mut self) -> Result<()> {
        let (Value::Dict(state), Value::Dict(target)) = (self.pop()?, self.pop()?) else {
            return Err(self.malformed("attributes are set on something that is not a dict"));
        };
        let only_metadata = self.dicts[state as usize].items.iter().all(
            |&(key, _)| matches!(key, Value::Str { start, len } if self.text((start, len)) == "_metadata"),
        );
        if !self.dicts[target as usize].ordered || !only_metadata {
            return Err(self.malformed("attributes other than _metadata are set"));
        }
        self.push(Value::Dict(target))
    }

    fn set_items(&mut self, start: usize) -> Result<()> {
        let below = start.checked_sub(1).map(|i| self.stack[i]);
        let (Some(Value::Dict(dict)), true) = (below, (self.stack.len() - start).is_multiple_of(2)) else {
            return Err(self.malformed("items are set on something that is not a dict"));
        };
        self.pairs += (self.stack.len() - start) / 2;
        if self.pairs > MAX_ITEMS / 2 {
            return Err(self.too_many("values in dicts"));
        }
        let mut values = self.stack.drain(start..);
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            self.dicts[dict as usize].items.push((key, value));
        }
        Ok(())
    }

    fn malformed(&self, reason: &'static str) -> PickleError {
        PickleError::Malformed { at: self.at, reason }
    }

    fn too_many(&self, what: &'static str) -> PickleError {
        PickleError::TooMany { what, at: self.at }
    }

    fn describe(&self, root: &Dict) -> Result<Vec<PickledTensor>> {
        if root.items.len() > MAX_TENSORS {
            return Err(PickleError::TooMany { what: "tensors", at: self.at });
        }
        let mut names = HashSet::new();
        let mut found = Vec::new();
        for &(key, value) in &root.items {
            let Value::Str { start, len: len @ 1.. } = key else { return Err(PickleError::BadName) };
            if len as usize > MAX_NAME {
                return Err(PickleError::BadName);
            }
            let name = self.text((start, len));
            if name.contains(char::is_control) {
                return Err(PickleError::BadName);
            }
            if !names.insert(name) {
                return Err(PickleError::Duplicate(name.into()));
            }
            match value {
                Value::Tensor(index) => found.push(self.tensor(name, &self.tensors[index as usize])?),
                other => return Err(PickleError::NotATensor { key: name.into(), kind: other.kind() }),
            }
        }
        Ok(found)
    }

    fn tensor(&self, name: &str, tensor: &Tensor) -> Result<PickledTensor> {
        let malformed = |reason| PickleError::Malformed { at: self.at, reason };
        let width = tensor.element.width;
        let (shape, stride) = (self.sizes(tensor.shape)?, self.sizes(tensor.stride)?);
        if shape.len() != stride.len() {
            return Err(malformed("a tensor has more sizes than strides, or fewer"));
        }
        let too_large = || malformed("a tensor is larger than a file can be");
        let bytes_of = |elements: u64| elements.checked_mul(width).filter(|&n| n <= i64::MAX as u64);
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        let nbytes = elements.and_then(bytes_of).ok_or_else(too_large)?;
        let storage_bytes = bytes_of(tensor.storage_elements).ok_or_else(too_large)?;
        if !is_contiguous(&shape, &stride) {
            return Err(PickleError::NotContiguous { tensor: name.into(), shape, stride });
        }
        let elements = nbytes / width;
        if tensor.offset.checked_add(elements).is_none_or(|end| end > tensor.storage_elements) {
            return Err(PickleError::OutsideStorage {
                tensor: name.into(),
                offset: tensor.offset,
                elements,
                storage: tensor.storage_elements,
            });
        }
        let storage = self.text(tensor.key);
        if storage.is_empty() || storage.len() > MAX_NAME {
            return Err(malformed("a storage's key is empty or too long"));
        }
        Ok(PickledTensor {
            name: name.into(),
            element: tensor.element,
            shape,
            storage: storage.into(),
            storage_bytes,
            offset: tensor.offset * width,
            nbytes,
        })
    }

    fn sizes(&self, tuple: (u32, u32)) -> Result<Vec<usize>> {
        if tuple.1 as usize > MAX_RANK {
            return Err(PickleError::TooMany { what: "dimensions of a tensor", at: self.at });
        }
        let size = |value: &Value| match *value {
            Value::Int(n) => usize::try_from(n).ok(),
            _ => None,
        };
        let sizes = self.tuple(tuple).iter().map(size).collect::<Option<_>>();
        sizes.ok_or_else(|| self.malformed("a size is not a number ≥ 0"))
    }
}

/// Row-major without gaps; the stride of a dimension of size 1 does not matter.
fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape.iter().zip(stride).rev().all(|(&size, &stride)| {
            let ok = size == 1 || stride == expected;
            expected *= size;
            ok
        })
}
