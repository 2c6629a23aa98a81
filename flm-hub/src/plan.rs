//! What a pull will do: which files, what they should be, what is there already, and the room it takes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use glob::Pattern;
use serde::Serialize;

use crate::client::{Hub, Listing, RemoteFile};
use crate::digest::Digest;
use crate::error::{HubError, Result};
use crate::journal::Journal;
use crate::lock_file::{LockFile, LockedFile};
use crate::manifest::{Manifest, ManifestFile};
use crate::names::{is_repository, is_shard};
use crate::part::Part;
use crate::target::free_disk;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A name of the manifest, or `OWNER/NAME`.
    pub name: String,
    pub dir: PathBuf,
    pub revision: Option<String>,
    /// None: what the manifest lists, or a repository's weights, config, tokenizer and texts.
    pub globs: Vec<Pattern>,
    pub convert: bool,
    pub delete_source: bool,
    /// Believe no file that is there already.
    pub check: bool,
}

/// What will be done.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub repository: String,
    pub revision: String,
    pub commit: String,
    pub dir: PathBuf,
    pub files: Vec<PlannedFile>,
    pub bytes: u64,
    pub bytes_to_fetch: u64,
    /// More bytes of disk than are taken now, at the peak.
    pub disk_needed: u64,
    pub disk_free: u64,
    /// Names of the manifest that the repository does not have, none of them essential.
    pub absent: Vec<String>,
    #[serde(skip)]
    pub lock: LockFile,
}

/// A file and what is to be done with it.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedFile {
    pub name: String,
    pub bytes: u64,
    #[serde(flatten)]
    pub digest: Digest,
    pub state: State,
    /// Bytes of it on disk.
    pub have: u64,
    /// Bytes of disk that it has, written or reserved.
    #[serde(skip)]
    reserved: u64,
    /// Whether its tensors go to safetensors.
    pub convert: bool,
}

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its tensors are safe in a safetensors file.
    Converted,
    /// Under its name, verified by an earlier pull, untouched since.
    Verified,
    /// Under its name, to be verified.
    Present,
    /// In the Hub's cache on this machine, to be verified and linked.
    Cached(PathBuf),
    /// Begun.
    Partial,
    /// Not begun.
    Missing,
}

impl Plan {
    /// Asks the Hub what there is, and compares with the manifest, the lock and the disk.
    pub fn make(hub: &Hub, manifest: &Manifest, request: &Request) -> Result<Self> {
        let (repository, pinned, known) = resolve(manifest, &request.name)?;
        let lock = LockFile::read(&request.dir)?;
        let revision = revision(&repository, lock.as_ref(), request, pinned)?;
        let asked = lock.as_ref().map_or(&revision, |lock| &lock.commit);
        let listing = hub.list(&repository, asked)?;
        if let Some(lock) = lock.as_ref().filter(|lock| lock.commit != listing.commit) {
            let (what, expected, found) = ("commit", lock.commit.clone(), listing.commit);
            return Err(HubError::Differs { file: repository, what, expected, found, holder: "flm.lock" });
        }
        let mut lock = lock.unwrap_or_else(|| LockFile::new(&repository, &revision, &listing.commit));
        let remote: BTreeMap<&str, &RemoteFile> =
            listing.files.iter().map(|f| (f.name.as_str(), f)).collect();
        let names = select(&listing, &known, &request.globs);
        let (mut files, mut absent) = (Vec::new(), Vec::new());
        let journal = Journal::read(&request.dir);
        for name in names {
            let from_manifest = known.iter().find(|f| f.name == name);
            let Some(remote) = remote.get(name.as_str()) else {
                let essential = is_shard(&name)
                    || name == "config.json"
                    || from_manifest.is_some_and(|f| f.sha256.is_some());
                if essential || lock.find(&name).is_some() {
                    return Err(HubError::NotListed { file: name, revision: listing.commit });
                }
                absent.push(name);
                continue;
            };
            let file = identity(hub, &repository, &listing.commit, remote, from_manifest, lock.find(&name))?;
            files.push(PlannedFile::new(hub, &repository, request, &journal, &file));
            lock.add(file);
        }
        if files.is_empty() {
            return Err(HubError::NothingMatches { repository, revision });
        }
        // Small files first: they tell early what is wrong, and the index is needed to convert.
        files.sort_by_key(|f| (is_shard(&f.name), f.name.clone()));
        let (bytes, missing) =
            (files.iter().map(|f| f.bytes).sum(), files.iter().map(PlannedFile::missing).sum());
        Ok(Self {
            repository,
            revision,
            commit: listing.commit,
            dir: request.dir.clone(),
            bytes,
            bytes_to_fetch: missing,
            disk_needed: disk_needed(&files, request.delete_source),
            disk_free: free_disk(&request.dir)?,
            files,
            absent,
            lock,
        })
    }

