//! How much each layer changes the residual stream on some text; layers that change it least are the
//! ones to copy.
//!
//! The Tele-FLM-1T report (arXiv 2407.02783) selects layers by a distance; what it measures is not
//! published. Here it is the distance between a layer's input and its output.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use flm_candle::{CausalLm, Residency};
use flm_checkpoint::{Checkpoint, read_json_file};
use serde::{Deserialize, Serialize};

use crate::error::{GrowthError, Result};
use crate::placement::Placement;
use crate::verify::groups;

/// How to measure.
#[derive(Debug, Clone)]
pub struct DistanceOptions {
    /// Texts as token ids; texts of the same length run as one batch.
    pub tokens: Vec<Vec<u32>>,
    /// What to compute in: f32, bf16 or f64.
    pub dtype: DType,
    /// Where to compute.
    pub device: Device,
    /// Whether blocks stay in memory or are read as they are needed.
    pub residency: Residency,
}

/// A measure of how far a layer's output is from its input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// arccos(cos(in, out)) / π: 0 for the same direction, ½ for a right angle.
    #[default]
    Angular,
    /// 1 − cos(in, out).
    Cosine,
    /// ‖out − in‖ / ‖in‖.
    Relative,
}

/// The distances of a layer, averaged over tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerDistance {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// See [`Metric::Angular`].
    pub angular: f64,
    /// See [`Metric::Cosine`].
    pub cosine: f64,
    /// See [`Metric::Relative`].
    pub relative: f64,
}

impl LayerDistance {
    /// One of the three.
    pub fn by(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Angular => self.angular,
            Metric::Cosine => self.cosine,
            Metric::Relative => self.relative,
        }
    }
}

/// The distances of all layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distances {
    /// Version of this format: 1.
    pub version: u32,
    /// What was computed in.
    pub dtype: String,
    /// Tokens that the averages are over.
    pub tokens: u64,
    /// Every layer, from the first to the last.
    pub layers: Vec<LayerDistance>,
}

