//! Loss and gradients of a step, layer by layer, all micro-batches at each layer.

mod backward_from;
mod block;
mod head;

use candle_core::{DType, Device, Tensor, Var};

use crate::backprop::backward_from::backward_from;
use crate::backprop::block::block;
use crate::backprop::head::{Head, HeadGradients, add_tensor};
use crate::data::batch::MicroBatch;
use crate::error::TrainError;
use crate::params::Layout;
use crate::store::ParameterStore;
use crate::sums::sum_of_squares;
use flm_candle::Block;
use flm_candle::Pass;
use flm_candle::Rotary;
use flm_candle::{hidden_mask, norm_mask};
use flm_checkpoint::GrowthMasks;

/// Loss and gradients of a step, layer by layer.
#[derive(Debug, Clone)]
pub struct Backprop {
    layout: Layout,
    rotary: Rotary,
    device: Device,
    dtype: DType,
    recompute: bool,
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
}

/// A block's input and, where the graph is kept, its output.
struct Kept {
    input: Tensor,
    graph: Option<(Var, Tensor)>,
}

/// A micro-batch on its way through the model.
struct Lane<'a> {
    batch: &'a MicroBatch,
    pass: Pass,
    kept: Vec<Kept>,
    x: Tensor,
}

impl Backprop {
    /// Computes in `dtype` on `device`: f32 on a CPU, f32 or bf16 on a GPU. With `recompute` the forward
    /// pass keeps only block inputs; without, whole graphs.
    pub fn new(layout: &Layout, device: &Device, dtype: DType, recompute: bool) -> Self {
        let config = layout.config();
        let rotary = Rotary::new(config.head_dim, config.rope_theta);
        let growth = config.growth.clone();
        Self { layout: layout.clone(), rotary, device: device.clone(), dtype, recompute, growth }
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
        let (mut lanes, mut graphs) = self.forward(store, batches, true)?;
        let mut squares = vec![0.0; self.layout.units().len()];
        let (sum, mut dys) =
            self.head_backward(store, &mut lanes, 1.0 / targets.max(1) as f64, &mut squares)?;
        for layer in (0..self.layout.config().num_hidden_layers).rev() {
            let unit = self.layout.block(layer);
            // a graph's gradients are by the variables that it was made of
            let weights = match graphs.pop() {
                Some(weights) => weights,
                None => store.weights(unit)?,
            };
            if layer > 0 && graphs.is_empty() {
                store.expect(unit - 1);
            }
            let mut gradient = self.zeros(unit);
            let model = self.block(layer, &weights, true)?;
            for (lane, dy) in lanes.iter_mut().zip(&mut dys) {
                let Some(kept) = lane.kept.pop() else { continue };
                let (input, y) = match kept.graph {
                    Some(graph) => graph,
                    None => {
                        let input = Var::from_tensor(&kept.input)?;
                        let y = model.forward(input.as_tensor(), &lane.pass, None)?;
                        (input, y)
                    }
                };
                let mut grads = backward_from(&y, dy)?;
                drop(y);
                let parameters = &self.layout.units()[unit].parameters;
                for ((weight, target), parameter) in weights.iter().zip(&mut gradient).zip(parameters) {
                    let found = grads.remove(weight.as_tensor());
                    add_tensor(
                        target,
                        &found.ok_or_else(|| TrainError::MissingGradient(parameter.name.clone()))?,
                    )?;
                }
                let found = grads.remove(input.as_tensor());
                *dy = found
                    .ok_or_else(|| TrainError::MissingGradient(format!("the input of block {layer}")))?;
            }
            squares[unit] = norm_squared(&gradient);
            store.put_gradient(unit, gradient)?;
        }
        self.embedding_backward(store, &lanes, &dys, &mut squares)?;
        let gradient_norm = squares.iter().sum::<f64>().sqrt();
        let unit_norms = squares.into_iter().map(f64::sqrt).collect();
        Ok(StepLoss { loss: sum / targets.max(1) as f64, targets, tokens, gradient_norm, unit_norms })
    }

    /// The sum of the targets' negative log-likelihoods, without gradients.
    pub fn loss(&self, store: &mut dyn ParameterStore, batches: &[MicroBatch]) -> Result<f64, TrainError> {
        let (lanes, _) = self.forward(store, batches, false)?;
        let weights = store.weights(self.layout.head())?;
        let tied = if weights.len() == 1 { Some(store.weights(self.layout.embedding())?) } else { None };
        let head = self.head(&weights, tied.as_deref());
        let mut sum = 0.0;
        for lane in &lanes {
            sum += head.run(&lane.x, lane.batch, None)?.0;
        }
        Ok(sum)
    }

