//! GGUF files read back by candle, against the source's tensors.

#![allow(clippy::unwrap_used)]

use crate::GgufOptions;
use crate::GgufPlan;
use crate::GgufTensor;
use crate::Rounding;
use crate::vocabulary_of;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use flm_candle::read_tensor;
use serde_json::json;

use super::*;
use flm_candle::{CausalLm, Residency};
use flm_candle::{TokenKind, Vocabulary, VocabularyToken};
use flm_checkpoint::TeleFlmConfig;
use flm_checkpoint::TensorSpec;
use flm_checkpoint::Writer;
use flm_checkpoint::atomic::Staging;
use flm_checkpoint::{Checkpoint, CheckpointError};
use flm_checkpoint::{EMBED_TOKENS, FINAL_NORM, LM_HEAD};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The fixture `name` written again with these tensors changed and these keys set.
fn altered(
    name: &str,
    dst: &Path,
    keys: &serde_json::Value,
    change: impl Fn(&str, Tensor) -> Option<Tensor>,
) -> Checkpoint {
    let src = Checkpoint::open(&fixture("models").join(name)).unwrap();
    let mut raw = src.config().raw().clone();
    raw.extend(keys.as_object().unwrap().clone());
    let config = TeleFlmConfig::from_json(&serde_json::Value::Object(raw).to_string()).unwrap();
    let tensors: Vec<(String, Tensor)> = src
        .entries()
        .filter_map(|e| {
            Some((e.name.clone(), change(&e.name, read_tensor(&src, &e.name, &Device::Cpu).unwrap())?))
        })
        .collect();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, t)| TensorSpec {
            name: name.clone(),
            dtype: t.dtype().as_str().parse().unwrap(),
            shape: t.dims().to_vec(),
        })
        .collect();
    let writer = Writer::create(dst, &specs, u64::MAX).unwrap();
    for (name, t) in &tensors {
        writer.write_at(name, 0, &bytes(t)).unwrap();
    }
    writer.finish(&config).unwrap();
    Checkpoint::open(dst).unwrap()
}

