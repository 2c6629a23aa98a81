use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use candle_core::{DType, Device, Tensor, Var};

use super::{Array, ParameterStore, Place, Update, memory::compute_copy};
use crate::train::{Layout, Parameter, Slices, TrainError};

/// Values of a parameter that are updated at once: 4 MiB an array.
const PART: usize = 1 << 20;

/// Everything in files: weights, gradient and moments, four bytes each.
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
    dir: PathBuf,
    weights: File,
    gradient: File,
    exp_avg: File,
    exp_avg_sq: File,
    /// First value of each parameter of each unit.
    offsets: Vec<Vec<u64>>,
}

impl DiskStore {
    /// Zeros for all parameters, in files in `dir`, which is made and goes with the store.
    ///
    /// # Errors
    /// When the files cannot be made, for example because the disk has not 16 bytes a parameter.
    pub fn new(layout: &Layout, dir: &Path, device: &Device, dtype: DType) -> Result<Self, TrainError> {
        std::fs::create_dir_all(dir).map_err(TrainError::file("create", dir))?;
        let bytes = layout.len() as u64 * 4;
        let open = |name: &str| {
            let path = dir.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
            let file = file.map_err(TrainError::file("create", &path))?;
            file.set_len(bytes).map_err(TrainError::file("set the length of", &path))?;
            Ok::<_, TrainError>(file)
        };
        let mut next = 0;
        let offsets = layout.units().iter().map(|unit| {
            let place = |p: &Parameter| {
                let at = next;
                next += p.len() as u64;
                at
            };
            unit.parameters.iter().map(place).collect()
        });
        let offsets = offsets.collect();
        let files = Files {
            weights: open("weights.f32")?,
            gradient: open("gradient.f32")?,
            exp_avg: open("exp_avg.f32")?,
            exp_avg_sq: open("exp_avg_sq.f32")?,
            dir: dir.into(),
            offsets,
        };
        let layout = layout.clone();
        Ok(Self { layout, files: Arc::new(files), device: device.clone(), dtype, ahead: None, behind: None })
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
        self.files.read_unit(&self.layout, unit, |files| &files.weights)
    }
}

impl Files {
    fn read(&self, file: &File, at: u64, values: &mut [f32]) -> Result<(), TrainError> {
        let bytes = bytemuck::cast_slice_mut(values);
        file.read_exact_at(bytes, at * 4).map_err(TrainError::file("read the parameters in", &self.dir))
    }

    fn write(&self, file: &File, at: u64, values: &[f32]) -> Result<(), TrainError> {
        let bytes = bytemuck::cast_slice(values);
        file.write_all_at(bytes, at * 4).map_err(TrainError::file("write the parameters in", &self.dir))
    }

    fn read_unit(&self, layout: &Layout, unit: usize, file: impl Fn(&Self) -> &File) -> Read {
        let parameters = layout.units()[unit].parameters.iter().zip(&self.offsets[unit]);
        parameters
            .map(|(parameter, &at)| {
                let mut values = vec![0f32; parameter.len()];
                self.read(file(self), at, &mut values)?;
                Ok(values)
            })
            .collect()
    }

    fn file(&self, array: Array) -> &File {
        match array {
            Array::Weights => &self.weights,
            Array::ExpAvg => &self.exp_avg,
            Array::ExpAvgSq => &self.exp_avg_sq,
        }
    }
}

