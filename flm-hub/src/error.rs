//! Everything that can be wrong with a download.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use flm_checkpoint::CheckpointError;

/// What can be wrong with a download; says what to do about it where there is something to do.
#[derive(Debug, Clone, thiserror::Error)]
#[allow(missing_docs, reason = "the message says what each field is")]
pub enum HubError {
    /// The system refused to read, write or move a file.
    #[error("cannot {action} {path}: {reason}")]
    Io { action: &'static str, path: PathBuf, reason: String },
    /// A manifest or lock file is malformed.
    #[error("{path}: {reason}")]
    Malformed { path: String, reason: String },
    /// A name that is in no manifest and is no repository.
    #[error("no model {name:?}: known are {known}; a repository is written OWNER/NAME")]
    UnknownModel { name: String, known: String },
    /// A model of the manifest that was never released.
    #[error("{0} was never released: it is a shape only, nothing can be downloaded")]
    ShapeOnly(String),
    /// The Hub names a file that would lie outside the target.
    #[error("the Hub lists a file named {0:?}, which is not a plain relative path: refused")]
    BadFileName(String),
    /// Two entries of a listing for one file.
    #[error("the Hub lists {file} twice, with different content: refused")]
    ListedTwice { file: String },
    /// A user's file where the Hub's, or a converted one, would go.
    #[error(
        "{files}: changed since it was verified, or never from the Hub: not replaced; move it away, leave it out \
         with --files, or replace it with --force"
    )]
    Changed { files: String },
    /// Outputs of a conversion that are names of the Hub.
    #[error(
        "{files}: --convert would write over the Hub's file of that name: leave it out with --files, or convert \
         in another directory with flm convert"
    )]
    Collision { files: String },
    /// A repository without a model in a form that flm reads.
    #[error(
        "{repository} holds no model.safetensors, no pytorch_model.bin and no shards of either{there}; --files \
         takes other files"
    )]
    NoWeights { repository: String, there: String },
    /// Sizes that are no sizes.
    #[error("{repository}: the Hub tells sizes that no disk holds: refused")]
    Sizes { repository: String },
    /// Nothing to fetch.
    #[error("no file of {repository} at {revision} matches")]
    NothingMatches { repository: String, revision: String },
    /// A file of the manifest or lock that the Hub does not list.
    #[error(
        "{file}: the Hub does not list it at {revision}; see the files with --dry-run, choose with --files"
    )]
    NotListed { file: String, revision: String },
    /// No digest or size could be found.
    #[error("{file}: the Hub tells no {what}, so that it could not be verified: refused")]
    Unverifiable { file: String, what: &'static str },
    /// The Hub has another file than the manifest or the lock says.
    #[error(
        "{file}: the Hub has {what} {found}, {holder} says {expected}: the repository has changed; nothing was \
         downloaded. To take the new file, name its revision with --revision and another directory with --dir"
    )]
    Differs { file: String, what: &'static str, expected: String, found: String, holder: &'static str },
    /// The lock is of another repository or revision.
    #[error("{path} holds this directory to {held}, not {asked}: choose another directory with --dir")]
    Locked { path: PathBuf, held: String, asked: String },
    /// HF_HUB_OFFLINE is set.
    #[error("HF_HUB_OFFLINE is set: nothing is asked of the Hub; unset it, or use a folder on this machine")]
    Offline,
    /// HF_ENDPOINT is no place to send requests to.
    #[error("HF_ENDPOINT {endpoint}: {reason}; it is to be like https://huggingface.co")]
    Endpoint { endpoint: String, reason: &'static str },
    /// A token that no header can carry.
    #[error("the token of {source_name} holds characters that no token has: set it again")]
    NoToken { source_name: String },
    /// A revision that git would not allow.
    #[error("revision {0:?} is no commit, branch or tag")]
    BadRevision(String),
    /// The Hub wants the licence to be accepted, or the token has no access.
    #[error("{repository} is gated: accept its licence at {page} {}", gated_advice(.token.as_deref()))]
    Gated { repository: String, page: String, token: Option<String> },
    /// 401 although a token was sent.
    #[error(
        "the Hub refuses the token of {token}: it has expired or was revoked; renew it \
         (https://huggingface.co/settings/tokens) or remove it: public repositories need none"
    )]
    TokenRefused { token: String },
    /// The Hub does not tell a private repository from none.
    #[error("{repository} does not exist or is private: check the name; {}", private_advice(.token.as_deref()))]
    Unauthorized { repository: String, token: Option<String> },
    /// 404.
    #[error("{what} is not on the Hub: {url}")]
    NotFound { what: String, url: String },
    /// Any other status.
    #[error("{url}: HTTP status {status}{said}")]
    Status { url: String, status: u16, said: String, retry_after: Option<Duration> },
    /// Bytes came, too few to end.
    #[error("{url}: fewer than {least} bytes a second for {seconds} s")]
    Slow { url: String, least: u64, seconds: u64 },
    /// The connection failed, was reset, or nothing came for too long.
    #[error("{url}: {reason}")]
    Network { url: String, reason: String },
    /// A body or a header that does not fit the request.
    #[error("{url}: {reason}")]
    WrongAnswer { url: String, reason: String },
    /// A server that sends whole files only, where a part is wanted.
    #[error(
        "{url} sends no parts of files, so that {file} cannot be looked at without all of it: use flm pull"
    )]
    NoRanges { file: String, url: String },
    /// A redirect from https to something else, to nowhere, or in a circle.
    #[error("{from} redirects to {to:?}: {reason}")]
    Redirect { from: String, to: String, reason: &'static str },
    /// The file's content is not what it should be.
    #[error(
        "{file}: {algorithm} is {got}, expected {expected}, {times} times: what the server sends is not the file; \
         it was removed. Try again later or through another network"
    )]
    Digest { file: String, algorithm: &'static str, expected: String, got: String, times: u32 },
    /// Too little room.
    #[error(
        "{path}: {} more needed, {} free: {} short; {advice}",
        gigabytes(*.needed), gigabytes(*.free), gigabytes(needed.saturating_sub(*.free))
    )]
    Disk { path: PathBuf, needed: u64, free: u64, advice: &'static str },
    /// Another process works in the directory.
    #[error("{path} is in use by process {holder}: wait for it with --wait, or stop it")]
    InUse { path: PathBuf, holder: String },
    /// Ctrl-C or SIGTERM.
    #[error("interrupted; the same command goes on where it stopped")]
    Interrupted,
    /// A shard or a converted checkpoint is not as it should be.
    #[error("{0}")]
    Checkpoint(String),
    /// A shard does not hold what the index says.
    #[error("{file} {reason}")]
    Shard { file: String, reason: String },
}