fn bytes(t: &Tensor) -> Vec<u8> {
    let t = t.flatten_all().unwrap();
    match t.dtype() {
        DType::F32 => t.to_vec1::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => t.to_vec1::<half::f16>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => t.to_vec1::<half::bf16>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

fn export(src: &Checkpoint, dst: &Path, dtype: Option<GgmlDType>) -> GgufPlan {
    let plan = GgufPlan::new(src, None, &GgufOptions { dtype, ..GgufOptions::default() }).unwrap();
    let done = std::sync::atomic::AtomicU64::new(0);
    let add = |n| {
        done.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
    };
    let report = plan.write(src, dst, &add).unwrap();
    assert_eq!(report.bytes, std::fs::metadata(dst).unwrap().len());
    let read: u64 = plan.tensors.iter().map(|t| src.entry(&t.source).unwrap().nbytes).sum();
    assert_eq!(done.into_inner(), read);
    plan
}

fn read(path: &Path) -> (Content, File) {
    let mut file = File::open(path).unwrap();
    (Content::read(&mut file).unwrap(), file)
}

/// What a tensor of the file must be, from the source by another way than the exporter's: whole tensors,
/// `reshape` and `transpose`.
fn expected(src: &Checkpoint, tensor: &GgufTensor) -> Tensor {
    let c = src.config();
    let t = read_tensor(src, &tensor.source, &Device::Cpu).unwrap();
    let heads = |n: usize| {
        t.reshape((n, 2, c.head_dim / 2, c.hidden_size))
            .unwrap()
            .transpose(1, 2)
            .unwrap()
            .contiguous()
            .unwrap()
    };
    match tensor.source.rsplit_once(".self_attn.").map(|(_, part)| part) {
        Some("q_proj.weight") => heads(c.num_attention_heads).reshape(t.shape()).unwrap(),
        Some("k_proj.weight") => heads(c.num_key_value_heads).reshape(t.shape()).unwrap(),
        _ => {
            let factor = match tensor.source.as_str() {
                EMBED_TOKENS => c.input_mult,
                FINAL_NORM => c.output_mult / c.mup_scale_factor,
                _ => return t,
            };
            let product = (t.to_dtype(DType::F64).unwrap() * factor).unwrap();
            product.to_dtype(DType::F32).unwrap().to_dtype(t.dtype()).unwrap()
        }
    }
}

fn blocks(t: &Tensor, dtype: GgmlDType) -> Vec<u8> {
    QTensor::quantize(&t.to_dtype(DType::F32).unwrap(), dtype).unwrap().data().unwrap().into_owned()
}

#[test]
fn every_tensor_is_the_sources_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["teleflm-f32-st", "teleflm-gqa-f32-shst", "teleflm-bf16-shbin", "teleflm-hd32-bf16-shbin"] {
        let src = Checkpoint::open(&fixture("models").join(name)).unwrap();
        let path = dir.path().join(format!("{name}.gguf"));
        let plan = export(&src, &path, None);
        let (content, mut file) = read(&path);
        assert_eq!(content.tensor_infos.len(), src.entries().count());
        for tensor in &plan.tensors {
            let found = content.tensor(&mut file, &tensor.name, &Device::Cpu).unwrap();
            let mut want = expected(&src, tensor);
            if want.dims().len() == 1 {
                want = read_tensor(&src, &tensor.source, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
                want = (want * tensor.factor).unwrap().to_dtype(DType::F32).unwrap();
            }
            let own = if want.dtype() == DType::BF16 { GgmlDType::BF16 } else { GgmlDType::F32 };
            assert_eq!((found.dtype(), found.shape()), (own, want.shape()), "{name} {}", tensor.name);
            assert!(found.data().unwrap().as_ref() == bytes(&want), "{name} {}", tensor.name);
        }
        // Rows are no longer where they were, except in models of heads of width 2.
        let q = plan.tensors.iter().find(|t| t.name == "blk.0.attn_q.weight").unwrap();
        assert!(bytes(&expected(&src, q)) != bytes(&read_tensor(&src, &q.source, &Device::Cpu).unwrap()));
    }
}

#[test]
fn blocks_are_candles_and_rows_that_are_none_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let src = Checkpoint::open(&fixture("models/teleflm-hd32-bf16-shbin")).unwrap();
    for (name, dtype) in [("q8_0", GgmlDType::Q8_0), ("q4_0", GgmlDType::Q4_0), ("q4_k", GgmlDType::Q4K)] {
        assert_eq!(GgufPlan::parse_dtype(name).unwrap(), dtype);
        let path = dir.path().join(name);
        let plan = export(&src, &path, Some(dtype));
        let (content, mut file) = read(&path);
        let mut kept = 0;
        for tensor in &plan.tensors {
            let found = content.tensor(&mut file, &tensor.name, &Device::Cpu).unwrap();
            let want = match (&tensor.shape[..], tensor.source.as_str()) {
                ([_], _) => GgmlDType::F32,
                // 344 columns are no multiple of 32.
                (_, down) if down.ends_with("down_proj.weight") => GgmlDType::BF16,
                (_, EMBED_TOKENS | LM_HEAD) => GgmlDType::Q8_0,
                // 128 columns are no multiple of q4_k's 256.
                _ if dtype == GgmlDType::Q4K => GgmlDType::Q8_0,
                _ => dtype,
            };
            assert_eq!(found.dtype(), want, "{name} {}", tensor.name);
            kept += usize::from(want == GgmlDType::BF16);
            if want.block_size() > 1 {
                let blocks = blocks(&expected(&src, tensor), want);
                assert!(found.data().unwrap().as_ref() == blocks, "{name} {}", tensor.name);
            }
        }
        assert_eq!(kept, 4);
        let note = format!("4 tensors are stored as bf16, not {name}: their rows of 344 are no whole blocks");
        assert!(plan.notes.contains(&note), "{:?}", plan.notes);
    }
    assert!(GgufPlan::parse_dtype("q4").unwrap_err().to_string().contains("q4_0"));
}

/// candle-transformers' model of GGUF files shares no code with this crate's.
#[test]
fn another_model_gives_flms_logits_and_the_goldens() {
    let dir = tempfile::tempdir().unwrap();
    // The norm's gain takes 3/4 and 0.05, the embedding 2.
    for (name, golden) in [("teleflm-f32-st", "teleflm-f32"), ("teleflm-gqa-f32-shst", "teleflm-gqa-f32")] {
        let src = Arc::new(Checkpoint::open(&fixture("models").join(name)).unwrap());
        let path = dir.path().join(name);
        export(&src, &path, None);
        let goldens = fixture("models").join(format!("{golden}.golden.safetensors"));
        let goldens = candle_core::safetensors::load(goldens, &Device::Cpu).unwrap();
        let model = CausalLm::load(&src, &Device::Cpu, DType::F32, Residency::Resident).unwrap();
        for prompt in ["short", "single", "rand64", "rand300"] {
            let ids: Vec<u32> =
                goldens[&format!("{prompt}.ids")].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
            let ours = model.logits(&ids).unwrap();
            let theirs = logits(&path, &ids);
            let last = |t: &Tensor| t.get(ids.len() - 1).unwrap();
            let error = relative(&theirs, &last(&ours));
            assert!(error < 1e-5, "{name} {prompt}: {error:e}");
            let error = relative(&theirs, &last(&goldens[&format!("{prompt}.logits.f32")]));
            assert!(error < 1e-4, "{name} {prompt}, golden: {error:e}");
        }
    }
}

/// The logits of the last position by candle-transformers.
fn logits(path: &Path, ids: &[u32]) -> Tensor {
    let (content, mut file) = read(path);
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    model.forward(&ids, 0).unwrap().squeeze(0).unwrap()
}

fn relative(got: &Tensor, expected: &Tensor) -> f64 {
    let max = |t: Tensor| {
        t.abs().unwrap().max_all().unwrap().to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
    };
    let expected = expected.to_dtype(DType::F32).unwrap();
    max((got - &expected).unwrap()) / max(expected)
}

#[test]
fn a_tied_head_gets_back_what_the_embedding_took() {
    let dir = tempfile::tempdir().unwrap();
    let tied = json!({ "tie_word_embeddings": true, "input_mult": 3.0, "output_mult": 0.7 });
    let without_head = |name: &str, t: Tensor| (name != LM_HEAD).then_some(t);
    let src = Arc::new(altered("teleflm-gqa-f32-shst", &dir.path().join("tied"), &tied, without_head));
    let path = dir.path().join("tied.gguf");
    let plan = export(&src, &path, None);
    assert!(plan.tensors.iter().all(|t| t.name != "output.weight"));
    let found: HashMap<&str, (f64, Rounding)> =
        plan.foldings.iter().map(|f| (f.tensor.as_str(), (f.factor, f.rounding))).collect();
    assert_eq!(found["token_embd.weight"], (3.0, Rounding::F32));
    assert_eq!(found["output_norm.weight"], (0.7 / 3.0, Rounding::F32));
    let ids = [1u32, 5, 17, 300, 42];
    let model = CausalLm::load(&src, &Device::Cpu, DType::F32, Residency::Resident).unwrap();
    let error = relative(&logits(&path, &ids), &model.logits(&ids).unwrap().get(4).unwrap());
    assert!(error < 1e-5, "{error:e}");

    let zero = json!({ "tie_word_embeddings": true, "input_mult": 0.0 });
    let src = altered("teleflm-gqa-f32-shst", &dir.path().join("zero"), &zero, without_head);
    assert!(matches!(GgufPlan::new(&src, None, &GgufOptions::default()), Err(ExportError::NoInput)));
}

#[test]
fn a_factor_that_a_dtype_does_not_hold_goes_to_f32() {
    let dir = tempfile::tempdir().unwrap();
    let three = json!({ "input_mult": 3.0 });
    let src = altered("teleflm-bf16-shbin", &dir.path().join("bf16"), &three, |_, t| Some(t));
    let plan = export(&src, &dir.path().join("bf16.gguf"), Some(GgmlDType::BF16));
    let embedding = &plan.tensors[0];
    assert_eq!((embedding.name.as_str(), embedding.dtype), ("token_embd.weight", GgmlDType::F32));
    assert_eq!(plan.foldings[0].rounding, Rounding::F32);
    // 3 times a bf16 has two bits more than a bf16: f32 holds it exactly.
    let (content, mut file) = read(&dir.path().join("bf16.gguf"));
    let found = content.tensor(&mut file, "token_embd.weight", &Device::Cpu).unwrap();
    let want =
        (read_tensor(&src, EMBED_TOKENS, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap() * 3.0).unwrap();
    assert!(found.data().unwrap().as_ref() == bytes(&want));
    // A power of two stays in bf16.
    let two = Checkpoint::open(&fixture("models/teleflm-bf16-shbin")).unwrap();
    let plan = GgufPlan::new(&two, None, &GgufOptions::default()).unwrap();
    assert_eq!((plan.tensors[0].dtype, plan.foldings[0].rounding), (GgmlDType::BF16, Rounding::Exact));
    // Asked to round, it rounds.
    let f32_source = altered("teleflm-f32-st", &dir.path().join("f32"), &three, |_, t| Some(t));
    let options = GgufOptions { dtype: Some(GgmlDType::BF16), ..GgufOptions::default() };
    let plan = GgufPlan::new(&f32_source, None, &options).unwrap();
    assert_eq!((plan.tensors[0].dtype, plan.foldings[0].rounding), (GgmlDType::BF16, Rounding::Dtype));
}

#[test]
fn metadata_are_what_llama_cpp_reads() {
    let dir = tempfile::tempdir().unwrap();
    let src = Checkpoint::open(&fixture("models/teleflm-gqa-bf16-shbin")).unwrap();
    let path = dir.path().join("x.gguf");
    let options =
        GgufOptions { dtype: Some(GgmlDType::Q8_0), name: Some("nano".into()), ..GgufOptions::default() };
    GgufPlan::new(&src, None, &options).unwrap().write(&src, &path, &|_| ()).unwrap();
    let (content, _) = read(&path);
    let number = |key: &str| content.metadata[key].to_u32().unwrap();
    for (key, value) in [
        ("general.file_type", 7),
        ("general.alignment", 32),
        ("llama.context_length", 512),
        ("llama.embedding_length", 64),
        ("llama.block_count", 4),
        ("llama.feed_forward_length", 172),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.attention.key_length", 16),
        ("llama.rope.dimension_count", 16),
        ("llama.vocab_size", 384),
    ] {
        assert_eq!(number(key), value, "{key}");
    }
    assert_eq!(content.metadata["llama.attention.layer_norm_rms_epsilon"].to_f32().unwrap(), 1e-5);
    assert_eq!(content.metadata["llama.rope.freq_base"].to_f32().unwrap(), 10_000.0);
    assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), "llama");
    assert_eq!(content.metadata["general.name"].to_string().unwrap(), "nano");
    assert_eq!(content.metadata["tokenizer.ggml.model"].to_string().unwrap(), "no_vocab");
    // Version 3, and every tensor where it should be aligned.
    assert_eq!(std::fs::read(&path).unwrap()[4..8], 3u32.to_le_bytes());
    assert!(content.tensor_data_offset.is_multiple_of(32));
    assert!(content.tensor_infos.values().all(|t| t.offset.is_multiple_of(32)));
}