/// Four arrays of a part of a parameter on their way through the update.
struct Part {
    unit: usize,
    parameter: usize,
    at: u64,
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
            let shape = parameter.shape.as_slice();
            if self.device.is_cpu() && self.dtype == DType::F32 {
                return Var::from_vec(values, shape, &Device::Cpu);
            }
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            compute_copy(&tensor, parameter.group, self.dtype, &self.device)
        });
        Ok(variables.collect::<candle_core::Result<_>>()?)
    }

    fn expect(&mut self, unit: usize) {
        if self.ahead.as_ref().is_some_and(|(ahead, _)| *ahead == unit) {
            return;
        }
        let (files, layout) = (Arc::clone(&self.files), self.layout.clone());
        let read = std::thread::Builder::new().spawn(move || files.read_unit(&layout, unit, |f| &f.weights));
        // without a thread it is read when it is needed
        self.ahead = read.ok().map(|read| (unit, read));
    }

    fn put_gradient(&mut self, unit: usize, gradient: Vec<Vec<f32>>) -> Result<(), TrainError> {
        self.settle()?;
        let files = Arc::clone(&self.files);
        let write = move || {
            for (values, &at) in gradient.iter().zip(&files.offsets[unit]) {
                files.write(&files.gradient, at, values)?;
            }
            Ok(())
        };
        let spawned = std::thread::Builder::new().spawn(write);
        self.behind = Some(spawned.map_err(TrainError::file("start a thread for", &self.files.dir))?);
        Ok(())
    }

    fn take_gradient(&mut self, unit: usize) -> Result<Vec<Vec<f32>>, TrainError> {
        self.settle()?;
        self.files.read_unit(&self.layout, unit, |files| &files.gradient)
    }

    fn update(&mut self, update: &mut Update<'_>) -> Result<(), TrainError> {
        self.settle()?;
        self.ahead = None;
        let (files, layout) = (&self.files, &self.layout);
        let (to_compute, parts) = mpsc::sync_channel::<Result<Part, TrainError>>(1);
        let (to_write, done) = mpsc::sync_channel::<Part>(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (unit, parameter, p) in layout.parameters() {
                    for start in (0..p.len()).step_by(PART) {
                        let at = files.offsets[unit][parameter] + start as u64;
                        let part = files.part(unit, parameter, at, PART.min(p.len() - start));
                        if to_compute.send(part).is_err() {
                            return;
                        }
                    }
                }
            });
            let writer = scope.spawn(move || {
                for part in done {
                    let [weights, _, exp_avg, exp_avg_sq] = &part.arrays;
                    files.write(&files.weights, part.at, weights)?;
                    files.write(&files.exp_avg, part.at, exp_avg)?;
                    files.write(&files.exp_avg_sq, part.at, exp_avg_sq)?;
                }
                Ok(())
            });
            for part in parts {
                let mut part = part?;
                let parameter = &layout.units()[part.unit].parameters[part.parameter];
                let [weights, gradient, exp_avg, exp_avg_sq] = &mut part.arrays;
                update(parameter, Slices { weights, gradient, exp_avg, exp_avg_sq });
                if to_write.send(part).is_err() {
                    break;
                }
            }
            drop(to_write);
            writer.join().map_err(|_| TrainError::Worker)?
        })
    }

    fn read(&self, at: Place, offset: usize, values: &mut [f32]) -> Result<(), TrainError> {
        let first = self.files.offsets[at.unit][at.parameter];
        self.files.read(self.files.file(at.array), first + offset as u64, values)
    }

    fn write(&mut self, at: Place, offset: usize, values: &[f32]) -> Result<(), TrainError> {
        self.ahead = None;
        let first = self.files.offsets[at.unit][at.parameter];
        self.files.write(self.files.file(at.array), first + offset as u64, values)
    }
}

impl Files {
    fn part(&self, unit: usize, parameter: usize, at: u64, len: usize) -> Result<Part, TrainError> {
        let mut arrays = [const { Vec::new() }; 4];
        let files = [&self.weights, &self.gradient, &self.exp_avg, &self.exp_avg_sq];
        for (array, file) in arrays.iter_mut().zip(files) {
            *array = vec![0f32; len];
            self.read(file, at, array)?;
        }
        Ok(Part { unit, parameter, at, arrays })
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // the threads hold the files; their results no longer matter
        let _ = self.settle();
        let _ = self.ahead.take().map(|(_, read)| read.join());
        let _ = std::fs::remove_dir_all(&self.files.dir);
    }
}
