#!/usr/bin/env python3
"""Opens every kind of flm's outputs in transformers and llama.cpp, and prints one table.

    open_outputs.py --flm target/release/flm --node DIR --work DIR [LLAMA_DIR...]

From the built-in Tele-FLM and from each LLAMA_DIR (SmolLM2, say) flm converts, grows, folds, trains two steps
and exports. Each output is opened by the other program, and compared with flm: largest difference of the f32
logits relative to the largest logit, greedy tokens, ids of a text (with BOS where the tokenizer says so) and
ids of a chat through the template. Folders go to transformers, and those of Tele-FLM, which it does not know,
to the reference of tests/fixtures/models; GGUF files go to llama.cpp, and their logits to transformers'
reader. Exit status 1 where an f32 output is further than 1e-4 or has other tokens, or ids differ. DIR holds
node_modules; see README.md."""

import argparse
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "fixtures" / "models"))
from teleflm_ref import TeleFLM  # noqa: E402

logging.set_verbosity_error()
logging.disable_progress_bar()
TEXT = "The river was low that summer, and"
CHAT = [
    {"role": "user", "content": "Name three rivers."},
    {"role": "assistant", "content": "Rhine, Elbe, Oder."},
    {"role": "user", "content": "\u6625\u7720\u4e0d\u89c9\u6653 \u2014 who wrote it?"},
]
ROWS = [
    {"messages": [{"role": "user", "content": f"{i} and {i}?"}, {"role": "assistant", "content": str(2 * i)}]}
    for i in range(8)
]
NEW = 16
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("llama", nargs="*", type=Path)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--node", required=True, type=Path)
p.add_argument("--work", required=True, type=Path)
a = p.parse_args()
a.work.mkdir(parents=True, exist_ok=True)
failed = 0


def flm(*arguments, text=None):
    command = [a.flm, *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"flm {' '.join(map(str, arguments[:2]))}: {done.stderr.strip().splitlines()[-1][:200]}"
        )
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def size(folder, key):
    return json.loads((folder / "config.json").read_text())[key]


def sft(folder, out):
    data, recipe = a.work / "rows.jsonl", a.work / "recipe.toml"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe.write_text(
        f'model = "{folder}"\noutput = "{out}"\n[data]\nfiles = ["{data}"]\ncontext_length = 96\n'
        "validation = 0.0\npacking = false\n[train]\nmax_steps = 2\nepochs = 9\nbatch_size = 4\n"
        "[optimizer]\nlearning_rate = 1e-5\n"
    )
    flm("sft", recipe, "--quiet")
    return out / "final"


