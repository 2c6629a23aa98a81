#!/usr/bin/env python3
"""The memory ladder of flm sft: for a fixed model, peak memory and time with each technique switched on in turn, as the plan
predicts them and as measured.

  cargo build --release --workspace
  scripts/sft-ladder.py [--hidden 576] [--layers 16] [--ffn 1536] [--vocab 8192] [--context 256] [--rows 4] [--steps 3] [--rounds 3]
  scripts/sft-ladder.py --model DIR      a checkpoint of your own, with its tokenizer

Prints a Markdown table: memory predicted (flm sft --dry-run) and measured (the process's high-water mark, loading and saving
included), seconds of a step predicted (measured on one block before each rung) and measured, and the median tokens/s of the
rounds, which alternate between the rungs so that all meet the same machine. Without
--model it grows a fixture of the tests to the size asked for. Needs Python 3.9 and nothing else; works in a temporary folder.
"""
import argparse, json, os, pathlib, shutil, statistics, subprocess, sys, tempfile

root = pathlib.Path(__file__).resolve().parent.parent

# each rung keeps what the rungs before it changed
LADDER = [
    ("f32, graphs kept, all rows at once", {"memory.placement": "resident", "memory.recompute": "never", "optimizer.weights": "f32", "memory.sweep_rows": 1 << 20}),
    ("+ one row at a time", {"train.micro_batch_size": 1}),
    ("+ recompute", {"memory.recompute": "always", "memory.inputs": "device"}),
    ("+ sweeps of two rows", {"memory.sweep_rows": 2}),
    ("block inputs in a file, all rows a sweep", {"memory.inputs": "disk", "memory.sweep_rows": 1 << 20}),
    ("+ bf16 weights", {"optimizer.weights": "bf16", "memory.inputs": "device"}),
    ("+ parameters on disk", {"memory.placement": "disk"}),
    ("+ sweeps of two rows, block inputs in a file", {"memory.sweep_rows": 2, "memory.inputs": "disk"}),
]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flm", type=pathlib.Path, default=root / "target/release/flm", help="the binary [target/release/flm]")
    parser.add_argument("--model", type=pathlib.Path, help="checkpoint with a tokenizer")
    for name, value in [("hidden", 576), ("layers", 16), ("ffn", 1536), ("vocab", 8192), ("context", 256), ("rows", 4), ("steps", 3), ("rounds", 3)]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"[{value}]")
    parser.add_argument("--threads", default="2", help="RAYON_NUM_THREADS [2]")
    return parser.parse_args()


def flm(options, *arguments):
    command = [str(options.flm), *map(str, arguments), "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"RAYON_NUM_THREADS": options.threads})
    if out.returncode:
        sys.exit(f"{' '.join(command)}\n{out.stderr.decode()}")
    return json.loads(out.stdout)


def model(options, folder):
    """The model to train: the one given, or a fixture in another size."""
    if options.model:
        return options.model.resolve()
    fixtures = root / "tests/fixtures"
    source = fixtures / "models/teleflm-gqa-f32-shst"
    shape = json.loads((source / "config.json").read_text())
    width = shape["hidden_size"] // shape["num_attention_heads"]
    if options.hidden % (2 * width):
        sys.exit(f"--hidden must be a multiple of {2 * width}: heads of {width}, two to a key")
    flm(options, "grow", source, folder / "model", "--operator", "zero", "--hidden", options.hidden, "--heads", options.hidden // width,
        "--ffn", options.ffn, "--layers", options.layers, "--vocab", options.vocab, "--no-source-digests")
    shutil.copy(fixtures / "spm/tokenizer.model", folder / "model")
    return folder / "model"


def main():
    o = options()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = model(o, folder)
        # one text, cut into rows that are full
        text = " ".join(str(i * i % 9973) for i in range(o.context * o.rows * 2))
        (folder / "data.jsonl").write_text(json.dumps({"text": text}) + "\n")
        (folder / "recipe.toml").write_text(
            f'model = {json.dumps(str(source))}\noutput = "out"\n[data]\nfiles = ["data.jsonl"]\ncontext_length = {o.context}\n'
            f"[train]\nbatch_size = {o.rows}\nmicro_batch_size = {o.rows}\nmax_steps = {o.steps}\nepochs = {o.steps}\n[save]\nkeep = 1\n")
        rungs, settings = [], {}
        for title, change in LADDER:
            settings |= change
            rungs.append((title, [f"{key}={value}" for key, value in settings.items()], {"rate": [], "peak": [], "seconds": []}))
        for number in range(o.rounds):
            for index, (title, changes, found) in enumerate(rungs):
                output = folder / f"out-{number}-{index}"
                plan = flm(o, "sft", folder / "recipe.toml", *changes, "--dry-run")
                found["seconds"].append(plan["seconds"] / plan["steps"])
                found["predicted"] = next(p for p in plan["plans"] if p["chosen"])["estimate"]["host"]["total"]
                done = flm(o, "sft", folder / "recipe.toml", f"output={output}", *changes)
                found["rate"].append(done["tokens_per_second"])
                found["peak"].append(done["peak_memory"])
                print(f"round {number + 1}: {title}: {done['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
                shutil.rmtree(output)
        print(f"{plan['parameters']:,} parameters, {o.rows} rows of {plan['context']} tokens a step, {o.steps} steps, {o.threads} threads; "
              f"median of {o.rounds} rounds\n")
        print("| technique | predicted, MB | measured, MB | off by | of the first | step predicted, s | measured, s | tokens/s | of the first |\n|---|---|---|---|---|---|---|---|---|")
        first = {key: statistics.median(rungs[0][2][key]) for key in ("rate", "peak")}
        for title, _, found in rungs:
            rate, peak, predicted = statistics.median(found["rate"]), statistics.median(found["peak"]), found["predicted"]
            print(f"| {title} | {predicted / 1e6:.0f} | {peak / 1e6:.0f} | {(predicted / peak - 1) * 100:+.0f} % | "
                  f"{peak / first['peak'] * 100:.0f} % | {statistics.median(found['seconds']):.2f} | {o.rows * o.context / rate:.2f} | "
                  f"{rate:.0f} | {rate / first['rate'] * 100:.0f} % |")


if __name__ == "__main__":
    main()
