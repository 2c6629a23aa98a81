//! What running a model asks of a GPU, counted by the software device (`scripts/test-cuda.sh`): bounds on launches,
//! allocations, copies and waits, so that speed has a test where no GPU is.
//!
//! Numbers are upper bounds: what was counted when they were written. Who needs more must say why here.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::DType;
use flm_candle::{CausalLm, GenerateOptions, Positions, Residency, generate, open_gpu};
use flm_checkpoint::Checkpoint;
use flm_tests::device::{CALLS, counted, counts};

/// Counts are of the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Four blocks of width 64, two key/value heads, 384 tokens.
fn load(dtype: DType, residency: Residency) -> CausalLm {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/teleflm-gqa-bf16-st");
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    CausalLm::load(&checkpoint, &open_gpu(0).unwrap(), dtype, residency).unwrap()
}

#[test]
fn a_decoded_token_asks_for_this_much() {
    let _alone = alone();
    for (dtype, bounds) in [(DType::BF16, [142, 37, 193, 22]), (DType::F32, [53, 37, 86, 4])] {
        let model = load(dtype, Residency::Resident);
        let mut cache = model.cache(vec![0], 64);
        let run = |ids: &[u32], cache: &mut _| {
            model
                .forward(&model.tokens(&[ids]).unwrap(), Some(cache), Positions::Last, |_, _| Ok(()))
                .unwrap()
        };
        run(&[1, 2, 3, 4, 5, 6, 7, 8], &mut cache);
        let got = counts(CALLS, || {
            run(&[9], &mut cache);
        });
        let [launched, multiplied, allocated, sent, received, waits, events, sets] = got;
        // sent: ids, angles, and dimensions and strides of every operation on a view
        let asked = [launched, multiplied, allocated, sent];
        assert!(asked.iter().zip(bounds).all(|(got, bound)| *got <= bound), "{dtype:?}: {got:?}");
        assert_eq!([received, waits, events, sets], [0; 4], "nothing waits for the GPU inside a pass");
    }
}

#[test]
fn a_step_of_a_batch_reads_its_logits_at_once() {
    let _alone = alone();
    let model = load(DType::BF16, Residency::Resident);
    let prompts: Vec<Vec<u32>> = (1..6).map(|len| (0..len).map(|i| 3 + i * 7).collect()).collect();
    let sampled = GenerateOptions { temperature: 0.8, top_k: Some(20), ..GenerateOptions::greedy(4, 384) };
    for options in [GenerateOptions::greedy(4, 384), sampled] {
        let [received, bytes] = counts([c"cuMemcpyDtoHAsync", c"bytes down"], || {
            generate(&model, &prompts, &options, |_, _| true).unwrap();
        });
        let rows = model.config().vocab_size as i64 * prompts.len() as i64;
        assert_eq!((received, bytes), (4, 4 * rows * 4), "one copy of f32 logits a step");
    }
}

#[test]
fn weights_go_over_once_and_come_back_to_the_pool() {
    let _alone = alone();
    let before = counted(c"bytes live");
    let mut model = None;
    let [up] = counts([c"bytes up"], || model = Some(load(DType::BF16, Residency::Resident)));
    let model = model.unwrap();
    let weights: usize = model.config().tensors().map(|t| t.shape.iter().product::<usize>() * 2).sum();
    // and what opening the device takes
    assert!((0..64).contains(&(up - weights as i64)), "{up} bytes for {weights}");
    model.logits(&[1, 2, 3]).unwrap();
    let held = counted(c"bytes live") - before;
    assert!((0..64).contains(&(held - weights as i64)), "{held} bytes held for {weights}");
    drop(model);
    assert_eq!(counted(c"bytes live"), before);
}

#[test]
fn a_streamed_model_has_two_blocks_on_the_gpu() {
    let _alone = alone();
    let before = counted(c"bytes live");
    let model = load(DType::BF16, Residency::Streamed);
    model.logits(&[1, 2, 3, 4, 5]).unwrap();
    let config = model.config();
    let sizes = config.tensors().map(|t| (t.name, t.shape.iter().product::<usize>() as i64 * 2));
    let (blocks, others): (Vec<_>, Vec<_>) = sizes.partition(|(name, _)| name.contains(".layers."));
    let sum = |sizes: &[(String, i64)]| sizes.iter().map(|(_, size)| size).sum::<i64>();
    let most = sum(&others) + 2 * sum(&blocks) / config.num_hidden_layers as i64;
    let held = counted(c"bytes live") - before;
    assert!(held <= most + 64, "{held} of {most}");
}
