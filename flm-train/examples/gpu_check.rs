//! What `scripts/gpu-check.sh` runs: a device against the CPU, and the speed of training at the width of
//! Tele-FLM-52B. docs/gpu.md tells how to read what it prints.

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path, sync::Arc, time::Instant};

use candle_core::{DType, Device, Tensor};
use flm_candle::{CausalLm, Residency};
use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::peak_memory;
use flm_checkpoint::preset;
use flm_train::Backprop;
use flm_train::Layout;
use flm_train::MemoryStore;
use flm_train::StochasticRounding;
use flm_train::model_operations;
use flm_train::{AdamW, AdamWOptions};
use flm_train::{Array, ParameterStore, Place, load_weights};
use flm_train::{MicroBatch, Packed};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the command line asks for.
struct Settings {
    device: String,
    hidden: usize,
    ffn: usize,
    heads: usize,
    layers: usize,
    vocab: usize,
    context: usize,
    rows: usize,
    steps: u64,
    /// Operations a second of the device, as its vendor states them; 0 is not known.
    peak: f64,
}

const USAGE: &str = "gpu_check [--device cuda|cuda:N|cpu] [--hidden N] [--ffn N] [--heads N] [--layers N] \
                     [--vocab N] [--context N] [--rows N] [--steps N] [--peak FLOPS]";

impl Settings {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut settings = Self {
            device: "cuda".into(),
            hidden: 8192,
            ffn: 21824,
            heads: 64,
            layers: 2,
            vocab: 80384,
            context: 2048,
            rows: 4,
            steps: 3,
            peak: 989e12,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} has no value\n{USAGE}"))?;
            let number = || value.parse::<usize>().map_err(|e| format!("{name} {value}: {e}"));
            match name.as_str() {
                "--device" => settings.device.clone_from(&value),
                "--hidden" => settings.hidden = number()?,
                "--ffn" => settings.ffn = number()?,
                "--heads" => settings.heads = number()?,
                "--layers" => settings.layers = number()?,
                "--vocab" => settings.vocab = number()?,
                "--context" => settings.context = number()?,
                "--rows" => settings.rows = number()?,
                "--steps" => settings.steps = number()? as u64,
                "--peak" => settings.peak = value.parse().map_err(|e| format!("--peak {value}: {e}"))?,
                _ => return Err(format!("unknown option {name}\n{USAGE}").into()),
            }
        }
        if !settings.hidden.is_multiple_of(2 * settings.heads) {
            return Err("--hidden must be an even multiple of --heads".into());
        }
        if settings.context < 2 || settings.rows == 0 || settings.steps == 0 || settings.layers == 0 {
            return Err("--context must be at least 2, --rows, --steps and --layers at least 1".into());
        }
        Ok(settings)
    }

    fn device(&self) -> Result<Device> {
        match self.device.split_once(':').unwrap_or((&self.device, "0")) {
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", index) => Ok(flm_candle::open_gpu(index.parse()?)?),
            _ => Err(format!("--device {}: expected cuda, cuda:N or cpu", self.device).into()),
        }
    }

    /// Tele-FLM-52B's multipliers at the wanted size.
    fn config(&self) -> Result<TeleFlmConfig> {
        let mut config = preset("tele-flm-52b").ok_or("no preset tele-flm-52b")?;
        (config.hidden_size, config.intermediate_size) = (self.hidden, self.ffn);
        (config.num_attention_heads, config.num_key_value_heads) = (self.heads, self.heads);
        config.head_dim = self.hidden / self.heads;
        (config.num_hidden_layers, config.vocab_size) = (self.layers, self.vocab);
        Ok(config)
    }
}

/// Pseudo-random values in [-1, 1), the same on every machine.
fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// A weight of about the size of a trained model's.
fn weight(noise: f32, columns: usize, gain: bool) -> f32 {
    if gain { 1.0 + 0.1 * noise } else { noise * (3.0 / columns as f32).sqrt() }
}

