//! A forward pass in f64, written apart from the model.

use flm_checkpoint::{Activation, LayerRope, NormPlacement, QkNorm, TeleFlmConfig};

use crate::reference::Model;

/// `[rows, cols]` · x.
fn matvec(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms_norm(x: &[f64], gain: &[f64], c: &TeleFlmConfig, h: &[f64]) -> Vec<f64> {
    let (eps, offset) = (c.rms_norm_eps, if c.model_type.as_str().starts_with("gemma") { 1.0 } else { 0.0 });
    let mean = x.iter().zip(h).map(|(v, h)| v * v * h).sum::<f64>() / h.iter().sum::<f64>();
    x.iter().zip(gain).map(|(v, g)| v / (mean + eps).sqrt() * (g + offset)).collect()
}

/// Rotary of the first entries of one head, by halves or by neighbours, in a text of `length` tokens.
fn rotate(head: &mut [f64], position: usize, length: usize, rope: LayerRope, c: &TeleFlmConfig) {
    let (theta, scaled) = match rope {
        LayerRope::Model => (c.rope_theta, true),
        LayerRope::Local { theta } => (theta, false),
        LayerRope::None => return,
    };
    let (half, width) = (c.rotary_dim() / 2, c.rotary_dim());
    let neighbours = ["helium", "ernie4_5"].contains(&c.model_type.as_str());
    for i in 0..half {
        let frequency = theta.powf(-2.0 * i as f64 / width as f64);
        let divisor = if scaled { c.rope_scaling.divisor(i, width, theta, length) } else { 1.0 };
        let angle = position as f64 * frequency / divisor;
        let (i, j) = if neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (a, b) = (head[i], head[j]);
        head[i] = a * angle.cos() - b * angle.sin();
        head[j] = b * angle.cos() + a * angle.sin();
    }
}

/// The approximation of GELU by tanh, or SiLU.
fn activated(x: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn bounded(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Model {
    /// Logits of every position, one vector of `vocab_size` each.
    pub(crate) fn logits(&self, tokens: &[usize]) -> Vec<Vec<f64>> {
        let c = &self.config;
        let (d, hd) = (c.hidden_size, c.head_dim);
        let masks = c.growth.clone();
        let masks = masks.as_ref();
        let mask = |size: usize, of: Option<(usize, f64)>| -> Vec<f64> {
            (0..size).map(|i| of.filter(|(from, _)| i >= *from).map_or(1.0, |(_, m)| m)).collect()
        };
        let hm = mask(d, masks.and_then(|m| m.hidden).map(|m| (m.from, m.mask)));
        let am = mask(c.num_attention_heads, masks.and_then(|m| m.heads).map(|m| (m.from, m.mask)));
        let fm = mask(c.intermediate_size, masks.and_then(|m| m.ffn).map(|m| (m.from, m.mask)));
        let times = |x: Vec<f64>, mask: &[f64], s: f64| -> Vec<f64> {
            x.iter().zip(mask).map(|(x, m)| x * m * s).collect()
        };
        let embed = self.values("model.embed_tokens.weight");
        let mut stream: Vec<Vec<f64>> =
            tokens.iter().map(|t| times(embed[t * d..(t + 1) * d].to_vec(), &hm, c.input_scale())).collect();
        for layer in 0..c.num_hidden_layers {
            let new = masks.and_then(|m| m.layers.as_ref()).filter(|l| l.new.contains(&layer));
            let s = new.map_or(1.0, |l| l.mask) * c.residual_multiplier;
            let kind = c.layers.of(layer);
            let w = |part: &str| self.values(&format!("model.layers.{layer}.{part}.weight"));
            let bias = |part: &str| {
                let name = format!("model.layers.{layer}.{part}.bias");
                self.tensors.contains_key(&name).then(|| self.values(&name))
            };
            // norms of what is read and of what is written, by name
            let norm = |x: &[f64], name: Option<&str>| match name {
                Some(name) => rms_norm(x, &w(name), c, &hm),
                None => x.to_vec(),
            };
            let (reads, writes, reads_again, writes_again) = match c.norms {
                NormPlacement::Before => {
                    (Some("input_layernorm"), None, Some("post_attention_layernorm"), None)
                }
                NormPlacement::After => {
                    (None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm"))
                }
                NormPlacement::Around => (
                    Some("input_layernorm"),
                    Some("post_attention_layernorm"),
                    Some("pre_feedforward_layernorm"),
                    Some("post_feedforward_layernorm"),
                ),
            };
            let (q, k, v, o) =
                (w("self_attn.q_proj"), w("self_attn.k_proj"), w("self_attn.v_proj"), w("self_attn.o_proj"));
            let (mut queries, mut keys, mut values) = (vec![], vec![], vec![]);
            for (position, x) in stream.iter().enumerate() {
                let y = norm(x, reads);
                let biased = |mut y: Vec<f64>, part: &str| {
                    if let Some(bias) = bias(part) {
                        add(&mut y, &bias);
                    }
                    y
                };
                let mut query = biased(matvec(&q, &y), "self_attn.q_proj");
                let mut key = biased(matvec(&k, &y), "self_attn.k_proj");
                for (heads, part) in [(&mut query, "self_attn.q_norm"), (&mut key, "self_attn.k_norm")] {
                    if c.qk_norm == QkNorm::Whole {
                        *heads = rms_norm(heads, &w(part), c, &vec![1.0; heads.len()]);
                    }
                    for head in heads.chunks_mut(hd) {
                        if c.qk_norm == QkNorm::Heads {
                            let normed = rms_norm(head, &w(part), c, &vec![1.0; hd]);
                            head.copy_from_slice(&normed);
                        }
                        rotate(head, position, tokens.len(), kind.rope, c);
                    }
                }
                queries.push(query);
                keys.push(key);
                values.push(biased(matvec(&v, &y), "self_attn.v_proj"));
            }
            let group = c.num_attention_heads / c.num_key_value_heads;
            for (position, query) in queries.iter().enumerate() {
                let mut heads = vec![0.0; c.num_attention_heads * hd];
                for (head, out) in heads.chunks_mut(hd).enumerate() {
                    let part = |all: &Vec<f64>, head: usize| all[head * hd..(head + 1) * hd].to_vec();
                    let query = part(query, head);
                    let first = kind.window.map_or(0, |window| (position + 1).saturating_sub(window));
                    let scores: Vec<f64> = keys[first..=position]
                        .iter()
                        .map(|key| matvec(&part(key, head / group), &query)[0] * c.score_scale())
                        .map(|score| bounded(score, c.attention_softcap).exp())
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for (score, value) in scores.iter().zip(&values[first..]) {
                        let value = part(value, head / group);
                        out.iter_mut().zip(value).for_each(|(o, v)| *o += am[head] * score / total * v);
                    }
                }
                let mut written = matvec(&o, &heads);
                if let Some(bias) = bias("self_attn.o_proj") {
                    add(&mut written, &bias);
                }
                add(&mut stream[position], &times(norm(&written, writes), &hm, s));
            }
            let (gate, up, down) = (w("mlp.gate_proj"), w("mlp.up_proj"), w("mlp.down_proj"));
            for x in &mut stream {
                let y = norm(x, reads_again);
                let biased = |mut y: Vec<f64>, part: &str| {
                    if let Some(bias) = bias(part) {
                        add(&mut y, &bias);
                    }
                    y
                };
                let units: Vec<f64> = biased(matvec(&gate, &y), "mlp.gate_proj")
                    .into_iter()
                    .zip(biased(matvec(&up, &y), "mlp.up_proj"))
                    .map(|(g, u)| activated(g, c.activation) * u)
                    .collect();
                let written = biased(matvec(&down, &times(units, &fm, 1.0)), "mlp.down_proj");
                add(x, &times(norm(&written, writes_again), &hm, s));
            }
        }
        let gain = self.values("model.norm.weight");
        let head = if c.tie_word_embeddings { embed } else { self.values("lm_head.weight") };
        stream
            .iter()
            .map(|x| matvec(&head, &rms_norm(x, &gain, c, &hm)))
            .map(|logits| logits.into_iter().map(|v| bounded(v * c.logit_scale(), c.logit_softcap)).collect())
            .collect()
    }
}
