//! Workers that bring ranges of the files at hand, several of one file and of several files at once.

use std::{
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use crate::client::Hub;
use crate::digest::PIECE;
use crate::error::{HubError, Result, io};
use crate::part::Part;
use crate::plan::PlannedFile;
use crate::progress::{Event, Progress, add};
use crate::retry;
use crate::transport::{Expected, Source};

/// Bytes that one request asks for.
const SEGMENT: u64 = 64 << 20;

/// A file whose ranges are being fetched.
pub(crate) struct Active {
    pub file: PlannedFile,
    pub source: Source,
    pub state: Mutex<ActiveState>,
    /// A piece was written, or the pull was stopped.
    pub arrived: Condvar,
    /// As in [`Progress`], for this file: none of them ever falls.
    pub total: AtomicU64,
    pub downloaded: AtomicU64,
    pub hashed: AtomicU64,
}

pub(crate) struct ActiveState {
    pub part: Part,
    workers: usize,
    /// Whether the server answers ranges with the whole file: then one worker reads it from the start.
    sequential: bool,
}

/// The files at hand.
#[derive(Default)]
pub(crate) struct Schedule {
    pub active: Vec<Arc<Active>>,
    /// Whether no file will be added.
    pub closed: bool,
}

/// What the workers share.
pub(crate) struct Fetcher {
    pub hub: Arc<Hub>,
    pub progress: Arc<Progress>,
    pub schedule: Mutex<Schedule>,
    pub changed: Condvar,
    pub retries: u32,
}

impl Active {
    pub(crate) fn new(file: PlannedFile, source: Source, part: Part) -> Self {
        let state = ActiveState { part, workers: 0, sequential: false };
        Self {
            total: AtomicU64::new(file.bytes),
            downloaded: AtomicU64::new(file.have),
            hashed: AtomicU64::new(0),
            file,
            source,
            state: Mutex::new(state),
            arrived: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, ActiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self) -> Expected<'_> {
        Expected { file: &self.file.name, bytes: self.file.bytes, digest: &self.file.digest }
    }
}

/// What a worker took on.
enum Claim {
    Segment(Range<u64>),
    /// All that is missing, from one body.
    Whole,
}

impl Fetcher {
    pub(crate) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches until all files are complete, or the pull is stopped.
    pub(crate) fn work(&self) {
        while let Some((active, claim)) = self.next() {
            let done = match claim {
                Claim::Segment(range) => self.segment(&active, range),
                Claim::Whole => self.whole(&active),
            };
            active.state().workers -= 1;
            self.changed.notify_all();
            if let Err(error) = done {
                self.progress.fail(error);
            }
        }
        self.changed.notify_all();
    }

    /// Waits for something to fetch: of the file that has the fewest workers.
    fn next(&self) -> Option<(Arc<Active>, Claim)> {
        let mut schedule = self.schedule();
        loop {
            if self.progress.is_stopped() {
                return None;
            }
            let mut files: Vec<_> = schedule.active.iter().map(|a| (a.state().workers, a)).collect();
            files.sort_by_key(|(workers, _)| *workers);
            for (_, active) in files {
                let mut state = active.state();
                let claim = if !state.sequential {
                    state.part.claim(SEGMENT).map(Claim::Segment)
                } else {
                    (state.workers == 0 && state.part.has_free()).then_some(Claim::Whole)
                };
                if let Some(claim) = claim {
                    state.workers += 1;
                    return Some((Arc::clone(active), claim));
                }
            }
            if schedule.closed && schedule.active.is_empty() {
                return None;
            }
            let wait = self.changed.wait_timeout(schedule, Duration::from_millis(200));
            schedule = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn segment(&self, active: &Active, range: Range<u64>) -> Result<()> {
        let mut rest = range;
        let done = self.persist(active, &mut |failures| {
            let before = rest.start;
            let result = self.bring(active, &mut rest);
            // a server that gives a byte now and then gets nowhere
            if rest.start > before && !matches!(result, Err(HubError::Slow { .. })) {
                *failures = 0;
            }
            result
        });
        // after an error nobody is to take the range up: the pull ends
        if done.is_ok() {
            active.state().part.release(rest);
        }
        done
    }

    fn persist(&self, active: &Active, attempt: &mut dyn FnMut(&mut u32) -> Result<()>) -> Result<()> {
        retry::persist(self.retries, &|| self.progress.is_stopped(), attempt, &|error, wait| {
            let (file, reason) = (active.file.name.clone(), error.to_string());
            self.progress.tell(Event::Retry { file, reason, wait_seconds: wait.as_secs_f64() });
        })
    }

    /// Brings a range; what of it is done is taken from its front.
    fn bring(&self, active: &Active, rest: &mut Range<u64>) -> Result<()> {
        if self.progress.is_stopped() || rest.is_empty() {
            return Ok(());
        }
        let mut answer = self.hub.transport.get(&active.source, Some(rest.clone()), active.expected())?;
        let file = {
            let mut state = active.state();
            if answer.whole && *rest != (0..active.file.bytes) {
                // the range goes back, and whoever is free reads the whole
                state.sequential = true;
                return Ok(());
            }
            state.part.file()?
        };
        let mut buf = vec![0; (PIECE as u64).min(rest.end - rest.start) as usize];
        while !rest.is_empty() {
            if self.progress.is_stopped() {
                return Ok(());
            }
            let want = (buf.len() as u64).min(rest.end - rest.start) as usize;
            let (n, read) = answer.fill(&mut buf[..want]);
            add(&self.progress.received, n as u64);
            if n > 0 {
                self.keep(active, &file, rest.start, &buf[..n])?;
                rest.start += n as u64;
            }
            read?;
            if n < want {
                let reason = format!("the body ended {} bytes early", rest.end - rest.start);
                return Err(HubError::WrongAnswer { url: answer.url.to_string(), reason });
            }
        }
        Ok(())
    }

    /// Reads a file from the start, for a server without ranges, and keeps what was missing.
    fn whole(&self, active: &Active) -> Result<()> {
        let bytes = active.file.bytes;
        let mut furthest = 0;
        self.persist(active, &mut |failures| {
            let mut answer = self.hub.transport.get(&active.source, None, active.expected())?;
            let file = active.state().part.file()?;
            let mut buf = vec![0; (PIECE as u64).min(bytes) as usize];
            let mut at = 0;
            while at < bytes && active.state().part.has_free() && !self.progress.is_stopped() {
                let want = (buf.len() as u64).min(bytes - at) as usize;
                let (n, read) = answer.fill(&mut buf[..want]);
                add(&self.progress.received, n as u64);
                let missing = active.state().part.free().within(at..at + n as u64);
                for r in missing {
                    self.keep(active, &file, r.start, &buf[(r.start - at) as usize..(r.end - at) as usize])?;
                }
                at += n as u64;
                if at > furthest && !matches!(read, Err(HubError::Slow { .. })) {
                    (furthest, *failures) = (at, 0);
                }
                read?;
                if n < want {
                    let reason = format!("the body ended {} bytes early", bytes - at);
                    return Err(HubError::WrongAnswer { url: answer.url.to_string(), reason });
                }
            }
            Ok(())
        })
    }

    fn keep(&self, active: &Active, file: &std::fs::File, at: u64, bytes: &[u8]) -> Result<()> {
        // not under the lock: other workers write other ranges meanwhile
        if let Err(error) = file.write_all_at(bytes, at) {
            return Err(io("write", active.state().part.path())(error));
        }
        active.state().part.record(at, bytes)?;
        add(&self.progress.downloaded, bytes.len() as u64);
        add(&active.downloaded, bytes.len() as u64);
        active.arrived.notify_all();
        Ok(())
    }
}
