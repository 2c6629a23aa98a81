//! Which parameters a model has, in the units that are brought in, used and written back together.

use flm_checkpoint::{Dtype, TeleFlmConfig};
use flm_checkpoint::{TensorId, TensorShape};

/// What kind of parameter it is, for decay and learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterGroup {
    /// The embedding, also where it is the head.
    Embedding,
    /// Matrices of the blocks.
    Matrix,
    /// Gains and biases.
    Norm,
    /// The output projection (`lm_head`).
    Head,
}

/// Factors on the learning rate by group, as µP asks for.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Multipliers {
    /// Factor for the token embedding.
    pub embedding: f64,
    /// Matrices of the blocks.
    pub matrix: f64,
    /// Gains and biases.
    pub norm: f64,
    /// Factor for the output projection (`lm_head`).
    pub head: f64,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embedding: 1.0, matrix: 1.0, norm: 1.0, head: 1.0 }
    }
}

impl Multipliers {
    /// The factor of a group.
    pub fn of(&self, group: ParameterGroup) -> f64 {
        match group {
            ParameterGroup::Embedding => self.embedding,
            ParameterGroup::Matrix => self.matrix,
            ParameterGroup::Norm => self.norm,
            ParameterGroup::Head => self.head,
        }
    }
}

/// One tensor that is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Its group.
    pub group: ParameterGroup,
    /// What its weights are stored in: f32 or bf16. Gradients and moments are f32.
    pub dtype: Dtype,
}

impl Parameter {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its stored weights.
    pub fn weight_bytes(&self) -> u64 {
        (self.len() * self.dtype.size_in_bytes()) as u64
    }

    /// Whether weight decay applies: matrices only.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// Parameters that are brought in, used and written back together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// In the order of the forward pass.
    pub parameters: Vec<Parameter>,
}

impl Unit {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.parameters.iter().map(Parameter::len).sum()
    }

    /// Bytes of its stored weights.
    pub fn weight_bytes(&self) -> u64 {
        self.parameters.iter().map(Parameter::weight_bytes).sum()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The units of a model: the embedding, each block, then the final norm with the head.
#[derive(Debug, Clone)]
pub struct Layout {
    config: TeleFlmConfig,
    units: Vec<Unit>,
}

impl Layout {
    /// The units of a model of this shape.
    pub fn new(config: &TeleFlmConfig) -> Self {
        let parameter = |TensorShape { id, name, shape }: TensorShape| {
            let group = match id {
                TensorId::Embedding => ParameterGroup::Embedding,
                TensorId::Head => ParameterGroup::Head,
                _ if id.axes().len() == 1 => ParameterGroup::Norm,
                _ => ParameterGroup::Matrix,
            };
            Parameter { name, shape, group, dtype: Dtype::F32 }
        };
        let (mut units, mut outer) = (Vec::new(), Vec::new());
        for tensor in config.tensors() {
            if !matches!(tensor.id, TensorId::Block(..)) {
                outer.push(parameter(tensor));
            }
        }
        let head = outer.split_off(1);
        units.push(Unit { parameters: outer });
        for layer in 0..config.num_hidden_layers {
            units.push(Unit { parameters: config.block_tensors(layer).into_iter().map(parameter).collect() });
        }
        units.push(Unit { parameters: head });
        Self { config: config.clone(), units }
    }

    /// The same units with matrices stored in bf16; gains and biases, which are few, stay f32.
    pub fn with_bf16_weights(mut self) -> Self {
        for parameter in self.units.iter_mut().flat_map(|unit| &mut unit.parameters) {
            if parameter.shape.len() > 1 {
                parameter.dtype = Dtype::BF16;
            }
        }
        self
    }

    /// The model's shape.
    pub fn config(&self) -> &TeleFlmConfig {
        &self.config
    }

    /// All units.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Index of the embedding's unit.
    pub fn embedding(&self) -> usize {
        0
    }

    /// Index of a block's unit.
    pub fn block(&self, layer: usize) -> usize {
        layer + 1
    }

    /// Index of the unit of the final norm and, where it is not tied, the head.
    pub fn head(&self) -> usize {
        self.units.len() - 1
    }

    /// Every parameter, with its unit and its index there.
    pub fn parameters(&self) -> impl Iterator<Item = (usize, usize, &Parameter)> + '_ {
        self.units.iter().enumerate().flat_map(|(unit, Unit { parameters })| {
            parameters.iter().enumerate().map(move |(index, parameter)| (unit, index, parameter))
        })
    }

    /// Number of values of all units.
    pub fn len(&self) -> usize {
        self.units.iter().map(Unit::len).sum()
    }

    /// Bytes of all stored weights.
    pub fn weight_bytes(&self) -> u64 {
        self.units.iter().map(Unit::weight_bytes).sum()
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What an update reads and changes: four slices of one parameter, of equal length.
#[derive(Debug)]
pub struct Slices<'a> {
    /// Index of the parameter's unit.
    pub unit: usize,
    /// Index of the slices' first value in the parameter.
    pub offset: usize,
    /// Weights, in f32.
    pub weights: &'a mut [f32],
    /// The step's gradient.
    pub gradient: &'a [f32],
    /// First moment.
    pub exp_avg: &'a mut [f32],
    /// Second moment.
    pub exp_avg_sq: &'a mut [f32],
}
