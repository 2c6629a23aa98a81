//! Every backward against central differences in f64.

use crate::NormMask;
use crate::model::kernels::linear::linear;
use crate::model::kernels::rms_norm::rms_norm;
use crate::model::kernels::swiglu::swiglu;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use crate::model::attention::Attention;
use crate::model::block::Block;
use crate::model::forward_context::{AttentionKinds, Pass};
use crate::model::kernels::Documents;
use crate::model::kernels::attention::{Heads, Scores, attention};
use crate::model::linear::Linear;
use crate::model::masks::BlockMasks;
use crate::model::mlp::Mlp;
use crate::model::rms_norm::RmsNorm;
use crate::model::rotary::Rotary;
use flm_checkpoint::Activation;

/// Values that look random and do not repeat.
fn values(shape: &[usize], seed: f64) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|i| ((i as f64 + 1.0) * (seed + 0.737)).sin() * 1.1).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Compares the gradients of Σ f · weights by all inputs with central differences.
fn check(inputs: Vec<Tensor>, f: impl Fn(&[Tensor]) -> Tensor) {
    let variables: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors);
    let weights = values(y.dims(), 0.31);
    let loss = |y: Tensor| (y * &weights).unwrap().sum_all().unwrap();
    let grads = loss(y).backward().unwrap();
    for (index, variable) in variables.iter().enumerate() {
        let got: Vec<f64> =
            grads.get(variable).expect("a gradient").flatten_all().unwrap().to_vec1().unwrap();
        let x: Vec<f64> = inputs[index].flatten_all().unwrap().to_vec1().unwrap();
        for i in 0..x.len() {
            let at = |delta: f64| {
                let mut moved = x.clone();
                moved[i] += delta;
                let mut inputs = inputs.clone();
                inputs[index] = Tensor::from_vec(moved, inputs[index].shape(), &Device::Cpu).unwrap();
                loss(f(&inputs)).to_scalar::<f64>().unwrap()
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            let error = (got[i] - expected).abs() / expected.abs().max(0.1);
            assert!(error < 1e-7, "input {index}, value {i}: {} against {expected}", got[i]);
        }
    }
}

#[test]
fn linear_swiglu_and_rms_norm() {
    check(vec![values(&[5, 3], 0.1), values(&[4, 3], 0.2)], |x| linear(&x[0], &x[1]).unwrap());
    check(vec![values(&[2, 3, 4], 0.3), values(&[2, 3, 4], 0.4)], |x| swiglu(&x[0], &x[1]).unwrap());
    check(vec![values(&[2, 3, 9], 0.5), values(&[9], 0.6)], |x| rms_norm(&x[0], &x[1], 1e-5, None).unwrap());
    for mask in [0.0, 0.4] {
        let mask = Some(NormMask { from: 5, mask });
        check(vec![values(&[2, 3, 9], 0.5), values(&[9], 0.6)], |x| {
            rms_norm(&x[0], &x[1], 1e-5, mask).unwrap()
        });
    }
}

/// Two rows of 7 tokens: documents of 3 and 4, of 5 and 2.
const STARTS: [u32; 14] = [0, 0, 0, 3, 3, 3, 3, 0, 0, 0, 0, 0, 5, 5];

#[test]
fn attention_multi_head_and_grouped_query() {
    let rotary = Rotary::new(4, 10_000.0);
    for (query, key_value) in [(2, 2), (4, 2), (3, 1)] {
        let documents = Documents {
            starts: Arc::new(STARTS.to_vec()),
            rotary: Some(rotary.clone()),
            length: 200,
            window: None,
        };
        let heads = Heads { query, key_value, dim: 4 };
        let inputs = vec![
            values(&[2, 7, query * 4], 0.1),
            values(&[2, 7, key_value * 4], 0.7),
            values(&[2, 7, key_value * 4], 0.9),
        ];
        check(inputs, |x| attention(&x[0], &x[1], &x[2], &documents, heads, PLAIN).unwrap());
    }
}

/// Scores of heads of width 4.
const PLAIN: Scores = Scores { scale: 0.5, softcap: None };

#[test]
fn attention_with_windows_bounds_and_parts_of_heads_turned() {
    let heads = Heads { query: 4, key_value: 2, dim: 4 };
    for (turned, window, softcap) in
        [(Some(2), None, None), (None, Some(2), None), (Some(4), Some(3), Some(0.8)), (None, None, Some(1.5))]
    {
        for pairs in [false, true] {
            let rotary = turned.map(|width| Rotary::new(width, 100.0).with_pairs(pairs));
            let documents = Documents { starts: Arc::new(STARTS.to_vec()), rotary, length: 5, window };
            let scores = Scores { scale: 0.7, softcap };
            let inputs = vec![values(&[2, 7, 16], 0.1), values(&[2, 7, 8], 0.7), values(&[2, 7, 8], 0.9)];
            check(inputs, |x| attention(&x[0], &x[1], &x[2], &documents, heads, scores).unwrap());
        }
    }
}

