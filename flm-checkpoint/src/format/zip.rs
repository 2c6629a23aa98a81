//! The central directory of a PyTorch archive: a zip file whose entries are stored as they are.
//!
//! Own reader instead of the `zip` crate's because positioned reads rely on what the archive says:
//! local and central headers must agree and entries must not overlap.
//! Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;

use crate::format::Source;

/// What can be wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZipError {
    /// It could not be read.
    #[error("cannot read the archive: {0}")]
    Read(#[from] std::io::Error),
    /// It is a bare pickle, as PyTorch wrote before 1.6.
    #[error(
        "is in PyTorch's format from before 1.6, which is not supported: load and save it again with torch.save"
    )]
    Legacy,
    /// It is no zip archive.
    #[error("not a PyTorch file: it does not begin as a zip archive")]
    NotZip,
    /// Its end is missing.
    #[error("the archive's end is missing: the file was cut off; download it again")]
    NoEnd,
    /// The records at its end contradict each other or the file's length.
    #[error("the archive's end is malformed: {0}")]
    End(&'static str),
    /// It has more entries, or a longer directory, than is read.
    #[error("the archive's directory has {0}, more than any checkpoint")]
    TooLarge(String),
    /// The record of an entry is malformed.
    #[error("record {index} of the archive's directory is malformed: {reason}")]
    Record {
        /// Which, from 0.
        index: u64,
        /// What the directory says that cannot be.
        reason: &'static str,
    },
    /// Two entries have the same name.
    #[error("entry {0} stands twice in the archive")]
    Duplicate(String),
    /// An entry is compressed.
    #[error("entry {0} is compressed: load and save the file with torch.save, or repack it with `zip -0`")]
    Compressed(String),
    /// An entry is encrypted.
    #[error("entry {0} is encrypted")]
    Encrypted(String),
    /// The two headers of an entry disagree.
    #[error("entry {entry}: the header before the data and the archive's directory disagree on the {what}")]
    Disagree {
        /// Name of the entry.
        entry: String,
        /// On what.
        what: &'static str,
    },
    /// The bytes of an entry are not those that were saved.
    #[error("entry {entry} has CRC-32 {got:08x}, the archive says {expected:08x}: download the file again")]
    Checksum {
        /// Name of the entry.
        entry: String,
        /// CRC-32 by the archive.
        expected: u32,
        /// CRC-32 of its bytes.
        got: u32,
    },
    /// An entry reaches into the next or past the data.
    #[error("entry {0} overlaps what follows it")]
    Overlap(String),
}

/// A stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZipEntry {
    /// Name.
    pub name: String,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// CRC-32 of the data.
    pub crc32: u32,
}

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const MAX_ENTRIES: u64 = 1 << 20;
const MAX_DIRECTORY: u64 = 256 << 20;

/// Reads and checks the directory and every local header; entries come in the order of the file.
///
/// Of a distant source the headers in front of storages (`NAME/data/KEY`), which stand all over the file,
/// are not read: the offsets of those entries are that of the header then.
pub(crate) fn read(source: &impl Source) -> Result<Vec<ZipEntry>, ZipError> {
    let mut magic = [0; 4];
    if source.size() < 4 {
        return Err(ZipError::NotZip);
    }
    source.read_exact_at(&mut magic, 0)?;
    match magic {
        [0x80, 1..=5, ..] => return Err(ZipError::Legacy),
        _ if u32::from_le_bytes(magic) != LOCAL => return Err(ZipError::NotZip),
        _ => {}
    }
    let directory = find_directory(source)?;
    let bytes = source.bytes_at(directory.offset, directory.size as usize)?;
    let mut records = read_records(&bytes, directory.entries)?;
    records.sort_by_key(|r| r.header_offset);
    let mut entries = Vec::with_capacity(records.len());
    for (i, record) in records.iter().enumerate() {
        let next = records.get(i + 1).map_or(directory.offset, |r| r.header_offset);
        entries.push(match source.is_distant() && record.name.contains("/data/") {
            true => unlocated(record, next)?,
            false => locate(source, record, next)?,
        });
    }
    let mut names = HashSet::new();
    match entries.iter().find(|e| !names.insert(e.name.as_str())) {
        Some(entry) => Err(ZipError::Duplicate(entry.name.clone())),
        None => Ok(entries),
    }
}

/// Where the central directory lies.
struct Directory {
    offset: u64,
    size: u64,
    entries: u64,
}

