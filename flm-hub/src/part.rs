//! A file that is being downloaded: `NAME.part`, and `NAME.part.ranges`, which tells what of it is there.
//!
//! The ranges file is a header and then a record for each piece written: where it lies and its CRC-32. It is
//! only appended to, after the piece is written, so that a killed process loses no more than the pieces in
//! its hands; a piece that a crash of the machine took from the disk is found by its CRC when the file is
//! hashed, and only that piece is fetched again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::digest::Digest;
use crate::error::{Result, io};
use flm_checkpoint::{Ranges, atomic};

const MAGIC: &[u8; 8] = b"flmpart1";
const HEADER: usize = 8 + 8 + 32 + 4;
const RECORD: usize = 8 + 4 + 4 + 4;

/// What of a file is on disk.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    log: File,
    bytes: u64,
    /// Offset → length and CRC-32.
    pieces: BTreeMap<u64, (u32, u32)>,
    /// What is neither on disk nor being fetched.
    free: Ranges,
}

/// `NAME.part`
pub(crate) fn part_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part")
}

fn log_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part.ranges")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Part {
    /// Opens what an earlier process left for the file `target` of these bytes and digest, or begins anew.
    pub(crate) fn open(target: &Path, bytes: u64, digest: &Digest) -> Result<Self> {
        let (path, log_path) = (part_path(target), log_path(target));
        let header = header(bytes, digest);
        let records = read_records(&log_path, &header).filter(|_| is_file(&path));
        if records.is_none() {
            atomic::remove(&log_path)?;
            atomic::remove(&path)?;
        }
        let open = |path: &Path| {
            let mut options = File::options();
            flm_checkpoint::atomic::open_own(
                path,
                options.read(true).write(true).create(true).truncate(false),
            )
        };
        let (file, mut log) = (open(&path)?, open(&log_path)?);
        file.set_len(bytes).map_err(io("set the length of", &path))?;
        reserve(&file, bytes).map_err(io("reserve the room for", &path))?;
        let records = records.unwrap_or_default();
        // a torn record at the end is overwritten
        let end = HEADER + records.len() * RECORD;
        if records.is_empty() {
            log.set_len(0).and_then(|()| log.write_all(&header)).map_err(io("write", &log_path))?;
        }
        log.set_len(end as u64).map_err(io("write", &log_path))?;
        std::io::Seek::seek(&mut log, std::io::SeekFrom::End(0)).map_err(io("write", &log_path))?;
        let mut part = Self { path, file, log, bytes, pieces: BTreeMap::new(), free: Ranges::all(bytes) };
        for (offset, len, crc) in records {
            part.place(offset, len, crc);
        }
        Ok(part)
    }

    /// How many bytes an earlier process left, without opening anything.
    pub(crate) fn left_behind(target: &Path, bytes: u64, digest: &Digest) -> u64 {
        let records =
            read_records(&log_path(target), &header(bytes, digest)).filter(|_| is_file(&part_path(target)));
        let mut free = Ranges::all(bytes);
        for (offset, len, _) in records.unwrap_or_default() {
            free.remove(offset..(offset + u64::from(len)).min(bytes));
        }
        bytes - free.len()
    }

    /// Bytes of disk that an earlier process took for the file.
    pub(crate) fn reserved(target: &Path, bytes: u64) -> u64 {
        part_path(target).metadata().map_or(0, |meta| (meta.blocks() * 512).min(bytes))
    }

    fn place(&mut self, offset: u64, len: u32, crc: u32) {
        let end = offset + u64::from(len);
        if len == 0 || end > self.bytes {
            return;
        }
        let overlapped: Vec<u64> = self
            .pieces
            .range(..end)
            .rev()
            .take_while(|(o, (l, _))| *o + u64::from(*l) > offset)
            .map(|(o, _)| *o)
            .collect();
        for old in overlapped {
            self.forget(old);
        }
        self.pieces.insert(offset, (len, crc));
        self.free.remove(offset..end);
    }

    /// Takes out the first range to fetch, of at most `most` bytes.
    pub(crate) fn claim(&mut self, most: u64) -> Option<Range<u64>> {
        self.free.take_first(most)
    }

    /// Gives back what was claimed and not written.
    pub(crate) fn release(&mut self, range: Range<u64>) {
        self.free.insert(range);
    }

    pub(crate) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// What was neither written nor claimed.
    pub(crate) fn free(&self) -> &Ranges {
        &self.free
    }

    /// Records that `bytes` were written at `offset` by [`Part::file`].
    pub(crate) fn record(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (len, crc) = (bytes.len() as u32, crc32fast::hash(bytes));
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&offset.to_le_bytes());
        record[8..12].copy_from_slice(&len.to_le_bytes());
        record[12..16].copy_from_slice(&crc.to_le_bytes());
        let check = crc32fast::hash(&record[..16]);
        record[16..].copy_from_slice(&check.to_le_bytes());
        self.log.write_all(&record).map_err(io("write", &self.path))?;
        self.place(offset, len, crc);
        Ok(())
    }

    /// A handle to write pieces by position.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(io("open", &self.path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The piece that holds byte `offset`, if it is on disk: its start, length, CRC-32.
    pub(crate) fn piece_at(&self, offset: u64) -> Option<(u64, u32, u32)> {
        let (&start, &(len, crc)) = self.pieces.range(..=offset).next_back()?;
        (start + u64::from(len) > offset).then_some((start, len, crc))
    }

    /// Declares a piece to be missing.
    pub(crate) fn forget(&mut self, start: u64) {
        if let Some((len, _)) = self.pieces.remove(&start) {
            self.free.insert(start..start + u64::from(len));
        }
    }

    /// Bytes on disk.
    #[cfg(test)]
    fn have(&self) -> u64 {
        self.pieces.values().map(|(len, _)| u64::from(*len)).sum()
    }

    /// Throws everything away and begins anew.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.log.set_len(HEADER as u64).map_err(io("write", &self.path))?;
        std::io::Seek::seek(&mut self.log, std::io::SeekFrom::End(0)).map_err(io("write", &self.path))?;
        self.pieces.clear();
        self.free = Ranges::all(self.bytes);
        Ok(())
    }

    /// Fsyncs the content, gives it its final name and removes the ranges file.
    pub(crate) fn publish(&self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(io("sync", &self.path))?;
        atomic::rename(&self.path, target)?;
        Ok(atomic::remove(&log_path(target))?)
    }
}

