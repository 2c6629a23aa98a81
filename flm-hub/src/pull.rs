//! A pull: the files in their order, each fetched, verified, named, converted.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use flm_checkpoint::DirectoryLock;
use serde::Serialize;

use crate::client::Hub;
use crate::error::{HubError, Result, io};
use crate::fetch::{Active, Fetcher, Schedule};
use crate::journal::Journal;
use crate::part::Part;
use crate::plan::{Plan, PlannedFile, SHARDS_IN_FLIGHT, State};
use crate::progress::{Event, Progress, add, get};
use crate::shards::Shards;
use crate::verify;

/// How to pull.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests at once.
    pub jobs: usize,
    /// Failures in a row after which a range is given up.
    pub retries: u32,
    /// Whether a shard goes once its conversion is verified.
    pub delete_source: bool,
}

/// A pull that runs in the background; dropped, it leaves what it has to the next one.
pub struct Pull {
    /// Counters that the workers keep.
    pub progress: Arc<Progress>,
    /// What happens, as it happens.
    pub events: mpsc::Receiver<Event>,
    fetcher: Arc<Fetcher>,
    _target: DirectoryLock,
}

/// How far a file is.
#[derive(Debug, Clone, Serialize)]
pub struct FileProgress {
    /// Name of the file.
    pub file: String,
    /// Its bytes.
    pub total: u64,
    /// Bytes that are on disk.
    pub downloaded: u64,
    /// Bytes of the complete prefix that are hashed.
    pub hashed: u64,
}

/// What the threads that see files through share.
struct Run {
    dir: PathBuf,
    repository: String,
    commit: String,
    fetcher: Arc<Fetcher>,
    journal: Journal,
    queue: Mutex<VecDeque<PlannedFile>>,
    delete_source: bool,
}

/// Held locked in the target for as long as a process pulls into it.
const LOCK: &str = ".flm-pull.lock";

/// Files that are seen through at once where nothing is converted.
const FILES_IN_FLIGHT: usize = 4;

impl Pull {
    /// Takes the target, before the plan is made, so that nothing changes between the two.
    pub fn hold(dir: &std::path::Path) -> Result<Held> {
        Ok(Held(DirectoryLock::take(dir, LOCK)?))
    }

    /// The files at hand.
    pub fn files(&self) -> Vec<FileProgress> {
        let schedule = self.fetcher.schedule();
        let of = |a: &Arc<Active>| FileProgress {
            file: a.file.name.clone(),
            total: get(&a.total),
            downloaded: get(&a.downloaded),
            hashed: get(&a.hashed),
        };
        schedule.active.iter().map(of).collect()
    }
}

/// A target that is held.
pub struct Held(DirectoryLock);

impl Held {
    /// Starts to work on a plan.
    pub fn start(self, hub: Hub, plan: Plan, options: &Options) -> Result<Pull> {
        plan.lock.write(&plan.dir)?;
        let (sender, events) = mpsc::channel();
        let progress = Arc::new(Progress::new(sender));
        add(&progress.total, plan.bytes);
        for file in &plan.files {
            add(&progress.downloaded, file.have);
            if matches!(file.state, State::Verified | State::Converted) {
                add(&progress.hashed, file.bytes);
                add(&progress.verified, file.bytes);
            }
            if file.state == State::Converted {
                add(&progress.converted, file.bytes);
            }
        }
        let fetcher = Arc::new(Fetcher {
            hub: Arc::new(hub),
            progress: Arc::clone(&progress),
            schedule: Mutex::new(Schedule::default()),
            changed: std::sync::Condvar::new(),
            retries: options.retries,
        });
        let converts = plan.files.iter().any(|f| f.convert);
        let in_flight = if converts { SHARDS_IN_FLIGHT } else { FILES_IN_FLIGHT.min(options.jobs.max(1)) };
        let run = Arc::new(Run {
            journal: Journal::read(&plan.dir),
            dir: plan.dir.clone(),
            repository: plan.repository.clone(),
            commit: plan.commit.clone(),
            fetcher: Arc::clone(&fetcher),
            queue: Mutex::new(plan.files.iter().cloned().collect()),
            delete_source: options.delete_source,
        });
        for _ in 0..options.jobs.max(1) {
            let fetcher = Arc::clone(&fetcher);
            spawn(move || fetcher.work())?;
        }
        spawn(move || run.all(&plan, in_flight))?;
        Ok(Pull { progress, events, fetcher, _target: self.0 })
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().spawn(work);
    started.map(drop).map_err(io("start a thread for", std::path::Path::new("the download")))
}

impl Run {
    /// Small files first, all of them; then shards, so many at once; then the index of the converted.
    fn all(&self, plan: &Plan, in_flight: usize) {
        let workers = |n: usize, shards: bool| {
            std::thread::scope(|scope| {
                for _ in 0..n {
                    scope.spawn(|| self.see_through(shards));
                }
            });
        };
        workers(FILES_IN_FLIGHT, false);
        workers(in_flight, true);
        let progress = &self.fetcher.progress;
        self.fetcher.schedule().closed = true;
        self.fetcher.changed.notify_all();
        if progress.is_stopped() {
            return;
        }
        match self.shards().finish(&plan.files) {
            Ok(()) => progress.tell(Event::Finished),
            Err(error) => progress.fail(error),
        }
    }

