//! The Hub's API through the hf-hub crate: revisions, listings, URLs, endpoint, token and cache.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiRepo},
};
use serde::Deserialize;

use crate::digest::{Digest, is_digest};
use crate::error::{HubError, Result};
use crate::transport::{Source, Transport};
use crate::{names as file_name, retry};

/// A connection to the Hub, set up as the environment says.
pub struct Hub {
    api: Api,
    cache: Cache,
    pub transport: Transport,
    access: Access,
}

/// How patient to be, and when to end.
#[derive(Debug, Clone)]
pub struct Access {
    /// Time without a byte that is a stall.
    pub timeout: Duration,
    /// Failures in a row after which something is given up.
    pub retries: u32,
    /// Set when the user has had enough.
    pub interrupted: Arc<AtomicBool>,
}

/// A repository at a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// 40 hexadecimal digits.
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// A file as the Hub describes it.
#[derive(Debug, Clone)]
pub struct RemoteFile {
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
    pub fn from_env(access: Access) -> Result<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = match variable("HF_HUB_CACHE") {
            Some(path) => Cache::new(path.into()),
            None => Cache::from_env(),
        };
        let token = token(&variable);
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let builder = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.clone())
            .with_token(token.clone())
            .with_user_agent("flm", env!("CARGO_PKG_VERSION"));
        let failed = |reason: String| HubError::Network { url: endpoint.clone(), reason };
        let api = builder.build().map_err(|e| failed(e.to_string()))?;
        let transport = Transport::new(&endpoint, token, access.timeout)?;
        Ok(Self { api, cache, transport, access })
    }

    fn repo(&self, repository: &str, revision: &str) -> ApiRepo {
        self.api.repo(Repo::with_revision(repository.into(), RepoType::Model, revision.into()))
    }

    /// Where a file is read.
    pub fn source(&self, repository: &str, commit: &str, name: &str) -> Source {
        let url = self.repo(repository, commit).url(&file_name::url_path(name));
        Source::new(repository, url)
    }

    /// Resolves a revision and lists its files.
    pub fn list(&self, repository: &str, revision: &str) -> Result<Listing> {
        self.persist(|| self.try_list(repository, revision))
    }

    /// Tries again as long as it may help.
    pub fn persist<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let is_stopped = || self.access.interrupted.load(Ordering::Relaxed);
        let done = retry::persist(self.access.retries, &is_stopped, &mut |_| attempt(), &|_, _| {});
        if is_stopped() { Err(HubError::Interrupted) } else { done }
    }

    fn try_list(&self, repository: &str, revision: &str) -> Result<Listing> {
        let timeout = Some(self.access.timeout);
        let request = self.repo(repository, revision).info_request().query("blobs", "true");
        let url = request.uri_ref().map(ToString::to_string).unwrap_or_default();
        let configured = request
            .config()
            .http_status_as_error(false)
            .timeout_connect(timeout)
            .timeout_per_read(timeout)
            .timeout_recv_response(timeout)
            .build();
        let mut response =
            configured.call().map_err(|e| HubError::Network { url: url.clone(), reason: e.to_string() })?;
        self.transport.check_status(&response, repository, &url)?;
        let wrong = |reason: String| HubError::WrongAnswer { url: url.clone(), reason };
        let body = response.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
        let info: Info = serde_json::from_slice(&body.map_err(|e| wrong(e.to_string()))?)
            .map_err(|e| wrong(format!("not the Hub's description of a repository: {e}")))?;
        if !is_digest(&info.sha, 40) {
            return Err(wrong(format!("{:?} is no commit", info.sha)));
        }
        let files = info.siblings.into_iter().map(Sibling::checked).collect::<Result<_>>()?;
        Ok(Listing { commit: info.sha, files })
    }

    /// Size and digest of one file, where the listing does not tell them.
    pub fn describe(&self, repository: &str, commit: &str, name: &str) -> Result<RemoteFile> {
        let source = self.source(repository, commit, name);
        let (bytes, digest) = self.persist(|| self.transport.head(&source))?;
        Ok(RemoteFile { name: name.into(), bytes, digest })
    }

    /// Where the Hub's cache on this machine has a blob, by its SHA-256, if it does.
    pub fn cached(&self, repository: &str, digest: &Digest, bytes: u64) -> Option<PathBuf> {
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

/// HF_TOKEN, else the token file, as the Python client finds it.
fn token(variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let clean = |text: String| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
    if let Some(token) = variable("HF_TOKEN").and_then(clean) {
        return Some(token);
    }
    let off = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true");
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(off) {
        return None;
    }
    match variable("HF_TOKEN_PATH") {
        Some(path) => std::fs::read_to_string(path).ok().and_then(clean),
        None => Cache::from_env().token(),
    }
}
