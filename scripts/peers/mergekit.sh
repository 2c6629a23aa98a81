#!/usr/bin/env bash
# Depth growth by flm and by mergekit's passthrough, of the same checkpoint into the same layers: wall time, peak memory, and whether every
# tensor has the same bytes. By hand; needs python3 with venv and pip, and room for twice the output.
#   scripts/peers/mergekit.sh DIR [ROUNDS]
# DIR is a safetensors checkpoint of the Llama family (scripts/synth_checkpoint.py --format safetensors makes one of any size); mergekit gets
# it under a Llama's config.json. Half as many layers again are stacked on top. Everything is written beside DIR and removed.
#   VENV   Python environment with mergekit and what it needs; made where it is missing [default: target/mergekit-venv]
#   FLM    the binary [default: target/release/flm]
# Peak memory is the largest resident set of the process; of mergekit it includes pages of the input that are mapped, of which there can be
# no more than the input has. Both run with two threads; neither waits for the disk (flm does fsync, mergekit does not).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source=$(cd "${1:?usage: scripts/peers/mergekit.sh DIR [ROUNDS]}" && pwd)
venv=${VENV:-$root/target/mergekit-venv}
flm=${FLM:-$root/target/release/flm}
[ -x "$flm" ] || { echo "mergekit.sh: $flm is missing: cargo build --release --workspace" >&2; exit 1; }
if [ ! -x "$venv/bin/mergekit-yaml" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet mergekit==0.1.5
fi
exec "$venv/bin/python" - "$source" "${2:-3}" "$venv/bin/mergekit-yaml" "$flm" <<'PY'
import itertools, json, os, pathlib, shutil, statistics, struct, subprocess, sys, time

source, rounds, mergekit, flm = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
beside = {name: source.parent / f"mergekit-bench-{name}.tmp" for name in ("llama", "flm", "mergekit")}
config = json.loads((source / "config.json").read_text())
layers = config["num_hidden_layers"]
target = layers + layers // 2


def remove():
    for path in beside.values():
        shutil.rmtree(path, ignore_errors=True)


def measured(*command):
    """Wall seconds and peak resident bytes."""
    environment = os.environ | {"RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed:\n{log.decode()}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def tensors(directory):
    """Name to (dtype, shape, file, first byte, length), from the headers."""
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            for name, t in json.loads(f.read(length)).items():
                if name != "__metadata__":
                    begin, end = t["data_offsets"]
                    found[name] = (t["dtype"], t["shape"], path, 8 + length + begin, end - begin)
    return found


def content(tensor):
    with open(tensor[2], "rb") as f:
        f.seek(tensor[3])
        return f.read(tensor[4])


remove()
beside["llama"].mkdir()
for path in source.iterdir():
    if path.name != "config.json":
        (beside["llama"] / path.name).symlink_to(path)
llama = {k: v for k, v in config.items() if k not in ("auto_map", "use_mup", "input_mult", "output_mult", "mup_scale_factor")}
llama |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
(beside["llama"] / "config.json").write_text(json.dumps(llama))
recipe = beside["llama"] / "recipe.yaml"
try:
    times = {"flm": [], "mergekit": []}
    for _ in range(rounds):
        for name in ("flm", "mergekit"):
            shutil.rmtree(beside[name], ignore_errors=True)
        times["flm"].append(measured(flm, "grow", source, beside["flm"], "--operator", "stack", "--layers", target, "--quiet"))
        # the layers that flm took, as ranges
        taken = [l["source"] for l in json.loads((beside["flm"] / "provenance.json").read_text())["growth"]["layers"]]
        runs = itertools.groupby(enumerate(taken), lambda pair: pair[1] - pair[0])
        runs = [[layer for _, layer in run] for _, run in runs]
        recipe.write_text(json.dumps({
            "merge_method": "passthrough", "dtype": config["torch_dtype"],
            "slices": [{"sources": [{"model": str(beside["llama"]), "layer_range": [run[0], run[-1] + 1]}]} for run in runs],
        }))
        times["mergekit"].append(measured(mergekit, recipe, beside["mergekit"], "--quiet", "-j", 2))
    ours, theirs = tensors(beside["flm"]), tensors(beside["mergekit"])
    size = sum(t[4] for t in ours.values())
    print(f"{layers} to {target} layers, {size / 1e9:.2f} GB in {len(ours)} tensors, medians of {rounds}")
    median = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}
    for name, (seconds, peak) in median.items():
        print(f"  {name:9} {seconds:8.2f} s   {peak / 1e6:8.0f} MB")
    ratios = [theirs_ / ours_ for ours_, theirs_ in zip(median["flm"], median["mergekit"])]
    print(f"  mergekit takes {ratios[0]:.1f} times the time and {ratios[1]:.1f} times the memory")
    if ours.keys() != theirs.keys():
        sys.exit(f"  tensors differ by name: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    different = [n for n in ours if ours[n][:2] != theirs[n][:2] or content(ours[n]) != content(theirs[n])]
    print(f"  {len(ours) - len(different)} of {len(ours)} tensors have the same bytes")
    sys.exit(1 if different else 0)
finally:
    remove()
PY
