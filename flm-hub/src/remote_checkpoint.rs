//! Parts of a repository's files, for looking at a checkpoint that is not downloaded.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use flm_checkpoint::Checkpoint;
use flm_checkpoint::RemoteFiles;

use crate::client::{Hub, Listing, RemoteFile};
use crate::digest::Digest;
use crate::error::{HubError, Result};
use crate::manifest::Manifest;
use crate::names::is_repository;
use crate::transport::{Expected, Source};

/// A repository at a commit, read in ranges.
pub struct HubCheckpoint<'a> {
    hub: &'a Hub,
    repository: String,
    commit: String,
    files: HashMap<String, (RemoteFile, Source)>,
    received: AtomicU64,
    requests: AtomicU64,
    /// Told after every request.
    progress: &'a dyn Fn(),
}

/// Repository and pinned revision of a model of the manifest, or of `OWNER/NAME`; `None` for other names.
pub fn repository_of(manifest: &Manifest, name: &str) -> Result<Option<(String, Option<String>)>> {
    match manifest.find(name) {
        Some(model) => match &model.repository {
            Some(repository) => Ok(Some((repository.clone(), model.revision.clone()))),
            None => Err(HubError::ShapeOnly(name.into())),
        },
        None => Ok(is_repository(name).then(|| (name.to_owned(), None))),
    }
}

impl<'a> HubCheckpoint<'a> {
    /// Resolves the revision and lists the repository's files.
    pub fn list(hub: &'a Hub, repository: &str, revision: &str, progress: &'a dyn Fn()) -> Result<Self> {
        let Listing { commit, files } = hub.list(repository, revision)?;
        let files = files.into_iter().map(|mut file| {
            // Only what a checkpoint is opened by is worth a request.
            if file.bytes.is_none() && (file.name == "config.json" || is_part(&file.name)) {
                let described = hub.describe(repository, &commit, &file.name)?;
                (file.bytes, file.digest) = (described.bytes, file.digest.or(described.digest));
            }
            let source = hub.source(repository, &commit, &file.name)?;
            Ok((file.name.clone(), (file, source)))
        });
        let files = files.collect::<Result<_>>()?;
        let (received, requests) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { hub, repository: repository.into(), commit, files, received, requests, progress })
    }

    /// Reads config.json, the index and the headers.
    pub fn open(&self) -> std::result::Result<Checkpoint, flm_checkpoint::CheckpointError> {
        Checkpoint::open_remote(Path::new(&self.repository), self)
    }

    /// The commit that was listed.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Bytes of files that were received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Requests for files that were answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn fetch(&self, file: &RemoteFile, bytes: u64, source: &Source, range: &Range<u64>) -> Result<Vec<u8>> {
        let none = Digest::GitSha1(String::new());
        let expected = Expected { file: &file.name, bytes, digest: file.digest.as_ref().unwrap_or(&none) };
        let whole = *range == (0..bytes);
        let asked = (!whole).then(|| range.clone());
        let mut answer = self.hub.transport.get(source, asked, expected)?;
        if answer.whole {
            // What follows is the whole file, which may be a shard.
            return Err(HubError::NoRanges { file: file.name.clone(), url: answer.url.to_string() });
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let (n, read) = answer.fill(&mut bytes);
        self.received.fetch_add(n as u64, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        (self.progress)();
        read?;
        if n < bytes.len() {
            let reason = format!("the body ended {} bytes early", bytes.len() - n);
            return Err(HubError::WrongAnswer { url: answer.url.to_string(), reason });
        }
        Ok(bytes)
    }
}

impl RemoteFiles for HubCheckpoint<'_> {
    fn size(&self, name: &str) -> Option<u64> {
        self.files.get(name)?.0.bytes
    }

    fn read(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let Some((file, source)) = self.files.get(name) else { return Err(io::ErrorKind::NotFound.into()) };
        let bytes = file.bytes.unwrap_or(0);
        let read = self.hub.persist(name, || self.fetch(file, bytes, source, &range));
        read.map_err(io::Error::other)
    }
}

/// Weights, or an index of them.
fn is_part(name: &str) -> bool {
    !name.contains('/')
        && (name.starts_with("model") || name.starts_with("pytorch_model"))
        && [".safetensors", ".bin", ".json"].iter().any(|end| name.ends_with(end))
}
