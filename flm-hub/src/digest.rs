//! What a file's content is known by, and computing it.

use std::{fmt, fs::File, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::error::{Result, io};
use flm_checkpoint::hex;

/// The identity of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Digest {
    /// SHA-256 of the bytes: the Hub's identity of a large file.
    Sha256(String),
    /// Git's identity of a small file: the SHA-1 of `blob LENGTH`, a NUL and the bytes.
    GitSha1(String),
}

impl Digest {
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitSha1(_) => "git's SHA-1",
        }
    }

    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }

    /// A hash of the same kind over `bytes` bytes, empty so far.
    pub fn hasher(&self, bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitSha1(_) => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {bytes}\0"));
                Hasher::GitSha1(hash)
            }
        }
    }

    /// The digest of the same kind of a file on disk.
    ///
    /// `progress` is told the bytes done and may stop the work by returning false: then the result is `None`.
    pub fn of_file(&self, path: &Path, mut progress: impl FnMut(u64) -> bool) -> Result<Option<String>> {
        let mut file = File::open(path).map_err(io("open", path))?;
        let mut hasher = self.hasher(file.metadata().map_err(io("look at", path))?.len());
        let mut buf = vec![0; crate::digest::PIECE];
        let mut done = 0;
        loop {
            let n = file.read(&mut buf).map_err(io("read", path))?;
            if n == 0 {
                return Ok(Some(hasher.finish()));
            }
            hasher.update(&buf[..n]);
            done += n as u64;
            if !progress(done) {
                return Ok(None);
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex())
    }
}

/// A hash being computed.
#[derive(Debug)]
pub enum Hasher {
    Sha256(Sha256),
    GitSha1(Sha1),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    /// In lower-case hexadecimal.
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => hex(hash.finalize()),
            Self::GitSha1(hash) => hex(hash.finalize()),
        }
    }
}

/// Bytes that are written, recorded and hashed at a time; what a killed worker can lose.
pub(crate) const PIECE: usize = 1 << 20;

/// Whether `text` is `digits` lower-case hexadecimal digits.
pub(crate) fn is_digest(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `sha256sum` and `git hash-object` of the six bytes "hello\n".
    #[test]
    fn digests_are_those_of_the_tools() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "hello\n").unwrap();
        let of = |kind: Digest| kind.of_file(&path, |_| true).unwrap().unwrap();
        assert_eq!(
            of(Digest::Sha256(String::new())),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert_eq!(of(Digest::GitSha1(String::new())), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
