//! Gradients of a unit on their way from micro-batches through a sweep to the store.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::backprop::head::MatrixGradient;
use crate::backprop::tree::{Term, Tree};
use crate::error::TrainError;
use crate::store::ParameterStore;
use crate::sums;

/// The gradient of a unit by some of a step's micro-batches, parameter by parameter, in f32.
#[derive(Debug)]
pub(super) enum Gradient {
    Host(Vec<Vec<f32>>),
    Device(Vec<Tensor>),
}

impl Gradient {
    /// Of one micro-batch, as backward gives it: on a GPU it stays there.
    pub(super) fn new(tensors: Vec<Tensor>) -> Result<Self, TrainError> {
        let host = tensors.iter().all(|tensor| tensor.device().is_cpu());
        let wide = tensors.into_iter().map(|tensor| tensor.to_dtype(DType::F32)).collect::<Result<_, _>>()?;
        if host { Ok(Self::Host(on_host(wide)?)) } else { Ok(Self::Device(wide)) }
    }

    /// Of the head: final norm and matrix.
    pub(super) fn of_head(gain: Tensor, matrix: MatrixGradient) -> Result<Self, TrainError> {
        match matrix {
            MatrixGradient::Device(matrix) => Self::new(vec![gain, matrix]),
            MatrixGradient::Host(matrix) => {
                let mut gradient = Self::new(vec![gain])?.into_host()?;
                gradient.push(matrix);
                Ok(Self::Host(gradient))
            }
        }
    }

    fn into_host(self) -> Result<Vec<Vec<f32>>, TrainError> {
        match self {
            Self::Host(values) => Ok(values),
            Self::Device(tensors) => on_host(tensors),
        }
    }
}

fn on_host(tensors: Vec<Tensor>) -> Result<Vec<Vec<f32>>, TrainError> {
    let values = tensors.iter().map(|tensor| tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>());
    Ok(values.collect::<candle_core::Result<_>>()?)
}

impl Term for Vec<Vec<f32>> {
    fn add(&mut self, right: Self) -> Result<(), TrainError> {
        self.iter_mut().zip(right).for_each(|(left, right)| sums::add(left, &right));
        Ok(())
    }
}

impl Term for Gradient {
    fn add(&mut self, right: Self) -> Result<(), TrainError> {
        match (self, right) {
            (Self::Device(left), Self::Device(right)) => {
                for (left, right) in left.iter_mut().zip(right) {
                    *left = (&*left + right)?;
                }
                Ok(())
            }
            (left, right) => {
                let mut sum = std::mem::replace(left, Self::Host(Vec::new())).into_host()?;
                sum.add(right.into_host()?)?;
                *left = Self::Host(sum);
                Ok(())
            }
        }
    }
}

/// Sums a unit's gradients over the micro-batches of a sweep: `group` of them, a power of two, on the
/// device, the sums of those on the host. One gradient leaves the device for every group.
#[derive(Debug)]
pub(super) struct UnitSum {
    group: usize,
    in_group: usize,
    device: Tree<Gradient>,
    host: Tree<Vec<Vec<f32>>>,
    most: usize,
    /// Groups that have left the device.
    moved: usize,
}

impl UnitSum {
    pub(super) fn new(group: usize) -> Self {
        let (device, host) = (Tree::default(), Tree::default());
        Self { group, in_group: 0, device, host, most: 0, moved: 0 }
    }

    /// Takes the gradient of the next micro-batch.
    pub(super) fn push(&mut self, gradient: Gradient) -> Result<(), TrainError> {
        self.device.push(gradient)?;
        self.in_group += 1;
        if self.in_group == self.group { self.leave() } else { Ok(()) }
    }

    fn leave(&mut self) -> Result<(), TrainError> {
        let device = std::mem::take(&mut self.device);
        self.in_group = 0;
        self.most = self.most.max(device.most());
        if let Some(sum) = device.finish()? {
            self.host.push(sum.into_host()?)?;
            self.moved += 1;
        }
        Ok(())
    }

    /// Groups that will have left the device when all is summed.
    pub(super) fn moved_after_finish(&self) -> usize {
        self.moved + usize::from(self.in_group > 0)
    }

    /// The sum of the sweep, on the host, and the most sums that existed on the device or the host.
    pub(super) fn finish(mut self) -> Result<(Vec<Vec<f32>>, usize), TrainError> {
        self.leave()?;
        let most = self.most.max(self.host.most());
        Ok((self.host.finish()?.unwrap_or_default(), most))
    }
}

/// Gradients of the rows of the embedding that a micro-batch's tokens take.
#[derive(Debug, Default)]
pub(super) struct Rows {
    width: usize,
    places: HashMap<u32, usize>,
    values: Vec<f32>,
}

impl Rows {
    pub(super) fn new(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    /// The row of token `id`, to add to. It begins with 0, and 0 + −0 is 0: no value is ever −0, so that
    /// a row that a micro-batch does not have adds nothing, not even a sign.
    pub(super) fn row(&mut self, id: u32) -> &mut [f32] {
        let place = *self.places.entry(id).or_insert(self.values.len());
        if place == self.values.len() {
            self.values.resize(place + self.width, 0.0);
        }
        &mut self.values[place..place + self.width]
    }

    /// As the gradient of the whole matrix, `rows` long.
    pub(super) fn dense(self, rows: usize) -> Vec<f32> {
        let mut matrix = vec![0f32; rows * self.width];
        for (id, place) in self.places {
            let row = &self.values[place..place + self.width];
            matrix[id as usize * self.width..][..self.width].copy_from_slice(row);
        }
        matrix
    }
}

impl Term for Rows {
    fn add(&mut self, right: Self) -> Result<(), TrainError> {
        for (&id, &place) in &right.places {
            let from = &right.values[place..place + right.width];
            self.row(id).iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
        }
        Ok(())
    }
}

/// Which sweep of a step it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct SweepIndex {
    pub(super) index: usize,
    pub(super) last: bool,
}

/// Adds a sweep's gradient to the sums of the sweeps before it, which the store holds in its slots from
/// `first` on, one a level of the tree; after the last sweep the total is returned.
pub(super) fn carry(
    store: &mut dyn ParameterStore,
    (unit, first): (usize, usize),
    sweep: SweepIndex,
    mut sum: Vec<Vec<f32>>,
) -> Result<Option<Vec<Vec<f32>>>, TrainError> {
    let mut level = 0;
    while sweep.index >> level > 0 {
        let held = sweep.index >> level & 1 == 1;
        if !held && !sweep.last {
            break;
        }
        if held {
            let mut left = store.take_gradient(unit, first + level)?;
            left.add(sum)?;
            sum = left;
        }
        level += 1;
    }
    if sweep.last {
        return Ok(Some(sum));
    }
    store.put_gradient(unit, first + level, sum)?;
    Ok(None)
}