    /// Refuses to begin what the disk has no room for.
    pub fn check_disk(&self, delete_source: bool) -> Result<()> {
        let (needed, free) = (self.disk_needed, self.disk_free);
        if needed <= free {
            return Ok(());
        }
        let converts = self.files.iter().any(|f| f.convert);
        let advice = match (converts, delete_source) {
            (true, false) => "make room, use another directory with --to, or add --delete-source",
            _ => "make room, or use another directory with --to",
        };
        Err(HubError::Disk { path: self.dir.clone(), needed, free, advice })
    }
}

impl PlannedFile {
    fn new(hub: &Hub, repository: &str, request: &Request, journal: &Journal, file: &LockedFile) -> Self {
        let (name, bytes, digest) = (file.name.clone(), file.bytes, file.digest.clone());
        let path = request.dir.join(&name);
        let convert = request.convert && is_shard(&name);
        let there = path.symlink_metadata().is_ok_and(|m| m.is_file() && m.len() == bytes);
        let left = Part::left_behind(&path, bytes, &digest);
        let converted = journal.converted(&name, digest.hex()).is_some();
        let (state, have) = if converted && (convert || !there) {
            (State::Converted, bytes)
        } else if there && !request.check && journal.is_verified(&name, digest.hex()) {
            (State::Verified, bytes)
        } else if there {
            (State::Present, bytes)
        } else if left > 0 {
            (State::Partial, left)
        } else if let Some(blob) = hub.cached(repository, &digest, bytes) {
            (State::Cached(blob), bytes)
        } else {
            (State::Missing, 0)
        };
        let reserved = have.max(Part::reserved(&path, bytes));
        Self { name, bytes, digest, state, have, reserved, convert }
    }

    /// Bytes that the network must bring.
    pub fn missing(&self) -> u64 {
        self.bytes - self.have
    }
}

/// Repository, revision and files by the manifest; a repository that is in no manifest has no files here.
fn resolve(manifest: &Manifest, name: &str) -> Result<(String, Option<String>, Vec<ManifestFile>)> {
    match manifest.find(name) {
        Some(model) => match &model.repository {
            Some(repository) => Ok((repository.clone(), model.revision.clone(), model.files.clone())),
            None => Err(HubError::ShapeOnly(name.into())),
        },
        None if is_repository(name) => Ok((name.into(), None, Vec::new())),
        None => {
            let known: Vec<&str> = manifest.models.iter().map(|m| m.name.as_str()).collect();
            Err(HubError::UnknownModel { name: name.into(), known: known.join(", ") })
        }
    }
}

/// The revision to ask for; the lock is not left for another.
fn revision(
    repository: &str,
    lock: Option<&LockFile>,
    request: &Request,
    pinned: Option<String>,
) -> Result<String> {
    let asked = request.revision.clone();
    let Some(lock) = lock else {
        return Ok(asked.or(pinned).unwrap_or_else(|| "main".into()));
    };
    let path = request.dir.join(crate::names::NAME);
    let held = format!("{}@{}", lock.repository, lock.commit);
    if lock.repository != repository {
        return Err(HubError::Locked { path, held, asked: repository.into() });
    }
    match asked {
        Some(asked) if asked != lock.commit && asked != lock.revision => {
            Err(HubError::Locked { path, held, asked })
        }
        _ => Ok(lock.revision.clone()),
    }
}

