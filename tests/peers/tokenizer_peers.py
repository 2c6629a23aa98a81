#!/usr/bin/env python3
"""Compares `flm tokenize` with transformers: ids of texts with and without BOS, and prompts of chat templates.

    python tests/peers/tokenizer_peers.py --flm target/release/flm --templates DIR TOKENIZER_DIR...

Each TOKENIZER_DIR holds tokenizer.json or tokenizer.model with its tokenizer_config.json; --templates is a folder of
.jinja files, each rendered for every conversation with the first tokenizer's special tokens. Exit status 1 where
anything differs. Needs transformers and jinja2.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

TEXTS = [
    "The capital of France is", " leading space", "trailing space ", "  two  spaces  ", "", "\n", "line\nline\r\nline\ttab",
    "Hello, world! It's 3.14 o'clock.", "你好，世界！今天天气怎么样？", "🦀 crab 👩‍👩‍👧 family", "ﬁ é é ① ½ Å", "0123456789 1,234,567.89",
    "def f(x):\n    return x ** 2  # square", "<s>not</s> <unk> a <pad>", "<|im_start|>user\nhi<|im_end|>\n", "<|begin_of_text|>a<|eot_id|>",
    "ABC<s>def", "[INST] a [/INST]", "▁underscore ▁▁", "a\u200bb\ufeffc\u00a0d", "مرحبا بالعالم", "नमस्ते दुनिया", "x" * 300, "\x00\x01\x7f",
]
USER, BOT = {"role": "user", "content": " Who wrote 红楼梦? "}, {"role": "assistant", "content": "Cao Xueqin."}
SYSTEM = {"role": "system", "content": "Answer briefly."}
CONVERSATIONS = [[USER], [SYSTEM, USER], [USER, BOT, USER], [SYSTEM, USER, BOT, USER], [USER, BOT], [{"role": "user", "content": "it's\n\"ok\" <b>"}]]


def tokenize(flm, folder, arguments, text=None):
    command = [flm, "tokenize", str(folder), "--json", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


def texts(flm, folder, tokenizer):
    wrong = []
    for text in TEXTS:
        if "\0" in text:
            continue
        right = tokenizer(text).input_ids
        plain = tokenizer(text, add_special_tokens=False).input_ids
        got = tokenize(flm, folder, ["--text-file", "-"], text)
        bare = tokenize(flm, folder, ["--text-file", "-", "--no-bos"], text)
        for name, got, right in (("", got, right), ("without BOS ", bare, plain)):
            ids = got["ids"] if isinstance(got, dict) else got
            if ids != right:
                wrong.append(f"{name}{text!r}: {ids}, transformers {right}")
    return 2 * (len(TEXTS) - 1), wrong


def render(source, messages, prompt, variables):
    try:
        return _compile_jinja_template(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **variables
        )
    except Exception as error:  # templates raise what they like
        return error


def templates(flm, folder, source, variables, arguments):
    wrong, count = [], 0
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            count += 1
            right = render(source, messages, prompt, variables)
            more = arguments + ([] if prompt else ["--no-generation-prompt"])
            got = tokenize(flm, folder, ["--chat", "-", *more], json.dumps(messages))
            text = got["rendered"] if isinstance(got, dict) else got
            both_refuse = isinstance(right, Exception) and not isinstance(got, dict)
            if text != right and not both_refuse:
                wrong.append(f"{[m['role'] for m in messages]} {prompt}: {text!r}, transformers {right!r}"[:400])
    return count, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flm", required=True)
    parser.add_argument("--templates", type=pathlib.Path)
    parser.add_argument("dirs", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    failed = 0

    def report(name, count, wrong):
        nonlocal failed
        failed += len(wrong)
        print(f"{name}: {count - len(wrong)} of {count} equal", flush=True)
        for line in wrong[:5]:
            print("   ", line)

    for folder in options.dirs:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        report(f"{folder.name} texts", *texts(options.flm, folder, tokenizer))
        if isinstance(tokenizer.chat_template, str):
            found = templates(options.flm, folder, tokenizer.chat_template, tokenizer.special_tokens_map, [])
            report(f"{folder.name} chat", *found)
    if options.templates:
        folder = options.dirs[0]
        variables = AutoTokenizer.from_pretrained(folder).special_tokens_map
        with tempfile.TemporaryDirectory() as work:
            for path in sorted(options.templates.glob("*.jinja")):
                shutil.copy(path, work)
                copy = str(pathlib.Path(work) / path.name)
                found = templates(options.flm, folder, path.read_text(), variables, ["--chat-template", copy])
                report(f"template {path.stem}", *found)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
