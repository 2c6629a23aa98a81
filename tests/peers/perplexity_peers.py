#!/usr/bin/env python3
"""`flm eval perplexity` beside transformers, and beside the rolling rule of lm-evaluation-harness.

    perplexity_peers.py --flm target/release/flm --work DIR MODEL_DIR [--long FILE --long-bytes N]

Five texts: short lines, Chinese, one token, exactly one window, and the first N bytes of FILE (UTF-8). Of each,
with BOS before every window and without, transformers (in f64 up to 600 tokens, beyond that in f32) does what the
help of `flm eval perplexity` says: disjoint windows of --context tokens; without BOS a window's first token has
no score and its bytes do not count. nll and bits per byte have to agree within 1e-6 (relative); perplexity, which
is e to the mean nll, within 1e-6 times that mean where it is above 1. How far transformers in f32 is from f64
stands beside it.
Texts that fit into one window with BOS have to agree with lm-evaluation-harness's rule too: its windows after
the first begin with the last token of the one before instead of BOS, and its last window is moved back to full
length. What that changes in longer texts is printed. --harness DIR takes the rule from lm-eval itself, unpacked there
(`pip install --no-deps --target DIR lm-eval`); without, it is written out here.

Exit status 1 where something disagrees. --plant counts one byte more, or takes the second text's first token
away, to see the comparison fail."""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=Path)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--context", type=int, default=512)
p.add_argument("--long", type=Path)
p.add_argument("--long-bytes", type=int, default=2_000_000)
p.add_argument("--only", default="", help="texts whose name has this in it")
p.add_argument("--harness", type=Path)
p.add_argument("--plant", choices=["byte", "token"])
a = p.parse_args()

LINES = [
    "The kettle sang before the rain did.",
    "No.",
    "Two and two make four; nobody asked why.",
    "x = [i ** 2 for i in range(10)]",
    "Ünïcode, naïve café, and 3 µm of dust",
    "A",
    "🙂 is four bytes long",
    "Where the road ends, the map goes on a little.",
]
CHINESE = (
    "春天的河水慢慢涨起来，岸边的柳树先绿了。老人坐在石桥上看船，孩子们在桥下数鱼。"
    "他说：一条河里有多少水，谁也说不清；可是口渴的时候，一碗就够了。\n"
    "夜里下了一场小雨，第二天早晨，院子里的砖缝长出了青苔。"
)
# enough English for a window of 512 tokens
ENGLISH = " ".join(
    f"On day {n} the keeper of the lighthouse wrote down the wind, the sea and the number of ships, and added"
    f" that {what}."
    for n, what in enumerate(
        [
            "the lamp had burned evenly",
            "a gull had come in through the open door",
            "the oil would last for eleven nights",
            "nobody had written to him",
            "the fog smelled of iron",
            "he had mended the stair",
            "the clock was slow again",
            "two boats had passed without lights",
            "the cat had caught nothing",
            "there was nothing to add",
        ]
        * 3
    )
)

failed = []
tokenizer = AutoTokenizer.from_pretrained(a.model)
single, double = (
    AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype).eval()
    for dtype in (torch.float32, torch.float64)
)
bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def encode(text):
    return tokenizer(text, add_special_tokens=False).input_ids


def byte_count(id):
    """Bytes of a token of a byte-level vocabulary, where each is written as one character."""
    return len(tokenizer.convert_ids_to_tokens(id))


@torch.no_grad()
def scores(model, tokens):
    """Nats of all tokens but the first, each given those before it."""
    logits = model(torch.tensor([tokens])).logits[0, :-1]
    picked = torch.tensor(tokens[1:])
    total = 0.0
    for begin in range(0, len(picked), 128):
        part = logits[begin : begin + 128].double()
        part = part.logsumexp(-1) - part.gather(-1, picked[begin : begin + 128, None])[:, 0]
        total += part.sum().item()
    return total


def flm_rule(model, texts, with_bos):
    """nll, scored tokens and bytes: disjoint windows, each with BOS before it or with its first token unscored."""
    nll, scored, count = 0.0, 0, 0
    for text in texts:
        ids = encode(text)
        for start in range(0, len(ids), a.context):
            window = ids[start : start + a.context]
            targets = window if with_bos else window[1:]
            if targets:
                nll += scores(model, [bos] * with_bos + window)
            scored += len(targets)
            count += sum(map(byte_count, targets))
    return nll, scored, count


def rolling(ids, prefix, length):
    """lm-evaluation-harness's windows with context_len=1: what is given, what is scored."""
    yield [prefix] + ids[: length - 1], ids[:length]
    for start in range(length, len(ids), length):
        wanted = ids[start : start + length]
        end = start + len(wanted)
        yield ids[end - length - 1 : end - 1], wanted


