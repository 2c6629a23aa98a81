//! config.json: read into a [`TeleFlmConfig`], and written with what changed.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::family::Family;
use crate::config::keys::{Keys, short};
use crate::config::layers::LayerKinds;
use crate::config::masks::GrowthMasks;
use crate::config::rope::{RopeScaling, model_table, model_table_mut};
use crate::config::{Activation, ConfigError, ModelType, TeleFlmConfig, refused};

impl TeleFlmConfig {
    /// Reads and checks a `config.json`.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Self::from_json(&text)
    }

    /// Reads and checks the text of a `config.json`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| ConfigError::NotAnObject(e.to_string()))?;
        match value {
            Value::Object(raw) => Self::from_map(raw),
            other => Err(ConfigError::NotAnObject(short(&other))),
        }
    }

    fn from_map(raw: Map<String, Value>) -> Result<Self, ConfigError> {
        let model_type = match raw.get("model_type").and_then(Value::as_str) {
            Some(name) => {
                ModelType::of(name).ok_or_else(|| ConfigError::ModelType(name.chars().take(80).collect()))?
            }
            None => return Err(ConfigError::Missing("model_type")),
        };
        let family = model_type.family();
        let raw = family.renamed(raw)?;
        let keys = Keys(&raw);
        let bias_keys = [family.attention_bias_key, family.mlp_bias_key];
        for key in ["attention_bias", "mlp_bias", "use_bias"] {
            if !bias_keys.contains(&Some(key)) && keys.boolean(key)?.unwrap_or(false) {
                return Err(ConfigError::Unsupported(format!("`{key}` = true of a {}", family.name)));
            }
        }
        let biased = |key: Option<&'static str>| -> Result<bool, ConfigError> {
            match key {
                Some(key) => Ok(keys.boolean(key)?.unwrap_or(false)),
                None => Ok(false),
            }
        };
        let attention_bias = biased(family.attention_bias_key)?;
        let mlp_bias = biased(family.mlp_bias_key)?;
        refused::check(&raw, family)?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let hidden_size = keys.size("hidden_size")?;
        let use_mup = model_type == ModelType::TeleFlm && keys.boolean("use_mup")?.unwrap_or(false);
        let multiplier = |key| match keys.number(key)? {
            Some(value) => Ok(value),
            None if use_mup => Err(ConfigError::Missing(key)),
            None => Ok(1.0),
        };
        // LlamaConfig's defaults; the first Llama's files said max_sequence_length
        let max_position_embeddings = match keys.optional_size("max_position_embeddings")? {
            Some(length) => length,
            None => keys.optional_size("max_sequence_length")?.unwrap_or(family.max_position_embeddings),
        };
        let num_hidden_layers = keys.size("num_hidden_layers")?;
        let scalar = |key| if family.scalars { keys.number(key) } else { Ok(None) };
        // absent in transformers' GraniteConfig: 1, not the root
        let attention_multiplier = match (family.scalars, family.query_scalar) {
            (true, _) => Some(scalar("attention_multiplier")?.unwrap_or(1.0)),
            (false, Some(default)) => {
                Some(keys.number("query_pre_attn_scalar")?.unwrap_or(default).powf(-0.5))
            }
            (false, None) => None,
        };
        // null is none, or what follows from the other sizes; only an absent key has the family's default
        let implied = |key: &str, default: Option<usize>| default.filter(|_| !raw.contains_key(key));
        let softcap = |key: &'static str, index: usize| match family.softcaps {
            Some(defaults) if !raw.contains_key(key) => Ok(defaults[index]),
            Some(_) => keys.number(key),
            None => Ok(None),
        };
        let config = Self {
            model_type,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys
                .optional_size("num_key_value_heads")?
                .or(implied("num_key_value_heads", family.num_key_value_heads))
                .unwrap_or(num_attention_heads),
            head_dim: head_dim(keys, implied("head_dim", family.head_dim), hidden_size, num_attention_heads)?,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(family.rms_norm_eps),
            rope_theta: rope_theta(&raw, family)?,
            rope_scaling: match model_type {
                ModelType::TeleChat => RopeScaling::of_telechat(keys, max_position_embeddings)?,
                _ => RopeScaling::read(&raw, max_position_embeddings)?,
            },
            qkv_bias: family.qkv_bias || attention_bias,
            attention_output_bias: attention_bias && !family.square_output || family.output_biases,
            mlp_bias,
            mlp_output_bias: mlp_bias || family.output_biases,
            qk_norm: family.qk_norm,
            norms: family.norms,
            activation: activation(keys, model_type)?,
            layers: LayerKinds::read(&raw, family, num_hidden_layers)?,
            partial_rotary_factor: partial_rotary(&raw, family)?,
            attention_multiplier,
            residual_multiplier: scalar("residual_multiplier")?.unwrap_or(1.0),
            embedding_multiplier: scalar("embedding_multiplier")?.unwrap_or(1.0),
            logits_scaling: scalar("logits_scaling")?.unwrap_or(1.0),
            attention_softcap: softcap("attn_logit_softcapping", 0)?,
            logit_softcap: softcap("final_logit_softcapping", 1)?,
            tie_word_embeddings: keys.boolean("tie_word_embeddings")?.unwrap_or(family.tie_word_embeddings),
            use_mup,
            input_mult: multiplier("input_mult")?,
            output_mult: multiplier("output_mult")?,
            mup_scale_factor: multiplier("mup_scale_factor")?,
            bos_token_id: keys.token("bos_token_id")?,
            eos_token_ids: keys.tokens("eos_token_id")?,
            growth: keys.get("growth").map(GrowthMasks::from_value).transpose()?,
            raw,
        };
        config.validate()?;
        Ok(config)
    }

    /// [`Self::to_json`] for a directory that holds no code: `auto_map` names only classes that stand in a
    /// repository of their own.
    pub fn to_json_without_code(&self) -> String {
        let mut config = self.clone();
        if let Some(Value::Object(map)) = config.raw.get_mut("auto_map") {
            map.retain(|_, class| !is_code_beside(class));
            if map.is_empty() {
                config.raw.shift_remove("auto_map");
            }
        }
        config.to_json()
    }

    /// The files of code beside config.json that its `auto_map` names, such as `modeling_x.py`: what
    /// [`Self::to_json_without_code`] leaves out.
    pub fn code_files(&self) -> Vec<String> {
        let map = self.raw.get("auto_map").and_then(Value::as_object);
        let classes = map.into_iter().flat_map(Map::values).filter(|class| is_code_beside(class));
        let module = |class: &Value| {
            let class = class.as_str().unwrap_or_default();
            class.rsplit_once('.').map(|(module, _)| format!("{module}.py"))
        };
        let mut files: Vec<String> = classes.filter_map(module).collect();
        files.sort();
        files.dedup();
        files
    }

    /// The text of a `config.json`: the keys that were read, with every field's present value.
    ///
    /// A key is written where it was present before or where its value is not what a reader would
    /// assume without it, so reading and writing an unchanged config gives the same keys and values.
    pub fn to_json(&self) -> String {
        let mut out = self.raw.clone();
        // the base of rotary is where readers of both generations look for it, with one value
        let mut nested = false;
        for key in ["rope_parameters", "rope_scaling"] {
            let inner = model_table_mut(&mut out, key);
            if let Some(theta) = inner.and_then(|object| object.get_mut("rope_theta")) {
                nested = true;
                if !same_value(theta, &self.rope_theta.into()) {
                    *theta = self.rope_theta.into();
                }
            }
        }
        let mut put = |key: &str, value: Value, implied: bool| {
            let write = match out.get(key) {
                Some(old) => !same_value(old, &value),
                None => !implied,
            };
            if write {
                out.insert(key.into(), value);
            }
        };
        put("model_type", self.model_type.as_str().into(), false);
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            put(key, size.into(), false);
        }
        let same_heads = self.num_key_value_heads
            == self.model_type.family().num_key_value_heads.unwrap_or(self.num_attention_heads);
        put("num_key_value_heads", self.num_key_value_heads.into(), same_heads);
        let family = self.model_type.family();
        let implied = match family.head_dim {
            Some(implied) => self.head_dim == implied,
            None => self.head_dim * self.num_attention_heads == self.hidden_size,
        };
        put("head_dim", self.head_dim.into(), implied);
        put("rms_norm_eps", self.rms_norm_eps.into(), false);
        // Tele-FLM's own code is of transformers 4, which knows no inner one
        let implied =
            if nested { self.model_type != ModelType::TeleFlm } else { self.rope_theta == family.rope_theta };
        put("rope_theta", self.rope_theta.into(), implied);
        put(
            "tie_word_embeddings",
            self.tie_word_embeddings.into(),
            self.tie_word_embeddings == family.tie_word_embeddings,
        );
        put("use_mup", self.use_mup.into(), !self.use_mup);
        for (key, value) in [
            ("input_mult", self.input_mult),
            ("output_mult", self.output_mult),
            ("mup_scale_factor", self.mup_scale_factor),
        ] {
            put(key, value.into(), !self.use_mup);
        }
        match self.bos_token_id {
            Some(id) => put("bos_token_id", id.into(), false),
            None => put("bos_token_id", Value::Null, true),
        }
        self.layers.write(&mut out, family, self.num_hidden_layers);
        match self.eos_token_ids.as_slice() {
            [] if out.get("eos_token_id").is_some() => {
                out.insert("eos_token_id".into(), Value::Null);
            }
            [] => {}
            [id] if !out.get("eos_token_id").is_some_and(Value::is_array) => {
                out.insert("eos_token_id".into(), (*id).into());
            }
            ids => {
                out.insert("eos_token_id".into(), ids.into());
            }
        }
        match &self.growth {
            Some(growth) => {
                out.insert("growth".into(), serde_json::to_value(growth).unwrap_or_default());
            }
            None => {
                out.shift_remove("growth");
            }
        }
        let mut text = serde_json::to_string_pretty(&Value::Object(family.own(out))).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Whether a class of `auto_map` stands beside config.json, not in a repository of its own.