#[test]
fn a_growing_checkpoint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let masks = json!({ "growth": { "version": 1, "operator": "msg", "ffn": { "from": 100, "mask": 0.5 } } });
    let src = altered("teleflm-f32-st", &dir.path().join("m"), &masks, |_, t| Some(t));
    let error = GgufPlan::new(&src, None, &GgufOptions::default()).unwrap_err();
    assert!(error.to_string().contains("flm fold"), "{error}");
}

#[test]
fn overflow_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let large = |name: &str, t: Tensor| {
        let norm = name == FINAL_NORM;
        Some(if norm { t } else { t.ones_like().unwrap().affine(1e6, 0.0).unwrap() })
    };
    let src = altered("teleflm-f32-st", &dir.path().join("m"), &json!({}), large);
    let options = GgufOptions { dtype: Some(GgmlDType::F16), ..GgufOptions::default() };
    let plan = GgufPlan::new(&src, None, &options).unwrap();
    let matrices: u64 = plan
        .tensors
        .iter()
        .filter(|t| t.shape.len() == 2)
        .map(|t| t.shape.iter().product::<usize>() as u64)
        .sum();
    let report = plan.write(&src, &dir.path().join("x.gguf"), &|_| ()).unwrap();
    assert_eq!(report.overflowed, matrices);
}

