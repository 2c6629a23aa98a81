//! Which part of a checkpoint this process writes: given, or told by Slurm or MPI.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use flm_checkpoint::JobPart;

/// Several processes that write one checkpoint.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "One checkpoint by several processes")]
pub(crate) struct PartArgs {
    /// Write the I-th of N parts, I from 0, beside processes that write the others into the same DST on a shared
    /// file system; auto takes I and N from Slurm or MPI. Whoever finishes last gives the checkpoint its name.
    #[arg(long, value_name = "I/N")]
    part: Option<WhichPart>,
    /// Write nothing, and give a checkpoint of which all parts are finished its name.
    #[arg(long, conflicts_with = "part")]
    finish: bool,
}

/// What --part says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhichPart {
    Given(JobPart),
    Auto,
}

impl std::str::FromStr for WhichPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Given) }
    }
}

impl WhichPart {
    /// The part, from the environment where that is to say it.
    pub(crate) fn part(self) -> anyhow::Result<JobPart> {
        match self {
            Self::Given(part) => Ok(part),
            Self::Auto => of_environment(|name| std::env::var(name).ok()),
        }
    }
}

/// Variables of number and count: job arrays of Slurm, its tasks, Open MPI, MPICH and Intel MPI, torchrun. An
/// array's
/// numbers may begin with another than 0.
const VARIABLES: [(&str, &str, Option<&str>); 5] = [
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", Some("SLURM_ARRAY_TASK_MIN")),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("PMI_RANK", "PMI_SIZE", None),
    ("RANK", "WORLD_SIZE", None),
];

/// The first of them with several processes, else one that says there is one.
fn of_environment(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<JobPart> {
    let mut only = None;
    for (index, count, first) in VARIABLES {
        let number = |name: &str| -> anyhow::Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            Ok(Some(text.parse().with_context(|| format!("{name} is {text:?}, not a number"))?))
        };
        let (Some(i), Some(n)) = (number(index)?, number(count)?) else { continue };
        let first = first.map(number).transpose()?.flatten().unwrap_or(0);
        let part = i.checked_sub(first).and_then(|i| JobPart::new(i, n));
        let part = part.with_context(|| format!("{index} is {i}, of {count} = {n}"))?;
        if n > 1 {
            return Ok(part);
        }
        only = only.or(Some(part));
    }
    let names: Vec<&str> = VARIABLES.iter().map(|(index, ..)| *index).collect();
    only.with_context(|| format!("--part auto: none of {} is set; give --part I/N", names.join(", ")))
}

impl PartArgs {
    /// The part of `dst` that is this process's; `None` where it does everything.
    pub(crate) fn of(&self, dst: &Path) -> anyhow::Result<Option<JobPart>> {
        Ok(match (self.part, self.finish) {
            (Some(which), _) => Some(which.part()?),
            (None, true) => Some(JobPart::finishing(dst)?),
            (None, false) => None,
        })
    }

    /// Refuses what one process has to do, by its name.
    pub(crate) fn require_alone(&self, asked: bool, what: &str) -> anyhow::Result<()> {
        if asked && (self.part.is_some() || self.finish) {
            bail!("{what} is done by one process: without --part and --finish");
        }
        Ok(())
    }
}

/// The command line, for provenance: the same whichever part this is.
pub(crate) fn command_line(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut value_follows = false;
    let of_part = |argument: &String| {
        let is =
            std::mem::take(&mut value_follows) || argument == "--finish" || argument.starts_with("--part=");
        value_follows = argument == "--part";
        is || value_follows
    };
    let mut of_part = of_part;
    arguments.filter(|argument| !of_part(argument)).collect()
}

/// What became of a part, in words.
pub(crate) fn state(part: Option<JobPart>, waiting_for: &[String], dst: &Path) -> String {
    let this = part.map_or_else(String::new, |part| format!("part {part} is written; "));
    match waiting_for {
        [] => format!("{this}another process has finished {}", dst.display()),
        [first @ .., last] if waiting_for.len() <= 8 && !first.is_empty() => {
            format!("{this}{} still waits for {} and {last}", dst.display(), first.join(", "))
        }
        [only] => format!("{this}{} still waits for {only}", dst.display()),
        many => {
            format!("{this}{} still waits for {} parts, the first is {}", dst.display(), many.len(), many[0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_say_which_part_a_process_is() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.to_vec();
            of_environment(move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let part = |index, count| JobPart::new(index, count).unwrap();
        assert_eq!(of(&[("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8")]).unwrap(), part(3, 8));
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]).unwrap(), part(0, 2));
        // an array of jobs with one task each, numbered from 1
        let array =
            [("SLURM_ARRAY_TASK_ID", "4"), ("SLURM_ARRAY_TASK_COUNT", "4"), ("SLURM_ARRAY_TASK_MIN", "1")];
        let one = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(of(&[&array[..], &one].concat()).unwrap(), part(3, 4));
        // mpirun inside an allocation of one task
        let mpi = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        assert_eq!(of(&[&one[..], &mpi].concat()).unwrap(), part(1, 2));
        assert_eq!(of(&one).unwrap(), part(0, 1));
        for (pairs, says) in [
            (&[][..], "--part auto"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK is 2, of WORLD_SIZE = 2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "not a number"),
            (&[("SLURM_PROCID", "0")], "--part auto"),
        ] {
            let error = of(pairs).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_command_line_is_the_same_for_every_part() {
        let of = |line: &str| command_line(line.split(' ').map(str::to_owned)).join(" ");
        for line in [
            "flm grow a b --part 1/4 --to c",
            "flm grow a b --part=auto --to c",
            "flm grow a b --finish --to c",
        ] {
            assert_eq!(of(line), "flm grow a b --to c");
        }
    }
}
