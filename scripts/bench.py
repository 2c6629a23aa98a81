#!/usr/bin/env python3
"""Speed of flm against peers, in one run: medians and ratios.

  cargo build --release --workspace
  scripts/bench.py convert DIR        flm convert of a PyTorch checkpoint against cp of its files (with and without fsync)
  scripts/bench.py grow DIR           flm grow (x1.5 in every width, x1.25 in depth) against dd conv=fsync of as many bytes
  scripts/bench.py tokens DIR [PYTHON]   flm against Hugging Face transformers, f32, two threads; PYTHON has torch and transformers
  scripts/bench.py sft DIR [PYTHON]      a training step of flm, in memory and from disk, and of PyTorch

DIR is a checkpoint; scripts/synth_checkpoint.py makes one of any size. Everything is written beside DIR and removed.
Rounds alternate between the two, so that both meet the same machine; the pressure on the CPU is printed with the result.
"""
import argparse, json, os, pathlib, shutil, statistics, subprocess, sys, tempfile, time

root = pathlib.Path(__file__).resolve().parent.parent
flm = root / "target/release/flm"


def run(*command):
    start = time.perf_counter()
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, env=os.environ | {"RAYON_NUM_THREADS": "2"})
    return time.perf_counter() - start, out.stdout


def pressure():
    try:
        return int(open("/proc/pressure/cpu").readline().rsplit("total=")[1]) / 1e6
    except OSError:
        return 0.0


def rounds(count, work):
    """Runs each of `work` in turn, `count` times after one warm-up; prints medians, returns them."""
    times = {name: [] for name in work}
    start, stalled = time.time(), pressure()
    for i in range(count + 1):
        for name, one in work.items():
            seconds = one()
            if i:
                times[name].append(seconds)
    share = (pressure() - stalled) / (time.time() - start)
    for name, values in times.items():
        print(f"  {name:28} median {statistics.median(values):7.3f} s   min {min(values):.3f}   max {max(values):.3f}")
    print(f"  {count} rounds; something waited for a CPU {share:.0%} of the time (other work on the machine spoils the figures)")
    return {name: statistics.median(values) for name, values in times.items()}


def convert(source, count):
    beside = source.parent / "flm-bench.tmp"

    def fresh(one):
        def timed():
            shutil.rmtree(beside, ignore_errors=True)
            os.sync()  # what the round before left to write is not this round's
            seconds = one()
            shutil.rmtree(beside, ignore_errors=True)
            return seconds

        return timed

    def copy(sync):
        seconds, _ = run("cp", "-r", source, beside)
        if sync:
            seconds += run("sync", *beside.iterdir())[0]
        return seconds

    size = sum(f.stat().st_size for f in source.iterdir())
    print(f"convert {size / 1e9:.2f} GB")
    m = rounds(count, {
        "flm convert (fsync, digests)": fresh(lambda: run(flm, "convert", source, beside, "--quiet")[0]),
        "cp": fresh(lambda: copy(False)),
        "cp, then fsync": fresh(lambda: copy(True)),
    })
    for peer in ("cp", "cp, then fsync"):
        print(f"  speed against {peer}: {m[peer] / m['flm convert (fsync, digests)']:.2f}")
    print(f"  the disk takes {size / max(m['cp, then fsync'] - m['cp'], 1e-3) / 1e9:.2f} GB/s after cp: what is fsynced cannot be faster")


