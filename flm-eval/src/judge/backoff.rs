//! How long to wait before a judge is asked again.

use std::time::Duration;

/// The longest wait before a try, whatever a server asks for.
const LONGEST: Duration = Duration::from_secs(300);

/// How long to wait before the next try.
///
/// `base · 2^failures`, at most a minute, of which the upper half is left to chance so that workers do
/// not come back together; or what the server asked for, if that is longer.
pub(super) fn wait(base: Duration, failures: u32, retry_after: Option<Duration>, chance: u64) -> Duration {
    let full = base.saturating_mul(1 << failures.min(16)).min(Duration::from_secs(60));
    let chance = (chance.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1u64 << 53) as f64;
    let wait = full.mul_f64(0.5 + 0.5 * chance);
    retry_after.map_or(wait, |asked| asked.min(LONGEST).max(wait))
}

/// A Retry-After header: seconds. Dates are rare and left to the ordinary wait.
pub(super) fn retry_after(header: &str) -> Option<Duration> {
    let seconds: f64 = header.trim().parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(1e6)))
}

/// A retry-after-ms header, as OpenAI's servers send beside the other: milliseconds.
pub(super) fn retry_after_ms(header: &str) -> Option<Duration> {
    retry_after(header).map(|asked| asked / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_chance_up_to_a_minute() {
        let second = Duration::from_secs(1);
        for (failures, full) in [(0, 1.0), (1, 2.0), (3, 8.0), (20, 60.0)] {
            let waits: Vec<f64> = (0..50).map(|c| wait(second, failures, None, c).as_secs_f64()).collect();
            assert!(waits.iter().all(|w| (full / 2.0..=full).contains(w)), "{waits:?}");
            assert!(waits.iter().any(|w| *w < 0.6 * full) && waits.iter().any(|w| *w > 0.9 * full));
        }
    }

    #[test]
    fn the_server_may_ask_for_more_but_not_for_ever() {
        let second = Duration::from_secs(1);
        assert_eq!(wait(second, 0, retry_after("7"), 0), Duration::from_secs(7));
        assert!(wait(second, 0, retry_after("0"), 0) >= second / 2);
        assert_eq!(wait(second, 0, retry_after("1e9"), 0), LONGEST);
        assert_eq!(retry_after_ms("1500"), Some(Duration::from_millis(1500)));
        for bad in ["", "-1", "nan", "inf", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(retry_after(bad), None, "{bad}");
        }
    }
}