/// Takes the disk that a file will need, so that a full one is told before anything is downloaded.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    use rustix::io::Errno;
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        // a file system that cannot: it tells when it is full
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        done => Ok(done?),
    }
}

/// Whether a file stands there itself, not a link to one.
fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}

/// Removes what a process left that was killed after it had given the file its name.
pub(crate) fn discard_stray(target: &Path) -> Result<()> {
    let log_path = log_path(target);
    let mut magic = [0; MAGIC.len()];
    let ours = is_file(&log_path)
        && File::open(&log_path).is_ok_and(|mut log| log.read_exact(&mut magic).is_ok())
        && magic == *MAGIC;
    if ours { discard(target) } else { Ok(()) }
}

/// Removes what a download left.
pub(crate) fn discard(target: &Path) -> Result<()> {
    atomic::remove(&log_path(target))?;
    Ok(atomic::remove(&part_path(target))?)
}

/// Fills `buf` from the part; false where that is not what `crc` says.
pub(crate) fn read_piece(file: &File, offset: u64, buf: &mut [u8], crc: u32) -> bool {
    file.read_exact_at(buf, offset).is_ok() && crc32fast::hash(buf) == crc
}

fn header(bytes: u64, digest: &Digest) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&bytes.to_le_bytes());
    for (i, pair) in digest.hex().as_bytes().chunks(2).take(32).enumerate() {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        header[16 + i] = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    let check = crc32fast::hash(&header[..48]);
    header[48..].copy_from_slice(&check.to_le_bytes());
    header
}

