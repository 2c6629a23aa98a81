//! Ctrl-C, for commands that have something to finish or to save first.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::Context;

/// The exit status of a command that was interrupted: 128 and the number of SIGINT.
pub(crate) const STATUS: u8 = 130;

/// Watches for Ctrl-C, and for requests to terminate.
///
/// The first sets the flag, at which whoever works looks from time to time. Another one while the flag is
/// set ends the program at once: who asks twice has waited enough.
///
/// # Errors
/// When it is called twice in a process.
pub(crate) fn watch() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let handler = move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(STATUS));
        }
    };
    ctrlc::set_handler(handler).context("cannot watch for Ctrl-C")?;
    Ok(flag)
}
