//! Progress where no terminal is: a line of a log now and then, instead of a bar that is drawn over itself.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::TermLike;

/// Time between two lines, and before the first: what ends earlier says nothing.
const EVERY: Duration = Duration::from_secs(30);

/// Takes what a bar draws and writes the newest as a line to stderr, every half minute.
#[derive(Debug)]
pub(super) struct LogLines {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    drawn: String,
    next: Instant,
}

impl LogLines {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { drawn: String::new(), next: Instant::now() + EVERY }) }
    }

    fn draw(&self, text: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).drawn.push_str(text);
    }
}

impl TermLike for LogLines {
    fn width(&self) -> u16 {
        200
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(text);
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let line = std::mem::take(&mut state.drawn);
        let (line, now) = (line.trim(), Instant::now());
        if line.is_empty() || now < state.next {
            return Ok(());
        }
        state.next = now + EVERY;
        // nobody listens any more: no reason to fail
        let _ = io::stderr().write_all(format!("{}\n", super::harmless(line)).as_bytes());
        Ok(())
    }
}
