#!/usr/bin/env python3
"""A training step of blocks at the width of Tele-FLM-52B (8192, 64 heads, FFN 21824) against PyTorch.

    wide_block.py --flm target/release/flm --work DIR [--layers 2] [--tokens 256] [--hidden 8192 ...]

`flm init` draws bf16 weights; `flm sft` makes one step from files, in f32 over bf16 weights; PyTorch computes loss and
gradient norm of the same tokens in f32. Two blocks take 13 GB of memory in flm, 17 GB in PyTorch, and 30 GB of disk,
most of it for the state that flm saves after the step. Exit status 1 where loss or norm are more than 1e-5 apart."""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
for name, value in dict(hidden=8192, heads=64, ffn=21824, layers=2, tokens=256, threads=2).items():
    p.add_argument(f"--{name}", type=int, default=value, help=f"[{value}]")
a = p.parse_args()
a.work.mkdir(parents=True, exist_ok=True)
rows, logit_scale = 1024, 2.0 / 64.0
words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, rows))]
tokenizer = dict(version="1.0", truncation=None, padding=None, normalizer=None, post_processor=None, decoder=None,
                 pre_tokenizer=dict(type="Whitespace"),
                 added_tokens=[dict(id=i, content=words[i], single_word=False, lstrip=False, rstrip=False,
                                    normalized=False, special=True) for i in range(3)],
                 model=dict(type="WordLevel", vocab={word: i for i, word in enumerate(words)}, unk_token="<unk>"))
sizes = dict(hidden_size=a.hidden, intermediate_size=a.ffn, num_hidden_layers=a.layers, num_attention_heads=a.heads,
             num_key_value_heads=a.heads, vocab_size=rows, rms_norm_eps=1e-5, max_position_embeddings=4096)
config = sizes | dict(model_type="TeleFLM", rope_theta=10000.0, tie_word_embeddings=False, use_mup=True,
                      input_mult=1.0, output_mult=2.0, mup_scale_factor=64.0, bos_token_id=1, eos_token_id=2)
ids = [3 + (i * 7919 + i * i * 31) % (rows - 3) for i in range(a.tokens - 1)]
(a.work / "tokenizer").mkdir(exist_ok=True)
(a.work / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
(a.work / "config.json").write_text(json.dumps(config))
(a.work / "data.jsonl").write_text(json.dumps({"text": " ".join(words[i] for i in ids)}) + "\n")


def flm(*arguments):
    command = [str(word) for word in (a.flm, *arguments, "--quiet", "--threads", a.threads)]
    subprocess.run(command, cwd=a.work, check=True, stdout=subprocess.DEVNULL)


for made in ("model", "run"):
    shutil.rmtree(a.work / made, ignore_errors=True)
flm("init", "config.json", "model", "--tokenizer", "tokenizer", "--dtype", "bf16", "--seed", 3)
flm("sft", "--model", "model", "--data", "data.jsonl", "--output", "run", "--batch-size", 1, "--context", a.tokens,
    "--epochs", 1, "--lr", "1e-5", "optimizer.weights=bf16", "train.max_steps=1", "memory.placement=disk")
step = json.loads((a.work / "run" / "metrics.jsonl").read_text().splitlines()[0])
shutil.rmtree(a.work / "run")

torch.set_num_threads(a.threads)
llama = LlamaConfig(**sizes, rope_parameters=dict(rope_type="default", rope_theta=10000.0), tie_word_embeddings=False)
with torch.device("meta"):
    model = LlamaForCausalLM(llama)
stored = {}
for file in sorted((a.work / "model").glob("*.safetensors")):
    stored |= load_file(file)
model.load_state_dict({name: stored.pop(name).float() for name in list(stored)}, assign=True)
model.model.rotary_emb = type(model.model.rotary_emb)(llama)
text = torch.tensor([[*ids, 2]])
logits = model.lm_head(model.model(text).last_hidden_state)[0, :-1] * logit_scale
loss = torch.nn.functional.cross_entropy(logits, text[0, 1:])
loss.backward()
norm = sum((value.grad.double() ** 2).sum() for value in model.parameters()).sqrt().item()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(f"{'':8}{'loss':>14}{'gradient norm':>18}{'memory':>12}")
print(f"{'flm':8}{step['loss']:14.9f}{step['gradient_norm']:18.10f}{step['peak_memory'] / 1e9:9.2f} GB")
print(f"{'PyTorch':8}{loss.item():14.9f}{norm:18.10f}{peak / 1e9:9.2f} GB")
apart = max(abs(step["loss"] / loss.item() - 1), abs(step["gradient_norm"] / norm - 1))
print(f"apart: {apart:.1e}")
os.sync()
sys.exit(apart > 1e-5)
