//! What a step needs, moves and takes under one plan, by formula.
//!
//! All figures follow from the model's shape, the step's shape and the plan. In what follows `N` is the number
//! of parameters, `B` that of the largest block, `c` the bytes of a value of the arithmetic (4 on a CPU, 2 on a
//! GPU in bf16), `d` the width, `L` the number of layers, `n` the micro-batches of a step, `s` those of a sweep,
//! `S = ⌈n / s⌉` the sweeps, `g` the micro-batches whose gradients are summed on the device.
//!
//! - block inputs: `c · d · L` a token of a sweep (the 52B in bf16: 1.05 MB a token, 2.1 GB a row of 2,048)
//! - sums of a block's gradient in a sweep: `4 · B · (⌊log₂ s⌋ + 1)`, with `g` for `s` on a GPU (the 52B: 3.2 GB
//!   each, 22.5 GB for 64 micro-batches)
//! - whole gradients between sweeps: after sweep `i` as many as `i` has ones in binary, `4 · N` each (the 52B:
//!   211 GB): one for one or two sweeps, four for sixteen
//! - weights: `2 · S` times `N` into the device, where they do not stay there; once after an update where they do
//! - block inputs that wait elsewhere: `c · d · L · tokens`, three times up and twice down, as the residual stream
//!   and its gradient wait there too
//! - gradients: `4 · N` out of the device for every `g` micro-batches
//! - arithmetic: `6 · N · tokens` and attention, a third more where blocks run again

use serde::Serialize;

use crate::backprop::{InputPlace, SweepOptions};
use crate::options::Placement;
use crate::params::{Layout, Unit};
use crate::plan::machine::Machine;

/// The tokens of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepShape {
    /// Rows of a step.
    pub rows: usize,
    /// Rows of a micro-batch.
    pub micro_rows: usize,
    /// Tokens of a row.
    pub context: usize,
}

impl StepShape {
    /// Micro-batches of a step.
    pub fn micro_batches(&self) -> usize {
        self.rows.div_ceil(self.micro_rows.max(1)).max(1)
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> u64 {
        (self.rows * self.context) as u64
    }
}

/// How a step is carried out: where parameters are, and how it is swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Where weights, gradients and moments are.
    pub placement: Placement,
    /// Sweeps, recomputation, block inputs.
    pub sweeps: SweepOptions,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryUse {
    /// Weights, gradients, sums of them, moments.
    pub parameters: u64,
    /// Block inputs or graphs, and the block in work.
    pub activations: u64,
    /// Logits, and what the program itself needs.
    pub workspace: u64,
    /// Rows of training data, which stay for the whole run; none where a plan is made from shapes alone.
    pub data: u64,
    /// Sum of the above: the most at a time.
    pub total: u64,
}

impl MemoryUse {
    fn new(parameters: u64, activations: u64, workspace: u64) -> Self {
        Self { parameters, activations, workspace, data: 0, total: parameters + activations + workspace }
    }

    /// The same beside `data` bytes of training data.
    pub(crate) fn beside(self, data: u64) -> Self {
        Self { data: self.data + data, total: self.total + data, ..self }
    }

    fn larger(self, other: Self) -> Self {
        if other.total > self.total { other } else { self }
    }
}

/// Bytes that a step moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Host to device: weights, block inputs that waited elsewhere.
    pub to_device: u64,
    /// Device to host: gradients, block inputs.
    pub from_device: u64,
    /// Read from files in the passes.
    pub disk_read: u64,
    /// Written to files in the passes.
    pub disk_written: u64,
    /// Of both the part that the arithmetic waits for: block inputs, and sums of earlier sweeps.
    pub disk_waited: u64,
    /// Read and written by the update.
    pub disk_update: u64,
    /// Through the host's memory: sums of gradients, the update.
    pub host_memory: u64,
}

/// Predicted seconds of a step.
///
/// Copies between host and device wait for the arithmetic and it for them: they add up, and so do files of
/// block inputs and sums of earlier sweeps. Weights are read ahead and gradients written behind: of the passes
/// and of the update, the slower of file and work counts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Seconds {
    /// Arithmetic of the passes.
    pub arithmetic: f64,
    /// Between host and device.
    pub pcie: f64,
    /// Files.
    pub disk: f64,
    /// Sums on the host and the update.
    pub host_memory: f64,
    /// All of it.
    pub step: f64,
}

