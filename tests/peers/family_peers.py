#!/usr/bin/env python3
"""Every family of models, grown, folded, trained and exported by flm, in transformers and llama.cpp.

    family_peers.py --flm target/release/flm --work DIR [--seeds 3] [--node DIR --tokenizer SMOLLM2_DIR] [NAME...]

For each form of tests/fixtures/families/make_families.py (or those named) and each seed a random model is made by
transformers. Then, in f32:

- `flm logits` of both forms of config.json against transformers;
- `flm grow` by zero (all sizes at three placements, sizes that divide nothing), by clone (twice the width, heads and
  units), by msg and `flm fold`: each output is opened by transformers, its logits against the source's;
- with --tokenizer, on one model with its vocabulary: 20 steps of `flm sft` after growth by zero, losses against
  PyTorch's AdamW in f32 and in f64;
- with --node too, `flm export gguf`: 24 greedy tokens of 4 prompts in llama.cpp against transformers'.

A difference is the largest of all logits, as a fraction of the largest. Exit status 1 where one is above 1e-5, a
loss is further than 1e-5 from PyTorch's f32 and twice as far from its f64 as that is, or tokens differ. Where flm refuses, its words are printed."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fixtures" / "families"))
from make_families import CASES, random_model, save  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("names", nargs="*", choices=[[], *CASES])
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--seeds", type=int, default=3)
p.add_argument("--node", type=Path)
p.add_argument("--tokenizer", type=Path)
p.add_argument("--steps", type=int, default=20)
a = p.parse_args()
a.work.mkdir(parents=True, exist_ok=True)
failed = 0
BETAS, EPS, RATE = (0.9, 0.95), 1e-8, 1e-3


def flm(*arguments):
    done = subprocess.run([a.flm, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:160])
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def line(what, value, good=None):
    global failed
    failed += good is False
    print(f"    {what:34} {value}{'' if good in (None, True) else '   <-- BAD'}", flush=True)


@torch.no_grad()
def logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()(ids[None]).logits[0]


def off(x, y):
    columns = min(x.shape[1], y.shape[1])
    return ((x[:, :columns] - y[:, :columns]).abs().max() / y.abs().max()).item()


def flm_logits(folder, ids):
    out = a.work / "logits.safetensors"
    out.unlink(missing_ok=True)
    flm("logits", folder, "--ids", ",".join(map(str, ids.tolist())), "--dtype", "f32", "--out", out)
    return load_file(out)["logits"]


def sizes(config):
    """Larger sizes: one that divides nothing, and twice as much."""
    c, head = config, config.num_attention_heads // config.num_key_value_heads
    hidden, heads, kv = c.hidden_size, c.num_attention_heads, c.num_key_value_heads
    whole = c.model_type.startswith("olmo")
    odd = dict(hidden=hidden * 3 // 2, ffn=c.intermediate_size * 3 // 2 + 1, layers=c.num_hidden_layers + 2)
    if not whole:
        odd |= {"heads": heads + head, "kv-heads": kv + 1}
    # the width of heads is derived from the model's, or the output projection is square
    if not whole and (not getattr(c, "head_dim", None) or c.model_type in ("helium", "baichuan", "internlm2",
                                                                        "telechat")):
        odd["hidden"] = hidden // heads * odd["heads"]
    double = {"hidden": 2 * hidden, "heads": 2 * heads, "kv-heads": 2 * kv, "ffn": 2 * c.intermediate_size}
    return odd, double


def options(sizes):
    return [word for key, value in sizes.items() for word in (f"--{key}", value)]


# what llama.cpp has built in where the form has something else
BUILT_IN = {
    "gemma2": dict(query_pre_attn_scalar=8),
    "gemma3": dict(
        query_pre_attn_scalar=8,
        sliding_window_pattern=6,
        num_hidden_layers=6,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", factor=2.0, rope_theta=1e6),
            sliding_attention=dict(rope_type="default", rope_theta=1e4),
        ),
    ),
    "olmo2": dict(attention_bias=False),
    "exaone4": dict(sliding_window=None, layer_types=["full_attention"] * 4),
    "phi3": dict(sliding_window=None),
    "phi3-longrope": dict(
        original_max_position_embeddings=1024,
        rope_parameters=CASES["phi3-longrope"][2]["rope_parameters"] | dict(original_max_position_embeddings=1024),
    ),
    "mistral-window": dict(sliding_window=64),
    "ernie4_5-biases": dict(use_bias=False),
    "internlm2": dict(rope_parameters=dict(rope_type="default", rope_theta=1e6)),
}


def with_tokenizer(name):
    """A model with SmolLM2's vocabulary and its tokenizer."""
    model = random_model(name, 7, **dict(vocab_size=49152, max_position_embeddings=1024) | BUILT_IN.get(name, {}))
    folder = a.work / "words"
    shutil.rmtree(folder, ignore_errors=True)
    save(model, folder)
    for side in a.tokenizer.iterdir():
        if "token" in side.name or side.name in ("vocab.json", "merges.txt"):
            shutil.copy(side, folder)
    return model, folder


def torch_losses(folder, batch, dtype):
    """The loss of each of a.steps steps of AdamW."""
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    losses, targets = [], sum(len(row) - 1 for row in batch)
    for _ in range(a.steps):
        total = 0.0
        for row in batch:
            found = peer(torch.tensor([row])).logits[0, :-1]
            part = torch.nn.functional.cross_entropy(found, torch.tensor(row[1:]), reduction="sum") / targets
            part.backward()
            total += part.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return losses


