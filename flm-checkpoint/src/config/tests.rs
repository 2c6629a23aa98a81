//! Released config.json files open with their published sizes, and each wrong value names its key.

use std::path::Path;

use super::*;
use crate::PRESETS;
use crate::config::layers::LayerRope;
use crate::preset;
use crate::tensor_id::LM_HEAD;

fn released(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/configs").join(name);
    std::fs::read_to_string(path).expect("fixture")
}

#[test]
fn released_configs_open_with_their_published_parameter_counts() {
    for (file, parameters, scale) in [
        ("Tele-FLM.json", 52_824_121_344, 0.03125),
        ("Tele-FLM.early-revision.json", 52_824_121_344, 0.03125),
        ("FLM-2-52B-Instruct-2407.json", 52_832_509_952, 0.03125),
        ("Tele-FLM-1T.json", 1_083_813_908_480, 0.025),
    ] {
        let config = TeleFlmConfig::from_json(&released(file)).expect(file);
        assert_eq!(config.parameter_count(), parameters, "{file}");
        assert_eq!(config.logit_scale(), scale, "{file}");
        assert_eq!(config.input_scale(), 1.0, "{file}");
        assert_eq!(config.head_dim, 128, "{file}");
        assert_eq!(config.eos_token_ids, [2], "{file}");
        assert_eq!(config.declared_dtype(), Some(Dtype::BF16));
    }
}

#[test]
fn writing_an_unchanged_config_changes_nothing() {
    for file in ["Tele-FLM.json", "FLM-2-52B-Instruct-2407.json", "Tele-FLM-1T.json"] {
        let text = released(file);
        let before: Value = serde_json::from_str(&text).unwrap();
        let after: Value = serde_json::from_str(&TeleFlmConfig::from_json(&text).unwrap().to_json()).unwrap();
        assert_eq!(before, after, "{file}");
    }
}

#[test]
fn changed_fields_are_written_and_unknown_keys_kept() {
    let mut config = TeleFlmConfig::from_json(&released("Tele-FLM.json")).unwrap();
    config.hidden_size = 10240;
    config.rms_norm_eps = 8e-6;
    let again = TeleFlmConfig::from_json(&config.to_json()).unwrap();
    assert_eq!((again.hidden_size, again.rms_norm_eps, again.head_dim), (10240, 8e-6, 128));
    assert!(again.raw().contains_key("auto_map"));
}

#[test]
fn presets_are_the_released_shapes() {
    for (name, file) in [("tele-flm-52b", "Tele-FLM.json"), ("tele-flm-1t", "Tele-FLM-1T.json")] {
        let (a, b) = (preset(name).unwrap(), TeleFlmConfig::from_json(&released(file)).unwrap());
        assert!(a.tensors().eq(b.tensors()), "{name}");
        assert_eq!((a.logit_scale(), a.rms_norm_eps), (b.logit_scale(), b.rms_norm_eps));
    }
    let middle = preset("tele-flm-102b").unwrap();
    assert_eq!(middle.parameter_count(), 102_206_351_360);
    assert_eq!(middle.logit_scale(), preset("tele-flm-52b").unwrap().logit_scale());
    for name in PRESETS {
        assert!(preset(name).is_some_and(|c| c.validate().is_ok()), "{name}");
    }
    assert_eq!(preset("tele-flm"), None);
}

/// The smallest config, with one key replaced.
fn with(key: &str, value: Value) -> Result<TeleFlmConfig, ConfigError> {
    let mut json: Map<String, Value> = preset("nano-52b").unwrap().raw().clone();
    json.insert(key.into(), value);
    TeleFlmConfig::from_json(&Value::Object(json).to_string())
}

