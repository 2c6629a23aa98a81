//! For tests: a model in memory and its forward pass in plain f64 loops, written from the model's
//! definition and sharing nothing with the code under test.

mod forward;
mod gradients;
mod preservation;

use std::collections::BTreeMap;
use std::path::Path;

use flm_checkpoint::Checkpoint;
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;

use crate::error::GrowthError;
use crate::execute::compose::Composer;
use crate::fill::NormalFill;
use crate::fill::sample::sample_std;
use crate::fold::FoldPlan;
use crate::plan::GrowthOptions;
use crate::plan::GrowthPlan;
use crate::plan::source::SourceModel;
use crate::shape::Shape;
use crate::tensor_plan::{Fill, TensorPlan};
use flm_checkpoint::Dtype;

/// Weights in memory, as they would be stored.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub config: TeleFlmConfig,
    pub tensors: BTreeMap<String, (Dtype, Vec<u8>)>,
}

/// A config of these sizes.
pub(crate) fn config(shape: Shape, tied: bool, use_mup: bool) -> TeleFlmConfig {
    let json = serde_json::json!({
        "model_type": "TeleFLM",
        "num_hidden_layers": shape.num_hidden_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "use_mup": use_mup,
        "input_mult": 1.5,
        "output_mult": 0.5,
        "mup_scale_factor": 4.0,
        "some_other_key": "kept",
    });
    TeleFlmConfig::from_json(&json.to_string()).unwrap()
}

