#!/usr/bin/env python3
"""Folders as other programs and people leave them: odd keys of config.json, odd weights folders, odd ways to
declare tokens, each opened by flm and by transformers.

    python tests/peers/odd_inputs.py --flm target/release/flm [--only NAME...] [--all]

Everything is made here, at random and small. A case is right where flm computes what transformers computes
(logits within 1e-4 of the largest, token ids equal), or refuses with one line and status 1; what flm opens
and transformers does not is listed with --all, as are refusals. Exit status 1 where a number or an id
differs without being listed in KNOWN, or where flm ends in anything but status 0 or 1. Needs torch,
transformers and safetensors."""

import argparse
import copy
import json
import logging
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.utils import logging as hf_logging  # noqa: E402

hf_logging.disable_progress_bar()

# What differs on purpose, and why.
WORD = "tokenizer_config.json has the last word"
KNOWN = {
    "tokens: add_bos_token false beside a post-processor": WORD,
    "tokens: add_bos_token true without a post-processor": WORD,
    "tokens: add_eos_token true": WORD,
    "tokens: special_tokens_map.json and tokenizer_config.json disagree": WORD,
    "weights: a NaN": "NaN equals nothing",
}
IDS = [1, 5, 17, 9, 30, 2, 44]
ABSENT = object()
SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float32",
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **SIZES,
}


def rope(kind, **more):
    return {"rope_scaling": {"rope_type": kind, **more}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
CONFIGS = {
    "nothing odd": {},
    "default type with a factor": rope("default", factor=4.0),
    "empty rope_scaling": {"rope_scaling": {}},
    "linear under the old key": {"rope_scaling": {"type": "linear", "factor": 2}},
    "both names of the type, which disagree": {"rope_scaling": {"type": "linear", "rope_type": "default"}},
    "linear without a factor": rope("linear"),
    "llama3": rope("llama3", factor=8, **LLAMA3),
    "llama3 without a bound": rope("llama3", factor=8.0, original_max_position_embeddings=16),
    "llama3 in rope_parameters, theta in both places": {
        "rope_theta": 500.0,
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 300.0, **LLAMA3},
    },
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "yarn with its own attention factor": rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.9, beta_fast=16
    ),
    "yarn with mscale": rope(
        "yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.5
    ),
    "yarn not truncated": rope("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
    "yarn without the old context": rope("yarn", factor=4.0),
    "dynamic": rope("dynamic", factor=2.0),
    "longrope": rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4),
    "rope_parameters by kind of layer": {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    "rope_scaling beside rope_parameters": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "half rotary": {"partial_rotary_factor": 0.5},
    "theta absent": {"rope_theta": ABSENT},
    "theta a word": {"rope_theta": "10000"},
    "theta 0": {"rope_theta": 0},
    "kv heads null": {"num_key_value_heads": None},
    "kv heads 3": {"num_key_value_heads": 3},
    "eps absent": {"rms_norm_eps": ABSENT},
    "eps 0": {"rms_norm_eps": 0.0},
    "eps a word": {"rms_norm_eps": "1e-5"},
    "fewer rows than stored": {"vocab_size": 60},
    "more rows than stored": {"vocab_size": 70},
    "gelu": {"hidden_act": "gelu"},
    "swish": {"hidden_act": "swish"},
    "activation absent": {"hidden_act": ABSENT},
    "tie absent": {"tie_word_embeddings": ABSENT},
    "tied beside another head": {"tie_word_embeddings": True},
    "fewer layers than stored": {"num_hidden_layers": 1},
    "more layers than stored": {"num_hidden_layers": 3},
    "a window on llama": {"sliding_window": 3},
    "a window that is used": {"sliding_window": 3, "use_sliding_window": True},
    "mistral with a window": {**MISTRAL, "sliding_window": 3},
    "mistral without one": {**MISTRAL, "sliding_window": None},
    "mistral that says nothing": MISTRAL,
    "sliding layers": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3},
    "biases that are not stored": {"attention_bias": True},
    "another width of heads": {"head_dim": 16},
    "context of 4": {"max_position_embeddings": 4},
    "context a float": {"max_position_embeddings": 64.0},
    "weights of another dtype": {"torch_dtype": "bfloat16"},
    "dtype with its module": {"torch_dtype": "torch.float32"},
    "attention both ways": {"is_causal": False},
    "a multiplier of 1": {"logits_scaling": 1.0},
    "logits scaled": {"logits_scaling": 8.0},
    "embedding scaled": {"embedding_multiplier": 12.0},
    "attention scaled": {"attention_multiplier": 0.5},
    "layers without rotary": {"no_rope_layers": [1, 0]},
    "experts": {"num_experts": 8},
    "quantised": {"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}},
    "eos a word": {"eos_token_id": "2"},
    "eos beyond the vocabulary": {"eos_token_id": 999},
    "an unknown key": {"foo_bar": 3},
    "a family that is not there": {"model_type": "gpt_neox"},
}