fn rows(count: usize, context: usize, vocabulary: usize) -> Vec<Packed> {
    let row = |row: usize| {
        let mut packed = Packed::default();
        let ids: Vec<u32> =
            (0..context).map(|i| ((i * 7919 + row * 104_729 + 11) % vocabulary) as u32).collect();
        packed.push(&ids, &vec![true; context]);
        packed
    };
    (0..count).map(row).collect()
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
        / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-30)
}

/// A nano model's checkpoint.
fn nano(dir: &Path) -> Result<Arc<Checkpoint>> {
    let mut config = preset("nano-52b").ok_or("no preset nano-52b")?;
    (config.num_hidden_layers, config.vocab_size) = (4, 2048);
    config.set_raw("torch_dtype", "float32".into());
    let specs: Vec<TensorSpec> = config
        .tensors()
        .map(|t| TensorSpec { name: t.name, dtype: flm_checkpoint::Dtype::F32, shape: t.shape })
        .collect();
    let writer = Writer::create(&dir.join("nano"), &specs, u64::MAX)?;
    for (index, spec) in specs.iter().enumerate() {
        let (len, columns) = (spec.shape.iter().product(), spec.shape[spec.shape.len() - 1]);
        let values = noise(index as u64).take(len).map(|x| weight(x, columns, spec.shape.len() == 1));
        writer.write_at(&spec.name, 0, &values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())?;
    }
    writer.finish(&config)?;
    Ok(Arc::new(Checkpoint::open(&dir.join("nano"))?))
}

fn logits(checkpoint: &Arc<Checkpoint>, device: &Device, dtype: DType) -> Result<Vec<f32>> {
    let model = CausalLm::load(checkpoint, device, dtype, Residency::Resident)?;
    let ids: Vec<u32> = (0..64).map(|i| i * 31 % 2048).collect();
    let logits = model.logits(&ids)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(logits.flatten_all()?.to_vec1()?)
}

