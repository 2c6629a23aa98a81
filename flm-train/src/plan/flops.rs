//! Floating-point operations of a step.

use crate::data::batch::Packed;
use flm_checkpoint::TeleFlmConfig;

/// Floating-point operations that a forward and a backward pass over `rows` need, for model FLOP
/// utilisation (Chowdhery et al., arXiv 2204.02311, appendix B).
///
/// `6 · (block matrices · tokens + head · targets) + 12 · layers · heads · head_dim · keys`, where `keys`
/// counts, for every token, the tokens of its document up to itself. A product of a weight with a token
/// is a multiplication and an addition, and backward is twice forward. What is done besides does not
/// count: padding, blocks that run again, the head where nothing is learned, norms, the update.
pub fn model_operations<'a>(config: &TeleFlmConfig, rows: impl IntoIterator<Item = &'a Packed>) -> f64 {
    let (mut tokens, mut targets, mut keys) = (0u64, 0u64, 0u64);
    for row in rows {
        tokens += row.len() as u64;
        targets += row.targets() as u64;
        keys += (0u64..).zip(&row.starts).map(|(i, &start)| i + 1 - u64::from(start)).sum::<u64>();
    }
    let matrices = config.block_tensors(0).into_iter().filter(|t| t.shape.len() > 1);
    let block: u64 = matrices.map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let layers = config.num_hidden_layers as u64;
    let head = (config.vocab_size * config.hidden_size) as u64;
    let weights = (layers * block) as f64 * tokens as f64 + head as f64 * targets as f64;
    let attention = (layers * config.query_width() as u64) as f64 * keys as f64;
    6.0 * weights + 12.0 * attention
}

#[cfg(test)]
mod tests {
    use super::*;
    use flm_checkpoint::preset;

    #[test]
    fn a_case_counted_by_hand() {
        let mut config = preset("nano-52b").unwrap();
        (config.num_hidden_layers, config.hidden_size, config.intermediate_size) = (3, 8, 20);
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim) = (4, 2, 5);
        config.vocab_size = 100;
        // documents of 3 and 2 tokens; the first token of each is no target
        let mut row = Packed::default();
        row.push(&[1, 2, 3], &[true; 3]);
        row.push(&[4, 5], &[true; 2]);
        // q and o: 20 · 8; k and v: 10 · 8; gate, up, down: 20 · 8
        let block = 2 * 160 + 2 * 80 + 3 * 160;
        let weights = 3 * block * 5 + 800 * 3;
        // tokens see 1 + 2 + 3 and 1 + 2 keys, each in 4 heads of 5
        let attention = 3 * 20 * 9;
        let expected = f64::from(6 * weights + 12 * attention);
        assert_eq!(model_operations(&config, [&row]), expected);
        assert_eq!(model_operations(&config, [&row, &row]), 2.0 * expected);
    }
}
