//! Zip directories: where entries lie, and every way to lie about it.

use proptest::prelude::*;

use crate::format::zip::{ZipError, read};
use flm_tests::files::Zip;

/// Two entries: `a` of 3 bytes, `bb` of 5.
fn good() -> Zip {
    Zip::new(&[("a", b"one"), ("bb", b"three")])
}

fn error(zip: &Zip) -> ZipError {
    read(&zip.bytes.as_slice()).unwrap_err()
}

#[test]
fn entries_lie_where_their_local_headers_say() {
    let found = read(&good().bytes.as_slice()).unwrap();
    let places: Vec<_> = found.iter().map(|e| (e.name.as_str(), e.offset, e.size, e.crc32)).collect();
    assert_eq!(places, [("a", 31, 3, crc32fast::hash(b"one")), ("bb", 66, 5, crc32fast::hash(b"three"))]);
}

#[test]
fn what_is_no_archive_is_told_apart() {
    assert!(matches!(read(&b"".as_slice()), Err(ZipError::NotZip)));
    assert!(matches!(read(&b"{\"a\":1}".as_slice()), Err(ZipError::NotZip)));
    assert!(matches!(read(&b"\x80\x02\x8a\x0al".as_slice()), Err(ZipError::Legacy)));
}

#[test]
fn every_cut_is_an_error() {
    let bytes = good().bytes;
    for len in 4..bytes.len() {
        assert!(matches!(read(&&bytes[..len]), Err(ZipError::NoEnd)), "{len}");
    }
}

#[test]
fn bytes_after_the_end_or_before_the_directory_are_refused() {
    let zip = good();
    let mut appended = zip.bytes.clone();
    appended.push(0);
    assert!(matches!(read(&appended.as_slice()), Err(ZipError::NoEnd)));
    let mut between = zip.bytes.clone();
    between.insert(zip.end, 0);
    assert!(matches!(read(&between.as_slice()), Err(ZipError::End(_))));
}

#[test]
fn a_comment_may_follow_the_end() {
    let zip = good();
    let at = zip.bytes.len() - 2;
    let mut zip = zip.set(at, &[4, 0]);
    zip.bytes.extend(b"text");
    assert_eq!(read(&zip.bytes.as_slice()).unwrap().len(), 2);
}

#[test]
fn split_archives_are_refused() {
    let end = good().end;
    for at in [end + 4, end + 6, end + 8] {
        assert!(matches!(error(&good().set(at, &[9])), ZipError::End(_)));
    }
}

#[test]
fn counts_and_lengths_of_the_directory_must_fit() {
    let end = good().end;
    for count in [[1u8; 2], [3; 2]] {
        let zip = good().set(end + 8, &[count[0], 0, count[1], 0]);
        assert!(matches!(error(&zip), ZipError::End(_) | ZipError::Record { .. }));
    }
    for at in [end + 12, end + 16] {
        assert!(matches!(error(&good().set(at, &[0xfe, 0xff])), ZipError::End(_)));
        assert!(matches!(error(&good().set(at, &[0, 0, 0, 0x70])), ZipError::End(_) | ZipError::TooLarge(_)));
    }
}

#[test]
fn records_need_their_signature_and_a_name_in_utf8() {
    let at = good().centrals[1];
    assert!(matches!(error(&good().set(at, b"X")), ZipError::Record { index: 1, .. }));
    assert!(matches!(error(&good().set(at + 46, &[0xff])), ZipError::Record { index: 1, .. }));
}

#[test]
fn compressed_entries_are_refused_with_the_way_out() {
    let at = good().centrals[0];
    let text = error(&good().set(at + 10, &[8])).to_string();
    assert_eq!(
        text,
        "entry a is compressed: load and save the file with torch.save, or repack it with `zip -0`"
    );
    assert!(matches!(error(&good().set(at + 20, &[2])), ZipError::Compressed(_)));
}

#[test]
fn encrypted_entries_are_refused() {
    let (local, central) = (good().locals[0], good().centrals[0]);
    assert!(matches!(error(&good().set(central + 8, &[1])), ZipError::Encrypted(_)));
    assert!(matches!(error(&good().set(local + 6, &[1])), ZipError::Encrypted(_)));
}

#[test]
fn the_two_headers_must_agree() {
    let at = good().locals[1];
    for (field, bytes, on) in [
        (0, b"X".as_slice(), "place"),
        (8, &[8], "compression"),
        (14, &[1], "CRC-32"),
        (18, &[2], "size"),
        (22, &[4], "size"),
        (26, &[1], "name"),
        (30, b"z", "name"),
    ] {
        match error(&good().set(at + field, bytes)) {
            ZipError::Disagree { entry, what } => assert_eq!((entry.as_str(), what), ("bb", on)),
            other => panic!("{on}: {other}"),
        }
    }
}

#[test]
fn sizes_and_checksum_may_follow_the_data() {
    let at = good().locals[0];
    let zip = good().set(at + 6, &[8]).set(at + 14, &[0; 12]);
    assert_eq!(read(&zip.bytes.as_slice()).unwrap()[0].size, 3);
    // Without bit 3 zeros are a contradiction.
    assert!(matches!(error(&good().set(at + 14, &[0; 12])), ZipError::Disagree { .. }));
}

