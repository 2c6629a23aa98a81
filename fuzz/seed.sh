#!/bin/sh
# Fills fuzz/corpus from the repository's fixtures. Run before the first `cargo fuzz run`.
set -eu
cd "$(dirname "$0")"
fixtures=../tests/fixtures
mkdir -p corpus/safetensors_index corpus/pytorch_bin corpus/config
cp "$fixtures"/pytorch/*.bin corpus/pytorch_bin/
for file in "$fixtures"/pytorch/*.bin; do
    # The pickle alone: inside the archive its checksum keeps changes from being seen.
    unzip -p "$file" '*/data.pkl' >"corpus/pytorch_bin/$(basename "$file").pkl" 2>/dev/null || true
done
cp "$fixtures"/configs/*.json "$fixtures"/models/*/config.json corpus/config/ 2>/dev/null || true
for dir in "$fixtures"/models/*/; do
    for index in "$dir"*.index.json; do
        if [ -e "$index" ]; then cp "$index" "corpus/safetensors_index/$(basename "$dir").index.json"; fi
    done
done
# A whole small file: two tensors of four bytes.
printf '\230\000\000\000\000\000\000\000{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]}}           \000\000\200\077\200\077\000\300' \
    >corpus/safetensors_index/small.safetensors
