//! TensorBoard's event files: records of protobuf messages with checksums.
//!
//! Format: tensorflow's `core/lib/io/record_writer.h` and `core/util/event.proto`.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use flm_train::TrainError;

/// An event file that is open for appending.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// A new file in `dir`; TensorBoard reads all files of a folder as one run.
    pub(crate) fn create(dir: &Path) -> Result<Self, TrainError> {
        fs::create_dir_all(dir).map_err(TrainError::file("create", dir))?;
        let path = dir.join(format!("events.out.tfevents.{:.6}.flm", now()));
        let file = File::create(&path).map_err(TrainError::file("create", &path))?;
        let mut events = Self { file, path };
        let mut message = field_f64(1, now());
        message.extend(field_bytes(3, b"brain.Event:2"));
        events.record(&message)?;
        Ok(events)
    }

    /// Adds one value of a curve.
    pub(crate) fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<(), TrainError> {
        let mut scalar = field_bytes(1, tag.as_bytes());
        scalar.push(2 << 3 | 5);
        scalar.extend((value as f32).to_le_bytes());
        let mut message = field_f64(1, now());
        message.push(2 << 3);
        message.extend(varint(step));
        message.extend(field_bytes(5, &field_bytes(1, &scalar)));
        self.record(&message)
    }

    fn record(&mut self, message: &[u8]) -> Result<(), TrainError> {
        let len = (message.len() as u64).to_le_bytes();
        let mut bytes = len.to_vec();
        bytes.extend(masked(crc32c(&len)).to_le_bytes());
        bytes.extend(message);
        bytes.extend(masked(crc32c(message)).to_le_bytes());
        self.file.write_all(&bytes).map_err(TrainError::file("write", &self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn field_bytes(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(value.len() as u64), value].concat()
}

fn field_f64(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

/// Castagnoli's CRC-32, bit by bit: records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// The form in which records store a checksum.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(varint(300), [0xac, 0x02]);
    }

    #[test]
    fn records_hold_tag_step_and_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path()).unwrap();
        events.scalar("loss", 300, 1.5).unwrap();
        let bytes = fs::read(&events.path).unwrap();
        let mut records = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let len = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let stored = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(stored(8), masked(crc32c(&rest[..8])));
            assert_eq!(stored(12 + len), masked(crc32c(&rest[12..12 + len])));
            records.push(&rest[12..12 + len]);
            rest = &rest[16 + len..];
        }
        assert!(records[0].ends_with(b"brain.Event:2"));
        let expected =
            [&[0x10, 0xac, 0x02, 0x2a, 13, 0x0a, 11, 0x0a, 4][..], b"loss", &[0x15], &1.5f32.to_le_bytes()];
        assert_eq!(&records[1][9..], expected.concat());
    }
}
