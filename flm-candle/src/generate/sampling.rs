//! The choice of a token: penalty, temperature, top-k, top-p and min-p in transformers' order, on the CPU.
//!
//! Every filter sees what the one before it has left, renormalised: `p` is a share of the `k` likeliest, and the
//! least likely ones go as long as they have no more than `1 - p` together. Equal probabilities are told apart
//! by id, the smaller one first, so that all devices choose from the same tokens.

use candle_core::{DType, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::utils::apply_repeat_penalty;

use crate::generate::GenerateOptions;

/// Below this temperature the likeliest token has all of the probability, and quotients overflow: greedy.
const GREEDY: f64 = 1e-5;

/// Draws the tokens of a row.
pub(super) struct Sampler {
    draw: LogitsProcessor,
    greedy: bool,
}

impl Sampler {
    pub(super) fn new(options: &GenerateOptions) -> Self {
        let temperature = options.temperature;
        let greedy = temperature < GREEDY;
        let sampling = if greedy { Sampling::ArgMax } else { Sampling::All { temperature } };
        Self { draw: LogitsProcessor::from_sampling(options.seed, sampling), greedy }
    }

    /// A token by its logits, `[vocabulary]`, after the tokens of `seen`.
    pub(super) fn next(
        &mut self,
        logits: &Tensor,
        seen: impl FnOnce() -> Vec<u32>,
        options: &GenerateOptions,
    ) -> candle_core::Result<u32> {
        let mut logits = logits.to_dtype(DType::F32)?;
        if options.repetition_penalty != 1.0 {
            logits = apply_repeat_penalty(&logits, options.repetition_penalty, &seen())?;
        }
        if !options.never.is_empty() {
            logits = without(&logits, &options.never)?;
        }
        if self.greedy {
            return self.draw.sample(&logits);
        }
        self.draw.sample_f(&logits, |probabilities| filter(probabilities, options))
    }
}

/// Logits that give these ids no probability.
fn without(logits: &Tensor, ids: &[u32]) -> candle_core::Result<Tensor> {
    let mut values = logits.to_vec1::<f32>()?;
    for &id in ids {
        if let Some(value) = values.get_mut(id as usize) {
            *value = f32::NEG_INFINITY;
        }
    }
    Tensor::new(values, logits.device())
}

/// Sets the probabilities of the tokens that top-k, top-p and min-p leave out to 0.
fn filter(probabilities: &mut [f32], options: &GenerateOptions) {
    let k = options.top_k.filter(|&k| k > 0 && k < probabilities.len());
    let p = options.top_p.filter(|&p| p < 1.0);
    let min_p = options.min_p.filter(|&p| p > 0.0);
    if k.is_none() && p.is_none() && min_p.is_none() {
        return;
    }
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    let likelier = |&a: &usize, &b: &usize| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b));
    if let Some(k) = k {
        order.select_nth_unstable_by(k, likelier);
        order.truncate(k);
    }
    order.sort_unstable_by(likelier);
    if let Some(p) = p {
        let mass: f64 = order.iter().map(|&id| f64::from(probabilities[id])).sum();
        // from the least likely one, and in f32, as transformers sums: sums of just 1 - p fall alike
        let mut below = 0.0;
        let dropped = order.iter().rev().take_while(|&&id| {
            below += f64::from(probabilities[id]) / mass;
            below as f32 <= (1.0 - p) as f32
        });
        order.truncate((order.len() - dropped.count()).max(1));
    }
    if let Some(min_p) = min_p {
        let least = f64::from(probabilities[order[0]]) * min_p;
        order.retain(|&id| f64::from(probabilities[id]) >= least);
    }
    let kept: Vec<(usize, f32)> = order.into_iter().map(|id| (id, probabilities[id])).collect();
    probabilities.fill(0.0);
    kept.into_iter().for_each(|(id, probability)| probabilities[id] = probability);
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn kept(probabilities: &[f32], options: impl FnOnce(&mut GenerateOptions)) -> Vec<usize> {
        let mut settings = GenerateOptions { temperature: 1.0, ..GenerateOptions::greedy(1, 1) };
        options(&mut settings);
        let mut left = probabilities.to_vec();
        filter(&mut left, &settings);
        (0..left.len()).filter(|&id| left[id] > 0.0).collect()
    }

    /// The right sets are those of transformers' warpers, one after another.
    #[test]
    fn filters_see_what_the_one_before_has_left() {
        let five = [0.10, 0.30, 0.20, 0.25, 0.15];
        assert_eq!(kept(&five, |o| o.top_p = Some(0.7)), [1, 2, 3]);
        assert_eq!(kept(&five, |o| o.top_p = Some(0.75)), [1, 2, 3]);
        assert_eq!(kept(&five, |o| o.top_k = Some(3)), [1, 2, 3]);
        // 0.3 and 0.25 of the three's 0.75 are more than 0.7 of it
        assert_eq!(kept(&five, |o| (o.top_k, o.top_p) = (Some(3), Some(0.7))), [1, 3]);
        assert_eq!(kept(&five, |o| (o.top_k, o.top_p) = (Some(3), Some(0.75))), [1, 2, 3]);
        assert_eq!(kept(&five, |o| o.top_p = Some(1e-9)), [1]);
        assert_eq!(kept(&five, |o| o.min_p = Some(0.6)), [1, 2, 3]);
        assert_eq!(kept(&five, |o| (o.top_k, o.min_p) = (Some(0), Some(1.0))), [1]);
        assert_eq!(kept(&five, |o| (o.top_k, o.top_p) = (Some(99), Some(1.0))), [0, 1, 2, 3, 4]);
        // of equal ones the smaller ids
        assert_eq!(kept(&[0.25; 4], |o| o.top_k = Some(2)), [0, 1]);
    }

    #[test]
    fn draws_have_the_renormalised_probabilities() {
        let five = [0.30_f32, 0.25, 0.20, 0.15, 0.10];
        let logits = Tensor::new(five.map(f32::ln).to_vec(), &Device::Cpu).unwrap();
        let greedy = GenerateOptions::greedy(1, 5);
        let options =
            GenerateOptions { temperature: 1.0, top_k: Some(3), top_p: Some(0.7), ..greedy.clone() };
        let mut sampler = Sampler::new(&options);
        let drawn: Vec<u32> = (0..4000).map(|_| sampler.next(&logits, Vec::new, &options).unwrap()).collect();
        let share = |id| drawn.iter().filter(|&&d| d == id).count() as f64 / 4000.0;
        assert!((share(0) - 6.0 / 11.0).abs() < 0.03 && share(0) + share(1) == 1.0, "{}", share(0));
        // a temperature of next to nothing is greedy, and what may never come does not
        let options = GenerateOptions { temperature: 1e-300, never: vec![0], ..greedy };
        assert_eq!(Sampler::new(&options).next(&logits, Vec::new, &options).unwrap(), 1);
    }
}
