#!/usr/bin/env python3
"""`flm grow --vocab` on a real model: what new rows cost, and whether training on them works, beside PyTorch.

    vocab_peers.py --flm target/release/flm --work DIR --text FILE MODEL_DIR [--add 512] [--steps 20]

MODEL_DIR is a tied Llama with a tokenizer.json (SmolLM2). Its tokenizer gets new tokens, and the model as
many rows, tied and with --untie. Then

- on 1,000 positions of the text, in transformers: the likeliest token of the source stays the likeliest;
- the negative log-likelihood rises by the mean of log(1 + m), where m is the mass that a softmax adds: the
  sum of exp(logit) over the new rows, divided by that over the old ones. A new row is the mean of the old
  ones, its logit the mean of theirs, so that m is at most new rows / old rows. `flm eval perplexity` says the
  same within 1e-4;
- training on rows that begin with a new token: the gradients of the first step (Adam's first moment, divided
  by 1 - beta1) are as near to PyTorch's in f64 as PyTorch's in f32 are, within a factor of 5, and the loss of
  every step is that of PyTorch's AdamW.

Exit status 1 where one of these fails."""

import argparse
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=Path)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--text", required=True, type=Path)
p.add_argument("--add", type=int, default=512)
p.add_argument("--positions", type=int, default=1000)
p.add_argument("--steps", type=int, default=20)
a = p.parse_args()
RATE, BETAS, EPS = 2e-5, (0.9, 0.95), 1e-8
failed = []