def grow(source, count):
    beside = source.parent / "flm-bench.tmp"
    config = json.loads((source / "config.json").read_text())
    wide = lambda key, by: str(int(config[key] * by))
    sizes = ["--hidden", wide("hidden_size", 1.5), "--heads", wide("num_attention_heads", 1.5), "--ffn", wide("intermediate_size", 1.5),
             "--layers", wide("num_hidden_layers", 1.25)]
    plan = json.loads(run(flm, "grow", source, beside, *sizes, "--dry-run", "--json")[1])["summary"]
    written = plan["output_bytes"] - plan["zero_bytes"]

    def grown():
        seconds, _ = run(flm, "grow", source, beside, *sizes, "--quiet")
        shutil.rmtree(beside)
        return seconds

    def dd():
        seconds, _ = run("dd", "if=/dev/zero", f"of={beside}", "bs=16M", f"count={written}", "iflag=count_bytes", "conv=fsync", "status=none")
        beside.unlink()
        return seconds

    print(f"grow to {plan['output_bytes'] / 1e9:.2f} GB, of which {plan['zero_bytes'] / 1e9:.2f} GB are holes; dd writes {written / 1e9:.2f} GB")
    m = rounds(count, {"flm grow": grown, "dd conv=fsync": dd})
    print(f"  speed against dd: {m['dd conv=fsync'] / m['flm grow']:.2f}   ({written / m['flm grow'] / 1e9:.2f} GB/s)")


def tokens(source, count, python):
    ids = lambda n: ",".join(str((i * 7919) % 40000 + 100) for i in range(n))
    flags = ["--max-new-tokens", "49", "--ignore-eos", "--json"]
    for prompt in (256, 512):
        start, stalled = time.time(), pressure()
        reads, writes = [], []
        for _ in range(count):
            answer = json.loads(run(flm, "generate", source, "--ids", ids(prompt), *flags)[1])
            reads.append(answer["prompt_tokens_per_second"])
            writes.append(answer["tokens_per_second"])
        share = (pressure() - stalled) / (time.time() - start)
        print(f"  flm, prompt of {prompt}: {statistics.median(reads):.0f} tokens/s read, {statistics.median(writes):.1f} written (CPU waited for {share:.0%} of the time)")
    if python:
        out = run(python, root / "scripts/peers/transformers_bench.py", source, "--dtype", "f32", "--threads", "2")[1]
        print("  transformers:", out.decode())


def sft(source, count, python):
    text = root / "tests/real/english.txt"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "recipe.toml").write_text(f"""
            model = "{source}"
            output = "{folder}/out"
            data = {{ files = ["{text}"], context_length = 256 }}
            train = {{ max_steps = 5, batch_size = 4, micro_batch_size = 4 }}
            optimizer = {{ learning_rate = 2e-5 }}
            save = {{ every_steps = 0, dtype = "f32" }}
        """)

        def steps(*settings):
            shutil.rmtree(folder / "out", ignore_errors=True)
            run(flm, "sft", folder / "recipe.toml", *settings, "--json")
            rows = [json.loads(line) for line in open(folder / "out/metrics.jsonl")]
            rows = [row for row in rows if "seconds" in row]
            return [row["seconds"] for row in rows[1:]], rows[-1]["peak_memory"]

        disk = ["train.batch_size=16", "train.micro_batch_size=1", "train.max_steps=3", "memory.recompute=always"]
        work = {"flm, 4 x 256": lambda: steps(),
                "flm, 16 x 256 a row at a time, in memory": lambda: steps(*disk, "memory.placement=resident"),
                "flm, the same from disk": lambda: steps(*disk, "memory.placement=disk")}
        if python:
            def torch():
                answer = json.loads(run(python, root / "scripts/peers/torch_sft.py", source, text)[1])
                return answer["seconds"][1:], answer["peak_memory"]
            work["PyTorch, 4 x 256"] = torch
        times, peaks = {name: [] for name in work}, {}
        for _ in range(count):
            for name, one in work.items():
                seconds, peaks[name] = one()
                times[name] += seconds
    for name, seconds in times.items():
        print(f"  {name}: median {statistics.median(seconds):.2f} s a step, {peaks[name] / 1e9:.2f} GB at most")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["convert", "grow", "tokens", "sft"])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("python", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not flm.exists():
        sys.exit("target/release/flm is missing: cargo build --release --workspace")
    source = args.dir.resolve()
    {"convert": lambda: convert(source, args.rounds), "grow": lambda: grow(source, args.rounds),
     "tokens": lambda: tokens(source, args.rounds, args.python), "sft": lambda: sft(source, args.rounds, args.python)}[args.what]()


main()
