#!/usr/bin/env python3
"""Loss right after a growth and after some training, for placements and operators: the tables of docs/growth-study.md.

  scripts/growth-study.py MODEL --train train.jsonl --valid valid.txt --out DIR [--steps 200] [--flm target/release/flm]

MODEL is a trained checkpoint of the size nano-52b with its tokenizer. --train is JSONL for `flm sft`; --valid is a text, or JSONL whose `text`
rows are joined. Every grown model is trained on the same tokens in the same order: same data, seed and recipe. Losses are nats a token on
the first --valid-bytes of the held-out text. A run that is refused is said so in the table, and the study goes on. Prints Markdown; DIR gets
study.md and study.json, which is also what a study that was cut off goes on from. Checkpoints are removed as soon as they are measured.
"""
import argparse, hashlib, json, pathlib, shutil, subprocess, sys, time

TABLES = [
    ("To nano-102b: 16 to 20 layers, 96 to 120 wide", ["--to", "nano-102b"],
     [(place, operator, []) for place in ("distance", "interpolate", "stack") for operator in ("msg", "zero")]),
    ("Twice the width, heads and units; 16 to 20 layers", ["--hidden", "192", "--heads", "8", "--ffn", "512", "--layers", "20"],
     [("distance", "msg", []), ("distance", "zero", []), ("distance", "clone", []), ("distance", "clone", ["--noise", "0.1"])]),
    ("Depth alone: 16 to 20 layers", ["--layers", "20"],
     [(place, operator, []) for place in ("distance", "interpolate", "stack") for operator in ("msg", "zero")] + [("stack", "stack", [])]),
]

RECIPE = """
model = "{model}"
output = "{output}"
[data]
files = ["{train}"]
context_length = {context}
packing = true
validation = 0.0
[train]
epochs = 1000
max_steps = {steps}
batch_size = {batch}
micro_batch_size = {batch}
seed = 1
[optimizer]
learning_rate = {rate}
final_learning_rate = {rate}
schedule = "constant"
warmup_steps = {warmup}
beta1 = 0.9
beta2 = 0.95
clip_norm = 1.0
# the logits are divided by the width (µP): the head learns as fast as the rest by a larger rate
[optimizer.multipliers]
embedding = 2.0
matrix = 1.0
norm = 1.0
head = 8.0
[save]
every_steps = 0
keep = 1
keep_best = false
dtype = "f32"
"""


class Refused(Exception):
    pass


def flm(args, *command):
    out = subprocess.run([str(args.flm), *map(str, command), "--json", "--quiet"], capture_output=True, text=True)
    if out.returncode:
        lines = [line.strip() for line in out.stderr.splitlines() if line.strip()] or [f"exit status {out.returncode}"]
        raise Refused(lines[0].replace(f"{args.out}/", ""))
    return json.loads(out.stdout)


def loss(args, model):
    score = flm(args, "eval", "perplexity", model, "--text", args.out / "valid.txt", "--context", args.context, "--dtype", "f32")
    return score["nll"] / score["scored"]