/// The names to fetch, sorted.
fn select(listing: &Listing, known: &[ManifestFile], globs: &[Pattern]) -> Vec<String> {
    let listed = listing.files.iter().map(|f| f.name.as_str());
    let mut names: Vec<String> = if !globs.is_empty() {
        let matches = |name: &&str| globs.iter().any(|g| g.matches(name));
        listed.chain(known.iter().map(|f| f.name.as_str())).filter(matches).map(str::to_owned).collect()
    } else if !known.is_empty() {
        known.iter().map(|f| f.name.clone()).collect()
    } else {
        let safetensors =
            listing.files.iter().any(|f| f.name.ends_with(".safetensors") && !f.name.contains('/'));
        let wanted = |name: &&str| is_wanted(name) && !(safetensors && name.starts_with("pytorch_model"));
        listed.filter(wanted).map(str::to_owned).collect()
    };
    names.sort();
    names.dedup();
    names
}

/// Weights, config, tokenizer and texts in the repository's root; no code, no other formats.
fn is_wanted(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    let weights = extension == "safetensors" || (extension == "bin" && name.starts_with("pytorch_model"));
    !name.contains('/')
        && !name.starts_with('.')
        && (weights
            || matches!(extension, "json" | "model" | "txt" | "md" | "jinja")
            || name.starts_with("LICENSE"))
}

/// What a file must be, by the lock, the manifest and the Hub, which must agree.
fn identity(
    hub: &Hub,
    repository: &str,
    commit: &str,
    remote: &RemoteFile,
    known: Option<&ManifestFile>,
    locked: Option<&LockedFile>,
) -> Result<LockedFile> {
    let name = &remote.name;
    let mut remote = remote.clone();
    if remote.bytes.is_none() || remote.digest.is_none() {
        let described = hub.describe(repository, commit, name)?;
        remote.bytes = remote.bytes.or(described.bytes);
        remote.digest = remote.digest.or(described.digest);
    }
    let unverifiable = |what| HubError::Unverifiable { file: name.clone(), what };
    let bytes = remote.bytes.ok_or_else(|| unverifiable("size"))?;
    let digest = remote.digest.ok_or_else(|| unverifiable("digest"))?;
    let differs = |what, expected: &str, found: &str, holder| HubError::Differs {
        file: name.clone(),
        what,
        expected: expected.into(),
        found: found.into(),
        holder,
    };
    let from_manifest =
        |f: &ManifestFile| (f.bytes, f.sha256.clone().map(Digest::Sha256), "weights-manifest.toml");
    let from_lock = |f: &LockedFile| (Some(f.bytes), Some(f.digest.clone()), "flm.lock");
    for (held_bytes, held_digest, holder) in known.map(from_manifest).into_iter().chain(locked.map(from_lock))
    {
        if let Some(held) = held_bytes.filter(|held| *held != bytes) {
            return Err(differs("size", &held.to_string(), &bytes.to_string(), holder));
        }
        if let Some(held) = held_digest.filter(|held| *held != digest) {
            return Err(differs(held.algorithm(), held.hex(), digest.hex(), holder));
        }
    }
    Ok(LockedFile { name: name.clone(), bytes, digest })
}

/// How many shards are on disk at once, where each goes when it is converted.
pub(crate) const SHARDS_IN_FLIGHT: usize = 2;

