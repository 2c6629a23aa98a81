//! Loss and gradients of a step, in sweeps; a sweep goes layer by layer, all its micro-batches at each layer.

mod backward_from;
mod block;
mod gradient;
mod head;
mod kept;
mod tree;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

use crate::backprop::backward_from::backward_from;
use crate::backprop::block::block;
use crate::backprop::gradient::{Gradient, Rows, SweepIndex, UnitSum, carry};
use crate::backprop::head::Head;
pub use crate::backprop::kept::InputPlace;
use crate::backprop::kept::{BlockInput, BlockInputs};
use crate::backprop::tree::{Tree, tree_sum};
use crate::data::batch::MicroBatch;
use crate::error::TrainError;
use crate::params::Layout;
use crate::store::ParameterStore;
use crate::sums::{self, sum_of_squares};
use flm_candle::AttentionKinds;
use flm_candle::Block;
use flm_candle::Pass;
use flm_candle::{hidden_mask, norm_mask};
use flm_checkpoint::GrowthMasks;

/// How a step is carried out. Whatever is chosen, the results are the same bits: gradients are summed by
/// one binary tree over the micro-batches of the step, of which a sweep is a subtree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SweepOptions {
    /// Micro-batches of a sweep, a power of two: they go over the layers together, once forward and once
    /// backward, so that a block's weights come in twice for all of them and its gradient leaves once.
    pub micro_batches: usize,
    /// Micro-batches whose gradients are summed on the device before they go to the host, a power of two.
    /// Without a GPU there is no difference.
    pub summed: usize,
    /// Whether the forward pass keeps only block inputs, and blocks run again in the backward pass; else
    /// whole graphs, with the weights of all blocks.
    pub recompute: bool,
    /// Where block inputs wait.
    pub inputs: InputPlace,
}

impl SweepOptions {
    /// All micro-batches in one sweep, everything on the device.
    pub fn whole_step(recompute: bool) -> Self {
        Self { micro_batches: usize::MAX, summed: usize::MAX, recompute, inputs: InputPlace::Device }
    }
}

/// What a step held and moved: the plan's estimates, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct StepUsage {
    /// Sweeps over the layers.
    pub sweeps: usize,
    /// The most bytes of block inputs that were kept at a time.
    pub kept_inputs: u64,
    /// Bytes of block inputs that went to the host or a file, and back.
    pub moved_inputs: u64,
    /// The most sums of one block's gradient that existed at a time in a sweep.
    pub partial_sums: usize,
    /// Values of weights that were brought in.
    pub weights_in: u64,
    /// Values of gradients that left the device.
    pub gradients_out: u64,
}

/// Loss and gradients of a step, in sweeps over the layers.
#[derive(Debug, Clone)]
pub struct Backprop {
    layout: Layout,
    attention: AttentionKinds,
    device: Device,
    dtype: DType,
    options: SweepOptions,
    scratch: PathBuf,
    growth: Option<GrowthMasks>,
}

/// What a step found before the update.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLoss {
    /// Mean negative log-likelihood of the targets, in nats.
    pub loss: f64,
    /// Number of targets.
    pub targets: usize,
    /// Number of tokens, padding included.
    pub tokens: usize,
    /// Norm of the gradient of all parameters.
    pub gradient_norm: f64,
    /// Norm of the gradient of each unit.
    pub unit_norms: Vec<f64>,
    /// What it held and moved.
    pub usage: StepUsage,
}

/// What is kept of a block for the backward pass.
enum Kept {
    Input(BlockInput),
    Graph { input: Var, y: Tensor },
}

/// A micro-batch on its way through the model.
struct Lane<'a> {
    batch: &'a MicroBatch,
    pass: Pass,
    kept: Vec<Kept>,
    /// The residual stream; in the backward pass its gradient. It waits where block inputs do, on the host
    /// where those are in a file.
    x: Tensor,
}

