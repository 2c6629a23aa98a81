#!/usr/bin/env bash
# A GPU against the CPU on a nano model, then tokens/s and utilisation of a two-block model at the real width
# of Tele-FLM-52B, with parameters on the device and in host memory. docs/gpu.md explains the figures.
#   scripts/gpu-check.sh [--peak 989e12] [--context 2048] [--rows 4] [--layers 2] …
#   scripts/gpu-check.sh --device cpu --hidden 64     the script itself, at a size for a CPU
# On a GPU it needs the CUDA toolkit, and 41 GB of host memory (24 GB with --vocab 8192).
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=("$@") device=cuda hidden=
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:-} ;;
    --hidden) hidden=${2:-} ;;
  esac
  shift
done

if [ "${device%%:*}" = cpu ]; then
  hidden=${hidden:-64}
  # a head of 16; the other sizes in the 52B's ratios. What the caller gives comes later and counts
  small=(--hidden "$hidden" --heads $((hidden / 16)) --ffn $((hidden * 8 / 3)) --vocab 512 --context 64 --rows 2 --peak 0)
  cargo build --workspace --example gpu_check
  exec target/debug/examples/gpu_check "${small[@]}" "${arguments[@]}"
fi

command -v nvcc > /dev/null || { echo "gpu-check: nvcc is not on PATH; install the CUDA toolkit, or try --device cpu" >&2; exit 1; }
cargo build --release --workspace --features flm-cli/cuda --example gpu_check
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
exec target/release/examples/gpu_check "${arguments[@]}"
