#!/usr/bin/env python3
"""A Tele-FLM checkpoint of random bf16 weights and any size, in the form that the 52B was released in: for measuring conversion.

  python synth_checkpoint.py --out DIR [--gb 1] [--shards 3] [--format bin|safetensors] [--zeros]

Needs torch (and safetensors for that format). Only the number of layers follows from --gb (10^9 bytes of weights); the multipliers are
those of CofeAI/Tele-FLM. Tensors go to the shards in the order of the model and every cut falls inside a layer, as in the released
files. With --zeros all weights are zero and holes of sparse files (PyTorch's form only): a checkpoint larger than the disk, to
measure what memory takes (`flm convert DIR OUT --json` prints peak_memory_bytes). The weights depend on the seed and the tensor's name alone: the same tensors come out in both formats and with any number of
shards.
"""
import argparse
import collections
import json
import os
import sys
import zlib

import torch

HIDDEN, HEADS, FFN, VOCAB, BYTES = 1024, 8, 2728, 8192, 2


def layer_shapes(layer):
    """Names and shapes of one layer, in the order of the model."""
    prefix = f"model.layers.{layer}."
    shapes = {prefix + f"self_attn.{p}_proj.weight": (HIDDEN, HIDDEN) for p in "qkvo"}
    shapes[prefix + "mlp.gate_proj.weight"] = shapes[prefix + "mlp.up_proj.weight"] = (FFN, HIDDEN)
    shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, FFN)
    shapes[prefix + "input_layernorm.weight"] = shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
    return shapes


def size(shape):
    """Bytes of a tensor."""
    return BYTES * shape[0] * (shape[1] if len(shape) > 1 else 1)


def model_shapes(target):
    """Names and shapes of a model of about `target` bytes, and its number of layers."""
    ends = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}, {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}
    fixed = sum(size(s) for end in ends for s in end.values())
    layers = max(1, round((target - fixed) / sum(size(s) for s in layer_shapes(0).values())))
    shapes = dict(ends[0])
    for layer in range(layers):
        shapes |= layer_shapes(layer)
    return shapes | ends[1], layers


def cut(shapes, shards):
    """The names of every shard: about equal bytes, each cut moved to the nearest place that is inside a layer."""
    names, at, inside = list(shapes), 0, []
    for i, name in enumerate(names):
        if i and name.startswith("model.layers.") and names[i - 1].startswith(".".join(name.split(".")[:3]) + "."):
            inside.append((at, i))
        at += size(shapes[name])
    cuts = [min(inside, key=lambda place: abs(place[0] - at * n / shards))[1] for n in range(1, shards)]
    if len(set(cuts)) < len(cuts):
        sys.exit(f"{shards} shards are too many for {len(names)} tensors")
    return [names[a:b] for a, b in zip([0, *cuts], [*cuts, len(names)])]


def weight(name, shape, seed):
    """Random values that keep activations of order one; a norm's are near one."""
    generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (1 + 0.1 * values).bfloat16()
    return (values * (0.02 if "embed" in name else shape[1] ** -0.5)).bfloat16()


class Sparse:
    """A file to write to, in which zeros become holes."""

    def __init__(self, path):
        self.file = open(path, "wb")

    def write(self, data):
        data = memoryview(data).cast("B")
        if len(data) >= 4096 and not torch.frombuffer(data, dtype=torch.uint8).any():
            self.file.seek(len(data), os.SEEK_CUR)
        else:
            self.file.write(data)
        return len(data)

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.truncate()
        self.file.close()


def config(layers):
    """The fields of CofeAI/Tele-FLM's config.json; sizes are ours."""
    return {
        "architectures": ["TeleFLMModel", "TeleFLMForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_teleflm.TeleFLMConfig",
            "AutoModel": "modeling_teleflm.TeleFLMModel",
            "AutoModelForCausalLM": "modeling_teleflm.TeleFLMForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "input_mult": 1.0,
        "intermediate_size": FFN,
        "max_position_embeddings": 4096,
        "model_type": "TeleFLM",
        "mup_scale_factor": 16.0,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": HEADS,
        "output_mult": 0.5,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "use_mup": True,
        "vocab_size": VOCAB,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to make; it must not hold anything yet")
    parser.add_argument("--gb", type=float, default=1.0, help="10^9 bytes of weights, met to within half a layer (13 MB)")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--format", choices=["bin", "safetensors"], default="bin")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--zeros", action="store_true", help="zeros, as holes of sparse files")
    args = parser.parse_args()
    if args.shards < 1:
        parser.error("--shards must be at least 1")
    if args.zeros and args.format != "bin":
        parser.error("--zeros goes with --format bin")
    os.makedirs(args.out, exist_ok=True)
    if os.listdir(args.out):
        parser.error(f"{args.out} is not empty")

    shapes, layers = model_shapes(args.gb * 1e9)
    stem, index = {
        "bin": ("pytorch_model", "pytorch_model.bin.index.json"),
        "safetensors": ("model", "model.safetensors.index.json"),
    }[args.format]
    shards, places = cut(shapes, args.shards), {}
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.{args.format}"
        values = (lambda name: torch.zeros(shapes[name], dtype=torch.bfloat16)) if args.zeros else (lambda name: weight(name, shapes[name], args.seed))
        tensors = collections.OrderedDict((name, values(name)) for name in names)
        path = os.path.join(args.out, file)
        if args.zeros:
            sparse = Sparse(path)
            torch.save(tensors, sparse)
            sparse.close()
        elif args.format == "bin":
            torch.save(tensors, path)
        else:
            from safetensors.torch import save_file
            save_file(tensors, path, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
        print(f"{file}: {len(names)} tensors, {os.path.getsize(path)} bytes, {names[0]} to {names[-1]}", file=sys.stderr)
    total = sum(size(s) for s in shapes.values())
    with open(os.path.join(args.out, index), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, f, indent=2)
    with open(os.path.join(args.out, "config.json"), "w") as f:
        json.dump(config(layers), f, indent=2)
    print(f"{args.out}: {layers} layers, {len(shapes)} tensors, {total} bytes of weights", file=sys.stderr)


if __name__ == "__main__":
    main()