/// A config of these sizes, of every family that has other parts than Llama or another rotary.
pub(crate) fn families(shape: Shape, tied: bool) -> Vec<TeleFlmConfig> {
    let yarn = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8});
    let llama3 = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    let forms = [
        serde_json::json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true}),
        serde_json::json!({"model_type": "llama", "rope_scaling": llama3}),
        serde_json::json!({"model_type": "mistral", "sliding_window": null}),
        serde_json::json!({"model_type": "qwen2", "rope_scaling": yarn}),
        serde_json::json!({"model_type": "qwen3"}),
        serde_json::json!({"model_type": "qwen3", "attention_bias": true}),
        serde_json::json!({"model_type": "mistral", "sliding_window": 3}),
        serde_json::json!({"model_type": "llama", "max_position_embeddings": 4,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        serde_json::json!({"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 4.0,
            "residual_multiplier": 0.22, "attention_multiplier": 0.3, "attention_bias": true}),
        serde_json::json!({"model_type": "smollm3", "no_rope_layers": [1, 0, 1]}),
        serde_json::json!({"model_type": "olmo2", "attention_bias": true}),
        serde_json::json!({"model_type": "olmo3", "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        serde_json::json!({"model_type": "exaone4", "sliding_window": 2, "sliding_window_pattern": 3}),
        serde_json::json!({"model_type": "phi3", "partial_rotary_factor": 0.7, "sliding_window": 5,
            "original_max_position_embeddings": 4, "rope_scaling": {"type": "longrope",
            "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}}),
        serde_json::json!({"model_type": "gemma", "hidden_act": "gelu"}),
        serde_json::json!({"model_type": "gemma2", "sliding_window": 4, "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}),
        serde_json::json!({"model_type": "gemma3_text", "sliding_window": 3, "sliding_window_pattern": 2,
            "rope_local_base_freq": 100.0}),
        serde_json::json!({"model_type": "ernie4_5", "rope_scaling": yarn}),
        serde_json::json!({"model_type": "ernie4_5", "use_bias": true}),
    ];
    let of = |form: serde_json::Value| {
        let mut json = config(shape, tied, false).raw().clone();
        json.extend(form.as_object().unwrap().clone());
        TeleFlmConfig::from_json(&serde_json::Value::Object(json).to_string()).unwrap()
    };
    forms.into_iter().map(of).collect()
}

/// Grouped queries, 12 = 2 heads × 6, an FFN width that nothing divides.
pub(crate) const SMALL: Shape = Shape {
    num_hidden_layers: 3,
    hidden_size: 12,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 6,
    intermediate_size: 19,
    vocab_size: 23,
};

impl Model {
    /// Random weights, embeddings small enough that RMSNorm's eps matters.
    pub(crate) fn random(config: TeleFlmConfig, precision: Dtype, seed: u64) -> Self {
        let tensors = config
            .tensors()
            .map(|t| {
                let elements: usize = t.shape.iter().product();
                let is_gain = t.shape.len() == 1 && !t.name.ends_with(".bias");
                let std = match t.name.as_str() {
                    "model.embed_tokens.weight" => 0.004,
                    _ if is_gain => 0.2,
                    _ => 0.3,
                };
                let fill = NormalFill::new(seed, &t.name, Dtype::F64, std).unwrap();
                let mut wide = vec![0; elements * 8];
                fill.write(0, &mut wide);
                let mut bytes = vec![0; elements * precision.size_in_bytes()];
                for (wide, slot) in wide.chunks(8).zip(bytes.chunks_mut(precision.size_in_bytes())) {
                    let one = f64::from(is_gain) * (1.0 - config.gain_offset());
                    precision.encode(Dtype::F64.decode(wide) + one, slot);
                }
                (t.name, (precision, bytes))
            })
            .collect();
        Self { config, tensors }
    }

    pub(crate) fn plan(&self, target: &Shape, options: &GrowthOptions) -> Result<GrowthPlan, GrowthError> {
        let (precision, _) = self.tensors["model.norm.weight"];
        GrowthPlan::new(&SourceModel::from_config(&self.config, precision)?, target, options)
    }

    /// The plan carried out in memory, `rows` rows at a time.
    pub(crate) fn grow(&self, plan: &GrowthPlan, rows: usize) -> Self {
        let config = plan.target_config(&self.config).unwrap();
        Self { tensors: self.carried_out(&plan.tensors, plan.seed, rows), config }
    }

    /// The plan of folding the model's masks.
    pub(crate) fn fold(&self, dtype: Option<Dtype>) -> FoldPlan {
        let (precision, _) = self.tensors["model.norm.weight"];
        FoldPlan::new(&SourceModel::from_config(&self.config, precision).unwrap(), dtype).unwrap()
    }

    /// The fold carried out in memory.
    pub(crate) fn folded(&self, plan: &FoldPlan, rows: usize) -> Self {
        let config = plan.target_config(&self.config).unwrap();
        Self { tensors: self.carried_out(&plan.tensors, 0, rows), config }
    }

    fn carried_out(
        &self,
        plans: &[TensorPlan],
        seed: u64,
        rows: usize,
    ) -> BTreeMap<String, (Dtype, Vec<u8>)> {
        let tensors = plans.iter().map(|t| {
            let mut t = t.clone();
            let source = t.source.as_ref().map(|s| &self.tensors[&s.name].1);
            let read = |offset: u64, out: &mut [u8]| {
                let offset = offset as usize;
                out.copy_from_slice(&source.unwrap()[offset..offset + out.len()]);
                Ok(())
            };
            if let Some(stored) = &t.source {
                let elements = stored.shape.iter().product::<usize>() as u64;
                t.set_std(sample_std(&stored.name, stored.dtype, elements, read).unwrap() * t.scale.abs());
            }
            let mean = t.source.as_ref().zip(t.new_rows).and_then(|(stored, fill)| match fill {
                Fill::Mean { rows, .. } => {
                    let values = self.values(&stored.name);
                    let cols = stored.shape[1];
                    let of = |c: usize| (0..rows).map(|r| values[r * cols + c]).sum::<f64>() / rows as f64;
                    Some((0..cols).map(of).collect::<Vec<f64>>())
                }
                _ => None,
            });
            let composer = Composer::new(&t, seed).unwrap().with_mean(mean.as_deref());
            let mut bytes = vec![0xaa; t.nbytes() as usize];
            let mut scratch = Vec::new();
            let count = t.size().0;
            for start in (0..count).step_by(rows) {
                let end = count.min(start + rows);
                let out = &mut bytes[start * composer.row_bytes()..end * composer.row_bytes()];
                composer.rows(start, end, &read, &mut scratch, out).unwrap();
                assert!(!t.rows_are_zero(start, end) || out.iter().all(|&b| b == 0), "{}", t.name);
            }
            (t.name.clone(), (t.dtype, bytes))
        });
        tensors.collect()
    }

    /// As a checkpoint in `dir`, in shards of at most `shard` bytes.
    pub(crate) fn save(&self, dir: &Path, shard: u64) -> Checkpoint {
        let specs: Vec<TensorSpec> = self
            .config
            .tensors()
            .map(|t| TensorSpec { dtype: self.tensors[&t.name].0, name: t.name, shape: t.shape })
            .collect();
        let writer = Writer::create(dir, &specs, shard).unwrap();
        for (name, (_, bytes)) in &self.tensors {
            writer.write_at(name, 0, bytes).unwrap();
        }
        writer.finish(&self.config).unwrap();
        Checkpoint::open(dir).unwrap()
    }

    /// What a checkpoint holds.
    pub(crate) fn load(checkpoint: &Checkpoint) -> Self {
        let tensors = checkpoint.entries().map(|e| (e.name.clone(), (e.dtype, checkpoint.read(e).unwrap())));
        Self { config: checkpoint.config().clone(), tensors: tensors.collect() }
    }

    /// A tensor's values.
    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        let (precision, bytes) = &self.tensors[name];
        bytes.chunks_exact(precision.size_in_bytes()).map(|b| precision.decode(b)).collect()
    }
}