/// What a sweep works with.
struct Sweep<'s> {
    store: &'s mut dyn ParameterStore,
    inputs: BlockInputs,
    usage: StepUsage,
    index: SweepIndex,
    /// Square of the norm of each unit's gradient, known after the last sweep.
    squares: Vec<f64>,
}

impl Sweep<'_> {
    fn weights(&mut self, layout: &Layout, unit: usize) -> Result<Vec<Var>, TrainError> {
        self.usage.weights_in += layout.units()[unit].len() as u64;
        self.store.weights(unit)
    }

    /// The sum of a unit's gradients over the sweep's micro-batches.
    fn summed(&mut self, layout: &Layout, unit: usize, sum: UnitSum) -> Result<Vec<Vec<f32>>, TrainError> {
        let moved = sum.moved_after_finish();
        let (gradient, most) = sum.finish()?;
        self.usage.gradients_out += (moved * layout.units()[unit].len()) as u64;
        self.usage.partial_sums = self.usage.partial_sums.max(most);
        Ok(gradient)
    }

    /// Adds a unit's gradient of this sweep to those before; the last is kept for the update.
    fn put(&mut self, unit: usize, gradient: Vec<Vec<f32>>) -> Result<(), TrainError> {
        let Some(total) = carry(self.store, (unit, 0), self.index, gradient)? else { return Ok(()) };
        self.squares[unit] = norm_squared(&total);
        self.store.put_gradient(unit, 0, total)
    }
}

/// The store's slots of the tied head's part of the embedding's gradient; the tokens' part has those before.
/// Each part has a tree of its own, because the one is known at the begin of a sweep's backward pass, the
/// other at its end.
const TIED: usize = usize::BITS as usize;

impl Backprop {
    /// Computes in `dtype` on `device`: f32 on a CPU, f32 or bf16 on a GPU. With `recompute` the forward
    /// pass keeps only block inputs; without, whole graphs. A step is one sweep.
    pub fn new(layout: &Layout, device: &Device, dtype: DType, recompute: bool) -> Self {
        let config = layout.config();
        let attention = AttentionKinds::of(config);
        Self {
            layout: layout.clone(),
            attention,
            device: device.clone(),
            dtype,
            options: SweepOptions::whole_step(recompute),
            scratch: PathBuf::new(),
            growth: config.growth.clone(),
        }
    }

    /// Carries steps out in this way; block inputs that wait on disk do in a file in `scratch`.
    pub fn with_sweeps(self, options: SweepOptions, scratch: &Path) -> Self {
        // a power of two, so that sweeps are subtrees
        let power = |n: usize| 1 << n.max(1).ilog2();
        let (micro_batches, summed) = (power(options.micro_batches), power(options.summed));
        let options = SweepOptions { micro_batches, summed: summed.min(micro_batches), ..options };
        Self { options, scratch: scratch.into(), ..self }
    }

    /// Gives a model that is still growing these masks, instead of those of its config.
    pub fn set_masks(&mut self, growth: Option<GrowthMasks>) {
        self.growth = growth;
    }

