//! Everything that can be wrong with the pickle of a PyTorch file.

use crate::format::pickle::MAX_NAME;

/// What can be wrong with a pickle.
#[allow(missing_docs, reason = "the message says what each field is")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It is longer than is read.
    #[error("data.pkl has {0} bytes, more than any checkpoint")]
    TooLong(u64),
    /// It ends before its end opcode.
    #[error("data.pkl ends at byte {0}, in the middle of an opcode")]
    Truncated(usize),
    /// An opcode that saved tensors do not have.
    #[error(
        "data.pkl has opcode {opcode:#04x} at byte {at}, which a file of tensors does not need: not read"
    )]
    Opcode {
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// A pickle protocol other than 2.
    #[error("data.pkl is of pickle protocol {0}; supported is 2, the default of torch.save")]
    Protocol(u8),
    /// A class or function that saved tensors do not have.
    #[error("data.pkl names {global} at byte {at}, which a file of tensors does not need: not read")]
    Global {
        /// Its name.
        global: String,
        /// Its position.
        at: usize,
    },
    /// An opcode whose operands are of the wrong kind.
    #[error("data.pkl is malformed at byte {at}: {reason}")]
    Malformed {
        /// Position of the opcode.
        at: usize,
        reason: &'static str,
    },
    /// More values than are kept.
    #[error("data.pkl has too many {what} at byte {at}")]
    TooMany {
        what: &'static str,
        /// Position of the opcode.
        at: usize,
    },
    /// It does not hold a dict.
    #[error("data.pkl does not hold a dict of tensors: save model.state_dict()")]
    NotADict,
    /// The dict holds something else than a tensor.
    #[error("data.pkl: {key} is not a tensor but {kind}: save model.state_dict()")]
    NotATensor {
        key: String,
        /// What it is.
        kind: &'static str,
    },
    /// The dict has a name twice.
    #[error("tensor {0} stands twice in data.pkl")]
    Duplicate(String),
    /// A name that is no text or longer than names are.
    #[error("data.pkl has a key that is not a string of 1 to {MAX_NAME} bytes")]
    BadName,
    /// A tensor whose elements are not in row-major order without gaps.
    #[error("tensor {tensor} has shape {shape:?} and strides {stride:?}: save it with .contiguous()")]
    NotContiguous {
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides.
        stride: Vec<usize>,
    },
    /// A tensor that reaches past its storage.
    #[error("tensor {tensor} needs elements {offset}..{offset}+{elements} of a storage of {storage}")]
    OutsideStorage {
        tensor: String,
        /// First element.
        offset: u64,
        /// Number of elements.
        elements: u64,
        /// Elements of the storage.
        storage: u64,
    },
    /// A tensor's storage is not in the archive.
    #[error("tensor {tensor} is in storage {storage}, which the archive does not have")]
    NoStorage {
        tensor: String,
        /// The entry's name.
        storage: String,
    },
    /// A tensor's storage has another length in the archive.
    #[error("tensor {tensor}: storage {storage} has {got} bytes in the archive, data.pkl says {expected}")]
    StorageLength {
        tensor: String,
        /// The entry's name.
        storage: String,
        /// By the pickle.
        expected: u64,
        /// In the archive.
        got: u64,
    },
    /// A tensor of integers or truth values, which weights are not.
    #[error("tensor {tensor} is in a torch.{storage}; supported are BF16, F16, F32 and F64")]
    DType { tensor: String, storage: &'static str },
    /// The archive is not one that torch.save wrote.
    #[error("not a PyTorch checkpoint: {0}")]
    Archive(&'static str),
    /// The archive holds numbers of the other byte order.
    #[error("the file's byte order is {0:?}; supported is little")]
    ByteOrder(String),
    /// A storage that no tensor uses.
    #[error("the archive has entry {0}, which no tensor uses")]
    UnusedStorage(String),
}
