//! Weights, gradients and moments in files, read ahead and written behind.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use candle_core::{CpuStorage, DType, Device, Var};
use flm_checkpoint::Dtype;
use half::{bf16, slice::HalfFloatSliceExt};
use tempfile::TempDir;

use crate::error::TrainError;
use crate::params::{Layout, Parameter, Slices};
use crate::store::memory::compute_copy;
use crate::store::{Array, ParameterStore, Place, Update, narrow, widen};

/// Values of a parameter that are updated at once: 1 MiB an array. Where the update is slower than the
/// disk, five parts are in memory: one that is read, one that is updated, one that is written, and one
/// that waits on each side.
const PART: usize = 1 << 18;

/// How the names of working folders begin.
const WORK_PREFIX: &str = "flm-work-";
/// File in a working folder that says whose it is.
const OWNER: &str = "owner";

/// What the marker of a run with this output directory says.
fn owner(output: &Path) -> String {
    let path = output.canonicalize().unwrap_or_else(|_| output.into());
    format!("flm sft {}\n", path.display())
}

/// Everything in files: gradient and moments, four bytes each, and weights, four or two.
///
/// Memory: the weights of the unit in use and of the one that is read ahead, the gradient that is
/// written back, a few parts during the update. The files hold no state of their own: training resumes
/// from checkpoints.
#[derive(Debug)]
pub struct DiskStore {
    layout: Layout,
    files: Arc<Files>,
    device: Device,
    dtype: DType,
    ahead: Option<(usize, JoinHandle<Read>)>,
    behind: Option<JoinHandle<Result<(), TrainError>>>,
}

type Read = Result<Vec<Vec<f32>>, TrainError>;

#[derive(Debug)]
struct Files {
    /// Removed with everything in it when dropped.
    dir: TempDir,
    weights: File,
    /// By slot, made when they are first needed; files of nothing but holes where nothing was written.
    gradients: Mutex<BTreeMap<usize, Arc<File>>>,
    exp_avg: File,
    exp_avg_sq: File,
    /// First byte of each parameter of each unit, four bytes a value.
    offsets: Vec<Vec<u64>>,
    /// First byte of its weights, as they are stored.
    weight_offsets: Vec<Vec<u64>>,
}

/// A new file of zeros.
fn create(path: &Path, bytes: u64) -> Result<File, TrainError> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.map_err(TrainError::file("create", path))?;
    file.set_len(bytes).map_err(TrainError::file("set the length of", path))?;
    Ok(file)
}

impl DiskStore {
    /// Zeros for all parameters, in files in a new folder `flm-work-…` in `parent`. The folder goes with
    /// the store; nothing else in `parent` is touched.
    ///
    /// # Errors
    /// When the files cannot be made.
    pub fn new(layout: &Layout, parent: &Path, device: &Device, dtype: DType) -> Result<Self, TrainError> {
        std::fs::create_dir_all(parent).map_err(TrainError::file("create", parent))?;
        let made = tempfile::Builder::new().prefix(WORK_PREFIX).tempdir_in(parent);
        let dir = made.map_err(TrainError::file("create a folder in", parent))?;
        let bytes = layout.len() as u64 * 4;
        let open = |name: &str, bytes: u64| create(&dir.path().join(name), bytes);
        let offsets = |size: fn(&Parameter) -> u64| -> Vec<Vec<u64>> {
            let mut next = 0;
            let mut place = |p: &Parameter| {
                let at = next;
                next += size(p);
                at
            };
            layout.units().iter().map(|unit| unit.parameters.iter().map(&mut place).collect()).collect()
        };
        let files = Files {
            weights: open("weights", layout.weight_bytes())?,
            gradients: Mutex::default(),
            exp_avg: open("exp_avg.f32", bytes)?,
            exp_avg_sq: open("exp_avg_sq.f32", bytes)?,
            dir,
            offsets: offsets(|p| p.len() as u64 * 4),
            weight_offsets: offsets(Parameter::weight_bytes),
        };
        let layout = layout.clone();
        Ok(Self { layout, files: Arc::new(files), device: device.clone(), dtype, ahead: None, behind: None })
    }

