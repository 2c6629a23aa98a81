//! The Hub's API: revisions, listings, URLs; and its cache on this machine, as the hf-hub crate knows it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hf_hub::{Cache, Repo};
use serde::Deserialize;

use crate::credentials::Environment;
use crate::digest::{Digest, is_digest};
use crate::error::{HubError, Result};
use crate::progress::Event;
use crate::transport::{Expected, Source, Transport};
use crate::{names as file_name, retry};

/// A connection to the Hub, set up as the environment says.
pub struct Hub {
    cache: Cache,
    pub(crate) transport: Transport,
    access: Access,
}

/// How patient to be, and when to end.
#[derive(Clone)]
pub struct Access {
    /// Time without a byte that is a stall.
    pub timeout: Duration,
    /// Failures in a row after which something is given up.
    pub retries: u32,
    /// Set when the user has had enough.
    pub interrupted: Arc<AtomicBool>,
    /// Told when the Hub is waited for, outside of a running pull, which has its own events.
    pub tell: Arc<dyn Fn(&Event) + Send + Sync>,
}

/// A repository at a commit.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    /// 40 hexadecimal digits.
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// A file as the Hub describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Checked: a relative path of plain parts.
    pub name: String,
    pub bytes: Option<u64>,
    pub digest: Option<Digest>,
}

/// The answer of `GET /api/models/REPO/revision/REV?blobs=true`.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: Option<u64>,
}

/// A repository of thousands of files is described in a few MB.
const MAX_LISTING: u64 = 64 << 20;

impl Hub {
    /// With HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME and HF_HUB_CACHE.
    ///
    /// # Errors
    /// [`HubError::Offline`] where HF_HUB_OFFLINE is set; a token or an endpoint that is none.
    pub fn from_env(access: Access) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        // as the Python client reads it
        let offline = variable("HF_HUB_OFFLINE").map(|value| value.to_uppercase());
        if offline.is_some_and(|value| matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")) {
            return Err(HubError::Offline);
        }
        let environment = Environment { variable: &variable, home: std::env::home_dir() };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let transport = Transport::new(&endpoint, environment.token()?, access.timeout)?;
        Ok(Self { cache: environment.cache(), transport, access })
    }

    /// Where a file is read.
    pub(crate) fn source(&self, repository: &str, commit: &str, name: &str) -> Result<Source> {
        let url =
            self.transport.url(&format!("{repository}/resolve/{commit}/{}", file_name::url_path(name)))?;
        Ok(Source::new(repository, url))
    }

    /// Resolves a revision and lists its files.
    pub(crate) fn list(&self, repository: &str, revision: &str) -> Result<Listing> {
        self.persist("list of files", || self.try_list(repository, revision))
    }

    /// Tries again as long as it may help, and tells that it waits.
    pub(crate) fn persist<T>(&self, what: &str, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let is_stopped = || self.access.interrupted.load(Ordering::Relaxed);
        let tell = |error: &HubError, wait: Duration| {
            let (file, reason) = (what.to_owned(), error.to_string());
            (self.access.tell)(&Event::Retry { file, reason, wait_seconds: wait.as_secs_f64() });
        };
        let done = retry::persist(self.access.retries, &is_stopped, &mut |_| attempt(), &tell);
        if is_stopped() { Err(HubError::Interrupted) } else { done }
    }

    fn try_list(&self, repository: &str, revision: &str) -> Result<Listing> {
        let revision = file_name::revision_path(revision)?;
        let url = self.transport.url(&format!("api/models/{repository}/revision/{revision}?blobs=true"))?;
        let body = self.transport.read(&url, repository, MAX_LISTING)?;
        let wrong = |reason: String| HubError::WrongAnswer { url: url.to_string(), reason };
        let info: Info = serde_json::from_slice(&body)
            .map_err(|e| wrong(format!("not the Hub's description of a repository: {e}")))?;
        if !is_digest(&info.sha, 40) {
            return Err(wrong(format!("{:?} is no commit", info.sha)));
        }
        let mut files: Vec<RemoteFile> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for sibling in info.siblings {
            let file = sibling.checked()?;
            match places.get(&file.name).map(|at| &files[*at]) {
                Some(first) if *first != file => return Err(HubError::ListedTwice { file: file.name }),
                Some(_) => {}
                None => {
                    places.insert(file.name.clone(), files.len());
                    files.push(file);
                }
            }
        }
        Ok(Listing { commit: info.sha, files })
    }

    /// Size and digest of one file, where the listing does not tell them.
    pub(crate) fn describe(&self, repository: &str, commit: &str, name: &str) -> Result<RemoteFile> {
        let source = self.source(repository, commit, name)?;
        let (bytes, digest) = self.persist(name, || self.transport.head(&source))?;
        Ok(RemoteFile { name: name.into(), bytes, digest })
    }

    /// The content of a file that is needed to plan, of its digest.
    pub(crate) fn small_file(
        &self,
        repository: &str,
        commit: &str,
        name: &str,
        bytes: u64,
        digest: &Digest,
    ) -> Result<Vec<u8>> {
        let source = self.source(repository, commit, name)?;
        self.persist(name, || {
            let expected = Expected { file: name, bytes, digest };
            let wrong = |reason: String| HubError::WrongAnswer { url: name.into(), reason };
            if bytes > MAX_LISTING {
                return Err(HubError::Sizes { repository: repository.into() });
            }
            let mut answer = self.transport.get(&source, None, expected)?;
            let mut text = vec![0; bytes as usize];
            let (n, read) = answer.fill(&mut text);
            read?;
            let mut hasher = digest.hasher(bytes);
            hasher.update(&text);
            if n < text.len() || hasher.finish() != digest.hex() {
                return Err(wrong(format!("what came is not of {} {}", digest.algorithm(), digest.hex())));
            }
            Ok(text)
        })
    }

    /// Where the Hub's cache on this machine has a blob, by its SHA-256, if it does.
    pub(crate) fn cached(&self, repository: &str, digest: &Digest, bytes: u64) -> Option<PathBuf> {
        let Digest::Sha256(sha256) = digest else { return None };
        let path = self.cache.repo(Repo::model(repository.into())).blob_path(sha256);
        let meta = path.symlink_metadata().ok()?;
        (meta.is_file() && meta.len() == bytes).then_some(path)
    }
}

impl Sibling {
    fn checked(self) -> Result<RemoteFile> {
        file_name::check(&self.rfilename)?;
        let (bytes, digest) = match self.lfs {
            Some(lfs) => {
                (lfs.size.or(self.size), is_digest(&lfs.sha256, 64).then_some(Digest::Sha256(lfs.sha256)))
            }
            None => (self.size, self.blob_id.filter(|id| is_digest(id, 40)).map(Digest::GitSha1)),
        };
        Ok(RemoteFile { name: self.rfilename, bytes, digest })
    }
}
