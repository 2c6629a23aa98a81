#!/usr/bin/env python3
"""A real Llama in the form of other families: the same tokens.

    reexpressed.py --flm target/release/flm --work DIR SMOLLM2_DIR

The weights are stored again as other families store them, with what these have besides set to what changes nothing:
biases of zero, scalars of one, positions in every layer, a window as long as the context, fused matrices, rows of
heads in the order in which neighbours are turned. flm then continues three prompts greedily. Exit status 1 where a form gives other tokens than the original."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=Path)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--tokens", type=int, default=24)
a = p.parse_args()
a.work.mkdir(parents=True, exist_ok=True)
config = json.loads((a.model / "config.json").read_text())
weights = load_file(a.model / "model.safetensors")
layers, head = config["num_hidden_layers"], config["hidden_size"] // config["num_attention_heads"]
full = ["full_attention"] * layers


def biased(parts):
    more = {}
    for name, value in weights.items():
        if any(name.endswith(f"{part}.weight") for part in parts):
            more[name.replace(".weight", ".bias")] = torch.zeros(value.shape[0], dtype=value.dtype)
    return weights | more


def fused():
    out = {}
    for name, value in weights.items():
        layer = name.rsplit(".", 3)[0]
        if ".q_proj" in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            out[f"{layer}.self_attn.qkv_proj.weight"] = torch.cat(parts)
        elif ".gate_proj" in name:
            out[f"{layer}.mlp.gate_up_proj.weight"] = torch.cat([value, weights[name.replace("gate", "up")]])
        elif not any(part in name for part in (".k_proj", ".v_proj", ".up_proj")):
            out[name] = value
    return out


def paired():
    """Rows i and i + half of a head next to each other."""
    def pairs(rows):
        return rows.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)

    return {name: pairs(rows) if ".q_proj" in name or ".k_proj" in name else rows for name, rows in weights.items()}


def renamed(names, packed):
    """Under other names, `packed` of a layer in place of what it takes."""
    out = {}
    for name, value in weights.items():
        for llamas, own in names:
            name = name.replace(llamas, own)
        if not any(part in name for part in (".q_proj", ".k_proj", ".v_proj")):
            out[name] = value
    for layer in range(layers):
        q, k, v = (weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv")
        out |= packed(layer, *(rows.unflatten(0, (config["num_key_value_heads"], -1)) for rows in (q, k, v)))
    return out


def internlm2():
    names = [("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("self_attn.o_proj", "attention.wo"),
             ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
             ("mlp.gate_proj", "feed_forward.w1"), ("mlp.down_proj", "feed_forward.w2"),
             ("mlp.up_proj", "feed_forward.w3")]
    return renamed(names, lambda layer, q, k, v: {
        f"model.layers.{layer}.attention.wqkv.weight": torch.cat([q, k, v], 1).flatten(0, 1)})


def telechat():
    names = [("model.embed_tokens", "transformer.word_embeddings"), ("model.layers", "transformer.h"),
             ("model.norm", "transformer.ln_f"), ("self_attn.o_proj", "self_attention.dense")]
    out = renamed(names, lambda layer, q, k, v: {
        f"transformer.h.{layer}.self_attention.query.weight": q.flatten(0, 1),
        f"transformer.h.{layer}.self_attention.key_value.weight": torch.cat([k, v], 1).flatten(0, 1)})
    zero = torch.zeros(config["hidden_size"], dtype=weights["model.norm.weight"].dtype)
    for layer in range(layers):
        out |= {f"transformer.h.{layer}.{part}.bias": zero.clone() for part in ("self_attention.dense", "mlp.down_proj")}
    return out


QKV = ["q_proj", "k_proj", "v_proj"]
SCALARS = dict(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=head**-0.5)
FORMS = {
    "original": ({}, weights),
    "llama with biases": (
        dict(attention_bias=True, mlp_bias=True),
        biased([*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"]),
    ),
    "mistral": (dict(model_type="mistral", sliding_window=config["max_position_embeddings"]), weights),
    "ministral": (dict(model_type="ministral", layer_types=full), weights),
    "qwen2": (dict(model_type="qwen2"), biased(QKV)),
    "granite": (dict(model_type="granite", **SCALARS), weights),
    "smollm3": (dict(model_type="smollm3", no_rope_layers=[1] * layers), weights),
    "phi3": (dict(model_type="phi3", sliding_window=None), fused()),
    "helium": (dict(model_type="helium", head_dim=head), paired()),
    "ernie4_5": (dict(model_type="ernie4_5", head_dim=head), paired()),
    "internlm2": (dict(model_type="internlm2", bias=False), internlm2()),
    "telechat": (dict(model_type="telechat", base_seqlen=config["max_position_embeddings"]), telechat()),
}
prompts = ["The river was low that summer, and", "def fibonacci(n):", "1. Wash the rice."]
expected, wrong = None, 0
for name, (keys, tensors) in FORMS.items():
    folder = a.work / "form"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in a.model.iterdir():
        if file.suffix in (".json", ".txt", ".jinja") and file.name != "config.json":
            shutil.copy(file, folder)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    own = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "ffn_hidden_size": "intermediate_size",
           "layer_norm_epsilon": "rms_norm_eps", "training_seqlen": "max_position_embeddings"}
    written = config | keys
    if name == "telechat":
        written |= {key: written.pop(llamas) for key, llamas in own.items()} | {"rope_theta": config["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(written))
    ids = []
    for prompt in prompts:
        command = [a.flm, "generate", folder, "--prompt", prompt, "--max-new-tokens", a.tokens]
        command += ["--temperature", 0, "--dtype", "f32", "--json", "--quiet"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip()}")
        ids.append(json.loads(done.stdout)["ids"])
    expected = expected or ids
    wrong += ids != expected
    print(f"{name:20} {'the same tokens' if ids == expected else 'OTHER tokens'}", flush=True)
sys.exit(wrong > 0)
