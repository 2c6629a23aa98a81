//! `strftime_now`: the date that a template puts into a prompt.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use minijinja::{Error, ErrorKind};

/// What time it is for a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Clock {
    /// Local time, as transformers has it; UTC of `SOURCE_DATE_EPOCH` where that variable is set.
    #[default]
    Now,
    /// This time, for runs that are to be repeated.
    At(DateTime),
}

impl Clock {
    /// The clock that stands still at `YYYY-MM-DD` or `YYYY-MM-DDTHH:MM:SS`.
    ///
    /// # Errors
    /// For other texts.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let bad = |e| Error::new(ErrorKind::InvalidOperation, format!("the date {text:?}: {e}"));
        text.parse().map(Self::At).map_err(bad)
    }

    /// The time as `strftime` writes it.
    ///
    /// # Errors
    /// For a format that `strftime` does not know, and a `SOURCE_DATE_EPOCH` that is no number of seconds.
    pub(crate) fn strftime(self, format: &str) -> Result<String, Error> {
        let bad = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
        };
        let time = match self {
            Self::At(time) => time.to_zoned(TimeZone::UTC).map_err(|e| bad(&e))?,
            Self::Now => match std::env::var("SOURCE_DATE_EPOCH") {
                Ok(seconds) => {
                    let seconds =
                        seconds.trim().parse().map_err(|e| bad(&format!("SOURCE_DATE_EPOCH: {e}")))?;
                    Timestamp::from_second(seconds).map_err(|e| bad(&e))?.to_zoned(TimeZone::UTC)
                }
                Err(_) => Zoned::now(),
            },
        };
        jiff::fmt::strtime::format(format, &time).map_err(|e| bad(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_time_is_written_as_strftime_writes_it() {
        let clock = Clock::At("2024-07-06T05:04:03".parse().unwrap());
        assert_eq!(
            clock.strftime("%d %b %Y|%Y-%m-%d|%-d|%A %B|%H:%M:%S|%%").unwrap(),
            "06 Jul 2024|2024-07-06|6|Saturday July|05:04:03|%"
        );
        assert!(clock.strftime("%\u{1}").is_err());
    }
}
