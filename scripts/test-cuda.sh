#!/usr/bin/env bash
# Tests of the CUDA build without a GPU: builds the software device (tests/softcuda) and every crate with the feature
# `cuda`, and runs the tests that follow FLM_TEST_DEVICE on it. Races between streams, faults, leaks, calls that the
# device does not have and compiler warnings fail. Needs cargo, a C++ compiler and python3.
#   scripts/test-cuda.sh [ARGUMENT…]     instead of these tests, `cargo test ARGUMENT…` with the same environment
# At the end it prints which kernels and library functions ran.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
device=$target/softcuda
tests/softcuda/build.sh "$device"
# no GPU has this compute capability: what was built for it is never taken for a real one's
export CUDA_COMPUTE_CAP=99 NVCC=$device/bin/nvcc CUDA_HOME=$device PATH=$device/bin:$PATH
unset CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR
export LD_LIBRARY_PATH=$device/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export FLM_TEST_DEVICE=cuda SOFTCUDA_LEAKS=1 SOFTCUDA_REPORT=$device/report RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-2}
rm -f "$SOFTCUDA_REPORT"
# everything of the workspace, so that types are checked with CUDA, into the target folder of other builds, whose
# dependencies it shares; target/debug/flm is then the CUDA build until the next `cargo build`
cuda=(--workspace --features flm-cli/cuda --locked)
# sweeps and tiers would take minutes here: softcuda has every place and plan once
libraries=(--test softcuda --test goldens --test families --test session --test masks --test sft_cases)
command=(--test end_to_end --test eval_perplexity --test convert --test sft)
if [ $# -gt 0 ]; then
  cargo test "${cuda[@]}" "$@"
else
  # cargo test rather than cargo build, whose dependencies have other features
  built=$(mktemp)
  trap 'rm -f "$built"' EXIT
  cargo test "${cuda[@]}" --no-run --example gpu_check "${libraries[@]}" "${command[@]}" 2>&1 | tee "$built"
  if grep -q 'generated [0-9]* warning' "$built"; then
    echo "scripts/test-cuda.sh: warnings in the CUDA build" >&2
    exit 1
  fi
  cargo test "${cuda[@]}" "${libraries[@]}"
  # what the command's own tests run on a device
  cargo test "${cuda[@]}" "${command[@]}" -- logits_of_every_storage_form grow_keeps_the_function generate_prints_ids \
    rows_are_what_the_files bytes_are_those less_context llama_is_the_same a_llama_becomes an_interrupt_saves \
    a_trained_model_has
fi
printf '\n%s on the software device:\n' "kernels and library functions that ran"
sort "$SOFTCUDA_REPORT" | awk '{ n[$1 " " $2] += $3 } END { for (name in n) print name, n[name] }' | sort