#[test]
fn an_output_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let src = altered("teleflm-f32-st", &dir.path().join("m"), &json!({}), |_, t| Some(t));
    let path = dir.path().join("x.gguf");
    let plan = GgufPlan::new(&src, None, &GgufOptions::default()).unwrap();
    let partial = dir.path().join(".x.gguf.partial");
    // Somebody else's file of that name stays.
    std::fs::write(&partial, "theirs").unwrap();
    assert!(plan.write(&src, &path, &|_| ()).is_err());
    assert_eq!(std::fs::read_to_string(&partial).unwrap(), "theirs");
    std::fs::remove_file(&partial).unwrap();
    // What a process that died has left is overwritten, whatever its length.
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join(".lock"), "").unwrap();
    std::fs::write(partial.join("0.gguf"), vec![7; 3 << 20]).unwrap();
    plan.write(&src, &path, &|_| assert!(!path.exists() && partial.exists())).unwrap();
    assert!(!partial.exists());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), plan.bytes);
    let again = plan.write(&src, &path, &|_| ());
    assert!(matches!(again, Err(ExportError::DestinationExists { .. })));
    // Held by another writer.
    let other = dir.path().join("y.gguf");
    let held = Staging::create(&other).unwrap();
    let busy = plan.write(&src, &other, &|_| ()).unwrap_err();
    assert!(matches!(busy, ExportError::Checkpoint(CheckpointError::InUse { .. })), "{busy}");
    drop(held);
    // A source that is cut off while it is read: nothing is left.
    let file = std::fs::File::options().write(true).open(dir.path().join("m/model.safetensors")).unwrap();
    file.set_len(1 << 16).unwrap();
    assert!(plan.write(&src, &other, &|_| ()).is_err());
    assert!(!other.exists() && !dir.path().join(".y.gguf.partial").exists());
    assert!(matches!(plan.write(&src, Path::new(".."), &|_| ()), Err(ExportError::DestinationExists { .. })));
}

fn strings(value: &Value) -> Vec<String> {
    value.to_vec().unwrap().iter().map(|v| v.to_string().unwrap().clone()).collect()
}

fn keys(
    vocabulary: &Vocabulary,
    rows: usize,
    pre: Option<&str>,
) -> Result<(HashMap<String, Value>, Vec<String>)> {
    let mut config = flm_checkpoint::preset("nano-52b").unwrap();
    config.vocab_size = rows;
    let (keys, notes) = crate::gguf::vocabulary::metadata(vocabulary, &config, pre)?;
    Ok((keys.into_iter().collect(), notes))
}