fn find_directory(source: &impl Source) -> Result<Directory, ZipError> {
    const LEN: usize = 22;
    let size = source.size();
    let tail_len = size.min((LEN + 0xFFFF) as u64) as usize;
    let tail_start = size - tail_len as u64;
    let tail = source.bytes_at(tail_start, tail_len)?;
    // The record whose comment ends exactly where the file ends.
    let at = (0..=tail_len.saturating_sub(LEN)).rev().find(|&at| {
        let end = Fields(&tail[at..]);
        end.u32(0) == Some(END) && end.u16(20).map(usize::from) == Some(tail_len - at - LEN)
    });
    let at = at.ok_or(ZipError::NoEnd)?;
    let malformed = || ZipError::End("it is cut off");
    let end = Fields(&tail[at..]);
    let short = Directory {
        entries: end.u16(10).ok_or_else(malformed)?.into(),
        size: end.u32(12).ok_or_else(malformed)?.into(),
        offset: end.u32(16).ok_or_else(malformed)?.into(),
    };
    let disks = (end.u16(4), end.u16(6));
    if !matches!(disks, (Some(0), Some(0)) | (Some(0xFFFF), Some(0xFFFF))) {
        return Err(ZipError::End("the archive is split over disks"));
    }
    let end_offset = tail_start + at as u64;
    let locator = match end_offset.checked_sub(20) {
        Some(offset) => source.bytes_at(offset, 20)?,
        None => Vec::new(),
    };
    let locator = Fields(&locator);
    let (directory, directory_end) = if locator.u32(0) == Some(LOCATOR64) {
        let offset = locator.u64(8).ok_or_else(malformed)?;
        let record =
            source.bytes_at(offset, 56).map_err(|_| ZipError::End("its ZIP64 record is out of range"))?;
        let record = Fields(&record);
        let length = record.u64(4).ok_or_else(malformed)?;
        if record.u32(0) != Some(END64)
            || offset.checked_add(12 + length.min(1 << 32)) != Some(end_offset - 20)
        {
            return Err(ZipError::End("its ZIP64 record is not where it should be"));
        }
        if (record.u32(16), record.u32(20)) != (Some(0), Some(0)) || record.u64(24) != record.u64(32) {
            return Err(ZipError::End("the archive is split over disks"));
        }
        let long = Directory {
            entries: record.u64(32).ok_or_else(malformed)?,
            size: record.u64(40).ok_or_else(malformed)?,
            offset: record.u64(48).ok_or_else(malformed)?,
        };
        let agree = |short: u64, sentinel: u64, long: u64| short == sentinel || short == long;
        if !agree(short.entries, 0xFFFF, long.entries)
            || !agree(short.size, 0xFFFF_FFFF, long.size)
            || !agree(short.offset, 0xFFFF_FFFF, long.offset)
        {
            return Err(ZipError::End("its ZIP64 record and its end record disagree"));
        }
        (long, offset)
    } else {
        if end.u16(8) != end.u16(10) {
            return Err(ZipError::End("the archive is split over disks"));
        }
        (short, end_offset)
    };
    if directory.entries > MAX_ENTRIES {
        return Err(ZipError::TooLarge(format!("{} entries", directory.entries)));
    }
    if directory.size > MAX_DIRECTORY {
        return Err(ZipError::TooLarge(format!("{} bytes", directory.size)));
    }
    if directory.offset.checked_add(directory.size) != Some(directory_end) {
        return Err(ZipError::End("the directory is not where it should be"));
    }
    Ok(directory)
}

/// What the central directory says of an entry.
struct Record {
    name: String,
    flags: u16,
    method: u16,
    crc32: u32,
    size: u64,
    header_offset: u64,
}