fn is_code_beside(class: &Value) -> bool {
    !class.as_str().is_some_and(|class| class.contains("--"))
}

fn activation(keys: Keys<'_>, model_type: ModelType) -> Result<Activation, ConfigError> {
    let (key, default) = model_type.family().activation;
    let Some(name) = keys.get(key) else { return Ok(default) };
    match name.as_str() {
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        // what Gemma's files say and never meant
        Some("gelu") if model_type == ModelType::Gemma => Ok(Activation::GeluTanh),
        _ => Err(ConfigError::Unsupported(format!("`{key}` = {}", short(name)))),
    }
}

fn head_dim(
    keys: Keys<'_>,
    implied: Option<usize>,
    hidden: usize,
    heads: usize,
) -> Result<usize, ConfigError> {
    match keys.optional_size("head_dim")?.or(implied) {
        Some(given) => Ok(given),
        None if hidden.is_multiple_of(heads) => Ok(hidden / heads),
        None => Err(ConfigError::Inconsistent(format!(
            "hidden_size {hidden} is not a multiple of num_attention_heads {heads} and there is no head_dim"
        ))),
    }
}

/// The base of rotary; transformers 5 takes the inner one where both are given.
fn rope_theta(raw: &Map<String, Value>, family: &Family) -> Result<f64, ConfigError> {
    let outer = Keys(raw).number("rope_theta")?.unwrap_or(family.rope_theta);
    let inner = |key: &str| -> Result<Option<f64>, ConfigError> {
        match model_table(raw, key).filter(|object| !object.is_empty()) {
            Some(object) => Ok(Some(Keys(object).number("rope_theta")?.unwrap_or(outer))),
            None => Ok(None),
        }
    };
    match (inner("rope_scaling")?, inner("rope_parameters")?) {
        (Some(one), Some(other)) if one != other => Err(ConfigError::Unsupported(format!(
            "`rope_theta` of `rope_scaling` = {one} beside that of `rope_parameters` = {other}"
        ))),
        (one, other) => Ok(one.or(other).unwrap_or(outer)),
    }
}