/// Records until the first torn one; `None` where the file is absent or of another download.
fn read_records(path: &Path, header: &[u8; HEADER]) -> Option<Vec<(u64, u32, u32)>> {
    let mut bytes = Vec::new();
    is_file(path).then_some(())?;
    File::open(path).ok()?.read_to_end(&mut bytes).ok()?;
    let records = bytes.strip_prefix(header.as_slice())?;
    let whole = |r: &[u8]| -> Option<(u64, u32, u32)> {
        let word = |at: usize| Some(u32::from_le_bytes(r.get(at..at + 4)?.try_into().ok()?));
        let offset = u64::from_le_bytes(r.get(..8)?.try_into().ok()?);
        (word(16)? == crc32fast::hash(&r[..16])).then_some((offset, word(8)?, word(12)?))
    };
    Some(records.chunks_exact(RECORD).map_while(whole).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::Sha256("ab".repeat(32))
    }

    fn write(part: &mut Part, offset: u64, bytes: &[u8]) {
        part.file().unwrap().write_all_at(bytes, offset).unwrap();
        part.record(offset, bytes).unwrap();
    }

    #[test]
    fn a_part_is_taken_up_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        let mut part = Part::open(&target, 100, &digest()).unwrap();
        assert_eq!(part.claim(30), Some(0..30));
        write(&mut part, 0, &[1; 20]);
        write(&mut part, 50, &[2; 10]);
        drop(part);
        assert_eq!(Part::left_behind(&target, 100, &digest()), 30);

        let mut part = Part::open(&target, 100, &digest()).unwrap();
        assert_eq!(part.have(), 30);
        assert_eq!(
            (part.claim(1000), part.claim(1000), part.claim(1000)),
            (Some(20..50), Some(60..100), None)
        );
        let (start, len, crc) = part.piece_at(55).unwrap();
        let mut buf = vec![0; len as usize];
        assert!(start == 50 && read_piece(&part.file().unwrap(), start, &mut buf, crc) && buf == [2; 10]);
        // the disk lost a piece: only that is missing
        part.file().unwrap().write_all_at(&[0], 53).unwrap();
        assert!(!read_piece(&part.file().unwrap(), start, &mut buf, crc));
        part.forget(start);
        assert_eq!(part.claim(1000), Some(50..60));
        assert!(part.piece_at(55).is_none());
    }

    #[test]
    fn links_are_not_written_through_and_strays_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, precious) = (dir.path().join("x"), dir.path().join("precious"));
        drop(Part::open(&target, 4, &digest()).unwrap());
        std::fs::remove_file(part_path(&target)).unwrap();
        std::fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, part_path(&target)).unwrap();
        let mut part = Part::open(&target, 4, &digest()).unwrap();
        write(&mut part, 0, &[1; 4]);
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
        // killed between the two steps of publishing
        atomic::rename(&part_path(&target), &target).unwrap();
        drop(part);
        assert!(target.is_file() && !target.is_symlink() && log_path(&target).exists());
        discard_stray(&target).unwrap();
        assert!(!log_path(&target).exists() && target.exists());
        // not flm's
        std::fs::write(log_path(&target), "mine").unwrap();
        discard_stray(&target).unwrap();
        assert!(log_path(&target).exists());
    }

    #[test]
    fn room_is_taken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        assert_eq!(Part::reserved(&target, 5 << 20), 0);
        let part = Part::open(&target, 5 << 20, &digest()).unwrap();
        assert_eq!((Part::reserved(&target, 5 << 20), part.have()), (5 << 20, 0));
        assert_eq!(Part::left_behind(&target, 5 << 20, &digest()), 0);
        let too_large = Part::open(&dir.path().join("y"), 1 << 60, &digest()).unwrap_err().to_string();
        assert!(too_large.contains("y.part"), "{too_large}");
    }

    #[test]
    fn a_torn_record_and_a_part_of_another_file_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        let mut part = Part::open(&target, 100, &digest()).unwrap();
        write(&mut part, 0, &[1; 20]);
        write(&mut part, 20, &[2; 20]);
        drop(part);
        let log = File::options().write(true).open(log_path(&target)).unwrap();
        log.set_len((HEADER + 2 * RECORD - 3) as u64).unwrap();
        assert_eq!(Part::left_behind(&target, 100, &digest()), 20);
        let mut part = Part::open(&target, 100, &digest()).unwrap();
        write(&mut part, 20, &[3; 20]);
        drop(part);
        assert_eq!(Part::open(&target, 100, &digest()).unwrap().have(), 40);

        assert_eq!(Part::left_behind(&target, 101, &digest()), 0);
        assert_eq!(Part::left_behind(&target, 100, &Digest::Sha256("ac".repeat(32))), 0);
        assert_eq!(Part::open(&target, 101, &digest()).unwrap().have(), 0);
    }

    #[test]
    fn later_records_win() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        let mut part = Part::open(&target, 100, &digest()).unwrap();
        write(&mut part, 0, &[1; 20]);
        write(&mut part, 20, &[1; 20]);
        part.forget(20);
        write(&mut part, 20, &[2; 80]);
        drop(part);
        let part = Part::open(&target, 100, &digest()).unwrap();
        assert_eq!((part.have(), part.piece_at(40).map(|p| (p.0, p.1))), (100, Some((20, 80))));
    }
}