/// `tokenizer.model` of tests/fixtures/spm beside a tokenizer_config.json.
#[test]
fn a_sentencepiece_model_is_written_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("spm/tokenizer_llama.model"), dir.path().join("tokenizer.model")).unwrap();
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true,
        "chat_template": "{{ messages[0]['content'] }}" });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokenizer = flm_candle::Tokenizer::from_dir(dir.path()).unwrap();
    let vocabulary = vocabulary_of(dir.path()).unwrap();
    let rows = tokenizer.len() + 3;
    let (found, notes) = keys(&vocabulary, rows, None).unwrap();
    let tokens = strings(&found["tokenizer.ggml.tokens"]);
    let kinds: Vec<i32> =
        found["tokenizer.ggml.token_type"].to_vec().unwrap().iter().map(|v| v.to_i32().unwrap()).collect();
    let scores: Vec<f32> =
        found["tokenizer.ggml.scores"].to_vec().unwrap().iter().map(|v| v.to_f32().unwrap()).collect();
    assert_eq!([tokens.len(), kinds.len(), scores.len()], [rows; 3]);
    for (id, token) in tokens.iter().enumerate().take(tokenizer.len()) {
        let own = tokenizer.id_to_token(id as u32).unwrap();
        assert!(*token == own || kinds[id] == 4, "{id}: {token:?} {own:?}");
        assert_eq!(kinds[id] == 6, own.starts_with("<0x"), "{own}");
    }
    assert_eq!(tokens[tokenizer.len()..], [0, 1, 2].map(|i| format!("[PAD{}]", tokenizer.len() + i)));
    assert_eq!(kinds[tokenizer.len()..], [5; 3]);
    let id = |text: &str| tokenizer.token_to_id(text).unwrap();
    assert_eq!((kinds[id("<s>") as usize], kinds[id("<unk>") as usize]), (3, 2));
    for (key, text) in [("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>")] {
        assert_eq!(found[&format!("tokenizer.ggml.{key}_token_id")].to_u32().unwrap(), id(text), "{key}");
    }
    assert!(found["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
    assert!(!found["tokenizer.ggml.add_eos_token"].to_bool().unwrap());
    assert!(found["tokenizer.ggml.add_space_prefix"].to_bool().unwrap());
    assert_eq!(found["tokenizer.ggml.model"].to_string().unwrap(), "llama");
    assert_eq!(found["tokenizer.chat_template"].to_string().unwrap(), "{{ messages[0]['content'] }}");
    assert!(notes.iter().any(|n| n.starts_with("3 rows of the vocabulary are padding")), "{notes:?}");
    // Scores fall from one merge to the next.
    let normal: Vec<f32> = (0..rows).filter(|&i| kinds[i] == 1).map(|i| scores[i]).collect();
    assert!(normal.windows(2).all(|w| w[0] >= w[1]) && normal.first() > normal.last());

    assert!(matches!(keys(&vocabulary, 10, None), Err(ExportError::Vocabulary { rows: 10, .. })));
}

fn bpe(pre_tokenizer: serde_json::Value, normalizer: serde_json::Value, ignore_merges: bool) -> Vec<u8> {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [
            { "id": 5, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
              "normalized": false, "special": true },
            { "id": 7, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false,
              "normalized": false, "special": false }],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": { "a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|end|>": 5, "c": 6 },
            "merges": [["a", "b"], ["Ġ", "ab"]] }
    })
    .to_string()
    .into_bytes()
}

fn byte_level(use_regex: bool) -> serde_json::Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn vocabulary(json: &[u8]) -> Vocabulary {
    flm_candle::Tokenizer::from_json(json).unwrap().vocabulary().unwrap()
}

#[test]
fn byte_level_bpe_is_written_with_its_merges() {
    let digits = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Digits", "individual_digits": true }, byte_level(true)] });
    let (found, _) = keys(&vocabulary(&bpe(digits, json!(null), false)), 9, None).unwrap();
    assert_eq!(
        strings(&found["tokenizer.ggml.tokens"]),
        ["a", "b", "Ġ", "ab", "Ġab", "<|end|>", "c", "<tool>", "[PAD8]"]
    );
    let kinds: Vec<i32> =
        found["tokenizer.ggml.token_type"].to_vec().unwrap().iter().map(|v| v.to_i32().unwrap()).collect();
    assert_eq!(kinds, [1, 1, 1, 1, 1, 3, 1, 4, 5]);
    assert_eq!(strings(&found["tokenizer.ggml.merges"]), ["a b", "Ġ ab"]);
    assert_eq!(found["tokenizer.ggml.model"].to_string().unwrap(), "gpt2");
    assert_eq!(found["tokenizer.ggml.pre"].to_string().unwrap(), "smollm");
    assert!(!found.contains_key("tokenizer.ggml.scores"));
}