    /// Runs all blocks; block inputs (or graphs, with the weights of every block) are kept if `keep`.
    fn forward<'b>(
        &self,
        store: &mut dyn ParameterStore,
        batches: &'b [MicroBatch],
        keep: bool,
    ) -> Result<(Vec<Lane<'b>>, Vec<Vec<Var>>), TrainError> {
        let (config, layers) = (self.layout.config(), self.layout.config().num_hidden_layers);
        let mut lanes = Vec::with_capacity(batches.len());
        {
            let embedding = store.weights(self.layout.embedding())?;
            store.expect(self.layout.block(0));
            for batch in batches {
                let heads = config.num_attention_heads;
                let pass =
                    Pass::packed(&self.rotary, &batch.starts, batch.len, heads, self.dtype, &self.device)?;
                let x = self.embed(embedding[0].as_tensor(), batch)?;
                lanes.push(Lane { batch, pass, kept: Vec::new(), x });
            }
        }
        let (graphs, mut kept) = (keep && !self.recompute, Vec::new());
        for layer in 0..layers {
            let weights = store.weights(self.layout.block(layer))?;
            store.expect(self.layout.block(layer) + 1);
            let model = self.block(layer, &weights, graphs)?;
            for lane in &mut lanes {
                let input = lane.x.clone();
                if graphs {
                    let variable = Var::from_tensor(&input)?;
                    let y = model.forward(variable.as_tensor(), &lane.pass, None)?;
                    lane.x = y.detach();
                    lane.kept.push(Kept { input, graph: Some((variable, y)) });
                } else {
                    lane.x = model.forward(&input, &lane.pass, None)?.detach();
                    if keep {
                        lane.kept.push(Kept { input, graph: None });
                    }
                }
            }
            if graphs {
                kept.push(weights);
            }
        }
        Ok((lanes, kept))
    }

    /// The sum of the losses and the gradients by the last block's output.
    fn head_backward(
        &self,
        store: &mut dyn ParameterStore,
        lanes: &mut [Lane<'_>],
        weight: f64,
        squares: &mut [f64],
    ) -> Result<(f64, Vec<Tensor>), TrainError> {
        let unit = self.layout.head();
        let weights = store.weights(unit)?;
        let tied = if weights.len() == 1 { Some(store.weights(self.layout.embedding())?) } else { None };
        store.expect(unit - 1);
        let mut gradient = self.zeros(unit);
        let mut embedding = tied.is_some().then(|| self.zeros(self.layout.embedding()));
        let head = self.head(&weights, tied.as_deref());
        let (mut sum, mut dys) = (0.0, Vec::with_capacity(lanes.len()));
        {
            let (gain, rest) = gradient.split_at_mut(1);
            let matrix = rest.first_mut().or(embedding.as_mut().and_then(|e| e.first_mut()));
            let (Some(gain), Some(matrix)) = (gain.first_mut(), matrix) else {
                return Err(TrainError::MissingGradient(flm_checkpoint::LM_HEAD.into()));
            };
            let mut gradients = HeadGradients { gain, matrix, weight };
            for lane in lanes {
                let x = std::mem::replace(&mut lane.x, Tensor::zeros((), self.dtype, &self.device)?);
                let (part, dx) = head.run(&x, lane.batch, Some(&mut gradients))?;
                sum += part;
                dys.extend(dx);
            }
        }
        squares[unit] = norm_squared(&gradient);
        store.put_gradient(unit, gradient)?;
        if let Some(gradient) = embedding {
            // a store on disk takes it out of memory until the blocks are done
            store.put_gradient(self.layout.embedding(), gradient)?;
        }
        Ok((sum, dys))
    }

    fn embedding_backward(
        &self,
        store: &mut dyn ParameterStore,
        lanes: &[Lane<'_>],
        dys: &[Tensor],
        squares: &mut [f64],
    ) -> Result<(), TrainError> {
        let (unit, config) = (self.layout.embedding(), self.layout.config());
        let mut gradient =
            if config.tie_word_embeddings { store.take_gradient(unit)? } else { self.zeros(unit) };
        let (width, scale) = (config.hidden_size, config.input_scale() as f32);
        // new entries of the residual stream under their mask
        let hidden = self.growth.as_ref().and_then(|growth| growth.hidden);
        let (old, masked) = hidden.map_or((width, scale), |m| (m.from, scale * m.mask as f32));
        for (lane, dy) in lanes.iter().zip(dys) {
            let dy = dy.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            for (&id, dy) in lane.batch.ids.iter().zip(dy.chunks_exact(width)) {
                let row = &mut gradient[0][id as usize * width..][..width];
                let (row, new) = row.split_at_mut(old);
                row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += scale * dy);
                new.iter_mut().zip(&dy[old..]).for_each(|(sum, dy)| *sum += masked * dy);
            }
        }
        squares[unit] = norm_squared(&gradient);
        store.put_gradient(unit, gradient)
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
        let tensors: &[Tensor; 9] = tensors
            .as_slice()
            .try_into()
            .map_err(|_| candle_core::Error::Msg("a block has nine tensors".into()))?;
        let growth = self.growth.as_ref();
        Ok(block(self.layout.config(), growth, layer, tensors, (self.dtype, &self.device))?)
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
        }
    }

    fn zeros(&self, unit: usize) -> Vec<Vec<f32>> {
        self.layout.units()[unit].parameters.iter().map(|p| vec![0f32; p.len()]).collect()
    }
}

fn norm_squared(gradient: &[Vec<f32>]) -> f64 {
    gradient.iter().map(|g| sum_of_squares(g)).sum()
}