#[test]
fn names_that_stand_twice_are_refused() {
    let zip = Zip::new(&[("a", b"one"), ("a", b"two")]);
    assert!(matches!(error(&zip), ZipError::Duplicate(name) if name == "a"));
}

#[test]
fn entries_must_not_overlap() {
    // Both records point at the first entry.
    let second = good().centrals[1];
    let zip = good().set(second + 42, &[0; 4]);
    assert!(matches!(error(&zip), ZipError::Overlap(_) | ZipError::Disagree { .. }));
    let beyond = good().set(second + 42, &[0xff, 0xff, 0, 0]);
    assert!(matches!(error(&beyond), ZipError::Overlap(_)));
    // Sizes that reach into the next entry, in both headers.
    let (local, central) = (good().locals[0], good().centrals[0]);
    let long = |zip: Zip, at: usize| zip.set(at, &[4, 0, 0, 0, 4, 0, 0, 0]);
    assert!(matches!(error(&long(long(good(), local + 18), central + 20)), ZipError::Overlap(_)));
    // An extra field that does.
    assert!(matches!(error(&good().set(local + 28, &[1])), ZipError::Overlap(_)));
}

/// The end of `good`, with a ZIP64 record; `entries` is its count of entries.
fn zip64(entries: u64) -> Vec<u8> {
    let zip = good();
    let directory = zip.centrals[0] as u64;
    let mut bytes = zip.bytes[..zip.end].to_vec();
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for n in [entries, entries, zip.end as u64 - directory, directory] {
        bytes.extend(n.to_le_bytes());
    }
    bytes.extend(b"PK\x06\x07\x00\x00\x00\x00");
    bytes.extend((zip.end as u64).to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"PK\x05\x06\x00\x00\x00\x00");
    bytes.extend([0xff; 12]);
    bytes.extend([0; 2]);
    bytes
}

#[test]
fn a_zip64_end_is_read_and_must_fit() {
    assert_eq!(read(&zip64(2).as_slice()).unwrap(), read(&good().bytes.as_slice()).unwrap());
    assert!(matches!(read(&zip64(3).as_slice()), Err(ZipError::Record { .. })));
    assert!(matches!(read(&zip64(u64::MAX).as_slice()), Err(ZipError::TooLarge(_))));
    let end = good().end;
    for (at, byte) in [(end, 0), (end + 4, 45), (end + 16, 1), (end + 24, 9), (end + 56 + 8, 1)] {
        let mut bytes = zip64(2);
        bytes[at] = byte;
        assert!(matches!(read(&bytes.as_slice()), Err(ZipError::End(_))), "{at}");
    }
    // The short record, where it says something, must say the same.
    let mut bytes = zip64(2);
    let at = end + 56 + 20 + 10;
    bytes[at..at + 2].copy_from_slice(&[3, 0]);
    assert!(matches!(read(&bytes.as_slice()), Err(ZipError::End(_))));
}

#[test]
fn a_record_that_needs_zip64_sizes_must_have_them() {
    let at = good().centrals[0];
    let zip = good().set(at + 24, &[0xff; 4]);
    assert!(matches!(error(&zip), ZipError::Record { index: 0, reason: "it has no ZIP64 sizes" }));
}

#[test]
fn bombs_take_no_memory_before_they_are_refused() {
    // An entry of 2⁶² bytes by the ZIP64 fields of both headers, in a file of some hundred bytes.
    let huge = (1u64 << 62).to_le_bytes();
    let extra = [&[1, 0, 16, 0], huge.as_slice(), &huge].concat();
    let zip = good().set(good().centrals[0] + 20, &[0xff; 8]).set(good().centrals[0] + 30, &[20, 0]);
    let at = zip.centrals[0] + 47;
    let mut bytes = zip.bytes.clone();
    bytes.splice(at..at, extra);
    let end = zip.end + 20;
    let size = (zip.end - zip.centrals[0] + 20) as u32;
    bytes[end + 12..end + 16].copy_from_slice(&size.to_le_bytes());
    let error = read(&bytes.as_slice()).unwrap_err();
    assert!(matches!(&error, ZipError::Overlap(name) if name == "a"), "{error}");
    // A hundred names for the same bytes: what expands a thousandfold elsewhere.
    let names: Vec<String> = (0..100).map(|i| format!("{i:02}")).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), b"same".as_slice())).collect();
    let mut zip = Zip::new(&entries);
    for at in zip.centrals.clone() {
        zip = zip.set(at + 42, &[0; 4]);
    }
    assert!(read(&zip.bytes.as_slice()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic_and_never_reach_outside(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), long in any::<bool>(),
    ) {
        let mut bytes = if long { zip64(2) } else { good().bytes };
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for entry in read(&bytes.as_slice()).unwrap_or_default() {
            prop_assert!(entry.offset + entry.size <= bytes.len() as u64);
        }
    }
}