#[test]
fn each_wrong_value_names_its_key() {
    for (key, value, says) in [
        ("hidden_size", Value::from(0), "`hidden_size` is 0"),
        ("hidden_size", Value::from(-4), "`hidden_size` is -4"),
        ("hidden_size", Value::from("96"), "`hidden_size` is \"96\""),
        ("hidden_size", Value::from(97), "hidden_size 97 is not a multiple"),
        ("num_hidden_layers", Value::Null, "no `num_hidden_layers`"),
        ("num_hidden_layers", Value::from(1u64 << 40), "num_hidden_layers"),
        ("num_key_value_heads", Value::from(3), "multiple of num_key_value_heads 3"),
        ("head_dim", Value::from(7), "head_dim 7 is odd"),
        ("vocab_size", Value::from(1.5), "`vocab_size` is 1.5"),
        ("rms_norm_eps", Value::from(-1e-5), "`rms_norm_eps`"),
        ("rope_theta", Value::from(0.0), "`rope_theta` is 0"),
        ("rope_scaling", serde_json::json!({"type": "dynamic"}), "`rope_scaling`"),
        ("rope_scaling", serde_json::json!({"type": "ntk", "factor": 2.0}), "`rope_scaling`"),
        ("partial_rotary_factor", Value::from(0.5), "`partial_rotary_factor` = 0.5"),
        ("hidden_act", Value::from("gelu"), "`hidden_act` = \"gelu\""),
        ("attention_bias", Value::from(true), "`attention_bias` = true"),
        ("model_type", Value::from("gpt2"), "model_type is \"gpt2\""),
        ("use_mup", Value::from("yes"), "`use_mup`"),
        ("output_mult", Value::Null, "no `output_mult`"),
        ("mup_scale_factor", Value::from(0.0), "`mup_scale_factor` is 0"),
        ("eos_token_id", Value::from(-1), "`eos_token_id`"),
    ] {
        let error = with(key, value).expect_err(says).to_string();
        assert!(error.contains(says), "{key}: {error}");
    }
    assert!(TeleFlmConfig::from_json("[1]").is_err());
    assert!(TeleFlmConfig::from_json("{").is_err());
}

#[test]
fn sizes_that_multiply_past_64_bits_are_refused() {
    let mut json: Map<String, Value> = preset("nano-52b").unwrap().raw().clone();
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"] {
        json.insert(key.into(), Value::from(1u64 << 31));
    }
    let error = TeleFlmConfig::from_json(&Value::Object(json).to_string()).unwrap_err().to_string();
    assert!(error.contains("more parameters than can exist"), "{error}");
}

#[test]
fn plain_llama_opens_without_multipliers() {
    let json = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "max_position_embeddings": 8192,
        "tie_word_embeddings": true, "eos_token_id": [2, 0]}"#;
    let config = TeleFlmConfig::from_json(json).unwrap();
    assert_eq!((config.logit_scale(), config.input_scale()), (1.0, 1.0));
    assert_eq!(config.rope_theta, 100_000.0);
    assert_eq!(config.eos_token_ids, [2, 0]);
    assert_eq!(config.parameter_count(), 134_515_008);
    assert!(config.tensors().all(|t| t.name != LM_HEAD));
    let (before, after): (Value, Value) =
        (serde_json::from_str(json).unwrap(), serde_json::from_str(&config.to_json()).unwrap());
    assert_eq!(before, after);
}

fn parsed(more: &str) -> Result<TeleFlmConfig, ConfigError> {
    TeleFlmConfig::from_json(&format!(
        "\u{feff}{{\"model_type\":\"llama\",\"hidden_size\":16,\"intermediate_size\":32,\"num_hidden_layers\":2,\
         \"num_attention_heads\":2,\"vocab_size\":64{more}}}"
    ))
}