    /// The mean loss of the targets of all micro-batches; its gradients are put into the store.
    ///
    /// # Errors
    /// [`TrainError::MissingGradient`] names a parameter that backward did not reach.
    pub fn run(
        &self,
        store: &mut dyn ParameterStore,
        batches: &[MicroBatch],
    ) -> Result<StepLoss, TrainError> {
        let targets: usize = batches.iter().map(MicroBatch::targets).sum();
        let tokens = batches.iter().map(MicroBatch::tokens).sum();
        let weight = 1.0 / targets.max(1) as f64;
        let sweeps = batches.len().div_ceil(self.options.micro_batches);
        let mut sweep = Sweep {
            store,
            inputs: BlockInputs::new(self.options.inputs, &self.device, self.scratch.clone()),
            usage: StepUsage { sweeps, ..StepUsage::default() },
            index: SweepIndex { index: 0, last: false },
            squares: vec![0.0; self.layout.units().len()],
        };
        let mut losses = Vec::with_capacity(batches.len());
        for (index, batches) in batches.chunks(self.options.micro_batches).enumerate() {
            sweep.index = SweepIndex { index, last: index + 1 == sweeps };
            let (mut lanes, graphs) = self.forward(&mut sweep, batches, true)?;
            self.head_backward(&mut sweep, &mut lanes, weight, &mut losses)?;
            self.blocks_backward(&mut sweep, &mut lanes, graphs)?;
            self.embedding_backward(&mut sweep, lanes)?;
        }
        (sweep.usage.kept_inputs, sweep.usage.moved_inputs) = sweep.inputs.usage();
        let gradient_norm = sweep.squares.iter().sum::<f64>().sqrt();
        let unit_norms = sweep.squares.into_iter().map(f64::sqrt).collect();
        let loss = tree_sum(losses) / targets.max(1) as f64;
        Ok(StepLoss { loss, targets, tokens, gradient_norm, unit_norms, usage: sweep.usage })
    }

    /// The sum of the targets' negative log-likelihoods, without gradients.
    pub fn loss(&self, store: &mut dyn ParameterStore, batches: &[MicroBatch]) -> Result<f64, TrainError> {
        let mut sweep = Sweep {
            store,
            inputs: BlockInputs::new(InputPlace::Device, &self.device, PathBuf::new()),
            usage: StepUsage::default(),
            index: SweepIndex { index: 0, last: true },
            squares: Vec::new(),
        };
        let mut losses = Vec::with_capacity(batches.len());
        for batches in batches.chunks(self.options.micro_batches) {
            let (lanes, _) = self.forward(&mut sweep, batches, false)?;
            let (weights, tied) = self.head_weights(&mut sweep)?;
            let head = self.head(&weights, tied.as_deref());
            for lane in &lanes {
                losses.push(head.loss(&lane.x.to_device(&self.device)?, lane.batch)?);
            }
        }
        Ok(tree_sum(losses))
    }

