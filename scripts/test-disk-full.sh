#!/usr/bin/env bash
# A growth whose disk fills up on the way: it says so, and the same command goes on once there is room.
#   scripts/test-disk-full.sh [target/debug/flm]
# Needs root (it mounts a tmpfs of 420 MB for the time of the test).
set -euo pipefail

flm=$(realpath "${1:-target/debug/flm}")
dir=$(mktemp -d)
disk=$dir/disk
mkdir "$disk"
mount -t tmpfs -o size=420m tmpfs "$disk"
trap 'umount "$disk"; rm -rf "$dir"' EXIT
export RAYON_NUM_THREADS=2
fail() { printf 'test-disk-full: %s\n' "$*" >&2; exit 1; }

"$flm" demo --dir "$dir/demo" --until convert --quiet > "$dir/demo.log"
grow=("$flm" grow "$dir/demo/nano-52b" "$disk/grown" --to nano-1t --ffn 6000 --quiet)
"${grow[@]}" 2> "$dir/error" > /dev/null &
growth=$!
until [ -e "$disk/.grown.partial/.journal.jsonl" ]; do sleep 0.01; done
dd if=/dev/zero of="$disk/filler" bs=1M count=300 2> /dev/null
if wait $growth; then fail "the growth did not notice that the disk was full"; fi
grep -q 'the disk is full' "$dir/error" || fail "the error does not say so: $(cat "$dir/error")"
[ ! -e "$disk/grown" ] || fail "something unfinished has the final name"
rm "$disk/filler"
resumed=$("${grow[@]}" --json | sed -n 's/.*"resumed_bytes": \([0-9]*\).*/\1/p')
[ "$resumed" -gt 0 ] || fail "nothing was taken up"
"$flm" verify "$disk/grown"
if "${grow[@]:0:2}" "$dir/demo/nano-52b" "$disk/huge" --to nano-1t --ffn 60000 2> "$dir/error"; then
  fail "a growth that cannot fit was begun"
fi
grep -q 'bytes are to be written' "$dir/error" || fail "the error has no numbers: $(cat "$dir/error")"
printf 'test-disk-full: passed, %s bytes taken up\n' "$resumed"
