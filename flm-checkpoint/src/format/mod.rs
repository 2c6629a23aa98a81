//! Positioned reads from files and, for tests and fuzzing, from bytes.

pub(crate) mod index;
pub(crate) mod pickle;
pub(crate) mod pytorch;
pub(crate) mod safetensors;
pub(crate) mod zip;

use crate::dtype::Dtype;
use crate::format::zip::ZipEntry;

use std::io;

/// What Git LFS leaves in place of a file that was not fetched begins with this.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Something of known length that can be read at any position.
pub trait Source {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from byte `offset`; `UnexpectedEof` where that reaches past the end.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Whether every read is a round trip: then only what is needed to know the tensors is read.
    fn is_distant(&self) -> bool {
        false
    }

    /// `len` bytes from `offset`; checked against the length before anything is allocated.
    fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.size()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut buf = vec![0; len];
        self.read_exact_at(&mut buf, offset)?;
        Ok(buf)
    }
}

impl Source for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A tensor of one file, before files are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    pub nbytes: u64,
}

/// What the headers of a weight file say.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// In the order of the file.
    pub tensors: Vec<RawTensor>,
    /// Names of the tensors that [`is_skipped`] leaves out.
    pub ignored: Vec<String>,
    /// For PyTorch, the archive's entries that hold tensors, in the order of the file.
    pub storages: Vec<ZipEntry>,
}

/// Buffers that old versions of transformers and other tools saved although they follow from the config:
/// transformers ignores them, whatever their dtype is.
pub(crate) fn is_skipped(name: &str) -> bool {
    const BUFFERS: [&str; 7] = [
        "inv_freq",
        "original_inv_freq",
        "cos_cached",
        "sin_cached",
        "position_ids",
        "masked_bias",
        "causal_mask",
    ];
    name.rsplit('.').next().is_some_and(|last| BUFFERS.contains(&last))
}

/// JSON without the byte-order mark that editors of other systems put before it.
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}