impl Seconds {
    /// What takes longest.
    pub fn bound(&self) -> &'static str {
        let parts = [
            (self.arithmetic, "arithmetic"),
            (self.pcie, "copies between host and device"),
            (self.disk, "disk"),
            (self.host_memory, "host memory"),
        ];
        parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("arithmetic", |(_, name)| name)
    }
}

/// What a step is expected to need, move and take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Host memory.
    pub host: MemoryUse,
    /// The GPU's memory, if one computes.
    pub device: Option<MemoryUse>,
    /// Space for files.
    pub disk: u64,
    /// Most bytes of block inputs at a time; counted in [`crate::StepUsage`].
    pub kept_inputs: u64,
    /// Most sums of a block's gradient at a time, on device or host.
    pub partial_sums: usize,
    /// Bytes over each link.
    pub traffic: Traffic,
    /// Values of weights that are brought in.
    pub weights_in: u64,
    /// Values of gradients that leave the device.
    pub gradients_out: u64,
    /// Time.
    pub seconds: Seconds,
}

/// Code, tables, buffers of the allocator.
const PROGRAM: u64 = 48 << 20;
/// What a GPU's context, kernels and library workspaces take.
const CONTEXT: u64 = 640 << 20;
/// Logits that exist at once.
const LOGITS: u64 = 64 << 20;
/// What the update of a store on disk has on its way through memory: five parts of four arrays.
const UPDATE: u64 = 5 * 4 * 4 * (1 << 18);
/// Bytes a score on a GPU, whose attention keeps them for the backward pass: 26, and their gradients.
const SCORE: u64 = 36;

/// ⌊log₂ n⌋ + 1.
fn levels(n: usize) -> usize {
    n.max(1).ilog2() as usize + 1
}

/// Sizes that the formulas share, in bytes.
struct Sizes {
    /// All values in f32, the largest block, the embedding, the head with the matrix that it multiplies.
    all: u64,
    block: u64,
    embedding: u64,
    head: u64,
    /// The head's part of a tied embedding.
    tied: u64,
    stored: u64,
    /// Bytes of a value of the arithmetic.
    compute: u64,
    micro_batches: usize,
    /// Micro-batches of a full sweep.
    sweep: usize,
    sweeps: usize,
    /// Tokens of a micro-batch and of a sweep.
    micro: u64,
    tokens: u64,
}

impl Estimate {
    /// What a step of `shape` needs under `choice` on `machine`.
    pub fn new(layout: &Layout, machine: &Machine, choice: Choice, shape: StepShape) -> Self {
        let config = layout.config();
        let size = |unit: &Unit| unit.len() as u64 * 4;
        let embedding = size(&layout.units()[layout.embedding()]);
        let tied = if config.tie_word_embeddings { embedding } else { 0 };
        let micro_batches = shape.micro_batches();
        let sweep = choice.sweeps.micro_batches.min(micro_batches);
        let micro = (shape.rows.min(shape.micro_rows) * shape.context) as u64;
        let sizes = Sizes {
            all: layout.units().iter().map(size).sum(),
            block: layout.units().get(1).map_or(0, size),
            embedding,
            head: size(&layout.units()[layout.head()]) + tied,
            tied,
            stored: layout.weight_bytes(),
            compute: machine.compute_bytes(),
            micro_batches,
            sweep,
            sweeps: micro_batches.div_ceil(choice.sweeps.micro_batches),
            micro,
            tokens: shape.tokens().min(micro * sweep as u64),
        };
        let layers = config.num_hidden_layers as u64;
        let inputs = sizes.compute * config.hidden_size as u64 * layers * sizes.tokens;
        let kept_inputs = if choice.sweeps.recompute { inputs } else { 0 };
        let summed = choice.sweeps.summed.min(sweep);
        let groups = |n: usize| n.div_ceil(summed);
        let on_host = if machine.device_memory.is_some() { levels(groups(sweep)) } else { levels(sweep) };
        let (weights_in, gradients_out) = sizes.values(choice, summed);
        let (device, host) = match machine.device_memory {
            None => (None, sizes.host(layout, choice, kept_inputs)),
            Some(_) => {
                let device = sizes.on_device(layout, choice, shape, kept_inputs, summed);
                (Some(device), sizes.beside_device(layout, choice, kept_inputs, on_host))
            }
        };
        let traffic = sizes.traffic(layout, machine, choice, (weights_in, gradients_out), summed);
        let parameters = if choice.placement == Placement::Disk {
            let sets = (0..sizes.sweeps).map(usize::count_ones).max().map_or(1, |n| u64::from(n.max(1)));
            sizes.stored + 2 * sizes.all + sets * (sizes.all + sizes.tied)
        } else {
            0
        };
        let spilled = if choice.sweeps.inputs == InputPlace::Disk { kept_inputs } else { 0 };
        Self {
            host,
            device,
            disk: parameters + spilled,
            kept_inputs,
            partial_sums: if device.is_some() { levels(summed).max(on_host) } else { levels(sweep) },
            traffic,
            weights_in,
            gradients_out,
            seconds: seconds(layout, machine, choice, shape, &traffic),
        }
    }
}