def trained(args, model):
    """The loss after training, and its seconds."""
    run = args.out / "run"
    shutil.rmtree(run, ignore_errors=True)
    recipe = args.out / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, output=run, train=args.train, context=args.context, steps=args.steps, batch=args.batch,
                                    rate=args.learning_rate, warmup=max(1, args.steps // 20)))
    start = time.time()
    try:
        flm(args, "sft", recipe)
        return loss(args, run / "final"), time.time() - start
    finally:
        shutil.rmtree(run, ignore_errors=True)


def measure(args, grow):
    """One row: what grow makes of the model, before and after training."""
    row, grown = {}, args.out / "grown"
    shutil.rmtree(grown, ignore_errors=True)
    try:
        if grow is None:
            model = args.model
        else:
            report = flm(args, "grow", args.model, grown, *grow, "--no-source-digests")
            row["new_layers"], model = report["new_layers"], grown
        row["before"] = loss(args, model)
        row["after"], row["seconds"] = trained(args, model)
    except Refused as refused:
        row["refused"] = str(refused)
    finally:
        shutil.rmtree(grown, ignore_errors=True)
    return row


def markdown(args, rows):
    text = [f"Loss in nats a token; training is {args.steps} steps of {args.batch * args.context} tokens at a rate of {args.learning_rate}.", ""]
    number = lambda row, key: f"{row[key]:.4f}" if key in row else "refused" if "refused" in row else "–"
    source = rows["source"]
    text += ["| model | before | after |", "|---|---:|---:|", f"| the source, not grown | {number(source, 'before')} | {number(source, 'after')} |", ""]
    for title, _, variants in TABLES:
        text += [f"**{title}**", "", "| operator | placement | after growth | after training |", "|---|---|---:|---:|"]
        for place, operator, more in variants:
            row = rows.get(key(title, place, operator, more), {})
            name = " ".join([operator, *more]).replace("--", "")
            text.append(f"| {name} | {place} | {number(row, 'before')} | {number(row, 'after')} |")
        text.append("")
    refused = sorted({row["refused"] for row in rows.values() if "refused" in row})
    text += [f"Refused: {reason}" for reason in refused]
    return "\n".join(text) + "\n"


def key(title, place, operator, more):
    return " | ".join([title, place, operator, *more])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--valid", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--flm", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "target/release/flm")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mask-steps", type=int, help="steps in which msg's masks rise [default: half of --steps]")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--context", type=int, default=128, help="tokens of a row")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--valid-bytes", type=int, default=60_000)
    args = parser.parse_args()
    for name in ("model", "train", "valid", "out", "flm"):
        setattr(args, name, getattr(args, name).resolve())
    if not args.flm.exists():
        sys.exit(f"{args.flm} is missing: cargo build --release --workspace, or give --flm")
    args.out.mkdir(parents=True, exist_ok=True)
    text = args.valid.read_text()
    if args.valid.suffix == ".jsonl":
        text = "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())
    (args.out / "valid.txt").write_bytes(text.encode()[: args.valid_bytes].decode(errors="ignore").encode())

    # a study that was cut off goes on, if it was of the same model, data and settings
    settings = {k: getattr(args, k) for k in ("steps", "batch", "context", "learning_rate", "valid_bytes")}
    settings["mask_steps"] = args.mask_steps or max(1, args.steps // 2)
    for name, path in (("model", args.model / "config.json"), ("train", args.train), ("valid", args.valid)):
        settings[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(args.model.glob("*.safetensors")):
        settings[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    file = args.out / "study.json"
    study = json.loads(file.read_text()) if file.exists() else {}
    if study.get("settings") != settings:
        study = {"settings": settings, "rows": {}}
    rows = study["rows"]

    work = [("source", None)]
    for title, sizes, variants in TABLES:
        for place, operator, more in variants:
            # the operator `stack` places by itself, the text is what distances are measured on
            where = [] if operator == "stack" else ["--place", place]
            where += ["--text", args.out / "valid.txt"] if place == "distance" else []
            masks = ["--mask-steps", settings["mask_steps"]] if operator == "msg" else []
            work.append((key(title, place, operator, more), [*sizes, "--operator", operator, *where, *masks, *more, "--seed", "1"]))
    for number, (name, grow) in enumerate(work, 1):
        if "after" not in rows.get(name, {}):
            print(f"{number}/{len(work)} {name}", file=sys.stderr, flush=True)
            rows[name] = measure(args, grow)
            if "refused" in rows[name]:
                print(f"  {rows[name]['refused']}", file=sys.stderr, flush=True)
            file.write_text(json.dumps(study, indent=2, ensure_ascii=False) + "\n")
    page = markdown(args, rows)
    (args.out / "study.md").write_text(page)
    print(page)


main()