    /// Runs all blocks; block inputs (or graphs, with the weights of every block) are kept if `keep`.
    fn forward<'b>(
        &self,
        sweep: &mut Sweep<'_>,
        batches: &'b [MicroBatch],
        keep: bool,
    ) -> Result<(Vec<Lane<'b>>, Vec<Vec<Var>>), TrainError> {
        let layers = self.layout.config().num_hidden_layers;
        let mut lanes = Vec::with_capacity(batches.len());
        {
            let embedding = sweep.weights(&self.layout, self.layout.embedding())?;
            sweep.store.expect(self.layout.block(0));
            for batch in batches {
                let pass = Pass::packed(&self.attention, &batch.starts, batch.len, self.dtype, &self.device)?;
                let x = sweep.inputs.between(self.embed(embedding[0].as_tensor(), batch)?)?;
                lanes.push(Lane { batch, pass, kept: Vec::new(), x });
            }
        }
        let (graphs, mut kept) = (keep && !self.options.recompute, Vec::new());
        for layer in 0..layers {
            let weights = sweep.weights(&self.layout, self.layout.block(layer))?;
            sweep.store.expect(self.layout.block(layer) + 1);
            let model = self.block(layer, &weights, graphs)?;
            for lane in &mut lanes {
                let x = lane.x.to_device(&self.device)?;
                if graphs {
                    let input = Var::from_tensor(&x)?;
                    let y = model.forward(input.as_tensor(), &lane.pass, None)?;
                    lane.x = sweep.inputs.between(y.detach())?;
                    lane.kept.push(Kept::Graph { input, y });
                } else {
                    let y = sweep.inputs.between(model.forward(&x, &lane.pass, None)?.detach())?;
                    if keep {
                        lane.kept.push(Kept::Input(sweep.inputs.keep(&lane.x)?));
                    }
                    lane.x = y;
                }
            }
            if graphs {
                kept.push(weights);
            }
        }
        Ok((lanes, kept))
    }

    /// Final norm, head and loss; then the lanes hold the gradients by the last block's output.
    fn head_backward(
        &self,
        sweep: &mut Sweep<'_>,
        lanes: &mut [Lane<'_>],
        weight: f64,
        losses: &mut Vec<f64>,
    ) -> Result<(), TrainError> {
        let unit = self.layout.head();
        let (weights, tied) = self.head_weights(sweep)?;
        sweep.store.expect(unit - 1);
        let mut sum = UnitSum::new(self.options.summed);
        {
            let head = self.head(&weights, tied.as_deref());
            for lane in lanes {
                let x = lane.x.to_device(&self.device)?;
                let (loss, dx, gradient) = head.run(&x, lane.batch, weight)?;
                lane.x = sweep.inputs.between(dx)?;
                losses.push(loss);
                sum.push(gradient)?;
            }
        }
        let embedding = self.layout.embedding();
        if tied.is_some() {
            let values = sum.moved_after_finish() * self.layout.units()[embedding].len();
            sweep.usage.gradients_out += values as u64;
        }
        let mut gradient = sweep.summed(&self.layout, unit, sum)?;
        if tied.is_none() {
            return sweep.put(unit, gradient);
        }
        let matrix = gradient.split_off(1);
        sweep.put(unit, gradient)?;
        if let Some(total) = carry(sweep.store, (embedding, TIED), sweep.index, matrix)? {
            // a store on disk takes it out of memory until the blocks are done
            sweep.store.put_gradient(embedding, TIED, total)?;
        }
        Ok(())
    }

    /// The blocks from the last to the first; then the lanes hold the gradients by the embedding's rows.
    fn blocks_backward(
        &self,
        sweep: &mut Sweep<'_>,
        lanes: &mut [Lane<'_>],
        mut graphs: Vec<Vec<Var>>,
    ) -> Result<(), TrainError> {
        for layer in (0..self.layout.config().num_hidden_layers).rev() {
            let unit = self.layout.block(layer);
            // a graph's gradients are by the variables that it was made of
            let weights = match graphs.pop() {
                Some(weights) => weights,
                None => sweep.weights(&self.layout, unit)?,
            };
            if layer > 0 && graphs.is_empty() {
                sweep.store.expect(unit - 1);
            }
            let model = self.block(layer, &weights, true)?;
            let parameters = &self.layout.units()[unit].parameters;
            let mut sum = UnitSum::new(self.options.summed);
            for lane in &mut *lanes {
                let Some(kept) = lane.kept.pop() else { continue };
                let (input, y) = match kept {
                    Kept::Graph { input, y } => (input, y),
                    Kept::Input(input) => {
                        let input = Var::from_tensor(&sweep.inputs.take(input)?)?;
                        let y = model.forward(input.as_tensor(), &lane.pass, None)?;
                        (input, y)
                    }
                };
                let mut grads = backward_from(&y, &lane.x.to_device(&self.device)?)?;
                drop(y);
                let mut gradient = Vec::with_capacity(parameters.len());
                for (weight, parameter) in weights.iter().zip(parameters) {
                    let found = grads.remove(weight.as_tensor());
                    gradient.push(found.ok_or_else(|| TrainError::MissingGradient(parameter.name.clone()))?);
                }
                let found = grads.remove(input.as_tensor());
                let dx = found
                    .ok_or_else(|| TrainError::MissingGradient(format!("the input of block {layer}")))?;
                lane.x = sweep.inputs.between(dx)?;
                drop((grads, input));
                sum.push(Gradient::new(gradient)?)?;
            }
            let gradient = sweep.summed(&self.layout, unit, sum)?;
            sweep.put(unit, gradient)?;
        }
        Ok(())
    }

    fn embedding_backward(&self, sweep: &mut Sweep<'_>, lanes: Vec<Lane<'_>>) -> Result<(), TrainError> {
        let (unit, config) = (self.layout.embedding(), self.layout.config());
        let (width, scale) = (config.hidden_size, config.input_scale() as f32);
        // new entries of the residual stream under their mask
        let hidden = self.growth.as_ref().and_then(|growth| growth.hidden);
        let (old, masked) = hidden.map_or((width, scale), |m| (m.from, scale * m.mask as f32));
        let mut sum = Tree::default();
        for lane in lanes {
            let mut rows = Rows::new(width);
            let dy = lane.x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for (&id, dy) in lane.batch.ids.iter().zip(dy.chunks_exact(width)) {
                let (row, new) = rows.row(id).split_at_mut(old);
                row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += scale * dy);
                new.iter_mut().zip(&dy[old..]).for_each(|(sum, dy)| *sum += masked * dy);
            }
            sum.push(rows)?;
        }
        let rows: Rows = sum.finish()?.unwrap_or_else(|| Rows::new(width));
        let gradient = vec![rows.dense(config.vocab_size)];
        let Some(mut total) = carry(sweep.store, (unit, 0), sweep.index, gradient)? else { return Ok(()) };
        if config.tie_word_embeddings {
            let mut head = sweep.store.take_gradient(unit, TIED)?;
            head.iter_mut().zip(&total).for_each(|(head, rows)| sums::add(head, rows));
            total = head;
        }
        sweep.squares[unit] = norm_squared(&total);
        sweep.store.put_gradient(unit, 0, total)
    }

    fn embed(&self, matrix: &Tensor, batch: &MicroBatch) -> Result<Tensor, TrainError> {
        let config = self.layout.config();
        let ids = Tensor::from_slice(&batch.ids, batch.ids.len(), matrix.device())?;
        let rows = matrix.detach().index_select(&ids, 0)?.to_device(&self.device)?.to_dtype(self.dtype)?;
        let rows = match config.input_scale() {
            1.0 => rows,
            scale => (rows * scale)?,
        };
        let rows = match &self.growth {
            Some(growth) => match hidden_mask(growth, config, self.dtype, &self.device)? {
                Some(mask) => rows.broadcast_mul(&mask)?,
                None => rows,
            },
            None => rows,
        };
        Ok(rows.reshape((batch.rows, batch.len, config.hidden_size))?)
    }

    fn block(&self, layer: usize, weights: &[Var], variables: bool) -> Result<Block, TrainError> {
        let tensors =
            weights.iter().map(|w| if variables { w.as_tensor().clone() } else { w.as_detached_tensor() });
        let tensors: Vec<Tensor> = tensors.collect();
        let growth = self.growth.as_ref();
        Ok(block(self.layout.config(), growth, layer, &tensors, (self.dtype, &self.device))?)
    }

    fn head<'w>(&self, weights: &'w [Var], tied: Option<&'w [Var]>) -> Head<'w> {
        let config = self.layout.config();
        let matrix = tied.map_or_else(|| &weights[1], |embedding| &embedding[0]).as_tensor();
        Head {
            gain: &weights[0],
            eps: config.rms_norm_eps,
            mask: self.growth.as_ref().and_then(norm_mask),
            matrix,
            logit_scale: config.logit_scale(),
            softcap: config.logit_softcap,
            gain_offset: config.gain_offset(),
        }
    }

    /// The weights of the head's unit and, where they are the head, the embedding's.
    fn head_weights(&self, sweep: &mut Sweep<'_>) -> Result<(Vec<Var>, Option<Vec<Var>>), TrainError> {
        let weights = sweep.weights(&self.layout, self.layout.head())?;
        let tied = match weights.len() {
            1 => Some(sweep.weights(&self.layout, self.layout.embedding())?),
            _ => None,
        };
        Ok((weights, tied))
    }
}

fn norm_squared(gradient: &[Vec<f32>]) -> f64 {
    gradient.iter().map(|g| sum_of_squares(g)).sum()
}