impl Sizes {
    /// Sweeps as their numbers of micro-batches.
    fn each_sweep(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.sweeps).map(|i| self.sweep.min(self.micro_batches - i * self.sweep))
    }

    /// Values of weights that a step brings in and of gradients that leave the device.
    fn values(&self, choice: Choice, summed: usize) -> (u64, u64) {
        let blocks = self.all - self.embedding - (self.head - self.tied);
        let passes = if choice.sweeps.recompute { 2 } else { 1 };
        let once = self.embedding + passes * blocks + self.head;
        let groups: u64 = self.each_sweep().map(|n| n.div_ceil(summed) as u64).sum();
        (self.sweeps as u64 * once / 4, groups * (blocks + self.head) / 4)
    }

    /// Bytes of a graph of one block, a token.
    fn graph(&self, layout: &Layout) -> u64 {
        let config = layout.config();
        let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (q, kv) = (config.query_width() as u64, config.key_value_width() as u64);
        // products with masks are kept beside what they multiply
        let masked = if config.growth.is_some() { 2 * d + q + f } else { 0 };
        self.compute * (7 * d + 2 * q + 2 * kv + 3 * f + masked)
    }

    /// Host memory where the CPU computes: the most of head, first and last block, over all sweeps.
    fn host(&self, layout: &Layout, choice: Choice, kept_inputs: u64) -> MemoryUse {
        let config = layout.config();
        let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (layers, recompute) = (config.num_hidden_layers as u64, choice.sweeps.recompute);
        let graph = self.graph(layout);
        let in_memory = if choice.sweeps.inputs == InputPlace::Disk { 0 } else { kept_inputs };
        let kept = if recompute { in_memory } else { graph * layers * self.tokens };
        // the residual stream, twice while a block runs, and each micro-batch's tables of positions
        let stream = self.tokens * (2 * 4 * d + 4 * config.head_dim as u64 + 16);
        // the graph of the block in work, and its gradients
        let working = stream + self.micro * (if recompute { graph } else { 0 } + 4 * (3 * f + 3 * d));
        let logits = LOGITS.min(self.micro * config.vocab_size as u64 * 4);
        let workspace = PROGRAM + logits + self.micro * 4 * 4 * d;
        let sums = levels(self.sweep) as u64;
        // held sums, candle's gradient of a micro-batch, its copy
        let (of_block, of_head) = ((sums + 1) * self.block, sums * self.head);
        // rows of the embedding's gradient by tokens, then the whole of it
        let rows = self.embedding.min(self.tokens * 4 * d) + self.embedding;
        let stage = |parameters, activations| MemoryUse::new(parameters, activations, workspace);
        if choice.placement == Placement::Disk {
            // weights in use and read ahead, the gradient before on its way to disk, the sum of earlier sweeps
            let carried = |unit: u64| if self.sweeps > 1 { unit } else { 0 };
            let head = 2 * self.head + of_head + self.block + carried(self.head);
            let first = self.head.max(self.block) + 2 * self.block + of_block + carried(self.block);
            let last = self.embedding + 2 * self.block + of_block;
            let tokens = rows + self.block + self.embedding.max(carried(self.embedding)) + self.tied;
            return stage(head, kept + stream)
                .larger(stage(first, kept + working))
                .larger(stage(last.max(self.embedding + self.block), working))
                .larger(stage(tokens, stream))
                .larger(stage(UPDATE, 0));
        }
        // bf16 weights are widened for the unit in use, and stay so in graphs
        let blocks = self.all - self.embedding - (self.head - self.tied);
        let widened = match (self.stored < self.all, recompute) {
            (false, _) => 0,
            (true, true) => self.block.max(self.head).max(self.embedding),
            (true, false) => blocks + self.head,
        };
        let always = self.stored + 2 * self.all + widened;
        let sets = |sweep: usize| {
            if sweep == self.sweeps { 1 } else { u64::from(sweep.count_ones()) }
        };
        (0..self.sweeps)
            .map(|sweep| {
                let (before, after) = (sets(sweep) * (self.all + self.tied), sets(sweep + 1) * self.all);
                let head = stage(always + before + of_head, kept + stream);
                let first = stage(always + before + self.head + of_block, kept + working);
                let last = stage(always + before.max(after) + of_block, working);
                let tokens = stage(always + before.max(after) + self.tied + rows, stream);
                head.larger(first).larger(last).larger(tokens)
            })
            .fold(MemoryUse::default(), MemoryUse::larger)
    }

    /// The memory of a GPU that computes.
    fn on_device(
        &self,
        layout: &Layout,
        choice: Choice,
        shape: StepShape,
        kept_inputs: u64,
        summed: usize,
    ) -> MemoryUse {
        let (config, c) = (layout.config(), self.compute);
        let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (layers, recompute) = (config.num_hidden_layers as u64, choice.sweeps.recompute);
        let blocks = self.all - self.embedding - (self.head - self.tied);
        let copies = |bytes: u64| c * bytes / 4;
        let weights = match (choice.placement, recompute) {
            (Placement::Resident | Placement::Auto, _) => copies(self.all),
            // the copy in use, and one that is being made
            (_, true) => 2 * copies(self.block.max(self.head).max(self.embedding)),
            (_, false) => copies(blocks) + 2 * copies(self.head),
        };
        let sums = levels(summed) as u64;
        // a micro-batch's gradient in the dtype of the arithmetic, its f32, and the sums
        let of_block = sums * self.block + 2 * copies(self.block);
        let of_head = sums * self.head + copies(self.head);
        let scores = (shape.context / 2 * config.num_attention_heads) as u64 * SCORE;
        // norms and SwiGLU have statistics in f32
        let graph = self.graph(layout) + 4 * (6 * d + 2 * f) + scores;
        let inputs = if choice.sweeps.inputs == InputPlace::Device { kept_inputs } else { 0 };
        let kept = if recompute { inputs } else { graph * layers * self.tokens };
        // the residual stream twice, masks of documents in f32, tables of positions
        let masks = 4 * shape.context as u64 / 2;
        let on_device = choice.sweeps.inputs == InputPlace::Device;
        let streaming = if on_device { self.tokens } else { self.micro };
        let stream = self.tokens * (masks + 4 * config.head_dim as u64) + streaming * 2 * c * d;
        let working = stream + self.micro * (if recompute { graph } else { 0 } + c * (3 * f + 3 * d));
        let workspace = CONTEXT + 3 * LOGITS + self.micro * 4 * 4 * d;
        MemoryUse::new(weights + of_head.max(of_block), kept + working, workspace)
    }

    /// Host memory beside a GPU.
    fn beside_device(&self, layout: &Layout, choice: Choice, kept_inputs: u64, on_host: usize) -> MemoryUse {
        // the residual stream waits there too, and its gradient while it is replaced
        let stream = self.tokens * self.compute * layout.config().hidden_size as u64;
        let inputs = match choice.sweeps.inputs {
            InputPlace::Device => 0,
            InputPlace::Host => kept_inputs + stream,
            InputPlace::Disk => stream,
        };
        let unit = self.block.max(self.head);
        // the sums of a sweep, one that arrives, weights on their way
        let moving = (on_host as u64 + 1) * unit + self.compute * unit / 4;
        let parameters = if choice.placement == Placement::Disk {
            // weights read ahead, a gradient that is written and one that is read
            (moving + 3 * unit).max(UPDATE)
        } else {
            let sets = (0..self.sweeps).map(|i| u64::from(i.count_ones())).max().unwrap_or(0).max(1);
            self.stored + 2 * self.all + sets * (self.all + self.tied) + moving
        };
        MemoryUse::new(parameters, inputs, PROGRAM + CONTEXT)
    }

    fn traffic(
        &self,
        layout: &Layout,
        machine: &Machine,
        choice: Choice,
        (weights_in, gradients_out): (u64, u64),
        summed: usize,
    ) -> Traffic {
        let config = layout.config();
        let (device, disk) = (machine.device_memory.is_some(), choice.placement == Placement::Disk);
        let resident = matches!(choice.placement, Placement::Resident | Placement::Auto);
        let step_inputs = if choice.sweeps.recompute {
            self.compute
                * (config.hidden_size * config.num_hidden_layers) as u64
                * self.micro
                * self.micro_batches as u64
        } else {
            0
        };
        let mut traffic = Traffic::default();
        if device {
            let weights = if resident { self.all / 4 } else { weights_in };
            traffic.to_device = self.compute * weights;
            traffic.from_device = 4 * gradients_out;
            if choice.sweeps.inputs != InputPlace::Device {
                // up: stream and input, its gradient; down: stream, its gradient
                traffic.to_device += 3 * step_inputs;
                traffic.from_device += 2 * step_inputs;
            }
        }
        let sweeps = self.sweeps as u64;
        if disk {
            // as many bytes as weights are stored in
            traffic.disk_read = (weights_in as f64 * self.stored as f64 / (self.all / 4) as f64) as u64
                + (sweeps - 1) * self.all
                + sweeps * self.tied;
            traffic.disk_written = sweeps * (self.all + self.tied);
            traffic.disk_waited = (sweeps - 1) * self.all + sweeps * self.tied;
            traffic.disk_update = (self.stored + 3 * self.all) + (self.stored + 2 * self.all);
        }
        if choice.sweeps.inputs == InputPlace::Disk {
            traffic.disk_read += step_inputs;
            traffic.disk_written += step_inputs;
            traffic.disk_waited += 2 * step_inputs;
        }
        // a sum reads two values and writes one; AdamW reads four and writes three
        let leaves: usize =
            if device { self.each_sweep().map(|n| n.div_ceil(summed)).sum() } else { self.micro_batches };
        traffic.host_memory = 3 * self.all * (leaves as u64 - 1) + 7 * self.all;
        traffic
    }
}

