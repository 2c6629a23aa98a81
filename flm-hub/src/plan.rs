//! What a pull will do: which files, what they should be, what is there already, and the room it takes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use flm_checkpoint::free_disk;
use glob::Pattern;
use serde::Serialize;

use crate::client::{Hub, Listing, RemoteFile};
use crate::damage;
use crate::digest::Digest;
use crate::error::{HubError, Result, io};
use crate::journal::Journal;
use crate::lock_file::{LockFile, LockedFile};
use crate::manifest::{Manifest, ManifestFile};
use crate::names::{OUTPUT_INDEX, output_name};
use crate::names::{is_repository, is_shard};
use crate::part::Part;
use crate::selection::{LeftOut, Selection};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A name of the manifest, or `OWNER/NAME`.
    pub name: String,
    /// Directory that the files go to.
    pub dir: PathBuf,
    /// Branch, tag or commit; the pinned one or main where there is none.
    pub revision: Option<String>,
    /// None: what the manifest lists, or a repository's weights, config, tokenizer and texts.
    pub globs: Vec<Pattern>,
    /// Whether PyTorch shards become safetensors.
    pub convert: bool,
    /// Whether a shard goes once its conversion is verified.
    pub delete_source: bool,
    /// Believe no file that is there already.
    pub check: bool,
    /// Replace what a user has changed or put there.
    pub force: bool,
}

/// What will be done.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// OWNER/NAME.
    pub repository: String,
    /// The revision as it was asked for.
    pub revision: String,
    /// The commit that it stands for, in hexadecimal.
    pub commit: String,
    /// Directory that the files go to.
    pub dir: PathBuf,
    /// Every selected file.
    pub files: Vec<PlannedFile>,
    /// Bytes of the selected files.
    pub bytes: u64,
    /// Bytes of them that are still to come.
    pub bytes_to_fetch: u64,
    /// More bytes of disk than are taken now, at the peak.
    pub disk_needed: u64,
    /// Bytes free on the target's file system.
    pub disk_free: u64,
    /// Names of the manifest that the repository does not have, none of them essential.
    pub absent: Vec<String>,
    /// Weights of the repository that are not of the model, and not fetched.
    pub left_out: Vec<LeftOut>,
    /// Files that the repository lacks and without which nobody opens the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<String>,
    /// Files that are not flm's where converted ones would go.
    pub in_the_way: Vec<String>,
    #[serde(skip)]
    pub(crate) lock: LockFile,
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
    /// Why what stands under its name may be replaced; `None`: it may not, or nothing stands there.
    pub replaces: Option<&'static str>,
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
    /// Something else, which is the user's, stands under its name.
    Changed,
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
        let (mut files, mut absent) = (Vec::new(), Vec::new());
        let journal = Journal::read(&request.dir);
        let index = |name: &str| -> Result<Vec<String>> {
            let Some(remote) = remote.get(name) else { return Ok(Vec::new()) };
            let file = identity(hub, &repository, &listing.commit, remote, None, lock.find(name))?;
            if journal.converted(name, file.digest.hex()).is_some() {
                // its shards were converted and it was removed with them
                return Ok(lock.files.iter().map(|f| f.name.clone()).filter(|name| is_shard(name)).collect());
            }
            shards_of(hub, &repository, &listing.commit, &request.dir, &file)
        };
        let Selection { names, left_out, lacking } =
            select(&listing, &known, &request.globs, &repository, &index)?;
        for name in names {
            let from_manifest = known.iter().find(|f| f.name == name);
            let Some(remote) = remote.get(name.as_str()) else {
                let essential = is_shard(&name)
                    || name.ends_with(".safetensors")
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
        // within what a file's offset can be: then no later sum overflows
        let bytes = files.iter().try_fold(0u64, |sum, f| sum.checked_add(f.bytes));
        let Some(bytes) = bytes.filter(|bytes| *bytes <= i64::MAX as u64) else {
            return Err(HubError::Sizes { repository });
        };
        let missing = files.iter().map(PlannedFile::missing).sum();
        let in_the_way = outputs_in_the_way(&files, &lock, &journal, request)?;
        Ok(Self {
            repository,
            revision,
            commit: listing.commit,
            dir: request.dir.clone(),
            bytes,
            bytes_to_fetch: missing,
            disk_needed: disk_needed(&files, request.delete_source),
            disk_free: free_disk(&request.dir).map_err(|(path, e)| io("look at", &path)(e))?,
            files,
            absent,
            left_out,
            lacking,
            in_the_way,
            lock,
        })
    }

    /// Refuses to replace what is the user's.
    pub fn check_changed(&self) -> Result<()> {
        let changed = self.files.iter().filter(|f| f.state == State::Changed).map(|f| f.name.as_str());
        let names: Vec<&str> = changed.chain(self.in_the_way.iter().map(String::as_str)).collect();
        if names.is_empty() { Ok(()) } else { Err(HubError::Changed { files: names.join(", ") }) }
    }

    /// Refuses to begin what the disk has no room for.
    pub fn check_disk(&self, delete_source: bool) -> Result<()> {
        let (needed, free) = (self.disk_needed, self.disk_free);
        if needed <= free {
            return Ok(());
        }
        let converts = self.files.iter().any(|f| f.convert);
        let advice = match (converts, delete_source) {
            (true, false) => "make room, use another directory with --dir, or add --delete-source",
            _ => "make room, or use another directory with --dir",
        };
        Err(HubError::Disk { path: self.dir.clone(), needed, free, advice })
    }
}

