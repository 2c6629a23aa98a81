//! A text that grows turn by turn is continued as if each turn were a fresh start.

#![allow(clippy::unwrap_used)]

use std::{cell::Cell, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use flm_candle::Session;
use flm_candle::{CausalLm, ModelError, Positions, Residency};
use flm_candle::{Finish, GenerateOptions, generate, generate_each};
use flm_checkpoint::Checkpoint;
use flm_tests::device::device;

fn load(name: &str, residency: Residency) -> CausalLm {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
    let checkpoint = Arc::new(Checkpoint::open(&dir).expect(name));
    CausalLm::load(&checkpoint, &device(), DType::F32, residency).expect(name)
}

fn fresh(model: &CausalLm, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    generate(model, &[prompt.to_vec()], options, |_, _| true).unwrap().remove(0).ids
}

/// Greedy, and sampled: a difference in a logit would show in either.
fn ways(new_tokens: usize) -> [GenerateOptions; 2] {
    let greedy = GenerateOptions::greedy(new_tokens, 384);
    [GenerateOptions { temperature: 0.9, top_k: Some(40), seed: 7, ..greedy.clone() }, greedy]
}

#[test]
fn every_turn_is_answered_as_by_a_fresh_start() {
    for (name, residency) in [
        ("teleflm-f32-st", Residency::Resident),
        ("teleflm-gqa-f32-shst", Residency::Streamed),
        ("teleflm-gqa-bf16-st", Residency::Resident),
    ] {
        let model = load(name, residency);
        for options in ways(20) {
            let mut session = Session::new(&model);
            let mut text: Vec<u32> = (0..30).map(|i| 3 + i * 11 % 370).collect();
            for turn in 0..6 {
                let before = model.passes();
                let answer = session.generate(&text, &options, || false, |_| true).unwrap();
                assert_eq!(model.passes() - before, 20, "one pass a token");
                // all that was run before, which is all but the last token of the last answer
                let expected = if turn == 0 { 0 } else { text.len() - 60 - 1 };
                assert_eq!(session.reused(), expected, "{name} turn {turn}");
                assert_eq!(answer.ids, fresh(&model, &text, &options), "{name} turn {turn}");
                text.extend(&answer.ids);
                // what the user says next; by the fourth turn the cache has grown past its first size
                text.extend((0..60).map(|i| 5 + (i * 7 + turn * 31) % 370));
            }
        }
    }
}

#[test]
fn a_prompt_that_differs_is_run_from_where_it_differs() {
    let model = load("teleflm-gqa-f32-shst", Residency::Resident);
    let options = GenerateOptions::greedy(12, 384);
    let mut session = Session::new(&model);
    let first: Vec<u32> = (0..100).map(|i| 3 + i * 13 % 370).collect();
    let mut other = first.clone();
    other[40] = 2;
    // in turn: a new text, the same, one that differs in the middle, a part, another altogether, the first
    let parts = [first.clone(), first.clone(), other.clone(), other[..7].to_vec(), vec![9; 30], first];
    for (prompt, reused) in parts.iter().zip([0, 99, 40, 6, 0, 0]) {
        let answer = session.generate(prompt, &options, || false, |_| true).unwrap();
        assert_eq!((answer.ids, session.reused()), (fresh(&model, prompt, &options), reused));
    }
}

#[test]
fn a_session_goes_on_after_an_answer_that_was_stopped_anywhere() {
    for residency in [Residency::Resident, Residency::Streamed] {
        let model = load("teleflm-f32-st", residency);
        let options = GenerateOptions::greedy(10, 384);
        let prompt: Vec<u32> = (0..50).map(|i| 3 + i * 17 % 370).collect();
        let whole = fresh(&model, &prompt, &options);
        let mut session = Session::new(&model);
        // 4 blocks are asked about 5 times a pass: in the prompt's pass, in a token's, after a token
        for moment in [0, 3, 4, 5, 7, 21] {
            let asked = Cell::new(0);
            let cancelled = || asked.replace(asked.get() + 1) >= moment;
            let answer = session.generate(&prompt, &options, cancelled, |_| true).unwrap();
            assert_eq!(answer.finish, Finish::Cancelled);
            assert_eq!(answer.ids, whole[..moment / 5], "stopped at {moment}");
            let mut longer = prompt.clone();
            longer.extend(&answer.ids);
            longer.extend([4, 8, 15]);
            let next = session.generate(&longer, &options, || false, |_| true).unwrap();
            assert_eq!(next.ids, fresh(&model, &longer, &options), "after a stop at {moment}");
        }
        let mut seen = 0;
        let answer = session.generate(
            &prompt,
            &options,
            || false,
            |_| {
                seen += 1;
                seen < 3
            },
        );
        assert_eq!(answer.unwrap().ids, whole[..3]);
    }
}

#[test]
fn an_error_leaves_the_session_usable() {
    let model = load("teleflm-f32-st", Residency::Resident);
    let options = GenerateOptions::greedy(5, 384);
    let mut session = Session::new(&model);
    let prompt = [1, 5, 17];
    session.generate(&prompt, &options, || false, |_| true).unwrap();
    let long = session.generate(&[3; 512], &options, || false, |_| true).unwrap_err().to_string();
    assert!(long.contains("512 tokens"), "{long}");
    assert!(session.generate(&[1, 5, 384], &options, || false, |_| true).is_err());
    assert!(session.generate(&[], &options, || false, |_| true).is_err());
    let again = session.generate(&prompt, &options, || false, |_| true).unwrap();
    assert_eq!(again.ids, fresh(&model, &prompt, &options));
}

/// What a caller may get wrong is an error, not a panic, and what comes after still works.
#[test]
fn empty_inputs_and_foreign_caches_are_refused() {
    for residency in [Residency::Resident, Residency::Streamed] {
        let model = load("teleflm-f32-st", residency);
        let refused = |result: Result<(), ModelError>, says: &str| {
            let error = result.expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(model.pass(&[], 0, 3).map(drop), "no tokens");
        refused(model.pass(&[0], 0, 0).map(drop), "no tokens");
        let ids = |rows: usize, len: usize| Tensor::zeros((rows, len), DType::U32, &Device::Cpu).unwrap();
        let run =
            |rows, len, positions| model.forward(&ids(rows, len), None, positions, |_, _| Ok(())).map(drop);
        for positions in [Positions::All, Positions::Last] {
            refused(run(1, 0, positions), "no tokens");
            refused(run(0, 3, positions), "no tokens");
            let mut of_one = model.cache(vec![0], 8);
            let run = model.forward(&ids(2, 3), Some(&mut of_one), positions, |_, _| Ok(()));
            refused(run.map(drop), "the cache is of 1 rows");
        }
        let pass = model.pass(&[0], 0, 2).unwrap();
        let stream = Tensor::zeros((1, 2, model.config().hidden_size), DType::F32, &Device::Cpu).unwrap();
        let layers = model.num_layers();
        refused(model.forward_block(layers, &stream, &pass, None).map(drop), "there is no block");
        refused(model.forward_block(usize::MAX, &stream, &pass, None).map(drop), "there is no block");

        let options = GenerateOptions::greedy(3, 384);
        let mut session = Session::new(&model);
        assert!(session.generate(&[], &options, || false, |_| true).is_err());
        assert!(session.generate(&[384_000], &options, || false, |_| true).is_err());
        let answer = session.generate(&[1, 5, 17], &options, || false, |_| true).unwrap();
        assert_eq!(answer.ids, fresh(&model, &[1, 5, 17], &options));
        let few = generate_each(&model, &[vec![1], vec![2]], std::slice::from_ref(&options), |_, _| true);
        assert!(few.unwrap_err().to_string().contains("2 prompts and 1 sets"));
        // too cold to divide by: the likeliest token
        for temperature in [1e-300, f64::MIN_POSITIVE, 1e-40] {
            let cold = GenerateOptions { temperature, top_k: Some(40), ..options.clone() };
            assert_eq!(fresh(&model, &[1, 5, 17], &cold), answer.ids);
        }
    }
}