#[test]
fn absent_keys_have_the_familys_defaults() {
    let config = parsed("").unwrap();
    assert_eq!(
        (config.max_position_embeddings, config.rms_norm_eps, config.rope_theta),
        (2048, 1e-6, 10_000.0)
    );
    assert_eq!(parsed(r#","max_sequence_length":512"#).unwrap().max_position_embeddings, 512);
    assert!(parsed(r#","hidden_act":"swish","rope_scaling":{}"#).is_ok());
}

/// transformers 5.23: the value inside `rope_parameters` (or `rope_scaling`) wins over the one at the top.
#[test]
fn the_base_of_rotary_is_the_inner_one_and_written_in_both_places() {
    for (more, theta) in [
        (r#","rope_theta":10000,"rope_parameters":{"rope_theta":500000,"rope_type":"default"}"#, 500_000.0),
        (r#","rope_theta":10000,"rope_scaling":{"rope_theta":1000000,"type":"default"}"#, 1_000_000.0),
        (r#","rope_parameters":{"rope_theta":300}"#, 300.0),
        (r#","rope_theta":700,"rope_parameters":null"#, 700.0),
    ] {
        let mut config = parsed(more).unwrap();
        assert_eq!(config.rope_theta, theta, "{more}");
        let written: Value = serde_json::from_str(&config.to_json()).unwrap();
        let top = &written["rope_theta"];
        assert!(*top == theta || top.is_null() && !more.contains(",\"rope_theta\""), "{more}: {top}");
        config.rope_theta = 123.0;
        let written: Value = serde_json::from_str(&config.to_json()).unwrap();
        assert!(written["rope_theta"].is_null() || written["rope_theta"] == 123.0, "{more}");
        for inner in ["rope_parameters", "rope_scaling"] {
            assert!(
                written[inner]["rope_theta"].is_null() || written[inner]["rope_theta"] == 123.0,
                "{more}"
            );
        }
    }
    let nested = parsed(r#","rope_parameters":{"rope_theta":300}"#).unwrap();
    let published = TeleFlmConfig { model_type: ModelType::TeleFlm, ..nested };
    assert_eq!(serde_json::from_str::<Value>(&published.to_json()).unwrap()["rope_theta"], 300.0);
    for more in [
        r#","rope_parameters":{"rope_theta":300,"rope_type":"llama3","factor":8}"#,
        r#","rope_scaling":{"factor":8}"#,
        r#","rope_scaling":{"rope_type":"linear"}"#,
        r#","rope_scaling":{"rope_type":"linear","factor":0}"#,
        r#","rope_scaling":{"rope_type":"yarn","factor":4,"short_factor":[1]}"#,
        r#","rope_scaling":{"rope_type":"longrope","factor":4}"#,
        r#","rope_scaling":"linear""#,
        r#","rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"default"}"#,
        r#","rope_scaling":{"type":"linear","factor":2},"rope_parameters":{"rope_type":"linear","factor":4}"#,
        r#","rope_scaling":{"type":"default"},"rope_parameters":{"rope_type":"default","rope_theta":300}"#,
    ] {
        assert!(parsed(more).is_err(), "{more}");
    }
}

#[test]
fn keys_that_change_the_function_and_are_not_computed_are_refused_by_name() {
    for (key, neutral, other) in [
        ("is_causal", "true", "false"),
        ("quantization_config", "null", r#"{"quant_method":"gptq"}"#),
        (
            "layer_types",
            r#"["full_attention","full_attention"]"#,
            r#"["full_attention","sliding_attention"]"#,
        ),
        ("use_sliding_window", "false", "true"),
        ("partial_rotary_factor", "1.0", "0.5"),
        ("residual_multiplier", "1", "0.22"),
        ("no_rope_layers", "[]", "[1,0]"),
        ("final_logit_softcapping", "null", "30.0"),
        ("num_local_experts", "0", "8"),
    ] {
        assert!(parsed(&format!(",\"{key}\":{neutral}")).is_ok(), "{key}");
        let error = parsed(&format!(",\"{key}\":{other}")).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
}

#[test]
fn what_is_written_is_true_of_dtype_depth_and_tokens() {
    let more = r#","torch_dtype":"float32","dtype":"float32","layer_types":["full_attention","full_attention"],
        "bos_token_id":1,"eos_token_id":[2,3]"#;
    let mut config = parsed(more).unwrap();
    config.set_dtype(Dtype::BF16);
    config.num_hidden_layers = 4;
    (config.bos_token_id, config.eos_token_ids) = (None, Vec::new());
    let written: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!((&written["torch_dtype"], &written["dtype"]), (&"bfloat16".into(), &"bfloat16".into()));
    assert_eq!(written["layer_types"].as_array().unwrap().len(), 4);
    assert!(written["bos_token_id"].is_null() && written["eos_token_id"].is_null());
    let mut newer = parsed(r#","dtype":"float32""#).unwrap();
    newer.set_dtype(Dtype::F16);
    assert!(newer.raw().get("torch_dtype").is_none());
    assert_eq!(newer.declared_dtype(), Some(Dtype::F16));
}

#[test]
fn classes_in_code_that_is_left_behind_are_not_named() {
    let config =
        parsed(r#","auto_map":{"AutoConfig":"configuration.C","AutoModel":"o/r--modeling.M"}"#).unwrap();
    assert!(config.to_json().contains("configuration.C"));
    let text = config.to_json_without_code();
    assert!(!text.contains("configuration.C") && text.contains("o/r--modeling.M"), "{text}");
    let config = parsed(r#","auto_map":{"AutoConfig":"configuration.C"}"#).unwrap();
    assert!(!config.to_json_without_code().contains("auto_map"));
    assert_eq!(config.code_files(), ["configuration.py"]);
    assert!(parsed(r#","auto_map":{"AutoModel":"o/r--modeling.M"}"#).unwrap().code_files().is_empty());
}

/// Another family under Llama's name; transformers' Llama does not read the key.
#[test]
fn a_window_that_the_context_outgrows_is_refused_in_a_family_without_windows() {
    let family = |name: &str, more: &str| {
        TeleFlmConfig::from_json(&format!(
            "{{\"model_type\":\"{name}\",\"hidden_size\":64,\"intermediate_size\":32,\"num_hidden_layers\":2,\
             \"num_attention_heads\":4,\"vocab_size\":64,\"max_position_embeddings\":128{more}}}"
        ))
    };
    let error = family("llama", ",\"sliding_window\":8").unwrap_err().to_string();
    assert!(error.contains("`sliding_window` is 8") && error.contains("the context of 128"), "{error}");
    for more in [
        ",\"sliding_window\":128",
        ",\"sliding_window\":null",
        ",\"sliding_window\":8,\"use_sliding_window\":false",
    ] {
        assert!(family("llama", more).is_ok(), "{more}");
    }
    assert!(family("mistral", ",\"num_key_value_heads\":4,\"sliding_window\":8").is_ok());
}

const TRAINED: &str = r#","training_seqlen":8192"#;
const BIASED: &str = r#","attention_bias":true,"mlp_bias":true"#;

/// Defaults and windows as in the configuration classes of transformers 5.23.
#[test]
fn families_have_their_parts_and_defaults() {
    let family = |name: &str, more: &str| {
        TeleFlmConfig::from_json(&format!(
            "{{\"model_type\":\"{name}\",\"hidden_size\":64,\"intermediate_size\":32,\"num_hidden_layers\":2,\
             \"num_attention_heads\":32,\"vocab_size\":64{more}}}"
        ))
    };
    let ends = |name: &str, more: &str| {
        let config = family(name, more).unwrap();
        let names = config.block_tensors(1).into_iter().map(|t| t.name.replace("model.layers.1.", ""));
        names.filter(|name| name.ends_with("bias") || name.contains("self_attn.q_norm")).collect::<Vec<_>>()
    };
    let qkv = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
    assert_eq!(ends("llama", ""), [""; 0]);
    assert_eq!(ends("llama", r#","attention_bias":true"#), [&qkv[..], &["self_attn.o_proj.bias"]].concat());
    assert_eq!(
        ends("llama", r#","mlp_bias":true"#),
        ["mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias"]
    );
    assert_eq!(ends("qwen2", ""), qkv);
    assert_eq!(ends("qwen3", ""), ["self_attn.q_norm.weight"]);
    let square = r#","head_dim":2,"num_key_value_heads":4,"attention_bias":true"#;
    assert_eq!(ends("helium", square), qkv);
    assert_eq!(ends("ernie4_5", r#","use_bias":true"#), ends("llama", BIASED));
    assert_eq!(ends("telechat", TRAINED), ["self_attn.o_proj.bias", "mlp.down_proj.bias"]);
    // null is not absent: then the sizes follow from the others
    let ernie = |more: &str| {
        let config = family("ernie4_5", more).unwrap();
        (config.head_dim, config.num_key_value_heads)
    };
    assert_eq!(ernie(""), (128, 2));
    assert_eq!(ernie(r#","head_dim":null,"num_key_value_heads":null"#), (2, 32));
    let qwen3 = family("qwen3", "").unwrap();
    assert_eq!((qwen3.head_dim, qwen3.num_key_value_heads, qwen3.max_position_embeddings), (128, 32, 32_768));
    assert_eq!(
        qwen3.tensors().map(|t| t.shape.iter().product::<usize>() as u64).sum::<u64>(),
        qwen3.parameter_count()
    );
    assert_eq!(family("mistral", r#","sliding_window":null"#).unwrap().num_key_value_heads, 8);
    assert!(family("mistral", r#","sliding_window":4096,"max_position_embeddings":4096"#).is_ok());
    for (name, more, says) in [
        ("mistral", r#","sliding_window":"8""#, "`sliding_window` is"),
        ("llama", r#","use_sliding_window":true"#, "`use_sliding_window`"),
        ("llama", r#","layer_types":["sliding_attention","full_attention"]"#, "`layer_types`"),
        ("ministral", r#","layer_types":["sliding_attention","chunked_attention"]"#, "chunked_attention"),
        ("ministral", r#","layer_types":["sliding_attention"]"#, "`layer_types` is"),
        ("smollm3", r#","no_rope_layers":[1]"#, "`no_rope_layers` is [1]"),
        ("gemma3_text", r#","use_bidirectional_attention":true"#, "`use_bidirectional_attention`"),
        ("gemma3_text", r#","rope_local_base_freq":-1"#, "`rope_local_base_freq` is -1"),
        ("gemma2", r#","final_logit_softcapping":0.0"#, "`final_logit_softcapping` is 0"),
        ("phi3", r#","partial_rotary_factor":1.5"#, "`partial_rotary_factor` = 1.5"),
        (
            "phi3",
            r#","rope_scaling":{"type":"longrope","short_factor":[1,1],"long_factor":[1]}"#,
            "list 1 factors",
        ),
        ("granite", r#","logits_scaling":0"#, "`logits_scaling` is 0"),
        ("qwen2", r#","attention_bias":true"#, "`attention_bias` = true of a qwen2"),
        ("llama", r#","use_bias":true"#, "`use_bias` = true of a llama"),
        ("ernie4_5", r#","attention_bias":true"#, "`attention_bias` = true of a ernie4_5"),
        ("baichuan", "", "13B with ALiBi"),
        (
            "baichuan",
            r#","max_position_embeddings":64,"architectures":["BaichuanForCausalLM"]"#,
            "the head of normalised rows",
        ),
        ("baichuan", r#","max_position_embeddings":64,"z_loss_weight":0"#, "the head of normalised rows"),
        ("internlm2", "", "without `bias`"),
        ("internlm2", r#","bias":true"#, "`bias` = true"),
        ("telechat", r#","n_layer":2"#, "`n_layer` beside `num_hidden_layers`"),
        ("telechat", r#","embed_layernorm":true"#, "`embed_layernorm` = true"),
        ("helium", r#","num_key_value_heads":4"#, "32 heads of 128 are 4096 wide, hidden_size is 64"),
        ("qwen3_moe", "", "\"qwen3_moe\"; supported are \"TeleFLM\", \"llama\""),
    ] {
        let error = family(name, more).unwrap_err().to_string();
        assert!(error.contains(says), "{name} {more}: {error}");
    }
    for name in [
        "llama",
        "mistral",
        "ministral",
        "qwen2",
        "qwen3",
        "granite",
        "smollm3",
        "olmo2",
        "olmo3",
        "exaone4",
        "phi3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "helium",
        "ernie4_5",
        "baichuan",
        "internlm2",
        "telechat",
    ] {
        let config = family(
            name,
            r#","sliding_window":null,"rope_theta":5000.0,"head_dim":2,"num_key_value_heads":4,
            "max_position_embeddings":64,"bias":false"#,
        );
        let config = config.unwrap();
        assert_eq!(config.model_type.as_str(), name);
        let again = TeleFlmConfig::from_json(&config.to_json()).unwrap();
        assert_eq!(again.to_json(), config.to_json());
        assert_eq!(again.block_tensors(0), config.block_tensors(0));
    }
}

/// Which of `layers` blocks have a window and which have positions: `w`, `g`, in capitals where positions are the
/// model's, in small letters where they are others or none.
fn kinds(json: &str, layers: usize) -> Result<String, ConfigError> {
    let json = format!(
        "{{\"hidden_size\":64,\"intermediate_size\":32,\"num_hidden_layers\":{layers},\
         \"num_attention_heads\":32,\"num_key_value_heads\":4,\"vocab_size\":64,{json}}}"
    );
    let config = TeleFlmConfig::from_json(&json)?;
    let letter = |layer| {
        let kind = config.layers.of(layer);
        match (kind.window.is_some(), kind.rope == LayerRope::Model) {
            (true, true) => 'W',
            (true, false) => 'w',
            (false, true) => 'G',
            (false, false) => 'g',
        }
    };
    Ok((0..layers).map(letter).collect())
}

/// `layer_types` and `no_rope_layers` of the configuration classes of transformers 5.23, for the same keys.
#[test]
fn layers_are_of_the_kinds_that_transformers_makes_them() {
    for (json, layers, expected) in [
        (r#""model_type":"llama""#, 3, "GGG"),
        (r#""model_type":"mistral""#, 3, "WWW"),
        (r#""model_type":"mistral","sliding_window":null"#, 3, "GGG"),
        (r#""model_type":"qwen2","sliding_window":8"#, 3, "GGG"),
        (r#""model_type":"qwen2","use_sliding_window":true,"max_window_layers":2"#, 4, "GGWW"),
        (r#""model_type":"qwen3","use_sliding_window":true,"max_window_layers":0"#, 2, "WW"),
        (r#""model_type":"qwen3","use_sliding_window":true"#, 30, "GGGGGGGGGGGGGGGGGGGGGGGGGGGGWW"),
        (r#""model_type":"smollm3""#, 9, "GGGgGGGgG"),
        (r#""model_type":"smollm3","no_rope_layer_interval":2"#, 4, "GgGg"),
        (r#""model_type":"smollm3","use_sliding_window":true,"sliding_window":5"#, 5, "GGGwG"),
        (r#""model_type":"olmo2""#, 2, "GG"),
        (r#""model_type":"olmo3""#, 5, "wwwGw"),
        (r#""model_type":"exaone4""#, 5, "WWWgW"),
        (r#""model_type":"exaone4","sliding_window":null"#, 5, "GGGGG"),
        // what transformers writes of it
        (r#""model_type":"exaone4","sliding_window":null,"sliding_window_pattern":0"#, 2, "GG"),
        (
            r#""model_type":"exaone4","sliding_window_pattern":"LG",
            "layer_types":["sliding_attention","full_attention"]"#,
            2,
            "Wg",
        ),
        (r#""model_type":"phi3","sliding_window":9"#, 2, "WW"),
        (r#""model_type":"phi3""#, 2, "GG"),
        (r#""model_type":"gemma2""#, 5, "WGWGW"),
        // Gemma 2 and OLMo 3 do not read it
        (r#""model_type":"gemma2","sliding_window_pattern":3"#, 5, "WGWGW"),
        (r#""model_type":"olmo3","sliding_window_pattern":3"#, 5, "wwwGw"),
        (r#""model_type":"gemma3_text""#, 7, "wwwwwGw"),
        (r#""model_type":"gemma3_text","sliding_window_pattern":2"#, 3, "wGw"),
        (
            r#""model_type":"ministral","layer_types":["full_attention","sliding_attention","full_attention"]"#,
            3,
            "GWG",
        ),
    ] {
        assert_eq!(kinds(json, layers).unwrap(), expected, "{json}");
    }
    // a list of billions is not made
    let error = kinds(r#""model_type":"gemma2""#, 4_000_000_000);
    assert!(error.unwrap_err().to_string().contains("whose kinds can be told apart"));
}

#[test]
fn kinds_of_layers_are_written_where_a_reader_would_take_others() {
    let config = |json: &str| {
        TeleFlmConfig::from_json(&format!(
            "{{\"hidden_size\":64,\"intermediate_size\":32,\"num_hidden_layers\":4,\
             \"num_attention_heads\":32,\"num_key_value_heads\":4,\"vocab_size\":64,{json}}}"
        ))
        .unwrap()
    };
    for json in [
        r#""model_type":"gemma3_text","sliding_window_pattern":2"#,
        r#""model_type":"smollm3""#,
        r#""model_type":"smollm3","no_rope_layers":[1,0,1,1],"layer_types":null"#,
        r#""model_type":"exaone4""#,
        r#""model_type":"qwen2","use_sliding_window":true,"max_window_layers":3"#,
    ] {
        let source = config(json);
        let unchanged: Value = serde_json::from_str(&source.to_json()).unwrap();
        for key in ["layer_types", "no_rope_layers"] {
            let same = unchanged.get(key) == source.raw().get(key);
            assert!(same, "{json}: {key} = {:?}", unchanged.get(key));
        }
        // every layer twice
        let mut grown = source.clone();
        grown.num_hidden_layers = 8;
        grown.layers = source.layers.rearranged((0..4).flat_map(|layer| [layer, layer]));
        let again = TeleFlmConfig::from_json(&grown.to_json()).unwrap();
        assert!(again.layers.same(&grown.layers, 8), "{json}: {}", grown.to_json());
        for layer in 0..8 {
            assert_eq!(again.layers.of(layer), source.layers.of(layer / 2), "{json} {layer}");
        }
    }
}