class Bench:
    """Where cases are made, opened by both, and counted."""

    def __init__(self, flm, work, only, all_cases):
        self.flm, self.dir, self.only, self.all = str(pathlib.Path(flm).resolve()), work / "m", only, all_cases
        self.counts = {"same": 0, "refused": 0, "only flm": 0, "known": 0, "wrong": 0}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).float()
        for p in model.parameters():
            p.data.normal_(0, 0.3)
        self.tensors = {k: v.clone() for k, v in model.state_dict().items()}

    def fresh(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)

    def folder(self, config=None, tensors=None, name="model.safetensors"):
        self.fresh()
        keys = {**CONFIG, **(config or {})}
        keys = {k: v for k, v in keys.items() if v is not ABSENT}
        (self.dir / "config.json").write_text(json.dumps(keys))
        if tensors is None:
            tensors = self.tensors
        if tensors:
            self.save(tensors, name)

    def save(self, tensors, name):
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
        save_file(tensors, self.dir / name, metadata={"format": "pt"})

    def index(self, places, name=INDEX, **more):
        (self.dir / name).write_text(json.dumps({"metadata": {}, "weight_map": places, **more}))

    def run(self, *args):
        command = [self.flm, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)

    def tell(self, name, kind, what):
        if kind == "wrong" and name in KNOWN:
            kind, what = "known", f"{what} ({KNOWN[name]})"
        self.counts[kind] += 1
        if self.all or kind in ("wrong", "known"):
            print(f"{kind:8} {name}: {what}", flush=True)

    def wanted(self, name):
        return not self.only or any(part in name for part in self.only)

    def logits(self, name):
        """Compares the logits of the folder that was made."""
        out = self.dir.parent / "logits.safetensors"
        out.unlink(missing_ok=True)
        ids = ",".join(map(str, IDS))
        ran = self.run("logits", self.dir, "--ids", ids, "--dtype", "f32", "--out", out)
        said = (ran.stderr.strip().splitlines() or [""])[-1]
        if ran.returncode != 0:
            clean = ran.returncode == 1 and said.startswith("error: ") and "panicked" not in ran.stderr
            return self.tell(name, "refused" if clean else "wrong", f"status {ran.returncode}: {said[:160]}")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.dir, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            with torch.no_grad():
                right = model(torch.tensor([IDS])).logits[0].double()
        except Exception as e:  # whatever it refuses with
            return self.tell(name, "only flm", f"transformers: {type(e).__name__}: {str(e)[:100]}")
        got = load_file(out)["logits"].double()
        apart = float((got - right).abs().max() / right.abs().max())
        return self.tell(name, "same" if apart < 1e-4 else "wrong", f"{apart:.1e} of the largest logit")

    def ids(self, name, texts):
        """Compares the ids of texts, and the tokens that begin and end one."""
        differ, refused = [], ""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.dir)
        except Exception as e:
            tokenizer, refused = None, f"transformers: {type(e).__name__}: {str(e)[:100]}"
        for text in texts:
            ran = self.run("tokenize", self.dir, text, "--json")
            if ran.returncode != 0:
                clean = ran.returncode == 1 and "panicked" not in ran.stderr
                return self.tell(name, "refused" if clean else "wrong", ran.stderr.strip()[-160:])
            if tokenizer is None:
                return self.tell(name, "only flm", refused)
            got, right = json.loads(ran.stdout), tokenizer(text).input_ids
            if got["ids"] != right:
                differ.append(f"{text!r}: {got['ids'][:8]}, transformers {right[:8]}")
            stop = [token["id"] for token in got["stop"]]
            if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stop:
                differ.append(f"EOS {tokenizer.eos_token_id} is not among {stop}")
        return self.tell(name, "wrong" if differ else "same", " | ".join(differ[:2]))