    fn shards(&self) -> Shards<'_> {
        Shards {
            dir: &self.dir,
            journal: &self.journal,
            progress: &self.fetcher.progress,
            delete_source: self.delete_source,
        }
    }

    /// Takes files from the queue and sees each through.
    fn see_through(&self, shards: bool) {
        let progress = &self.fetcher.progress;
        loop {
            let file = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let next = queue.iter().position(|f| shards || !crate::names::is_shard(&f.name));
                match next.and_then(|i| queue.remove(i)) {
                    Some(file) if !progress.is_stopped() => file,
                    _ => return,
                }
            };
            if let Err(error) = self.one(file) {
                return progress.fail(error);
            }
        }
    }

    /// Sees a file through: false where the pull was stopped.
    fn one(&self, file: PlannedFile) -> Result<bool> {
        let progress = &self.fetcher.progress;
        let target = self.dir.join(&file.name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let (name, bytes, have) = (file.name.clone(), file.bytes, file.have);
        if !matches!(file.state, State::Converted | State::Verified) {
            if let Some(reason) = file.replaces.filter(|_| file.state != State::Present) {
                progress.tell(Event::Replaced { file: name.clone(), reason: reason.into() });
            }
            progress.tell(Event::Started { file: name, bytes, have });
            if !self.obtain(&file, &target)? {
                return Ok(false);
            }
            self.journal.verified(&file.name, file.digest.hex())?;
            add(&progress.verified, bytes);
            let (file, digest) = (file.name.clone(), file.digest.to_string());
            progress.tell(Event::Verified { file, bytes, digest });
        }
        crate::part::discard_stray(&target)?;
        if file.convert { self.shards().convert(&file) } else { Ok(true) }
    }

    /// Brings a file under its name, verified: from what is there, from the Hub's cache, from the Hub.
    fn obtain(&self, file: &PlannedFile, target: &std::path::Path) -> Result<bool> {
        let progress = &self.fetcher.progress;
        let local = match &file.state {
            State::Present => Some(target),
            State::Cached(blob) => Some(blob.as_path()),
            _ => None,
        };
        if let Some(path) = local {
            match verify::check_present(progress, file, path)? {
                None => return Ok(false),
                Some(true) => {
                    verify::take_from_cache(file, target)?;
                    return Ok(true);
                }
                Some(false) if file.state == State::Present && file.replaces.is_none() => {
                    return Err(HubError::Changed { files: file.name.clone() });
                }
                Some(false) => {
                    let got = format!("something else in {}", path.display());
                    let expected = file.digest.to_string();
                    progress.tell(Event::Mismatch { file: file.name.clone(), expected, got });
                    add(&progress.total, file.bytes);
                }
            }
        }
        let part = Part::open(target, file.bytes, &file.digest)?;
        let source = self.fetcher.hub.source(&self.repository, &self.commit, &file.name)?;
        let active = Arc::new(Active::new(file.clone(), source, part));
        self.fetcher.schedule().active.push(Arc::clone(&active));
        self.fetcher.changed.notify_all();
        let done = verify::follow(&self.fetcher, &active, target);
        self.fetcher.schedule().active.retain(|a| !Arc::ptr_eq(a, &active));
        done
    }
}

/// Whether a directory holds everything of a model that the manifest or its lock names.
pub fn on_disk(dir: &std::path::Path) -> Result<Option<OnDisk>> {
    let Some(lock) = crate::lock_file::LockFile::read(dir)? else { return Ok(None) };
    let journal = Journal::read(dir);
    let mut found =
        OnDisk { repository: lock.repository.clone(), commit: lock.commit.clone(), ..OnDisk::default() };
    for file in &lock.files {
        found.files += 1;
        found.bytes += file.bytes;
        let path = dir.join(&file.name);
        if journal.is_verified(&file.name, file.digest.hex())
            || journal.converted(&file.name, file.digest.hex()).is_some()
        {
            found.files_verified += 1;
            found.bytes_verified += file.bytes;
        } else {
            found.bytes_partial += Part::left_behind(&path, file.bytes, &file.digest);
        }
    }
    Ok(Some(found))
}

/// What of a lock is on disk.
#[derive(Debug, Clone, Default, Serialize)]
pub struct OnDisk {
    /// OWNER/NAME.
    pub repository: String,
    /// The commit that is held, in hexadecimal.
    pub commit: String,
    /// Number of files.
    pub files: usize,
    /// Files whose digest was right.
    pub files_verified: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of verified files.
    pub bytes_verified: u64,
    /// Bytes of unfinished files.
    pub bytes_partial: u64,
}

// What is on disk is always whole enough to go on from: there is nothing to save here.
impl Drop for Pull {
    fn drop(&mut self) {
        self.progress.stop();
    }
}