#[test]
fn a_pre_tokenizer_is_named_or_refused() {
    let split = |regex: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            byte_level(false)] })
    };
    // Llama 3's and Qwen 2's, as their tokenizer.json have them.
    let words = |digits: &str| {
        format!(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|{digits}| ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
        )
    };
    let (llama, qwen) = (split(&words("\\p{N}{1,3}")), split(&words("\\p{N}")));
    let nfc = json!({ "type": "NFC" });
    for (pre, normalizer, ignore_merges, name) in [
        (byte_level(true), json!(null), false, Some("gpt-2")),
        (llama.clone(), json!(null), true, Some("llama-bpe")),
        (llama.clone(), json!(null), false, None),
        (qwen.clone(), nfc.clone(), false, Some("qwen2")),
        (qwen, json!(null), false, Some("qwen2")),
        (byte_level(true), nfc, false, None),
        (split("\\w+"), json!(null), false, None),
        (byte_level(false), json!(null), false, None),
    ] {
        let vocabulary = vocabulary(&bpe(pre.clone(), normalizer, ignore_merges));
        match (keys(&vocabulary, 8, None), name) {
            (Ok((found, _)), Some(name)) => {
                assert_eq!(found["tokenizer.ggml.pre"].to_string().unwrap(), name);
            }
            (Err(ExportError::PreTokenizer { found }), None) => {
                assert!(found.starts_with("pre_tokenizer {"), "{found}")
            }
            (other, _) => panic!("{pre}: {other:?}"),
        }
        // The user's word goes, and is said to be unchecked.
        let (found, notes) = keys(&vocabulary, 8, Some("mine")).unwrap();
        assert_eq!(found["tokenizer.ggml.pre"].to_string().unwrap(), "mine");
        assert!(notes.iter().any(|n| n.contains("taken to be mine, unchecked")), "{notes:?}");
    }
}

#[test]
fn a_tokenizer_json_made_from_sentencepiece_gives_the_pieces_with_and_without_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = std::fs::read(fixture("spm/tokenizer_llama.model")).unwrap();
    let own = flm_candle::Tokenizer::from_sentencepiece(&model).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&own.save_json().unwrap()).unwrap();
    let added = json!({ "id": own.len(), "content": "<|im_end|>", "special": true, "single_word": false,
        "lstrip": false, "rstrip": true, "normalized": false });
    file["added_tokens"].as_array_mut().unwrap().push(added);
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let own = own.vocabulary().unwrap();
    let alone = vocabulary_of(dir.path()).unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), &model).unwrap();
    let beside = vocabulary_of(dir.path()).unwrap();
    for found in [&alone, &beside] {
        assert_eq!(found.model, own.model);
        assert_eq!(found.tokens.len(), own.tokens.len() + 1);
        let last = found.tokens.last().unwrap();
        assert_eq!((last.text.as_str(), last.kind), ("<|im_end|>", TokenKind::Control));
        let kinds =
            |tokens: &[VocabularyToken]| tokens.iter().map(|t| (t.text.clone(), t.kind)).collect::<Vec<_>>();
        assert_eq!(kinds(&found.tokens[..own.tokens.len()]), kinds(&own.tokens));
        assert_eq!(
            (found.unknown, found.with_flags.as_slice()),
            (Some(0), ["<|im_end|>".to_owned()].as_slice())
        );
    }
    assert_eq!(beside.tokens[..own.tokens.len()], own.tokens[..]);
    // without the model the order of merges is the same: that of the scores
    let normal = |tokens: &[VocabularyToken]| {
        let mut ids: Vec<usize> = (0..own.tokens.len()).collect();
        ids.retain(|&id| own.tokens[id].kind == TokenKind::Normal && own.tokens[id].text.chars().count() > 1);
        ids.sort_by(|&a, &b| tokens[b].score.total_cmp(&tokens[a].score));
        ids
    };
    assert_eq!(normal(&alone.tokens), normal(&own.tokens));
}

