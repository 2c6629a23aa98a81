//! Drawing random weights, beside copying as many bytes. `cargo bench --bench fill`.

use divan::Bencher;
use divan::counter::BytesCount;
use flm_checkpoint::Dtype;
use flm_growth::NormalFill;

const BYTES: usize = 64 << 20;

fn main() {
    divan::main();
}

#[divan::bench(args = ["bf16", "f32"])]
fn normal(bencher: Bencher<'_, '_>, precision: &str) {
    let precision = if precision == "bf16" { Dtype::BF16 } else { Dtype::F32 };
    let Ok(fill) = NormalFill::new(1, "model.layers.0.mlp.up_proj.weight", precision, 0.02) else { return };
    let mut out = vec![0u8; BYTES];
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| fill.write(3, divan::black_box(&mut out)));
}

#[divan::bench]
fn memcpy(bencher: Bencher<'_, '_>) {
    let source = vec![1u8; BYTES];
    let mut out = vec![0u8; BYTES];
    bencher
        .counter(BytesCount::new(BYTES))
        .bench_local(|| divan::black_box(&mut out[..]).copy_from_slice(divan::black_box(&source)));
}

/// What a tensor costs before its first element: the table scaled and rounded.
#[divan::bench]
fn table() -> bool {
    NormalFill::new(1, "t", Dtype::BF16, divan::black_box(0.02)).is_ok()
}