def outputs(name, source):
    """(name, output, the folder that flm computes it from); made one after the other, and removed again."""
    w = a.work / name
    shutil.rmtree(w, ignore_errors=True)
    w.mkdir()
    tele = size(source, "model_type").lower() == "teleflm"
    hidden, heads = size(source, "hidden_size"), size(source, "num_attention_heads")
    kv, ffn = size(source, "num_key_value_heads"), size(source, "intermediate_size")
    step, layers = heads // kv, size(source, "num_hidden_layers")
    wide = [
        "--hidden",
        hidden + step * (hidden // heads),
        "--heads",
        heads + step,
        "--kv-heads",
        kv + 1,
        "--ffn",
        ffn + 64,
        "--layers",
        layers + 2,
    ]
    rows = ["--vocab", size(source, "vocab_size") + 32]
    double = ["--hidden", 2 * hidden, "--heads", 2 * heads, "--kv-heads", 2 * kv, "--ffn", 2 * ffn]

    def grow(out, *more):
        flm("grow", source, w / out, *more, "--quiet")
        return w / out

    def fold(out, *more):
        masked = grow("masked", "--operator", "msg", *wide)
        flm("fold", masked, w / out, *more, "--quiet")
        return w / out

    def converted(out, *more, source=source):
        flm("convert", source, w / out, *more, "--quiet")
        return w / out

    made = [
        ("the source", lambda: source),
        ("convert", lambda: converted("convert")),
        (
            "convert --max-shard-size",
            lambda: converted("shards", "--max-shard-size", "1MB" if tele else "100MB"),
        ),
        *((f"convert --dtype {d}", lambda d=d: converted(d, "--dtype", d)) for d in ("f32", "bf16", "f16")),
        ("grow zero", lambda: grow("zero", "--operator", "zero", *wide)),
        ("grow msg, fold", lambda: fold("folded")),
        ("grow msg, fold --dtype f32", lambda: fold("folded32", "--dtype", "f32")),
        ("grow clone", lambda: grow("clone", "--operator", "clone", *double)),
        ("grow --vocab", lambda: grow("vocab", "--operator", "zero", *rows)),
        ("sft", lambda: sft(source, w / "sft")),
    ]
    if not tele and size(source, "tie_word_embeddings"):
        made.insert(
            -1, ("grow --vocab --untie", lambda: grow("untied", "--operator", "zero", *rows, "--untie"))
        )
    for what, make in made:
        folder = make()
        yield f"{name}: {what}", folder, folder
        if tele:
            llama = converted("llama", "--layout", "llama", source=folder)
            yield f"{name}: {what}, llama layout", llama, folder
            if what == "the source":
                back = converted("back", "--layout", "tele-flm", source=llama)
                yield f"{name}: llama layout, back", back, folder
        types = (
            ("f32", "f16", "bf16", "q8_0") if what == "the source" else ("f32",) if "--" not in what else ()
        )
        for dtype in types:
            file = w / f"{folder.name}-{dtype}.gguf"
            flm("export", "gguf", folder, file, "--dtype", dtype, "--quiet")
            yield f"{name}: {what}, gguf {dtype}", file, folder
        for path in w.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def greedy(model, prompt):
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


class Reference:
    """The reference's Tele-FLM with the face of a transformers model."""

    def __init__(self, folder):
        self.model = TeleFLM.load(folder, dtype=torch.float32)

    def __call__(self, ids):
        self.logits = self.model(ids)
        return self


def shared(x, y):
    same = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
    return "yes" if same == len(x) == len(y) else f"{same} of {len(x)}"


def llama_cpp(path, requests):
    done = subprocess.run(
        ["node", HERE / "llama_cpp.mjs", path],
        input=json.dumps(requests),
        cwd=a.node,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def compare(name, path, folder):
    """Rows of the table for one output: (output, engine, logits, greedy, text ids, chat ids)."""
    text = flm("tokenize", folder, TEXT, "--json")["ids"]
    chat = flm("tokenize", folder, "--chat", "-", "--json", text=json.dumps(CHAT))
    file = a.work / "logits.safetensors"
    file.unlink(missing_ok=True)
    flm("logits", folder, "--ids", ",".join(map(str, text)), "--dtype", "f32", "--out", file, "--quiet")
    mine = load_file(file)["logits"]
    tokens = flm(
        "generate",
        folder,
        "--ids",
        ",".join(map(str, text)),
        "--max-new-tokens",
        NEW,
        "--ignore-eos",
        "--dtype",
        "f32",
        "--temperature",
        0,
        "--json",
    )["ids"]

    def row(engine, model, tokenizer=None, ids=None):
        with torch.no_grad():
            theirs = model(torch.tensor([text])).logits[0].float()
            own = tokens if ids is None else []
            found = greedy(model, text) if ids is None else []
        error = (
            ((mine - theirs).abs().max() / theirs.abs().max()).item()
            if theirs.shape == mine.shape
            else str(theirs.shape)
        )
        same = shared(own, found) if ids is None else ids
        if tokenizer is None:
            return name, engine, error, same, "", ""
        rendered = tokenizer.apply_chat_template(
            CHAT, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return (
            name,
            engine,
            error,
            same,
            shared(text, tokenizer(TEXT).input_ids),
            shared(chat["ids"], rendered),
        )

    if path.suffix == ".gguf":
        reader = GGUFReader(path)
        field = lambda key: reader.fields[key].contents() if key in reader.fields else None
        pieces = field("tokenizer.ggml.tokens")
        named = {
            f"{k}_token": pieces[field(f"tokenizer.ggml.{k}_token_id")]
            for k in ("bos", "eos")
            if field(f"tokenizer.ggml.{k}_token_id") is not None
        }
        template = _compile_jinja_template(field("tokenizer.chat_template"))
        prompt = template.render(messages=CHAT, tools=None, add_generation_prompt=True, **named)
        bos = [field("tokenizer.ggml.bos_token_id")] if field("tokenizer.ggml.add_bos_token") else []
        answers = llama_cpp(
            path, [{"ids": text, "n": NEW}, {"text": TEXT}, {"text": prompt, "special": True}]
        )["answers"]
        run = answers[0]["ids"]
        greedy_same = shared(tokens[: len(run)], run)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()
        _, _, error, _, _, _ = row("", model, ids="")
        yield (
            name,
            "llama.cpp; logits: transformers",
            error,
            greedy_same,
            shared(text, bos + answers[1]["ids"]),
            shared(chat["ids"], answers[2]["ids"]),
        )
        return
    if size(path, "model_type").lower() == "teleflm":
        yield row("reference; transformers knows no TeleFLM", Reference(path))
        return
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    yield row("transformers", model, AutoTokenizer.from_pretrained(path))


def sources():
    if not (a.work / "demo").exists():
        flm("demo", "--dir", a.work / "demo", "--until", "unpack", "--quiet")
    yield "Tele-FLM", a.work / "demo" / "nano-52b-pytorch"
    for folder in a.llama:
        yield folder.name, folder


print("| output | engine | logits | greedy | text ids | chat ids |\n|---|---|---:|---|---|---|", flush=True)
for name, source in sources():
    for what, path, folder in outputs(name, source):
        try:
            found = list(compare(what, path, folder))
        except Exception as error:  # whatever the other program stops with is a row of the table
            found, failed = (
                [(what, f"failed: {type(error).__name__}: {str(error)[:160]}", "", "", "", "")],
                failed + 1,
            )
        for output, engine, error, *same in found:
            exact = not any(d in output for d in ("gguf f16", "gguf bf16", "gguf q8_0"))
            failed += exact and (isinstance(error, str) or error > 1e-4 or same[0] != "yes")
            failed += any(s not in ("", "yes") for s in same[1:])
            shown = error if isinstance(error, str) else f"{error:.1e}"
            print("|", " | ".join([output, engine, shown, *same]), "|", flush=True)
        gc.collect()
sys.exit(1 if failed else 0)