def flm(*arguments):
    done = subprocess.run([a.flm, *map(str, arguments), "--quiet"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"flm {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def check(what, good):
    print(f"  {'ok ' if good else 'BAD'} {what}", flush=True)
    if not good:
        failed.append(what)


def with_new_tokens(out):
    """The model with a tokenizer that names more tokens than it has rows, as before any growth."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in a.model.iterdir():
        (out / file.name).symlink_to(file.resolve())
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    for i in range(a.add):
        token = dict(
            id=old + i, content=f"<new{i}>", single_word=False, lstrip=False, rstrip=False, normalized=False
        )
        tokenizer["added_tokens"].append(dict(token, special=False))
    (out / "tokenizer.json").unlink()
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    return out


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@torch.no_grad()
def logits(folder, ids):
    return load(folder).eval()(torch.tensor([ids])).logits[0]


def likelihood(found, ids):
    return torch.nn.functional.cross_entropy(found[:-1].double(), torch.tensor(ids[1:])).item()


def flm_likelihood(folder, text, ids):
    told = flm(
        "eval", "perplexity", folder, "--text", text, "--context", len(ids), "--dtype", "f32", "--json"
    )
    return math.log(told["perplexity"] if "perplexity" in told else told["total"]["perplexity"])


def train(folder, out, steps):
    recipe = a.work / "recipe.toml"
    recipe.write_text(f'''model = "{folder}"
output = "{out}"
[data]
files = ["{a.work / "rows.jsonl"}"]
context_length = 64
packing = false
validation = 0.0
[train]
epochs = {steps}
max_steps = {steps}
batch_size = {len(rows)}
micro_batch_size = {len(rows)}
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
''')
    shutil.rmtree(out, ignore_errors=True)
    flm("sft", recipe, "--dtype", "f32")
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def backward(model, batch):
    """The mean loss of the batch's targets, with the gradients left in the model."""
    targets, total = sum(len(row) - 1 for row in batch), 0.0
    for row in batch:
        found = model(torch.tensor([row])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(found, torch.tensor(row[1:]), reduction="sum") / targets
        loss.backward()
        total += loss.item()
    return total


def gradients(folder, batch, dtype):
    model = load(folder, dtype).train()
    backward(model, batch)
    return {name: w.grad for name, w in model.named_parameters()}


def train_torch(folder, batch):
    model, losses = load(folder).train(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0)
    for _ in range(a.steps):
        losses.append(backward(model, batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def distance(x, y):
    return ((x - y).norm() / y.norm()).item()


old = json.loads((a.model / "config.json").read_text())["vocab_size"]
a.work.mkdir(parents=True, exist_ok=True)
source = with_new_tokens(a.work / "source")
plain, tokenizer = AutoTokenizer.from_pretrained(a.model), AutoTokenizer.from_pretrained(source)
text = a.text.read_text(encoding="utf8")[:20000]
end = next(i for i in range(2000, 20001, 20) if len(plain(text[:i]).input_ids) > a.positions)
sample = a.work / "sample.txt"
sample.write_text(text[:end], encoding="utf8")
ids = plain(text[:end]).input_ids
rows = [
    f"<new{i}>{words}"
    for i, words in (
        (0, " is a river in the north."),
        (7, " said: let there be light"),
        (a.add - 1, "\n1. Wash the rice.\n2. Boil it."),
    )
]
rows.append(" ".join(f"<new{i}>" for i in range(4)))
(a.work / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
batch = [tokenizer(row).input_ids + [tokenizer.eos_token_id] for row in rows]
before = logits(a.model, ids)
for name, more in (("tied", []), ("untied", ["--untie"])):
    grown = a.work / name
    shutil.rmtree(grown, ignore_errors=True)
    flm("grow", source, grown, "--operator", "zero", "--vocab", old + a.add, *more)
    print(f"{name}: {old} + {a.add} rows, {len(ids)} tokens of text, {len(rows)} training rows")
    after = logits(grown, ids)
    kept = (before.argmax(-1) == after.argmax(-1)).sum().item()
    check(f"likeliest token kept at {kept} of {len(ids)} positions", kept == len(ids))
    off = ((after[:, :old] - before).abs().max() / before.abs().max()).item()
    check(f"logits of the old tokens within {off:.1e} of the largest", off < 1e-5)
    mass = (after[:-1, old:].double().logsumexp(-1) - after[:-1, :old].double().logsumexp(-1)).exp()
    rise, bound = (1 + mass).log().mean().item(), math.log1p(a.add / old)
    was, now = likelihood(before, ids), likelihood(after, ids)
    check(
        f"transformers: {was:.6f} + mean of log(1 + m) {rise:.6f} = {was + rise:.6f}, measured {now:.6f}"
        f" (perplexity {math.exp(was):.5f} to {math.exp(now):.5f})",
        abs(was + rise - now) < 1e-4,
    )
    check(
        f"log(1 + m) is at most log(1 + {a.add}/{old}) = {bound:.6f}",
        (1 + mass).log().max().item() <= bound + 1e-6,
    )
    told = flm_likelihood(grown, sample, ids)
    check(f"flm eval perplexity: {told:.6f}", abs(told - now) < 1e-4)
    del after
    out = a.work / "trained"
    metrics = train(grown, out, a.steps)
    finite = all(math.isfinite(m["loss"]) and math.isfinite(m["gradient_norm"]) for m in metrics)
    check(
        f"{len(metrics)} steps finite, gradient norms {metrics[0]['gradient_norm']:.4f} to"
        f" {metrics[-1]['gradient_norm']:.4f}",
        finite and len(metrics) == a.steps,
    )
    train(grown, out, 1)
    moments = load_file(next(out.glob("step-*")) / "optimizer" / "model.safetensors")
    mine = {name: moments[f"exp_avg.{name}"] / (1 - BETAS[0]) for name, _ in load(grown).named_parameters()}
    del moments
    exact = gradients(grown, batch, torch.float64)
    theirs = gradients(grown, batch, torch.float32)
    embedding = "model.embed_tokens.weight"
    far = {n: (distance(mine[n], g), distance(theirs[n], g)) for n, g in exact.items()}
    far["the new rows"] = [distance(x[embedding][old:], exact[embedding][old:]) for x in (mine, theirs)]
    for name in (max(exact, key=lambda n: far[n][0]), "the new rows"):
        flm_off, torch_off = far[name]
        check(
            f"gradients of step 1 against f64, {name}: flm {flm_off:.1e}, PyTorch in f32 {torch_off:.1e}",
            flm_off < 5 * torch_off + 1e-6,
        )
    del mine, exact, theirs
    losses = train_torch(grown, batch)
    apart = max(abs(m["loss"] - t) / t for m, t in zip(metrics, losses))
    check(f"losses of {a.steps} steps, {losses[0]:.6f} to {losses[-1]:.6f}: {apart:.1e} apart", apart < 1e-4)
    shutil.rmtree(out)
sys.exit(1 if failed else 0)
