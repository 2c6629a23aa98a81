//! Hashing a file while it is written: the prefix that is complete, piece by piece, from the page cache.

use std::{path::Path, sync::PoisonError, time::Duration};

use crate::digest::PIECE;
use crate::error::{HubError, Result, io};
use crate::fetch::{Active, Fetcher};
use crate::part;
use crate::part::read_piece;
use crate::plan::{PlannedFile, State};
use crate::progress::{Event, Progress, add};

/// How often a file whose content is wrong is fetched.
const ATTEMPTS: u32 = 2;

/// Follows a file while workers fetch it and gives it its name when its digest is right.
///
/// False where the pull was stopped.
pub(crate) fn follow(fetcher: &Fetcher, active: &Active, target: &Path) -> Result<bool> {
    let (file, progress) = (&active.file, &fetcher.progress);
    for attempt in 1.. {
        let Some(got) = hash(fetcher, active)? else { return Ok(false) };
        if got == file.digest.hex() {
            active.state().part.publish(target)?;
            return Ok(true);
        }
        let expected = file.digest.hex().to_owned();
        if attempt == ATTEMPTS {
            part::discard(target)?;
            let (file, algorithm) = (file.name.clone(), file.digest.algorithm());
            return Err(HubError::Digest { file, algorithm, expected, got, times: attempt });
        }
        progress.tell(Event::Mismatch { file: file.name.clone(), expected, got });
        add(&progress.total, file.bytes);
        add(&active.total, file.bytes);
        active.state().part.reset()?;
        fetcher.changed.notify_all();
    }
    Ok(false)
}

/// The digest of the part once it is complete; `None` where the pull was stopped.
fn hash(fetcher: &Fetcher, active: &Active) -> Result<Option<String>> {
    let progress = &fetcher.progress;
    let mut hasher = active.file.digest.hasher(active.file.bytes);
    let handle = active.state().part.file()?;
    let mut buf = vec![0; PIECE];
    let mut done = 0;
    while done < active.file.bytes {
        let mut state = active.state();
        let piece = loop {
            if progress.is_stopped() {
                return Ok(None);
            }
            match state.part.piece_at(done) {
                Some(piece) => break piece,
                None => {
                    let wait = active.arrived.wait_timeout(state, Duration::from_millis(200));
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        drop(state);
        let (start, len, crc) = piece;
        let bytes = u64::from(len);
        buf.resize(buf.len().max(len as usize), 0);
        if !read_piece(&handle, start, &mut buf[..len as usize], crc) {
            active.state().part.forget(start);
            add(&progress.total, bytes);
            add(&active.total, bytes);
            progress.tell(Event::Damaged { file: active.file.name.clone(), bytes });
            fetcher.changed.notify_all();
            continue;
        }
        // a piece may begin in what was hashed already, where another was written over
        let fresh = &buf[(done - start) as usize..len as usize];
        hasher.update(fresh);
        done += fresh.len() as u64;
        add(&progress.hashed, fresh.len() as u64);
        add(&active.hashed, fresh.len() as u64);
    }
    Ok(Some(hasher.finish()))
}

/// Whether a file that is there already has the right content; `None` where the pull was stopped.
pub(crate) fn check_present(progress: &Progress, file: &PlannedFile, path: &Path) -> Result<Option<bool>> {
    let mut before = 0;
    let digest = file.digest.of_file(path, |done| {
        add(&progress.hashed, done - before);
        before = done;
        !progress.is_stopped()
    })?;
    Ok(digest.map(|digest| digest == file.digest.hex()))
}

/// Takes a verified file from the Hub's cache: a hard link where that is possible, else a copy.
pub(crate) fn take_from_cache(file: &PlannedFile, target: &Path) -> Result<()> {
    let State::Cached(blob) = &file.state else { return Ok(()) };
    let part = part::part_path(target);
    flm_checkpoint::atomic::remove(&part)?;
    // a blob may be a link into another store: what it leads to is linked
    let blob = blob.canonicalize().map_err(io("open", blob))?;
    if std::fs::hard_link(&blob, &part).is_err() {
        std::fs::copy(&blob, &part).map_err(io("copy to", &part))?;
        let copy = std::fs::File::open(&part).and_then(|f| f.sync_all());
        copy.map_err(io("sync", &part))?;
    }
    Ok(flm_checkpoint::atomic::rename(&part, target)?)
}