if a.harness:
    sys.path.append(str(a.harness))
    from lm_eval.utils import get_rolling_token_windows

    def rolling(ids, prefix, length):  # noqa: F811
        return get_rolling_token_windows(ids, prefix, length, 1)


@torch.no_grad()
def harness_rule(model, texts):
    nll = 0.0
    for text in texts:
        for given, wanted in rolling(encode(text), bos, a.context):
            logits = model(torch.tensor([given])).logits[0, -len(wanted) :].double()
            picked = logits.log_softmax(-1).gather(-1, torch.tensor(wanted)[:, None])
            nll -= picked.sum().item()
    return nll, sum(len(text.encode()) for text in texts)


def flm(path, with_bos):
    command = [a.flm, "eval", "perplexity", a.model, "--text", path, "--context", a.context, "--dtype", "f32"]
    command += ["--bos"] * with_bos + ["--json", "--quiet"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return (json.loads(done.stdout), None) if done.returncode == 0 else (None, done.stderr.strip())


def relative(x, y):
    return abs(x - y) / abs(y)


def check(what, good):
    print(f"  {'ok ' if good else 'BAD'} {what}", flush=True)
    if not good:
        failed.append(what)


def compare(name, texts, path, with_bos):
    label = f"{name}, {'with' if with_bos else 'without'} BOS"
    started = time.time()
    found, error = flm(path, with_bos)
    took = time.time() - started
    tokens = sum(len(encode(text)) for text in texts)
    model = double if tokens <= 600 else single
    started = time.time()
    nll, scored, count = flm_rule(model, texts, with_bos)
    theirs = time.time() - started
    if a.plant == "byte":
        count += 1
    if scored == 0:
        check(f"{label}: nothing to score, refused: {error}", found is None and "nothing to score" in error)
        return
    if found is None:
        check(f"{label}: {error}", False)
        return
    perplexity, bits = math.exp(nll / scored), nll / math.log(2) / count
    off = [relative(found["nll"], nll), relative(found["perplexity"], perplexity)]
    off.append(relative(found["bits_per_byte"], bits))
    noise = f"; f32 {relative(flm_rule(single, texts, with_bos)[0], nll):.1e}" if model is double else ""
    same = (found["scored"], found["bytes"]) == (scored, count)
    counts = f"{scored} tokens, {count} bytes" if same else f"{scored} tokens, {count} bytes, flm {found}"
    check(
        f"{label}: {counts};"
        f" nll {nll:.4f}, perplexity {perplexity:.5f}, bits per byte {bits:.6f}; apart"
        f" {off[0]:.1e}, {off[1]:.1e}, {off[2]:.1e}{noise} ({took:.0f} s, transformers {theirs:.0f} s)",
        same and max(off[0], off[1] / max(1.0, nll / scored), off[2]) <= 1e-6,
    )
    if not with_bos:
        return
    told, whole = harness_rule(model, texts)
    far = max(relative(found["nll"], told), relative(found["bits_per_byte"], told / math.log(2) / whole))
    by_rule = f"{name}, lm-evaluation-harness's rule: nll {told:.4f}, bits per byte {told / math.log(2) / whole:.6f}"
    if max(len(encode(text)) for text in texts) <= a.context:
        check(f"{by_rule}; apart {far:.1e}", far <= 1e-6)
    else:
        print(f"      {by_rule}: another rule for windows after the first, {far:.1e} apart", flush=True)


def one_window():
    """A text of exactly --context tokens."""
    for end in range(len(ENGLISH), 0, -1):
        if len(encode(ENGLISH[:end])) == a.context:
            return ENGLISH[:end]
    sys.exit(f"no beginning of the English text has {a.context} tokens")


a.work.mkdir(parents=True, exist_ok=True)
cases = [
    ("short lines", LINES),
    ("Chinese", [CHINESE]),
    ("one token", [" river"]),
    ("one window", [one_window()]),
]
assert len(encode(" river")) == 1
cases.append(("one window and a token", [cases[-1][1][0] + " river"]))
if a.long:
    text = a.long.read_bytes()[: a.long_bytes].decode("utf8", errors="ignore")
    cases.append((f"{len(text.encode())} bytes of {a.long.name}", [text]))
for number, (name, texts) in enumerate(cases):
    if a.only not in name:
        continue
    path = a.work / (f"{number}.jsonl" if len(texts) > 1 else f"{number}.txt")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text(lines if len(texts) > 1 else texts[0], encoding="utf8", newline="")
    if a.plant == "token" and number == 1:
        texts = [tokenizer.decode(encode(texts[0])[1:])]
    print(f"{name}: {len(texts)} texts, {sum(len(encode(text)) for text in texts)} tokens")
    for with_bos in (True, False):
        compare(name, texts, path, with_bos)
sys.exit(1 if failed else 0)