#[test]
fn what_blocks_cannot_hold_is_counted_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let gate = "model.layers.1.mlp.gate_proj.weight";
    let up = "model.layers.2.mlp.up_proj.weight";
    let src = altered("teleflm-hd32-bf16-shbin", &dir.path().join("m"), &json!({}), |name, t| {
        let shape = t.shape().clone();
        let mut values: Vec<f32> = t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        match name {
            _ if name == gate => (values[0], values[33], values[34]) = (f32::NAN, f32::INFINITY, 1.0),
            // finite, and its block's scale is not
            _ if name == up => values[5] = 2e9,
            _ => {}
        }
        Some(Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1] {
        let options = GgufOptions { dtype: Some(dtype), ..GgufOptions::default() };
        let plan = GgufPlan::new(&src, None, &options).unwrap();
        let path = dir.path().join(format!("{dtype:?}.gguf"));
        let damaged = plan.write(&src, &path, &|_| ()).unwrap().damaged;
        let of = |name: &str| damaged.iter().find(|d| d.tensor == name).cloned().unwrap();
        assert_eq!(damaged.len(), 2, "{dtype:?} {damaged:?}");
        assert_eq!(of("blk.1.ffn_gate.weight").not_finite, 2, "{dtype:?}");
        assert_eq!(of("blk.2.ffn_up.weight").overflowed_blocks, 1, "{dtype:?}");
        // as candle reads it back: the block and nothing else is not finite
        let mut file = File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let back = content.tensor(&mut file, "blk.2.ffn_up.weight", &Device::Cpu).unwrap();
        let back: Vec<f32> = back.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let broken = back.iter().filter(|v| !v.is_finite()).count();
        assert!((1..=32).contains(&broken), "{dtype:?}: {broken}");
    }
}

#[test]
fn values_that_are_no_numbers_are_counted_in_every_dtype() {
    let dir = tempfile::tempdir().unwrap();
    let gate = "model.layers.1.mlp.gate_proj.weight";
    let src = altered("teleflm-f32-st", &dir.path().join("m"), &json!({}), |name, t| {
        if name != gate {
            return Some(t);
        }
        let shape = t.shape().clone();
        let mut values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        // the last is finite, and beyond f16
        (values[0], values[33], values[40], values[50]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e6);
        Some(Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    for dtype in [None, Some(GgmlDType::F32), Some(GgmlDType::BF16), Some(GgmlDType::F16)] {
        let plan = GgufPlan::new(&src, None, &GgufOptions { dtype, ..GgufOptions::default() }).unwrap();
        let report = plan.write(&src, &dir.path().join(format!("{dtype:?}.gguf")), &|_| ()).unwrap();
        assert_eq!(report.damaged.len(), 1, "{dtype:?} {report:?}");
        let found = &report.damaged[0];
        assert_eq!((found.tensor.as_str(), found.not_finite), ("blk.1.ffn_gate.weight", 3), "{dtype:?}");
        assert_eq!(report.overflowed, u64::from(dtype == Some(GgmlDType::F16)), "{dtype:?}");
    }
}

#[test]
fn several_files_hold_what_one_would() {
    let dir = tempfile::tempdir().unwrap();
    let src = altered("teleflm-f32-st", &dir.path().join("m"), &json!({}), |_, t| Some(t));
    let whole = GgufPlan::new(&src, None, &GgufOptions::default()).unwrap();
    let one = dir.path().join("one.gguf");
    whole.write(&src, &one, &|_| ()).unwrap();
    assert_eq!(whole.paths(&one), std::slice::from_ref(&one));
    let mut file = File::open(&one).unwrap();
    let content = Content::read(&mut file).unwrap();

    let most = 200_000;
    let options = GgufOptions { max_file_size: Some(most), ..GgufOptions::default() };
    let plan = GgufPlan::new(&src, None, &options).unwrap();
    let several = dir.path().join("several.gguf");
    plan.write(&src, &several, &|_| ()).unwrap();
    let paths = plan.paths(&several);
    let count = paths.len();
    assert!(count > 2 && !several.exists());
    assert_eq!(paths[0], dir.path().join(format!("several-00001-of-{count:05}.gguf")));
    let mut names = Vec::new();
    for (number, path) in paths.iter().enumerate() {
        let bytes = std::fs::metadata(path).unwrap().len();
        assert_eq!(bytes, plan.files[number].bytes);
        let mut part_file = File::open(path).unwrap();
        let part = Content::read(&mut part_file).unwrap();
        // a tensor that is larger by itself has its own file
        assert!(bytes <= most || part.tensor_infos.len() == 1, "{bytes}");
        let number_of = |key: &str| match &part.metadata[key] {
            Value::U16(n) => i64::from(*n),
            Value::I32(n) => i64::from(*n),
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(number_of("split.no"), number as i64);
        assert_eq!(number_of("split.count"), count as i64);
        assert_eq!(number_of("split.tensors.count"), content.tensor_infos.len() as i64);
        // the first has all that is known of the model, as gguf-split leaves it
        assert_eq!(part.metadata.len(), if number == 0 { content.metadata.len() + 3 } else { 3 });
        for name in part.tensor_infos.keys() {
            let values = |content: &Content, file: &mut File| -> Vec<f32> {
                let tensor = content.tensor(file, name, &Device::Cpu).unwrap();
                tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            assert_eq!(values(&part, &mut part_file), values(&content, &mut file), "{name}");
            names.push(name.clone());
        }
    }
    names.sort();
    let mut all: Vec<String> = content.tensor_infos.keys().cloned().collect();
    all.sort();
    assert_eq!(names, all);
    // any of the names that is taken stops the export before it begins
    std::fs::remove_file(&paths[0]).unwrap();
    let again = plan.write(&src, &several, &|_| ());
    assert!(matches!(again, Err(ExportError::DestinationExists { .. })), "{again:?}");
    assert!(!paths[0].exists());
}

/// The fixture of a family, with keys of config.json changed.
fn family(name: &str, dir: &Path, keys: &[(&str, serde_json::Value)]) -> Checkpoint {
    let dst = dir.join(name);
    std::fs::create_dir(&dst).unwrap();
    let from = fixture("families").join(name);
    std::fs::copy(from.join("model.safetensors"), dst.join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut raw: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    raw.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    std::fs::write(dst.join("config.json"), serde_json::Value::Object(raw).to_string()).unwrap();
    Checkpoint::open(&dst).unwrap()
}

/// llama.cpp reads these: its greedy tokens are compared by `tests/peers/family_peers.py`.
#[test]
fn families_have_llama_cpps_names_scalars_and_fused_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let written = |src: &Checkpoint| {
        let path = src.dir().join("model.gguf");
        let plan = GgufPlan::new(src, None, &GgufOptions::default()).unwrap();
        plan.write(src, &path, &|_| ()).unwrap();
        let mut file = File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let values = |name: &str| -> Vec<f32> {
            let tensor = content.tensor(&mut File::open(&path).unwrap(), name, &Device::Cpu).unwrap();
            tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let names: Vec<&str> = content.tensor_infos.keys().map(String::as_str).collect();
        let found = ["blk.0.attn_qkv.weight", "blk.0.ffn_up.weight", "blk.0.post_attention_norm.weight"]
            .into_iter()
            .filter(|name| names.contains(name))
            .map(|name| (name, values(name)))
            .collect::<HashMap<_, _>>();
        (plan, found)
    };
    let stored = |src: &Checkpoint, name: &str| -> Vec<f32> {
        read_tensor(src, name, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let block = |part: &str| format!("model.layers.0.{part}.weight");

    let phi3 = family("phi3", dir.path(), &[]);
    let (plan, found) = written(&phi3);
    let joined =
        |parts: &[&str]| parts.iter().flat_map(|part| stored(&phi3, &block(part))).collect::<Vec<_>>();
    assert_eq!(
        found["blk.0.attn_qkv.weight"],
        joined(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])
    );
    assert_eq!(found["blk.0.ffn_up.weight"], joined(&["mlp.gate_proj", "mlp.up_proj"]));
    assert!(plan.notes.iter().any(|note| note.contains("sliding window of 20 tokens")), "{:?}", plan.notes);

    let gemma = family("gemma2", dir.path(), &[("query_pre_attn_scalar", json!(8))]);
    let (plan, found) = written(&gemma);
    let gains: Vec<f32> =
        stored(&gemma, &block("post_attention_layernorm")).iter().map(|gain| gain + 1.0).collect();
    assert_eq!(found["blk.0.post_attention_norm.weight"], gains);
    assert!(plan.foldings.is_empty(), "{:?}", plan.foldings);
    assert!(matches!(plan.value("gemma2.attn_logit_softcapping"), Some(Value::F32(cap)) if *cap == 1.5));

    let granite = family("granite", dir.path(), &[]);
    let (plan, _) = written(&granite);
    for (key, expected) in
        [("embedding_scale", 12.0), ("residual_scale", 0.22), ("logit_scale", 2.5), ("attention.scale", 0.4)]
    {
        let value = plan.value(&format!("granite.{key}"));
        assert!(matches!(value, Some(Value::F32(scale)) if *scale == expected), "{key}: {value:?}");
    }
    // their heads are turned by neighbours as they are stored
    for (name, architecture) in [("helium-biases", "llama"), ("ernie4_5", "ernie4_5")] {
        let (plan, _) = written(&family(name, dir.path(), &[]));
        let value = plan.value("general.architecture");
        assert!(matches!(value, Some(Value::String(name)) if name == architecture), "{name}: {value:?}");
        assert!(plan.tensors.iter().all(|tensor| tensor.head_dim.is_none()), "{name}");
    }
    for (name, keys, what) in [
        ("ernie4_5-biases", vec![], "biases"),
        ("gemma3", vec![("query_pre_attn_scalar", json!(12))], "query_pre_attn_scalar"),
        ("olmo2", vec![], "biases"),
        ("olmo3", vec![("sliding_window", json!(128))], "two kinds of rotary positions"),
        ("exaone4", vec![], "a sliding window"),
        ("smollm3-window", vec![], "a sliding window"),
        ("llama-dynamic", vec![], "rotary scaling"),
    ] {
        let src = family(name, dir.path(), &keys);
        let error = GgufPlan::new(&src, None, &GgufOptions::default()).unwrap_err().to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
}
