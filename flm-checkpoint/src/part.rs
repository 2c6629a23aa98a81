//! Which part of the work on a checkpoint is whose, where several processes share it: it follows from sizes alone.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::Serialize;

/// Which of how many processes this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct JobPart {
    /// `None` for whoever only finishes what the parts have written.
    index: Option<usize>,
    count: usize,
}

/// The largest number of parts.
const MOST: usize = 4096;

impl JobPart {
    /// JobPart `index`, counted from 0, of `count`; `None` unless `index` is less than `count`, which is 4096 at most.
    pub fn new(index: usize, count: usize) -> Option<Self> {
        (index < count && count <= MOST).then_some(Self { index: Some(index), count })
    }

    /// Its number, counted from 0; `None` for whoever only finishes.
    pub fn index(self) -> Option<usize> {
        self.index
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.count
    }

    /// Which of things of these sizes, in their order, are this part's: those whose middle lies in its share of the
    /// sum. The parts of a number of parts have each thing once.
    pub fn share(self, sizes: &[u64]) -> Range<usize> {
        let total: u128 = sizes.iter().map(|&size| u128::from(size)).sum();
        let mut before = 0u128;
        let middles: Vec<u128> = sizes
            .iter()
            .map(|&size| {
                before += u128::from(size);
                2 * before - u128::from(size)
            })
            .collect();
        let Some(index) = self.index else { return 0..0 };
        // middle / (2 · total) < index / count, in whole numbers
        let start = |index: usize| {
            middles.partition_point(|&middle| middle * (self.count as u128) < 2 * total * index as u128)
        };
        let end = if index + 1 == self.count { sizes.len() } else { start(index + 1) };
        start(index)..end
    }

    /// What the names of journals begin with.
    pub(crate) const JOURNALS: &str = ".journal-";

    /// All parts of this number.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        (0..self.count).map(move |index| Self { index: Some(index), ..self })
    }

    /// Name of the file that this part holds locked in the staging directory.
    pub(crate) fn lock_name(self) -> String {
        format!(".lock-{}", self.name())
    }

    /// Name of its journal.
    pub(crate) fn journal_name(self) -> String {
        format!("{}{}.jsonl", Self::JOURNALS, self.name())
    }

    /// Whoever only finishes.
    pub(crate) fn nobody(self) -> Self {
        Self { index: None, ..self }
    }

    fn name(self) -> String {
        let index = self.index.map_or("none".into(), |index| index.to_string());
        format!("{index}-of-{}", self.count)
    }
}

impl fmt::Display for JobPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{index}/{}", self.count),
            None => write!(f, "none of {}", self.count),
        }
    }
}

impl FromStr for JobPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').map(|(index, count)| (index.parse().ok(), count.parse().ok()));
        match numbers {
            Some((Some(index), Some(count))) => Self::new(index, count),
            _ => None,
        }
        .ok_or_else(|| format!("{text:?} is no part: I/N, with I from 0 to N − 1 and N up to {MOST}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_read_as_they_are_written() {
        for (text, part) in [
            ("0/1", JobPart::new(0, 1)),
            ("3/4", JobPart::new(3, 4)),
            ("4095/4096", JobPart::new(4095, 4096)),
        ] {
            assert_eq!(text.parse().ok(), part);
            assert_eq!(part.unwrap().to_string(), text);
        }
        for text in ["", "1", "1/1", "4/4", "-1/4", "0/0", "0/4097", "a/b", "1/4/2", "0 /4"] {
            assert!(text.parse::<JobPart>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Each thing is one part's, in order, and no part has more than its share and half a thing at each end.
        #[test]
        fn shares_are_disjoint_and_whole(sizes in proptest::collection::vec(0u64..1_000_000, 0..60), count in 1usize..9) {
            let (total, largest) = (sizes.iter().sum::<u64>(), sizes.iter().max().copied().unwrap_or(0));
            let mut next = 0;
            for index in 0..count {
                let share = JobPart::new(index, count).unwrap().share(&sizes);
                prop_assert_eq!(share.start, next);
                next = share.end;
                let bytes: u64 = sizes[share].iter().sum();
                prop_assert!(bytes <= total.div_ceil(count as u64) + largest);
            }
            prop_assert_eq!(next, sizes.len());
        }
    }
}
