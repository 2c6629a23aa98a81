#!/usr/bin/env bash
# A training run whose disk fills up while a checkpoint is saved: it says so, what was saved before stays whole,
# and the same command goes on once there is room, to the same weights.
#   scripts/test-sft-disk-full.sh [target/debug/flm]
# Needs root (it mounts a tmpfs of 100 MB for the time of the test).
set -euo pipefail

flm=$(realpath "${1:-target/debug/flm}")
dir=$(mktemp -d)
disk=$dir/disk
mkdir "$disk"
mount -t tmpfs -o size=100m tmpfs "$disk"
trap 'umount "$disk"; rm -rf "$dir"' EXIT
export RAYON_NUM_THREADS=2
fail() { printf 'test-sft-disk-full: %s\n' "$*" >&2; exit 1; }

fixtures=$(dirname "$0")/../tests/fixtures
# the fixture, grown so that a checkpoint is some 20 MB
"$flm" grow "$fixtures/models/teleflm-gqa-f32-shst" "$dir/model" --operator zero --hidden 128 --heads 8 --ffn 340 --layers 5 --vocab 2048 --quiet > /dev/null
cp "$fixtures/spm/tokenizer.model" "$dir/model/"
for i in $(seq 24); do printf '{"instruction":"count to %s","output":"一二三四五六七"}\n' "$i"; done > "$dir/data.jsonl"
cat > "$dir/recipe.toml" << END
model = "model"
output = "out"
[data]
files = ["data.jsonl"]
context_length = 48
[train]
batch_size = 8
max_steps = 6
[save]
every_steps = 1
keep = 2
dtype = "f32"
END
sft=("$flm" sft "$dir/recipe.toml" --quiet)
"${sft[@]}" output="$dir/whole" > /dev/null
size=$(du -sm "$dir/whole/step-00000006" | cut -f1)
# room for one checkpoint and a half
dd if=/dev/zero of="$disk/filler" bs=1M count=$((100 - size * 3 / 2)) 2> /dev/null
if "${sft[@]}" output="$disk/out" 2> "$dir/error" > /dev/null; then fail "the run did not notice that the disk was full"; fi
grep -q 'the disk is full' "$dir/error" || fail "the error does not say so: $(cat "$dir/error")"
grep -q 'the checkpoint of step 1 is whole' "$dir/error" || fail "the error does not say what is left: $(cat "$dir/error")"
[ ! -e "$disk/out/step-00000002" ] || fail "something unfinished has the final name"
"$flm" inspect "$disk/out/step-00000001" > /dev/null
rm "$disk/filler"
"${sft[@]}" output="$disk/out" --json | grep -q '"resumed_from": *1' || fail "the run did not go on from step 1"
cmp "$disk/out/final/model.safetensors" "$dir/whole/final/model.safetensors" || fail "the weights differ"
printf 'test-sft-disk-full: passed, checkpoints of %s MB\n' "$size"
