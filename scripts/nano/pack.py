#!/usr/bin/env python3
"""Stores a checkpoint as the released models are stored: PyTorch shards with an index.
usage: pack.py CHECKPOINT_DIR OUT_DIR [--shards 4]     (pip install torch safetensors)"""
import argparse, json, pathlib, shutil
import torch
from safetensors.torch import load_file

ap = argparse.ArgumentParser(); ap.add_argument("checkpoint", type=pathlib.Path); ap.add_argument("out", type=pathlib.Path)
ap.add_argument("--shards", type=int, default=4); a = ap.parse_args()
a.out.mkdir(parents=True, exist_ok=True)
tensors = {}
for path in sorted(a.checkpoint.glob("*.safetensors")): tensors.update(load_file(path))
layer = lambda name: int(name.split(".")[2]) if ".layers." in name else -1 if "embed" in name else 10**6
names = sorted(tensors, key=lambda name: (layer(name), name))
total = sum(t.numel() * t.element_size() for t in tensors.values())
shards, size = [[]], 0
for name in names:
    nbytes = tensors[name].numel() * tensors[name].element_size()
    if shards[-1] and size + nbytes / 2 > total / a.shards * len(shards): shards.append([])
    shards[-1].append(name); size += nbytes
weight_map = {}
for old in a.out.glob("pytorch_model*"): old.unlink()
for index, shard in enumerate(shards):
    file = f"pytorch_model-{index + 1:05}-of-{len(shards):05}.bin"
    torch.save({name: tensors[name].clone() for name in shard}, a.out / file)
    weight_map.update(dict.fromkeys(shard, file))
(a.out / "pytorch_model.bin.index.json").write_text(
    json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
for name in ("config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
    shutil.copyfile(a.checkpoint / name, a.out / name)
print(f"{len(shards)} shards, {sum(p.stat().st_size for p in a.out.iterdir())} bytes in all")