    /// Marks the working folder as that of a run with this output directory.
    ///
    /// # Errors
    /// When the marker cannot be written.
    pub fn owned_by(self, output: &Path) -> Result<Self, TrainError> {
        let path = self.files.dir.path().join(OWNER);
        std::fs::write(&path, owner(output)).map_err(TrainError::file("write", &path))?;
        Ok(self)
    }

    /// Removes from `parent` the working folders that dead runs with this output directory left. Whoever
    /// calls it holds the lock of `output`.
    ///
    /// # Errors
    /// When `parent` cannot be listed or a folder cannot be removed.
    pub fn sweep(parent: &Path, output: &Path) -> Result<(), TrainError> {
        let entries = match std::fs::read_dir(parent) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(TrainError::file("list", parent))?,
        };
        for entry in entries {
            let path = entry.map_err(TrainError::file("list", parent))?.path();
            let named = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(WORK_PREFIX));
            if named && std::fs::read(path.join(OWNER)).is_ok_and(|text| text == owner(output).as_bytes()) {
                std::fs::remove_dir_all(&path).map_err(TrainError::file("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Waits for the gradient that is being written.
    fn settle(&mut self) -> Result<(), TrainError> {
        self.behind.take().map_or(Ok(()), |write| write.join().map_err(|_| TrainError::Worker)?)
    }

    fn read_unit(&mut self, unit: usize) -> Read {
        if let Some((ahead, read)) = self.ahead.take_if(|(ahead, _)| *ahead == unit) {
            debug_assert_eq!(ahead, unit);
            return read.join().map_err(|_| TrainError::Worker)?;
        }
        self.files.read_weights(&self.layout, unit)
    }
}

impl Files {
    /// The weights of a unit, in f32.
    fn read_weights(&self, layout: &Layout, unit: usize) -> Read {
        let parameters = layout.units()[unit].parameters.iter().enumerate();
        parameters
            .map(|(index, parameter)| {
                let mut values = vec![0f32; parameter.len()];
                self.read_weight_part((unit, index), parameter, 0, &mut values)?;
                Ok(values)
            })
            .collect()
    }

    /// Weights of parameter `(unit, index)` from value `offset` on, in f32.
    fn read_weight_part(
        &self,
        (unit, index): (usize, usize),
        parameter: &Parameter,
        offset: usize,
        values: &mut [f32],
    ) -> Result<(), TrainError> {
        let first = self.weight_offsets[unit][index];
        if parameter.dtype != Dtype::BF16 {
            return self.read(&self.weights, first + offset as u64 * 4, values);
        }
        let mut stored = vec![bf16::ZERO; PART.min(values.len())];
        for (part, values) in values.chunks_mut(PART).enumerate() {
            let stored = &mut stored[..values.len()];
            let at = first + (offset + part * PART) as u64 * 2;
            let bytes = bytemuck::cast_slice_mut(stored.reinterpret_cast_mut());
            let read = self.weights.read_exact_at(bytes, at);
            read.map_err(TrainError::file("read the parameters in", self.dir.path()))?;
            widen(stored, values);
        }
        Ok(())
    }

    /// Writes back what `read_weight_part` reads.
    fn write_weight_part(
        &self,
        (unit, index): (usize, usize),
        parameter: &Parameter,
        offset: usize,
        values: &[f32],
    ) -> Result<(), TrainError> {
        let first = self.weight_offsets[unit][index];
        if parameter.dtype != Dtype::BF16 {
            return self.write(&self.weights, first + offset as u64 * 4, values);
        }
        let mut stored = vec![bf16::ZERO; PART.min(values.len())];
        for (part, values) in values.chunks(PART).enumerate() {
            let stored = &mut stored[..values.len()];
            narrow(values, stored);
            let at = first + (offset + part * PART) as u64 * 2;
            let bytes = bytemuck::cast_slice(stored.reinterpret_cast());
            let written = self.weights.write_all_at(bytes, at);
            written.map_err(TrainError::file("write the parameters in", self.dir.path()))?;
        }
        Ok(())
    }

    fn read(&self, file: &File, at: u64, values: &mut [f32]) -> Result<(), TrainError> {
        let bytes = bytemuck::cast_slice_mut(values);
        file.read_exact_at(bytes, at).map_err(TrainError::file("read the parameters in", self.dir.path()))
    }

    fn write(&self, file: &File, at: u64, values: &[f32]) -> Result<(), TrainError> {
        let bytes = bytemuck::cast_slice(values);
        file.write_all_at(bytes, at).map_err(TrainError::file("write the parameters in", self.dir.path()))
    }

    fn gradient(&self, layout_bytes: u64, slot: usize) -> Result<Arc<File>, TrainError> {
        let mut files = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&slot) {
            return Ok(Arc::clone(file));
        }
        let path = self.dir.path().join(format!("gradient-{slot}.f32"));
        let file = Arc::new(create(&path, layout_bytes)?);
        files.insert(slot, Arc::clone(&file));
        Ok(file)
    }

    fn read_gradient(&self, layout: &Layout, unit: usize, slot: usize) -> Read {
        let file = self.gradient(layout.len() as u64 * 4, slot)?;
        let parameters = layout.units()[unit].parameters.iter().zip(&self.offsets[unit]);
        parameters
            .map(|(parameter, &at)| {
                let mut values = vec![0f32; parameter.len()];
                self.read(&file, at, &mut values)?;
                Ok(values)
            })
            .collect()
    }
}

/// Four arrays of a part of a parameter on their way through the update.
struct Part {
    unit: usize,
    parameter: usize,
    /// Index of the first value.
    offset: usize,
    arrays: [Vec<f32>; 4],
}

impl ParameterStore for DiskStore {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn weights(&mut self, unit: usize) -> Result<Vec<Var>, TrainError> {
        let values = self.read_unit(unit)?;
        let parameters = &self.layout.units()[unit].parameters;
        let variables = values.into_iter().zip(parameters).map(|(values, parameter)| {
            if self.device.is_cpu() && self.dtype == DType::F32 {
                return Var::from_vec(values, parameter.shape.as_slice(), &Device::Cpu);
            }
            compute_copy(&CpuStorage::F32(values), parameter, self.dtype, &self.device)
        });
        Ok(variables.collect::<candle_core::Result<_>>()?)
    }

    fn expect(&mut self, unit: usize) {
        if self.ahead.as_ref().is_some_and(|(ahead, _)| *ahead == unit) {
            return;
        }
        let (files, layout) = (Arc::clone(&self.files), self.layout.clone());
        let read = std::thread::Builder::new().spawn(move || files.read_weights(&layout, unit));
        // without a thread it is read when it is needed
        self.ahead = read.ok().map(|read| (unit, read));
    }

    fn put_gradient(&mut self, unit: usize, slot: usize, gradient: Vec<Vec<f32>>) -> Result<(), TrainError> {
        self.settle()?;
        let file = self.files.gradient(self.layout.len() as u64 * 4, slot)?;
        let files = Arc::clone(&self.files);
        let write = move || {
            for (values, &at) in gradient.iter().zip(&files.offsets[unit]) {
                files.write(&file, at, values)?;
            }
            Ok(())
        };
        let spawned = std::thread::Builder::new().spawn(write);
        self.behind = Some(spawned.map_err(TrainError::file("start a thread for", self.files.dir.path()))?);
        Ok(())
    }

    fn take_gradient(&mut self, unit: usize, slot: usize) -> Result<Vec<Vec<f32>>, TrainError> {
        self.settle()?;
        self.files.read_gradient(&self.layout, unit, slot)
    }

    fn update(&mut self, update: &mut Update<'_>) -> Result<(), TrainError> {
        self.settle()?;
        self.ahead = None;
        let (files, layout, bytes) = (&self.files, &self.layout, self.layout.len() as u64 * 4);
        let (to_compute, parts) = mpsc::sync_channel::<Result<Part, TrainError>>(1);
        let (to_write, done) = mpsc::sync_channel::<Part>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (unit, parameter, p) in layout.parameters() {
                    for start in (0..p.len()).step_by(PART) {
                        let part =
                            files.part((unit, parameter), p, (start, PART.min(p.len() - start)), bytes);
                        if to_compute.send(part).is_err() {
                            return;
                        }
                    }
                }
            });
            let writer = scope.spawn(move || {
                for part in done {
                    let [weights, _, exp_avg, exp_avg_sq] = &part.arrays;
                    let parameter = &layout.units()[part.unit].parameters[part.parameter];
                    let at = files.offsets[part.unit][part.parameter] + part.offset as u64 * 4;
                    files.write_weight_part((part.unit, part.parameter), parameter, part.offset, weights)?;
                    files.write(&files.exp_avg, at, exp_avg)?;
                    files.write(&files.exp_avg_sq, at, exp_avg_sq)?;
                }
                Ok(())
            });
            for part in parts {
                let mut part = part?;
                let parameter = &layout.units()[part.unit].parameters[part.parameter];
                let [weights, gradient, exp_avg, exp_avg_sq] = &mut part.arrays;
                let (unit, offset) = (part.unit, part.offset);
                update(parameter, Slices { unit, offset, weights, gradient, exp_avg, exp_avg_sq });
                if to_write.send(part).is_err() {
                    break;
                }
            }
            drop(to_write);
            writer.join().map_err(|_| TrainError::Worker)?
        })
    }

    fn read(&self, at: Place, offset: usize, values: &mut [f32]) -> Result<(), TrainError> {
        let (files, place) = (&self.files, (at.unit, at.parameter));
        let first = files.offsets[at.unit][at.parameter] + offset as u64 * 4;
        let parameter = &self.layout.units()[at.unit].parameters[at.parameter];
        match at.array {
            Array::Weights => files.read_weight_part(place, parameter, offset, values),
            Array::ExpAvg => files.read(&files.exp_avg, first, values),
            Array::ExpAvgSq => files.read(&files.exp_avg_sq, first, values),
        }
    }

    fn write(&mut self, at: Place, offset: usize, values: &[f32]) -> Result<(), TrainError> {
        self.ahead = None;
        let (files, place) = (&self.files, (at.unit, at.parameter));
        let first = files.offsets[at.unit][at.parameter] + offset as u64 * 4;
        let parameter = &self.layout.units()[at.unit].parameters[at.parameter];
        match at.array {
            Array::Weights => files.write_weight_part(place, parameter, offset, values),
            Array::ExpAvg => files.write(&files.exp_avg, first, values),
            Array::ExpAvgSq => files.write(&files.exp_avg_sq, first, values),
        }
    }
}

impl Files {
    fn part(
        &self,
        (unit, index): (usize, usize),
        parameter: &Parameter,
        (offset, len): (usize, usize),
        gradient_bytes: u64,
    ) -> Result<Part, TrainError> {
        let mut arrays: [Vec<f32>; 4] = std::array::from_fn(|_| vec![0f32; len]);
        let [weights, others @ ..] = &mut arrays;
        let gradient = self.gradient(gradient_bytes, 0)?;
        self.read_weight_part((unit, index), parameter, offset, weights)?;
        let at = self.offsets[unit][index] + offset as u64 * 4;
        for (array, file) in others.iter_mut().zip([&*gradient, &self.exp_avg, &self.exp_avg_sq]) {
            self.read(file, at, array)?;
        }
        Ok(Part { unit, parameter: index, offset, arrays })
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // the threads hold the files; their results no longer matter
        let _ = self.settle();
        let _ = self.ahead.take().map(|(_, read)| read.join());
    }
}