/// Loss, and the gradient of every parameter.
fn step(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<(f64, Vec<Vec<f32>>)> {
    let layout = Layout::new(checkpoint.config());
    let mut store = MemoryStore::new(&layout, device, dtype, true)?;
    load_weights(&mut store, checkpoint)?;
    let backprop = Backprop::new(&layout, device, dtype, true);
    let loss = backprop.run(&mut store, &[MicroBatch::new(&rows(2, 48, 2048))])?.loss;
    let mut gradients = Vec::new();
    for unit in 0..layout.units().len() {
        gradients.extend(store.take_gradient(unit, 0)?);
    }
    Ok((loss, gradients))
}

/// Compares the device with the CPU; whether all is within bounds.
fn correctness(device: &Device) -> Result<bool> {
    let dir = tempfile::tempdir()?;
    let checkpoint = nano(dir.path())?;
    println!(
        "| a nano model on the device against the CPU in f32 | relative difference | bound |\n|---|---|---|"
    );
    let mut passed = true;
    let mut line = |what: &str, error: f64, bound: f64| {
        println!("| {what} | {error:.1e} | {bound:.0e} |");
        passed &= error <= bound;
    };
    // the CPU itself is held against f64
    let cases: &[(DType, f64, f64)] = if device.is_cpu() {
        &[(DType::F64, 1e-4, 1e-4)]
    } else {
        &[(DType::F32, 1e-4, 1e-3), (DType::BF16, 3e-2, 1e-1)]
    };
    let (expected, (loss, gradients)) =
        (logits(&checkpoint, &Device::Cpu, DType::F32)?, step(&checkpoint, &Device::Cpu, DType::F32)?);
    for &(dtype, of_logits, of_gradients) in cases {
        let name = dtype.as_str();
        line(
            &format!("logits, {name}"),
            relative(&logits(&checkpoint, device, dtype)?, &expected),
            of_logits,
        );
        let (got, found) = step(&checkpoint, device, dtype)?;
        line(&format!("loss of a training step, {name}"), (got / loss - 1.0).abs(), of_logits);
        let errors = found.iter().zip(&gradients).map(|(a, b)| relative(a, b));
        line(&format!("worst gradient of it, {name}"), errors.fold(0.0, f64::max), of_gradients);
    }
    println!();
    Ok(passed)
}

/// Operations a second of one large product: what the device can reach at best.
fn matmul_rate(device: &Device, dtype: DType, size: usize) -> Result<f64> {
    let x = Tensor::randn(0f32, 1.0, (size, size), device)?.to_dtype(dtype)?;
    let mut best = 0f64;
    for _ in 0..4 {
        let start = Instant::now();
        let y = x.matmul(&x)?;
        device.synchronize()?;
        drop(y);
        best = best.max(2.0 * (size as f64).powi(3) / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn speed(settings: &Settings, device: &Device) -> Result<()> {
    let (config, cpu) = (settings.config()?, device.is_cpu());
    let dtype = if cpu { DType::F32 } else { DType::BF16 };
    let layout = Layout::new(&config).with_bf16_weights();
    println!(
        "{} layers of width {}, FFN {}, {} heads, {} vocabulary rows: {:.2e} parameters; {} rows of {} tokens \
         a step, arithmetic in {}; host memory for parameters {:.1} GB",
        settings.layers,
        settings.hidden,
        settings.ffn,
        settings.heads,
        settings.vocab,
        layout.len() as f64,
        settings.rows,
        settings.context,
        dtype.as_str(),
        (layout.weight_bytes() + layout.len() as u64 * 12) as f64 / 1e9
    );
    let product = matmul_rate(device, dtype, settings.hidden.max(256))?;
    println!("one square product of that width: {:.4} TFLOP/s\n", product / 1e12);
    let rows = rows(settings.rows, settings.context, settings.vocab);
    let operations = model_operations(&config, &rows);
    let tokens = (settings.rows * settings.context) as f64;
    println!(
        "| parameters | forward and backward, s | tokens/s | of peak | of the product's rate | update, s | \
         tokens/s with update | loss |\n|---|---|---|---|---|---|---|---|"
    );
    for (name, on_device) in [("resident on the device", true), ("in host memory", false)] {
        let mut store = MemoryStore::new(&layout, device, dtype, on_device)?;
        for (unit, index, parameter) in layout.parameters() {
            let columns = parameter.shape[parameter.shape.len() - 1];
            let values = noise((unit * 16 + index) as u64).take(parameter.len());
            let values: Vec<f32> = values.map(|x| weight(x, columns, !parameter.decays())).collect();
            store.write(Place { unit, parameter: index, array: Array::Weights }, 0, &values)?;
        }
        let backprop = Backprop::new(&layout, device, dtype, true);
        let batches: Vec<MicroBatch> = rows.chunks(1).map(MicroBatch::new).collect();
        let (mut pass, mut update, mut loss) = (f64::INFINITY, f64::INFINITY, 0.0);
        // the first step brings weights in and compiles kernels: it is not counted
        for number in 0..=settings.steps {
            let start = Instant::now();
            loss = backprop.run(&mut store, &batches)?.loss;
            device.synchronize()?;
            let between = Instant::now();
            let rounding = StochasticRounding::new(0, number);
            let adamw = AdamW::new(AdamWOptions::default(), number + 1, 1e-5, 1.0).with_rounding(rounding);
            store.update(&mut |parameter, slices| adamw.apply(parameter, slices))?;
            if number > 0 {
                pass = pass.min((between - start).as_secs_f64());
                update = update.min(between.elapsed().as_secs_f64());
            }
        }
        let rate = operations / pass;
        let peak = if settings.peak > 0.0 {
            format!("{:.1} %", 100.0 * rate / settings.peak)
        } else {
            "not given".into()
        };
        println!(
            "| {name} | {pass:.3} | {:.1} | {peak} | {:.1} % | {update:.3} | {:.1} | {loss:.4} |",
            tokens / pass,
            100.0 * rate / product,
            tokens / (pass + update)
        );
    }
    if let Some(bytes) = peak_memory() {
        println!("\npeak of host memory: {:.2} GB", bytes as f64 / 1e9);
    }
    Ok(())
}

fn main() -> Result<()> {
    let settings = Settings::parse(std::env::args().skip(1))?;
    let device = settings.device()?;
    let passed = correctness(&device)?;
    speed(&settings, &device)?;
    if !passed {
        return Err("the device does not compute what the CPU computes: see the first table".into());
    }
    Ok(())
}