/// The share of a head's entries that rotary turns.
fn partial_rotary(raw: &Map<String, Value>, family: &Family) -> Result<f64, ConfigError> {
    let factor = |object: &Map<String, Value>| Keys(object).number("partial_rotary_factor");
    let mut turned = if family.partial_rotary { factor(raw)? } else { None };
    for key in ["rope_scaling", "rope_parameters"] {
        if let Some(inner) = model_table(raw, key).map(factor).transpose()?.flatten() {
            turned = Some(inner);
        }
    }
    let turned = turned.unwrap_or(1.0);
    if turned != 1.0 && !family.partial_rotary || !(0.0..=1.0).contains(&turned) {
        return Err(ConfigError::Unsupported(format!("`partial_rotary_factor` = {turned}")));
    }
    Ok(turned)
}

impl Family {
    /// The keys under Llama's names.
    fn renamed(&self, raw: Map<String, Value>) -> Result<Map<String, Value>, ConfigError> {
        let both = |(own, llamas): &&(&str, &str)| raw.contains_key(*own) && raw.contains_key(*llamas);
        if let Some((own, llamas)) = self.keys.iter().find(both) {
            return Err(ConfigError::Unsupported(format!("`{own}` beside `{llamas}`")));
        }
        let llamas = |key: String| match self.keys.iter().find(|(own, _)| *own == key) {
            Some((_, llamas)) => (*llamas).to_owned(),
            None => key,
        };
        Ok(raw.into_iter().map(|(key, value)| (llamas(key), value)).collect())
    }

    /// The keys under the family's names.
    fn own(&self, raw: Map<String, Value>) -> Map<String, Value> {
        let own = |key: String| match self.keys.iter().find(|(_, llamas)| *llamas == key) {
            Some((own, _)) => (*own).to_owned(),
            None => key,
        };
        raw.into_iter().map(|(key, value)| (own(key), value)).collect()
    }
}

/// Equal as JSON, where 4 and 4.0 are the same number.
fn same_value(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => x == y,
        _ => a == b,
    }
}
