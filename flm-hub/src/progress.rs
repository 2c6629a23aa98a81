//! How far a pull is: counters that only grow, and news.

use std::sync::{
    atomic::{AtomicBool, AtomicU64, Ordering},
    mpsc::Sender,
};

use serde::Serialize;

use crate::error::HubError;

/// Something that happened, for whoever shows it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[allow(missing_docs, reason = "fields are the file, its bytes, and what their names say")]
pub enum Event {
    /// A file is being worked on; so much of it was there.
    Started { file: String, bytes: u64, have: u64 },
    /// Something failed and will be tried again.
    Retry { file: String, reason: String, wait_seconds: f64 },
    /// A file's content was wrong and is fetched again.
    Mismatch { file: String, expected: String, got: String },
    /// Pieces that an earlier process wrote did not survive; they are fetched again.
    Damaged { file: String, bytes: u64 },
    /// What stands under a file's name is damaged, or --force was given; it is fetched again.
    Replaced { file: String, reason: String },
    /// A file is under its name.
    Verified { file: String, bytes: u64, digest: String },
    /// A shard's tensors are safe.
    Converted { file: String, output: String, tensors: usize },
    /// A shard that is no longer needed.
    Removed { file: String },
    #[serde(skip)]
    Failed(HubError),
    #[serde(skip)]
    Finished,
}

/// Counters of one pull; none of them ever falls.
#[derive(Debug)]
pub struct Progress {
    /// Bytes that are to be on disk; grows where something is fetched again.
    pub total: AtomicU64,
    /// Bytes on disk, those of earlier pulls included.
    pub downloaded: AtomicU64,
    /// Bytes that came through the network in this process.
    pub received: AtomicU64,
    /// Bytes hashed, those of files verified earlier included.
    pub hashed: AtomicU64,
    /// Bytes of files whose digest was right.
    pub verified: AtomicU64,
    /// Bytes of shards converted.
    pub converted: AtomicU64,
    events: Sender<Event>,
    stop: AtomicBool,
}

impl Progress {
    pub fn new(events: Sender<Event>) -> Self {
        let zero = AtomicU64::default;
        Self {
            total: zero(),
            downloaded: zero(),
            received: zero(),
            hashed: zero(),
            verified: zero(),
            converted: zero(),
            events,
            stop: AtomicBool::new(false),
        }
    }

    pub fn tell(&self, event: Event) {
        // whoever listened has gone: the process ends
        let _ = self.events.send(event);
    }

    /// Ends the pull with an error.
    pub fn fail(&self, error: HubError) {
        self.stop();
        self.tell(Event::Failed(error));
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The value of a counter.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
