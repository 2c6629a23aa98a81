//! What happens after which step.

/// When a run saves, validates and tells, by its settings alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Steps of the run.
    pub(super) steps: u64,
    /// A state every so many steps; 0 is only at the end.
    pub(super) save_every: u64,
    /// A validation every so many steps; 0 is only with states.
    pub(super) validate_every: u64,
}

/// What is due between two steps; the validation comes first, and the state tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) validate: bool,
    pub(super) save: bool,
}

/// Lines of a run where a line a step would be too many.
const LINES: u64 = 20;

impl Due {
    /// What is due after step `step`, counted from 1. Whoever `stopped` the run waits for a state, not for a
    /// validation.
    pub(super) fn after(&self, step: u64, stopped: bool) -> Work {
        let every = |n: u64| n > 0 && step.is_multiple_of(n);
        let save = stopped || step == self.steps || every(self.save_every);
        Work { validate: !stopped && save || every(self.validate_every), save }
    }

    /// Whether a line tells of this step, where lines are few: the first, and twenty over the run.
    pub fn log(&self, step: u64) -> bool {
        step == 1 || step.is_multiple_of(self.steps.div_ceil(LINES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(due: Due, stopped: bool, which: impl Fn(Work) -> bool) -> Vec<u64> {
        (1..=due.steps).filter(|&step| which(due.after(step, stopped))).collect()
    }

    #[test]
    fn states_and_validations_come_when_they_are_due_and_at_the_end() {
        let due = Due { steps: 7, save_every: 3, validate_every: 2 };
        assert_eq!(steps(due, false, |work| work.save), [3, 6, 7]);
        assert_eq!(steps(due, false, |work| work.validate), [2, 3, 4, 6, 7]);
        let only_states = Due { validate_every: 0, ..due };
        assert_eq!(steps(only_states, false, |work| work.validate), [3, 6, 7]);
        let only_the_end = Due { save_every: 0, ..only_states };
        assert_eq!(steps(only_the_end, false, |work| work.save || work.validate), [7]);
    }

    #[test]
    fn who_stops_a_run_gets_a_state_at_once() {
        let due = Due { steps: 5, save_every: 0, validate_every: 4 };
        assert_eq!(steps(due, true, |work| work.save), [1, 2, 3, 4, 5]);
        assert_eq!(steps(due, true, |work| work.validate), [4]);
    }

    #[test]
    fn a_run_is_told_of_in_about_twenty_lines() {
        let lines = |steps: u64| {
            let due = Due { steps, save_every: 0, validate_every: 0 };
            (1..=steps).filter(|&step| due.log(step)).collect::<Vec<_>>()
        };
        assert_eq!(lines(3), [1, 2, 3]);
        let many = lines(1000);
        assert_eq!((many.len(), many[0], many[1], many.last()), (21, 1, 50, Some(&1000)));
    }
}
