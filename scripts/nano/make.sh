#!/usr/bin/env bash
# Makes the built-in model from texts: samples and questions, tokenizer, random weights, pre-training,
# PyTorch shards in flm-cli/assets/. What it trains is in target/nano/.
#   scripts/nano/make.sh CLASSICS.jsonl
# CLASSICS.jsonl has one JSON object a line: work, title, author, text (simplified characters). The built-in
# model was made from the npm package chinese-poetry 2.0.1, converted with OpenCC: 21,753 texts.
# Needs python3 with sentencepiece==0.2.3, torch and safetensors (PYTHON=… picks one). Training takes 41 minutes on one core, measured beside other work.
set -euo pipefail
classics=${1:?usage: scripts/nano/make.sh CLASSICS.jsonl}
python=${PYTHON:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
classics=$(realpath "$classics")
cd "$here/../.."
work=target/nano assets=flm-cli/assets
cargo build --workspace --release
flm=target/release/flm

"$python" "$here/instructions.py" "$classics" "$work"
"$python" "$here/corpus.py" "$classics" "$work"
"$python" "$here/tokenizer.py" "$work/train.jsonl" "$work/instructions.jsonl" "$work/tokenizer"
rm -rf "$work/init"
"$flm" init nano-52b "$work/init" --tokenizer "$work/tokenizer" --seed 1
# goes on where an earlier run has stopped
"$flm" sft recipes/nano-pretrain.toml
cp "$work/instructions.jsonl" "$work/questions.jsonl" "$assets/"
"$python" "$here/pack.py" "$work/pretrained/final" "$assets/nano-52b"