fn seconds(
    layout: &Layout,
    machine: &Machine,
    choice: Choice,
    shape: StepShape,
    traffic: &Traffic,
) -> Seconds {
    let arithmetic = operations(layout, shape, choice.sweeps.recompute) / machine.flops;
    let pcie = (traffic.to_device + traffic.from_device) as f64 / machine.pcie;
    let passes = (traffic.disk_read + traffic.disk_written) as f64 / machine.disk;
    let update_file = traffic.disk_update as f64 / machine.disk;
    let update = 7.0 * 4.0 * layout.len() as f64 / machine.memory_bandwidth;
    let host_memory = traffic.host_memory as f64 / machine.memory_bandwidth;
    let waited = traffic.disk_waited as f64 / machine.disk;
    let work = arithmetic + pcie + waited + host_memory - update;
    let step = work.max(passes) + update.max(update_file);
    Seconds { arithmetic, pcie, disk: passes + update_file, host_memory, step }
}

/// Floating-point operations that are carried out for a step of full rows, where every token is learned: those
/// of [`crate::model_operations`], and the blocks' forward pass again with `recompute`.
pub(crate) fn operations(layout: &Layout, shape: StepShape, recompute: bool) -> f64 {
    let config = layout.config();
    let block: usize =
        config.block_tensors(0).iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>();
    let blocks = (block * config.num_hidden_layers) as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let tokens = shape.tokens() as f64;
    let keys = tokens * (shape.context as f64 + 1.0) / 2.0;
    let attention = 2.0 * (config.num_hidden_layers * config.query_width()) as f64 * keys;
    let passes = if recompute { 4.0 } else { 3.0 };
    passes * (2.0 * blocks * tokens + 2.0 * attention) + 6.0 * head * tokens
}