def train(model, folder):
    """Losses of steps on the model grown by zero, flm's against PyTorch's."""
    grown, out = a.work / "words-grown", a.work / "trained"
    for old in (grown, out):
        shutil.rmtree(old, ignore_errors=True)
    flm("grow", folder, grown, "--operator", "zero", *options(sizes(model.config)[0]))
    texts = ["The river was low that summer.", "She said: let there be light", "1. Wash the rice.", "and so on"]
    (a.work / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = AutoTokenizer.from_pretrained(a.tokenizer)
    batch = [[*tokenizer(text).input_ids, model.config.eos_token_id] for text in texts]
    recipe = a.work / "recipe.toml"
    recipe.write_text(f"""model = "{grown}"
output = "{out}"
[data]
files = ["{a.work / "rows.jsonl"}"]
context_length = 64
packing = false
validation = 0.0
[train]
epochs = {a.steps}
max_steps = {a.steps}
batch_size = {len(batch)}
micro_batch_size = {len(batch)}
[optimizer]
learning_rate = {RATE}
schedule = "constant"
beta1 = {BETAS[0]}
beta2 = {BETAS[1]}
eps = {EPS}
weight_decay = 0.0
clip_norm = 0
[save]
every_steps = 0
""")
    flm("sft", recipe, "--dtype", "f32")
    mine = [json.loads(text)["loss"] for text in (out / "metrics.jsonl").read_text().splitlines()]
    single, double = (torch_losses(grown, batch, dtype) for dtype in (torch.float32, torch.float64))
    apart = lambda x, y: max(abs(x - y) / y for x, y in zip(x, y))  # noqa: E731
    told = f"{mine[0]:.4f} to {mine[-1]:.4f}, {apart(mine, single):.1e} apart"
    told += f"; from f64 {apart(mine, double):.1e}, PyTorch's {apart(single, double):.1e}"
    # where the steps magnify f32's rounding, as far from f64 as PyTorch is
    good = apart(mine, single) < 1e-5 or apart(mine, double) < 2 * apart(single, double)
    line(f"losses of {len(mine)} steps", told, good and len(mine) == a.steps)


def greedy(model, prompt, n):
    ids = prompt.clone()
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    return ids[len(prompt):].tolist()


def gguf(model, folder):
    file = a.work / "model.gguf"
    file.unlink(missing_ok=True)
    try:
        flm("export", "gguf", folder, file, "--dtype", "f32")
    except RuntimeError as error:
        return line("llama.cpp", f"refused: {error}")
    prompts = [torch.tensor(ids) for ids in ([1, 504, 2, 9], [40, 41, 42], [7000, 12], [300, 301, 302, 303, 304])]
    requests = [{"ids": prompt.tolist(), "n": 24} for prompt in prompts]
    done = subprocess.run(
        ["node", HERE / "llama_cpp.mjs", file], input=json.dumps(requests), capture_output=True, text=True, cwd=a.node
    )
    if done.returncode:
        return line("llama.cpp", done.stderr.strip()[-160:], False)
    answers = json.loads(done.stdout)["answers"]
    same = 0
    for prompt, answer in zip(prompts, answers):
        # both end at a stop token
        same += answer["ids"] == greedy(model, prompt, len(answer["ids"]))
    line("llama.cpp, greedy tokens", f"{same} of {len(prompts)} prompts", same == len(prompts))


for name in a.names or CASES:
    for seed in range(a.seeds):
        print(f"{name}, seed {seed}")
        model = random_model(name, 1000 + seed)
        source = a.work / "source"
        shutil.rmtree(source, ignore_errors=True)
        save(model, source)
        torch.manual_seed(seed)
        ids = torch.randint(0, model.config.vocab_size, (48,))
        expected = logits(source, ids)
        error = off(flm_logits(source, ids), expected)
        line("flm's logits", f"{error:.1e}", error < 1e-5)
        older = a.work / "older"
        shutil.rmtree(older, ignore_errors=True)
        shutil.copytree(source, older)
        (older / "config-4.json").rename(older / "config.json")
        error = off(flm_logits(older, ids), expected)
        line("of transformers 4's config.json", f"{error:.1e}", error < 1e-5)
        odd, double = sizes(model.config)
        last = model.config.num_hidden_layers - 1
        for what, more in [
            ("zero, interpolate", ["--operator", "zero", *options(odd)]),
            ("zero, uniform", ["--operator", "zero", "--place", "uniform", *options(odd)]),
            ("zero, after the last", ["--operator", "zero", "--place", f"after:{last},{last}", *options(odd)]),
            ("clone", ["--operator", "clone", *options(double)]),
            ("msg, folded", ["--operator", "msg", *options(odd)]),
        ]:
            grown = a.work / "grown"
            shutil.rmtree(grown, ignore_errors=True)
            try:
                flm("grow", source, grown, *more)
                if what == "msg, folded":
                    folded = a.work / "folded"
                    shutil.rmtree(folded, ignore_errors=True)
                    flm("fold", grown, folded)
                    grown = folded
                error = off(logits(grown, ids), expected)
                line(what, f"{error:.1e}", error < 1e-5)
            except RuntimeError as error:
                line(what, f"refused: {error}", False)
    if a.tokenizer:
        model, folder = with_tokenizer(name)
        train(model, folder)
        if a.node:
            gguf(model, folder)
print(f"{failed} wrong")
sys.exit(failed > 0)