/// What hub functions return.
pub(crate) type Result<T> = std::result::Result<T, HubError>;

impl From<CheckpointError> for HubError {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::InUse { path, holder } => {
                let holder = holder.map_or("(number unknown)".into(), |n| n.to_string());
                Self::InUse { path, holder }
            }
            other => Self::Checkpoint(other.to_string()),
        }
    }
}

impl HubError {
    /// Whether trying again may help, and how long the server asks to wait.
    pub fn retry(&self) -> Option<Option<Duration>> {
        match self {
            Self::Network { .. } | Self::WrongAnswer { .. } | Self::Slow { .. } => Some(None),
            Self::Status { status: 408 | 425 | 429 | 500..=599, retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

/// Turns a system's error into a [`HubError::Io`].
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_path_buf();
    move |error| HubError::Io { action, path, reason: error.to_string() }
}

fn gated_advice(token: Option<&str>) -> String {
    match token {
        Some(token) => format!("with the account of the token of {token}, or set HF_TOKEN to another's"),
        None => "and set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)".into(),
    }
}

fn private_advice(token: Option<&str>) -> String {
    match token {
        Some(token) => format!("the token of {token} gives no access to it"),
        None => "for a private repository set HF_TOKEN".into(),
    }
}

/// Decimal gigabytes, as disks are sold.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
