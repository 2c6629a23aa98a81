//! The learning rate of every step.

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// It stays.
    Constant,
    /// In a straight line.
    #[default]
    Linear,
    /// Along half a cosine. Loshchilov and Hutter, arXiv 1608.03983.
    Cosine,
}

/// The learning rate of every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The rate of the last step.
    pub last: f64,
    /// Steps over which the rate rises from 0 to the highest.
    pub warmup: u64,
    /// Number of steps.
    pub steps: u64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `step`, counted from 0. The first step after the warm-up has the highest rate,
    /// the last step the last.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup + 1).max(1) as f64;
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => self.peak + (self.last - self.peak) * done,
            Decay::Cosine => {
                self.last + (self.peak - self.last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_ends_at_the_last_rate() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let schedule = Schedule { peak: 2.7e-5, last: 1e-9, warmup: 3, steps: 30, decay };
            let rates: Vec<f64> = (0..30).map(|i| schedule.rate(i)).collect();
            assert!(rates[..4].windows(2).all(|w| w[0] < w[1]) && rates[3..].windows(2).all(|w| w[0] > w[1]));
            assert_eq!(rates[3], 2.7e-5);
            assert!((rates[29] - 1e-9).abs() < 1e-18, "{}", rates[29]);
            let half = schedule.rate(16);
            assert!((half - (2.7e-5 + 1e-9) / 2.0).abs() < 1e-12 || decay == Decay::Linear, "{half}");
        }
        let one = Schedule { peak: 1.0, last: 0.0, warmup: 0, steps: 1, decay: Decay::Linear };
        assert_eq!(one.rate(0), 1.0);
    }
}