impl PlannedFile {
    fn new(hub: &Hub, repository: &str, request: &Request, journal: &Journal, file: &LockedFile) -> Self {
        let (name, bytes, digest) = (file.name.clone(), file.bytes, file.digest.clone());
        let path = request.dir.join(&name);
        let convert = request.convert && is_shard(&name);
        // through links: a file may lie in a cache or a store
        let on_disk = path.metadata().ok();
        let there = on_disk.as_ref().is_some_and(|m| m.is_file() && m.len() == bytes);
        let replaces = match &on_disk {
            None => None,
            Some(meta) if meta.is_file() && request.force => Some("--force"),
            Some(_) if journal.is_untouched(&name) => Some("the disk has changed it"),
            Some(_) => damage::seen(&path),
        };
        let left = Part::left_behind(&path, bytes, &digest);
        let converted = journal.converted(&name, digest.hex()).is_some();
        let (state, have) = if converted && (convert || !there) {
            (State::Converted, bytes)
        } else if there && !request.check && journal.is_verified(&name, digest.hex()) {
            (State::Verified, bytes)
        } else if there {
            (State::Present, bytes)
        } else if on_disk.is_some() && replaces.is_none() {
            (State::Changed, bytes)
        } else if left > 0 {
            (State::Partial, left)
        } else if let Some(blob) = hub.cached(repository, &digest, bytes) {
            (State::Cached(blob), bytes)
        } else {
            (State::Missing, 0)
        };
        let reserved = have.max(Part::reserved(&path, bytes));
        Self { name, bytes, digest, state, have, reserved, convert, replaces }
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

/// The names to fetch: what the patterns or the manifest say, else the model that the repository holds.
fn select(
    listing: &Listing,
    known: &[ManifestFile],
    globs: &[Pattern],
    repository: &str,
    index: &dyn Fn(&str) -> Result<Vec<String>>,
) -> Result<Selection> {
    let listed = listing.files.iter().map(|f| f.name.as_str());
    let mut names: Vec<String> = if !globs.is_empty() {
        let matches = |name: &&str| globs.iter().any(|g| g.matches(name));
        listed.chain(known.iter().map(|f| f.name.as_str())).filter(matches).map(str::to_owned).collect()
    } else if !known.is_empty() {
        known.iter().map(|f| f.name.clone()).collect()
    } else {
        return Selection::of_model(&listing.files, repository, index);
    };
    names.sort();
    names.dedup();
    Ok(Selection { names, ..Selection::default() })
}

/// The files that an index names: of the index on disk where it is the right one, else of the Hub's.
fn shards_of(
    hub: &Hub,
    repository: &str,
    commit: &str,
    dir: &Path,
    index: &LockedFile,
) -> Result<Vec<String>> {
    let path = dir.join(&index.name);
    let right = path.metadata().is_ok_and(|m| m.is_file() && m.len() == index.bytes)
        && index.digest.of_file(&path, |_| true)?.is_some_and(|digest| digest == index.digest.hex());
    let text = if right {
        std::fs::read(&path).map_err(crate::error::io("read", &path))?
    } else {
        hub.small_file(repository, commit, &index.name, index.bytes, &index.digest)?
    };
    let map = flm_checkpoint::parse_index(Path::new(&index.name), &text)?;
    let mut names: Vec<String> = map.into_values().collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// Outputs of the conversion that stand there already and are not flm's; an error where they are the Hub's.
fn outputs_in_the_way(
    files: &[PlannedFile],
    lock: &LockFile,
    journal: &Journal,
    request: &Request,
) -> Result<Vec<String>> {
    let shards = files.iter().filter(|f| f.convert);
    let mut outputs: Vec<String> = shards.filter_map(|f| output_name(&f.name)).collect();
    if outputs.is_empty() {
        return Ok(outputs);
    }
    outputs.extend([OUTPUT_INDEX.to_owned(), flm_checkpoint::CHECKSUMS_FILE.to_owned()]);
    let hubs: Vec<&str> =
        outputs.iter().map(String::as_str).filter(|name| lock.find(name).is_some()).collect();
    if !hubs.is_empty() {
        return Err(HubError::Collision { files: hubs.join(", ") });
    }
    let stands = |name: &String| request.dir.join(name).symlink_metadata().is_ok();
    outputs.retain(|name| stands(name) && !request.force && !journal.is_own_output(name));
    Ok(outputs)
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
        PlannedFile { name, bytes, digest, state, have, reserved: have, convert, replaces: None }
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
            left_out: Vec::new(),
            lacking: Vec::new(),
            in_the_way: Vec::new(),
            lock: LockFile::new("o/r", "main", &"c".repeat(40)),
        };
        let error = plan.check_disk(false).unwrap_err().to_string();
        for words in ["d: 5.00 GB more needed, 2.00 GB free: 3.00 GB short", "--dir", "--delete-source"] {
            assert!(error.contains(words), "{error}");
        }
        assert!(!plan.check_disk(true).unwrap_err().to_string().contains("--delete-source"));
        plan.disk_free = 5_000_000_000;
        assert!(plan.check_disk(false).is_ok());
    }
}