fn read_records(mut bytes: &[u8], count: u64) -> Result<Vec<Record>, ZipError> {
    const LEN: usize = 46;
    let mut records = Vec::new();
    for index in 0..count {
        let bad = |reason| ZipError::Record { index, reason };
        let cut = || bad("it is cut off");
        let fields = Fields(bytes);
        if fields.u32(0).ok_or_else(cut)? != CENTRAL {
            return Err(bad("it has no signature"));
        }
        let length = |at| fields.u16(at).map(usize::from).ok_or_else(cut);
        let (name_len, extra_len, comment_len) = (length(28)?, length(30)?, length(32)?);
        let name = bytes.get(LEN..LEN + name_len).ok_or_else(cut)?;
        let name = String::from_utf8(name.into()).map_err(|_| bad("its name is not UTF-8"))?;
        let extra = bytes.get(LEN + name_len..LEN + name_len + extra_len).ok_or_else(cut)?;
        let flags = fields.u16(8).ok_or_else(cut)?;
        let method = fields.u16(10).ok_or_else(cut)?;
        // The ZIP64 extra field holds those of the four that do not fit, in this order.
        let mut wide = zip64_values(extra);
        let mut widen = |short: Option<u32>| match short {
            Some(u32::MAX) => wide.next().ok_or_else(|| bad("it has no ZIP64 sizes")),
            Some(short) => Ok(u64::from(short)),
            None => Err(cut()),
        };
        let size = widen(fields.u32(24))?;
        let compressed = widen(fields.u32(20))?;
        let header_offset = widen(fields.u32(42))?;
        if flags & 0x2041 != 0 {
            return Err(ZipError::Encrypted(name));
        }
        if method != 0 || compressed != size {
            return Err(ZipError::Compressed(name));
        }
        let crc32 = fields.u32(16).ok_or_else(cut)?;
        records.push(Record { name, flags, method, crc32, size, header_offset });
        bytes = bytes.get(LEN + name_len + extra_len + comment_len..).ok_or_else(cut)?;
    }
    if !bytes.is_empty() {
        return Err(ZipError::End("the directory holds more than its entries"));
    }
    Ok(records)
}

/// The entry of `record`, whose local header is not read, if it fits before `next`.
fn unlocated(record: &Record, next: u64) -> Result<ZipEntry, ZipError> {
    let end = record.header_offset.checked_add(30 + record.name.len() as u64 + record.size);
    if end.is_none_or(|end| end > next) {
        return Err(ZipError::Overlap(record.name.clone()));
    }
    let Record { name, crc32, size, header_offset, .. } = record;
    Ok(ZipEntry { name: name.clone(), offset: *header_offset, size: *size, crc32: *crc32 })
}

/// Reads the local header of `record` and checks that its data end before `next`.
fn locate(source: &impl Source, record: &Record, next: u64) -> Result<ZipEntry, ZipError> {
    const LEN: usize = 30;
    let entry = || record.name.clone();
    let disagree = |what| ZipError::Disagree { entry: entry(), what };
    let overlap = || ZipError::Overlap(entry());
    let names_end = (LEN + record.name.len()) as u64;
    if record.header_offset.checked_add(names_end).is_none_or(|end| end > next) {
        return Err(overlap());
    }
    let bytes = source.bytes_at(record.header_offset, names_end as usize)?;
    let local = Fields(&bytes);
    if local.u32(0) != Some(LOCAL) {
        return Err(disagree("place"));
    }
    if local.u16(26).map(usize::from) != Some(record.name.len()) || &bytes[LEN..] != record.name.as_bytes() {
        return Err(disagree("name"));
    }
    if local.u16(6).unwrap_or(0) & 0x2041 != 0 {
        return Err(ZipError::Encrypted(entry()));
    }
    if local.u16(8) != Some(record.method) {
        return Err(disagree("compression"));
    }
    let extra_len = local.u16(28).unwrap_or(0);
    let offset = record.header_offset + names_end + u64::from(extra_len);
    if offset.checked_add(record.size).is_none_or(|end| end > next) {
        return Err(overlap());
    }
    // Bit 3: sizes and CRC follow the data, and are zero here. PyTorch sets it always.
    let deferred = (local.u16(6).unwrap_or(0) | record.flags) & 8 != 0;
    if local.u32(14) != Some(record.crc32) && !(deferred && local.u32(14) == Some(0)) {
        return Err(disagree("CRC-32"));
    }
    let extra = source.bytes_at(record.header_offset + names_end, extra_len.into())?;
    let mut wide = zip64_values(&extra);
    for at in [22, 18] {
        let size = match local.u32(at) {
            Some(u32::MAX) => wide.next().unwrap_or(u32::MAX.into()),
            short => short.unwrap_or(0).into(),
        };
        if size != record.size && !(deferred && size == 0) {
            return Err(disagree("size"));
        }
    }
    Ok(ZipEntry { name: entry(), offset, size: record.size, crc32: record.crc32 })
}

/// The values of the ZIP64 extra field (id 1), in order; none where there is no such field.
fn zip64_values(mut extra: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut found: &[u8] = &[];
    while let (Some(id), Some(len)) = (Fields(extra).u16(0), Fields(extra).u16(2)) {
        let Some(body) = extra.get(4..4 + usize::from(len)) else { break };
        if id == 1 {
            found = body;
            break;
        }
        extra = &extra[4 + usize::from(len)..];
    }
    found.chunks_exact(8).filter_map(|b| b.try_into().ok().map(u64::from_le_bytes))
}

/// Little-endian numbers at byte positions; `None` past the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}
