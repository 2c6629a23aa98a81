//! Trying again: when, and how long after.

use std::time::{Duration, Instant};

use crate::error::{HubError, Result};

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest that a server's Retry-After is followed.
const LONGEST_ASKED_WAIT: Duration = Duration::from_secs(600);

/// Tries until it succeeds, fails for good, is stopped, or has failed more than `retries` times in a row.
///
/// The attempt may set the number of failures in a row, which it is given, to zero where it got further.
pub(crate) fn persist<T>(
    retries: u32,
    is_stopped: &dyn Fn() -> bool,
    attempt: &mut dyn FnMut(&mut u32) -> Result<T>,
    tell: &dyn Fn(&HubError, Duration),
) -> Result<T> {
    let mut failures = 0;
    loop {
        let error = match attempt(&mut failures) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(asked) = error.retry().filter(|_| !is_stopped()) else { return Err(error) };
        failures += 1;
        if failures > retries {
            return Err(error);
        }
        let wait = asked.map_or_else(|| backoff(failures), |asked| asked.min(LONGEST_ASKED_WAIT));
        tell(&error, wait);
        let end = Instant::now() + wait;
        while !is_stopped() && Instant::now() < end {
            std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
    }
}

/// Twice as long after each failure, with up to a quarter more at random, so that workers spread.
fn backoff(failures: u32) -> Duration {
    let wait = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_WAIT);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    wait + wait.mul_f64(f64::from(now.subsec_nanos() % 1000) / 4000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        for (failures, seconds) in [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (40, 30.0)] {
            let wait = backoff(failures).as_secs_f64();
            assert!((seconds..seconds * 1.26).contains(&wait), "{failures}: {wait}");
        }
    }
}