/// More bytes than are taken now, at the peak.
fn disk_needed(files: &[PlannedFile], delete_source: bool) -> u64 {
    let fetched = |f: &PlannedFile| match f.state {
        State::Cached(_) => 0,
        _ => f.bytes - f.reserved,
    };
    let converted = |f: &&PlannedFile| f.convert && f.state != State::Converted;
    let outputs: u64 = files.iter().filter(converted).map(|f| f.bytes).sum();
    if !delete_source {
        return files.iter().map(fetched).sum::<u64>() + outputs;
    }
    let kept: u64 = files.iter().filter(|f| !converted(f)).map(fetched).sum();
    let mut sources: Vec<u64> = files.iter().filter(converted).map(|f| f.bytes).collect();
    sources.sort_unstable_by(|a, b| b.cmp(a));
    let in_flight: u64 = sources.iter().take(SHARDS_IN_FLIGHT).sum();
    let there: u64 = files.iter().filter(converted).map(|f| f.reserved).sum();
    kept + (outputs + in_flight).saturating_sub(there)
}

/// Where a pull goes when it is not told: a directory of the model's name.
pub fn default_dir(name: &str) -> PathBuf {
    Path::new(name.rsplit('/').next().unwrap_or(name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: u64, have: u64, state: State, convert: bool) -> PlannedFile {
        let (name, digest) = (name.into(), Digest::Sha256(String::new()));
        PlannedFile { name, bytes, digest, state, have, reserved: have, convert }
    }

    #[test]
    fn room_is_counted_at_the_peak() {
        let plain = [file("a", 10, 0, State::Missing, false), file("b", 100, 40, State::Partial, false)];
        assert_eq!(disk_needed(&plain, false), 70);
        let shards: Vec<_> = (0..5).map(|_| file("x", 100, 0, State::Missing, true)).collect();
        assert_eq!(disk_needed(&shards, false), 1000);
        assert_eq!(disk_needed(&shards, true), 700);
        let mut begun = shards;
        begun[0] = file("x", 100, 100, State::Converted, true);
        begun[1] = file("x", 100, 50, State::Partial, true);
        assert_eq!(disk_needed(&begun, true), 550);
        // room that a part has taken before its bytes come
        begun[1].reserved = 100;
        assert_eq!((disk_needed(&begun, true), disk_needed(&begun, false)), (500, 700));
    }

    #[test]
    fn too_little_room_is_refused_with_the_numbers() {
        let mut plan = Plan {
            repository: "o/r".into(),
            revision: "main".into(),
            commit: "c".repeat(40),
            dir: "d".into(),
            files: vec![file("a", 10, 0, State::Missing, true)],
            bytes: 10,
            bytes_to_fetch: 10,
            disk_needed: 5_000_000_000,
            disk_free: 2_000_000_000,
            absent: Vec::new(),
            lock: LockFile::new("o/r", "main", &"c".repeat(40)),
        };
        let error = plan.check_disk(false).unwrap_err().to_string();
        for words in ["d: 5.00 GB more needed, 2.00 GB free: 3.00 GB short", "--to", "--delete-source"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!plan.check_disk(true).unwrap_err().to_string().contains("--delete-source"));
        plan.disk_free = 5_000_000_000;
        assert!(plan.check_disk(false).is_ok());
    }

    #[test]
    fn a_repository_without_a_manifest_gives_its_weights_and_texts() {
        let listing = |names: &[&str]| Listing {
            commit: String::new(),
            files: names
                .iter()
                .map(|n| RemoteFile { name: (*n).into(), bytes: None, digest: None })
                .collect(),
        };
        let both = listing(&[
            ".gitattributes",
            "LICENSE",
            "modeling.py",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.json",
            "tokenizer.model",
            "training_args.bin",
        ]);
        assert_eq!(
            select(&both, &[], &[]),
            ["LICENSE", "config.json", "model.safetensors", "tokenizer.model"]
        );
        let only = listing(&["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]);
        assert_eq!(select(&only, &[], &[]).len(), 2);
        let globs = [Pattern::new("onnx/*").unwrap(), Pattern::new("*.py").unwrap()];
        assert_eq!(select(&both, &[], &globs), ["modeling.py", "onnx/model.json"]);
    }
}