fn block(x: &[Tensor]) -> Block {
    let (linear, norm) = (|i: usize| Linear::new(x[i].clone()), |i: usize| RmsNorm::new(x[i].clone(), 1e-5));
    Block {
        attention_input_norm: Some(norm(0)),
        self_attn: Attention {
            q_proj: linear(1),
            k_proj: linear(2),
            v_proj: linear(3),
            o_proj: linear(4),
            q_norm: None,
            k_norm: None,
            whole_norms: false,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            scale: 0.5,
            softcap: None,
            kind: 0,
            mask: None,
        },
        attention_output_norm: None,
        mlp_input_norm: Some(norm(5)),
        mlp: Mlp {
            gate_proj: linear(6),
            up_proj: linear(7),
            down_proj: linear(8),
            activation: Activation::Silu,
            mask: None,
        },
        mlp_output_norm: None,
        residual_multiplier: 1.0,
        masks: None,
    }
}

/// Masks of a block of which 2 of 6 entries, 1 of 2 heads, 2 of 5 units, and the layer itself are new.
fn masks(mask: f64) -> BlockMasks {
    let vector = |old: usize, new: usize| {
        let values = [vec![1.0; old], vec![mask; new]].concat();
        Some(Tensor::from_vec(values, old + new, &Device::Cpu).unwrap())
    };
    BlockMasks {
        hidden: vector(4, 2),
        heads: vector(4, 4),
        ffn: vector(3, 2),
        layer: mask,
        norm: Some(NormMask { from: 4, mask }),
    }
}

#[test]
fn a_whole_block_without_and_with_masks() {
    let shapes: [&[usize]; 10] =
        [&[6], &[8, 6], &[4, 6], &[4, 6], &[6, 8], &[6], &[5, 6], &[5, 6], &[6, 5], &[2, 7, 6]];
    let inputs: Vec<Tensor> =
        shapes.iter().enumerate().map(|(i, shape)| values(shape, i as f64 * 0.13)).collect();
    let rotary = Rotary::new(4, 10_000.0);
    let pass = Pass::packed(&AttentionKinds::alike(rotary, 2), &STARTS, 7, DType::F64, &Device::Cpu).unwrap();
    check(inputs.clone(), |x| block(x).forward(&x[9], &pass, None).unwrap());
    for mask in [0.0, 0.3, 1.0] {
        check(inputs.clone(), |x| {
            block(x).with_masks(Some(masks(mask))).forward(&x[9], &pass, None).unwrap()
        });
    }
    // masks of 1 are none, to the bit
    let bits = |block: Block| {
        let y = block.forward(&inputs[9], &pass, None).unwrap();
        y.flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    assert_eq!(bits(block(&inputs).with_masks(Some(masks(1.0)))), bits(block(&inputs)));
}

#[test]
fn tiles_and_documents_equal_the_composition() {
    // longer than a tile, documents that cross tiles, in f32
    let (rotary, t) = (Rotary::new(8, 10_000.0), 200);
    let starts: Vec<u32> =
        (0..t as u32).map(|i| [130, 50, 0].into_iter().find(|&start| start <= i).unwrap()).collect();
    let x = |width: usize, seed| values(&[1, t, width], seed).to_dtype(DType::F32).unwrap();
    let (q, k, v) = (x(32, 0.1), x(16, 0.2), x(16, 0.3));
    let documents = Documents {
        starts: Arc::new(starts.clone()),
        rotary: Some(rotary.clone()),
        length: 200,
        window: None,
    };
    let eighth = Scores { scale: 1.0 / 8f64.sqrt(), softcap: None };
    let got = attention(&q, &k, &v, &documents, Heads { query: 4, key_value: 2, dim: 8 }, eighth).unwrap();
    let f64s = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap().remove(0);
    let (q, k, v, got) = (f64s(&q), f64s(&k), f64s(&v), f64s(&got));
    let turn = |x: &[f64], position: usize| -> Vec<f64> {
        let angle = |j: usize| position as f64 * 10_000f64.powf(-2.0 * j as f64 / 8.0);
        let turned = |j: usize| {
            let (sin, cos) = angle(j % 4).sin_cos();
            if j < 4 { x[j] * cos - x[j + 4] * sin } else { x[j] * cos + x[j - 4] * sin }
        };
        (0..8).map(turned).collect()
    };
    for (i, start) in starts.iter().map(|&s| s as usize).enumerate() {
        for head in 0..4 {
            let (of_q, of_k) = (head * 8..head * 8 + 8, head / 2 * 8..head / 2 * 8 + 8);
            let query = turn(&q[i][of_q.clone()], i - start);
            let weight = |key: usize| {
                let k = turn(&k[key][of_k.clone()], key - start);
                (query.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / 8f64.sqrt()).exp()
            };
            let sum: f64 = (start..=i).map(weight).sum();
            for (j, got) in got[i][of_q].iter().enumerate() {
                let expected: f64 =
                    (start..=i).map(|key| weight(key) * v[key][of_k.start + j]).sum::<f64>() / sum;
                assert!((got - expected).abs() < 1e-5, "{i} {head} {j}: {got} {expected}");
            }
        }
    }
}