/// Measures every layer of `checkpoint`. `progress` is called with layers run and layers to run.
///
/// # Errors
/// [`GrowthError::NothingToMeasure`] without tokens, and where the model cannot be loaded or run.
pub fn measure(
    checkpoint: &Arc<Checkpoint>,
    options: &DistanceOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Distances> {
    let model = CausalLm::load(checkpoint, &options.device, options.dtype, options.residency)?;
    let groups = groups(&options.tokens);
    if groups.is_empty() {
        return Err(GrowthError::NothingToMeasure);
    }
    let total = model.num_layers() * groups.len();
    let (mut done, mut tokens) = (0, 0u64);
    let mut sums = vec![[0.0; 3]; model.num_layers()];
    for texts in &groups {
        let ids = model.tokens(texts)?;
        let (rows, len) = ids.dims2()?;
        let pass = model.pass(&vec![0; rows], 0, len)?;
        let mut stream = model.embed(&ids)?;
        for (layer, sums) in sums.iter_mut().enumerate() {
            let next = model.forward_block(layer, &stream, &pass, None)?;
            for (sum, value) in sums.iter_mut().zip(totals(&stream, &next)?) {
                *sum += value;
            }
            stream = next;
            done += 1;
            progress(done, total);
        }
        tokens += (rows * len) as u64;
    }
    let mean = |sum: f64| sum / tokens as f64;
    let layers = sums.iter().enumerate().map(|(layer, sums)| LayerDistance {
        layer,
        angular: mean(sums[0]),
        cosine: mean(sums[1]),
        relative: mean(sums[2]),
    });
    Ok(Distances { version: 1, dtype: options.dtype.as_str().into(), tokens, layers: layers.collect() })
}

/// The three metrics of streams `[b, t, hidden_size]`, summed over tokens.
fn totals(input: &Tensor, output: &Tensor) -> Result<[f64; 3]> {
    let (a, b) = (input.to_dtype(DType::F64)?, output.to_dtype(DType::F64)?);
    let sum = |x: Tensor| -> Result<Vec<f64>> { Ok(x.sum(D::Minus1)?.flatten_all()?.to_vec1()?) };
    let (dot, aa, bb, dd) = (sum((&a * &b)?)?, sum(a.sqr()?)?, sum(b.sqr()?)?, sum((&b - &a)?.sqr()?)?);
    let mut totals = [0.0; 3];
    for i in 0..dot.len() {
        let norms = (aa[i] * bb[i]).sqrt();
        // a stream of zeros has no direction: only from zeros to zeros is it no distance
        let cosine = if norms > 0.0 { (dot[i] / norms).clamp(-1.0, 1.0) } else { f64::from(aa[i] == bb[i]) };
        totals[0] += cosine.acos() / std::f64::consts::PI;
        totals[1] += 1.0 - cosine;
        totals[2] += if dd[i] == 0.0 { 0.0 } else { (dd[i] / aa[i]).sqrt() };
    }
    Ok(totals)
}

impl Distances {
    /// Copies of the `count` layers of smallest distance, each after its source.
    ///
    /// Of equal layers the earlier comes first. No layer gets a second copy before every layer has
    /// one. With `keep_ends` the first and the last layer get none.
    ///
    /// # Errors
    /// [`GrowthError::NoLayersToCopy`] where `keep_ends` leaves no layer.
    pub fn placement(&self, metric: Metric, count: usize, keep_ends: bool) -> Result<Placement> {
        let layers = match self.layers.as_slice() {
            [_, inner @ .., _] if keep_ends => inner,
            _ if keep_ends => &[],
            all => all,
        };
        if layers.is_empty() && count > 0 {
            return Err(GrowthError::NoLayersToCopy);
        }
        let mut order: Vec<&LayerDistance> = layers.iter().collect();
        // a stable sort leaves the earlier of equal layers first
        order.sort_by(|a, b| a.by(metric).total_cmp(&b.by(metric)));
        let mut chosen: Vec<usize> = order.iter().cycle().take(count).map(|l| l.layer).collect();
        chosen.sort_unstable();
        Ok(Placement::After(chosen))
    }

    /// Reads what `flm distance --json` wrote.
    ///
    /// # Errors
    /// Where it is no regular file of sensible size, or not in that form.
    pub fn read(path: &Path) -> Result<Self> {
        let read: Self = serde_json::from_slice(&read_json_file(path)?)
            .map_err(|source| GrowthError::Distances { path: path.display().to_string(), source })?;
        let finite = |l: &LayerDistance| [l.angular, l.cosine, l.relative].iter().all(|d| d.is_finite());
        match read.layers.iter().enumerate().find(|(at, l)| l.layer != *at || !finite(l)) {
            Some((at, _)) => Err(GrowthError::DistancesLayer { path: path.display().to_string(), layer: at }),
            None => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distances(values: &[f64]) -> Distances {
        let layers = values.iter().enumerate();
        let layers =
            layers.map(|(layer, &v)| LayerDistance { layer, angular: v, cosine: 2.0 * v, relative: -v });
        Distances { version: 1, dtype: "f32".into(), tokens: 1, layers: layers.collect() }
    }

    fn chosen(values: &[f64], metric: Metric, count: usize, keep_ends: bool) -> Vec<usize> {
        match distances(values).placement(metric, count, keep_ends).unwrap() {
            Placement::After(layers) => layers,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_nearest_layers_are_copied_ties_to_the_earlier_second_copies_last() {
        let values = [0.0, 0.3, 0.1, 0.2, 0.1, 0.0];
        assert_eq!(chosen(&values, Metric::Angular, 2, true), [2, 4]);
        assert_eq!(chosen(&values, Metric::Angular, 1, true), [2]);
        assert_eq!(chosen(&values, Metric::Angular, 2, false), [0, 5]);
        assert_eq!(chosen(&values, Metric::Angular, 5, true), [1, 2, 2, 3, 4]);
        assert_eq!(chosen(&values, Metric::Angular, 10, true), [1, 1, 2, 2, 2, 3, 3, 4, 4, 4]);
        assert_eq!(chosen(&values, Metric::Relative, 1, true), [1]);
        assert_eq!(chosen(&values, Metric::Angular, 0, true), [0usize; 0]);
        assert!(distances(&[0.1, 0.2]).placement(Metric::Angular, 1, true).is_err());
    }

    #[test]
    fn metrics_are_those_of_vectors_worked_by_hand() {
        let a = Tensor::new(&[[[3.0f64, 4.0], [1.0, 0.0], [0.0, 0.0]]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[[6.0f64, 8.0], [1.0, 1.0], [0.0, 0.0]]], &Device::Cpu).unwrap();
        let [angular, cosine, relative] = totals(&a, &b).unwrap();
        assert!((angular - 0.25).abs() < 1e-9, "{angular}");
        assert!((cosine - (1.0 - 0.5f64.sqrt())).abs() < 1e-12, "{cosine}");
        assert!((relative - 2.0).abs() < 1e-12, "{relative}");
    }

    #[test]
    fn what_is_no_file_of_distances_is_refused_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("distances.json");
        let text = serde_json::to_string(&distances(&[0.1, 0.2])).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Distances::read(&path).unwrap(), distances(&[0.1, 0.2]));
        for (text, says) in [
            ("", "EOF"),
            (&text[..text.len() - 4], "EOF"),
            (&text.replace("\"layer\":1", "\"layer\":0"), "layer 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Distances::read(&path).unwrap_err().to_string();
            assert!(error.contains("distances.json") && error.contains(says), "{error}");
        }
        let error = Distances::read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero is not a regular file"), "{error}");
        // a sparse file takes no room
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = Distances::read(&path).unwrap_err().to_string();
        assert!(error.contains("at most"), "{error}");
    }
}