def configs(bench):
    for name, keys in CONFIGS.items():
        if bench.wanted(f"config: {name}"):
            bench.folder(keys)
            bench.logits(f"config: {name}")


def parts(bench):
    """Header and data of the folder's safetensors file."""
    blob = (bench.dir / "model.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8:end]), blob[end:]


def with_header(bench, change):
    bench.folder()
    header, data = parts(bench)
    header = change(header)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (bench.dir / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def weights(bench):
    t = bench.tensors
    names = list(t)
    first, second = ({k: t[k] for k in part} for part in (names[:10], names[10:]))
    other = {k: v + 0.5 for k, v in t.items()}
    norm, up = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"

    def sharded(one=first, two=second):
        bench.folder(tensors={})
        bench.save(one, SHARDS[0])
        bench.save(two, SHARDS[1])
        places = {**dict.fromkeys(one, SHARDS[0]), **dict.fromkeys(two, SHARDS[1])}
        bench.index(places)
        return places

    def binary(state, config=None, **options):
        bench.folder(config, tensors={})
        torch.save(state, bench.dir / "pytorch_model.bin", **options)

    def changed(name, value, config=None):
        bench.folder(config, tensors={**t, name: value})

    def tied(head_value, embedding_value=None):
        row = t[embedding] if embedding_value is None else embedding_value
        bench.folder({"tie_word_embeddings": True}, tensors={**t, embedding: row, head: head_value})

    def beside():
        bench.folder()
        torch.save(other, bench.dir / "pytorch_model.bin")

    def missing():
        sharded()
        (bench.dir / SHARDS[1]).unlink()

    def stray():
        sharded()
        bench.save(other, "model-00003-of-00003.safetensors")

    def twice():
        places = sharded(two={**second, names[0]: other[names[0]]})
        bench.index({**places, names[0]: SHARDS[0]})

    def wrong_shard():
        bench.index({**sharded(), names[0]: SHARDS[1]})

    def whole_and_shards():
        sharded()
        bench.save(other, "model.safetensors")

    def outside():
        bench.index({k: f"../{v}" for k, v in sharded().items()})

    def mixed_index():
        places = sharded()
        torch.save(second, bench.dir / "b.bin")
        bench.index({k: v if v == SHARDS[0] else "b.bin" for k, v in places.items()})

    def link(target, keep=True):
        bench.folder()
        path = bench.dir / "model.safetensors"
        if keep:
            path.rename(bench.dir / target)
        else:
            path.unlink()
        path.symlink_to(target)

    def bytes_instead(content):
        bench.folder()
        (bench.dir / "model.safetensors").write_bytes(content)

    def cut(size):
        bench.folder()
        os.truncate(bench.dir / "model.safetensors", size)

    def appended():
        bench.folder()
        with open(bench.dir / "model.safetensors", "ab") as file:
            file.write(bytes(16))

    nan = t[norm].clone()
    nan[0] = float("nan")
    rounded = t[embedding].bfloat16()
    one_off = t[embedding].clone()
    one_off[3, 3] += 1
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    fused = torch.cat([t[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"])
    views = dict(t)
    for n, a, b in (("q", 0, 32), ("k", 32, 48), ("v", 48, 64)):
        views[f"model.layers.0.self_attn.{n}_proj.weight"] = fused[a:b]
    cases = {
        "safetensors beside a .bin with other values": beside,
        "a shard of the index is not there": missing,
        "a stray shard": stray,
        "a tensor in two shards": twice,
        "the index names the wrong shard": wrong_shard,
        "one file and shards": whole_and_shards,
        "the index leaves the folder": outside,
        "the index names both forms": mixed_index,
        "a link to the weights": lambda: link("elsewhere"),
        "a dangling link": lambda: link("/nowhere/at/all", keep=False),
        "a link to itself": lambda: link("model.safetensors", keep=False),
        "an empty file": lambda: bytes_instead(b""),
        "an empty header": lambda: bytes_instead(struct.pack("<Q", 2) + b"{}"),
        "a page of HTML": lambda: bytes_instead(b"<!DOCTYPE html><html>"),
        "a pointer of Git LFS": lambda: bytes_instead(b"version https://git-lfs.github.com/spec/v1\n"),
        "a file that was cut": lambda: cut(5000),
        "bytes after the end": appended,
        "an int8 matrix": lambda: changed(up, (t[up] * 10).to(torch.int8)),
        "an fp8 matrix": lambda: changed(up, t[up].to(torch.float8_e4m3fn)),
        "norms of int64": lambda: changed(norm, t[norm].to(torch.int64)),
        "a norm in f64": lambda: changed(norm, t[norm].double()),
        "a transposed matrix": lambda: changed(up, t[up].t()),
        "a norm with a dimension more": lambda: changed(norm, t[norm][None]),
        "a norm without dimensions": lambda: changed(norm, torch.tensor(1.0)),
        "a NaN": lambda: changed(norm, nan),
        "rotary buffers": lambda: changed("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        "a bias that the model does not have": lambda: changed(
            "model.layers.0.self_attn.q_proj.bias", torch.ones(32)
        ),
        "a tensor of no elements": lambda: changed("extra", torch.zeros(0)),
        "f64": lambda: bench.folder({"torch_dtype": "float64"}, {k: v.double() for k, v in t.items()}),
        "three dtypes": lambda: bench.folder(
            tensors={k: v.to(dtypes[i % 3]) for i, (k, v) in enumerate(t.items())}
        ),
        "no prefix": lambda: bench.folder(tensors={k.removeprefix("model."): v for k, v in t.items()}),
        "another prefix": lambda: bench.folder(tensors={f"module.{k}": v for k, v in t.items()}),
        "no head, not tied": lambda: bench.folder(tensors={k: v for k, v in t.items() if k != head}),
        "tied, the same head": lambda: tied(t[embedding].clone()),
        "tied, the same head in another dtype": lambda: tied(rounded, rounded.float()),
        "tied, one element differs": lambda: tied(one_off),
        "tied, rounded to f16": lambda: tied(t[embedding].half()),
        "a name twice in the header": lambda: with_header(
            bench,
            lambda h: (json.dumps(h)[:-1] + f', "{norm}": {json.dumps(h[norm])}}}').encode(),
        ),
        "a header with blanks": lambda: with_header(bench, lambda h: json.dumps(h).encode() + b" " * 8192),
        "metadata that is no text": lambda: with_header(bench, lambda h: {**h, "__metadata__": {"n": 3}}),
        "no metadata": lambda: with_header(
            bench, lambda h: {k: v for k, v in h.items() if k != "__metadata__"}
        ),
        "an unknown dtype": lambda: with_header(bench, lambda h: {**h, norm: {**h[norm], "dtype": "X9"}}),
        "a .bin with shared storage": lambda: binary({**t, head: t[embedding]}),
        "a .bin with views of one storage": lambda: binary(views),
        "a .bin with a transposed view": lambda: binary({**t, up: t[up].t().contiguous().t()}),
        "a .bin of parameters": lambda: binary({k: torch.nn.Parameter(v.clone()) for k, v in t.items()}),
        "a .bin with a number": lambda: binary({**t, "epoch": 3}),
        "a .bin in a dict": lambda: binary({"model": t}),
        "a .bin of the old format": lambda: binary(t, _use_new_zipfile_serialization=False),
        "a .bin with an object": lambda: binary({**t, "config": LlamaConfig(**SIZES)}),
    }
    for name, make in cases.items():
        if bench.wanted(f"weights: {name}"):
            make()
            bench.logits(f"weights: {name}")


BOS, EOS, EOT = "<|begin|>", "<|end|>", "<|eot|>"
TEXTS = [
    "Hello there",
    "  two  spaces ",
    f"a<think>b {EOT} c",
    "x <extra> y<extra>z",
    "naïve 你好 \n\n\t7",
    "",
]
NAMED = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}


def base_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["Hello there, two spaces and the rest of it"] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (BOS, EOS, EOT)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return json.loads(tokenizer.to_str())


def tokens(bench):
    base = base_tokenizer()
    at = {token["content"]: token["id"] for token in base["added_tokens"]}
    free = max(at.values()) + 1

    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}

    def template(*single, **ids):
        used = {item["SpecialToken"]["id"] for item in single if "SpecialToken" in item}
        named = {n: {"id": n, "ids": ids.get("ids", [at[n]]), "tokens": [n]} for n in used}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        return {
            "type": "TemplateProcessing",
            "single": list(single),
            "pair": pair,
            "special_tokens": named,
        }

    plain = template(special(BOS), text)
    roberta = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False}
    ends = {"sep": [EOS, at[EOS]], "cls": [BOS, at[BOS]]}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

    def decoder(token_id=free, **flags):
        token = {"content": "<extra>", "lstrip": False, "rstrip": False, "single_word": False}
        token = {**token, "normalized": False, "special": True, **flags}
        return {"added_tokens_decoder": {str(token_id): token}}

    def token(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "rstrip": False}

    def of(processor=plain, config=None, files=None, **keys):
        def make():
            bench.folder(tensors={})
            written = {**copy.deepcopy(base), "post_processor": processor, **keys}
            (bench.dir / "tokenizer.json").write_text(json.dumps(written))
            if config is not False:
                (bench.dir / "tokenizer_config.json").write_text(json.dumps({**NAMED, **(config or {})}))
            for name, content in (files or {}).items():
                (bench.dir / name).write_text(json.dumps(content))

        return make

    truncated = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    padded = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_id": at[EOS], "pad_type_id": 0}
    lower = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    cases = {
        "BOS by a post-processor": of(),
        "the same in a sequence": of({"type": "Sequence", "processors": [level, plain]}),
        "BOS and EOS by a post-processor": of(template(special(BOS), text, special(EOS))),
        "EOS alone by a post-processor": of(template(text, special(EOS))),
        "BOS twice by a post-processor": of(template(special(BOS), special(BOS), text)),
        "two tokens by a post-processor": of(template(special(EOT), special(BOS), text)),
        "another token than bos_token": of(template(special(EOT), text)),
        "a token of several ids": of(template(special(BOS), text, ids=[at[BOS], at[EOT]])),
        "RoBERTa's post-processor": of({**roberta, **ends}),
        "BERT's post-processor": of({"type": "BertProcessing", **ends}),
        "no post-processor": of(None),
        "add_bos_token true without a post-processor": of(None, {"add_bos_token": True}),
        "add_bos_token false beside a post-processor": of(config={"add_bos_token": False}),
        "add_eos_token true": of(config={"add_eos_token": True}),
        "names as objects": of(config={"bos_token": token(BOS), "eos_token": token(EOS)}),
        "no names anywhere": of(config={"bos_token": None, "eos_token": None}),
        "no tokenizer_config.json": of(config=False),
        "special_tokens_map.json alone": of(
            config=False, files={"special_tokens_map.json": {"bos_token": BOS, "eos_token": EOT}}
        ),
        "special_tokens_map.json and tokenizer_config.json disagree": of(
            files={"special_tokens_map.json": {"bos_token": BOS, "eos_token": EOT}}
        ),
        "a token in added_tokens_decoder": of(config=decoder()),
        "one that takes white space": of(config=decoder(lstrip=True, rstrip=True)),
        "one that is a word of its own": of(config=decoder(single_word=True)),
        "one that is not special": of(config=decoder(special=False)),
        "one that is normalised": of(config=decoder(normalized=True)),
        "one beyond a hole": of(config=decoder(free + 5)),
        "one on another's id": of(config=decoder(5)),
        "added_tokens.json": of(files={"added_tokens.json": {"<extra>": free}}),
        "additional_special_tokens": of(config={"additional_special_tokens": ["<extra>"]}),
        "extra_special_tokens": of(config={"extra_special_tokens": {"image_token": "<extra>"}}),
        "a pad_token of its own": of(config={"pad_token": "<extra>"}),
        "split_special_tokens": of(config={"split_special_tokens": True}),
        "truncation in tokenizer.json": of(truncation=truncated),
        "padding in tokenizer.json": of(padding={**padded, "pad_to_multiple_of": None, "pad_token": EOS}),
        "a normaliser": of(normalizer=lower),
    }
    for name, make in cases.items():
        if bench.wanted(f"tokens: {name}"):
            make()
            bench.ids(f"tokens: {name}", TEXTS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flm", default="target/release/flm")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases")
    parser.add_argument("--all", action="store_true", help="list what is right, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options.flm, pathlib.Path(work), options.only, options.all)
        configs(bench)
        weights(bench)
        tokens(bench)
    print(", ".join(f"{count} {kind}" for kind, count in bench.counts.items()))
    sys.exit(1 if bench.counts["wrong"] else 0)


if __name__ == "__main__":
    main()
