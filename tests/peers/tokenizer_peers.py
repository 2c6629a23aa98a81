#!/usr/bin/env python3
"""Compares `flm tokenize` with transformers: ids of texts with and without BOS, and prompts of chat
templates.

    python tests/peers/tokenizer_peers.py --flm target/release/flm --templates DIR TOKENIZER_DIR...

Each TOKENIZER_DIR holds tokenizer.json or tokenizer.model with its tokenizer_config.json; --templates (again
and again) is a folder of .jinja files, or a package (wheel or sdist) with such files or with xinference's
llm_family.json. Each template is rendered for every conversation with the first tokenizer's special tokens,
and the prompt tokenised. A template that both refuse counts as equal, and is counted. Exit status 1 where
anything differs. Needs transformers."""

import argparse
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

TEXTS = [
    "The capital of France is",
    " leading space",
    "trailing space ",
    "  two  spaces  ",
    "",
    "\n",
    "line\nline\r\nline\ttab",
    "Hello, world! It's 3.14 o'clock.",
    "你好，世界！今天天气怎么样？",
    "🦀 crab 👩‍👩‍👧 family",
    "ﬁ é é ① ½ Å",
    "0123456789 1,234,567.89",
    "def f(x):\n    return x ** 2  # square",
    "<s>not</s> <unk> a <pad>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|begin_of_text|>a<|eot_id|>",
    "ABC<s>def",
    "[INST] a [/INST]",
    "▁underscore ▁▁",
    "a\u200bb\ufeffc\u00a0d",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "x" * 300,
    "\x00\x01\x7f",
]
USER, BOT = (
    {"role": "user", "content": " Who wrote 红楼梦? "},
    {"role": "assistant", "content": "Cao Xueqin."},
)
SYSTEM = {"role": "system", "content": "Answer briefly."}
CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, BOT, USER],
    [SYSTEM, USER, BOT, USER],
    [USER, BOT],
    [{"role": "user", "content": 'it\'s\n"ok" <b>'}],
]


def tokenize(flm, folder, arguments, text=None):
    command = [flm, "tokenize", str(folder), "--json", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


def texts(flm, folder, tokenizer):
    """Where ids differ, those of the tokenizers library tell which of the two leaves tokenizer.json."""
    wrong, file = [], folder / "tokenizer.json"
    library = Tokenizer.from_file(str(file)) if file.exists() else None
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
                as_file = library and ids == library.encode(text, add_special_tokens=not name).ids
                note = ", as the tokenizers library" if as_file else ""
                wrong.append(f"{name}{text!r}: {ids}{note}, transformers {right}")
    return 2 * (len(TEXTS) - 1), wrong


def render(source, messages, prompt, variables):
    try:
        return _compile_jinja_template(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **variables
        )
    except Exception as error:  # templates raise what they like
        return error


def sources(path):
    """(name, template) of a folder, a wheel or an sdist."""
    if path.is_dir():
        files = ((p.name, p.read_bytes()) for p in sorted(path.rglob("*.jinja")))
    elif path.suffix == ".whl":
        archive = zipfile.ZipFile(path)
        files = (
            (name, archive.read(name))
            for name in archive.namelist()
            if name.endswith((".jinja", "llm_family.json"))
        )
    else:
        archive = tarfile.open(path)
        files = (
            (m.name, archive.extractfile(m).read())
            for m in archive
            if m.isfile() and m.name.endswith(".jinja")
        )
    for name, data in files:
        if name.endswith(".jinja"):
            yield pathlib.Path(name).stem, data.decode()
            continue
        for model in json.loads(data):
            if "{" in (model.get("chat_template") or ""):
                yield model["model_name"].replace("/", "-"), model["chat_template"]


def templates(flm, folder, source, variables, arguments, tokenizer=None):
    wrong, count, refused = [], 0, 0
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            count += 1
            right = render(source, messages, prompt, variables)
            more = arguments + ([] if prompt else ["--no-generation-prompt"])
            got = tokenize(flm, folder, ["--chat", "-", *more], json.dumps(messages))
            text = got["rendered"] if isinstance(got, dict) else got
            roles = [m["role"] for m in messages]
            if isinstance(right, Exception) and not isinstance(got, dict):
                refused += 1
            elif text != right:
                wrong.append(f"{roles} {prompt}: {text!r}, transformers {right!r}"[:600])
            elif tokenizer and got["ids"] != tokenizer(right, add_special_tokens=False).input_ids:
                wrong.append(f"{roles} {prompt}: the prompt is equal, its ids are not")
    return count, wrong, refused


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flm", required=True)
    parser.add_argument("--templates", type=pathlib.Path, action="append", default=[])
    parser.add_argument("dirs", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    failed = 0

    def report(name, count, wrong, refused=0):
        nonlocal failed
        failed += len(wrong)
        both = f", {refused} refused by both" if refused else ""
        print(f"{name}: {count - len(wrong)} of {count} equal{both}", flush=True)
        for line in wrong[:5]:
            print("   ", line)
        library = sum("as the tokenizers library" in line for line in wrong)
        if library:
            print(f"    {library} of the {len(wrong)} are as the tokenizers library reads tokenizer.json")
        return count, len(wrong), refused

    for folder in options.dirs:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        report(f"{folder.name} texts", *texts(options.flm, folder, tokenizer))
        if isinstance(tokenizer.chat_template, str):
            named = tokenizer.special_tokens_map
            report(
                f"{folder.name} chat",
                *templates(options.flm, folder, tokenizer.chat_template, named, [], tokenizer),
            )
    folder, seen, found = options.dirs[0], set(), []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as work:
        for name, source in (pair for path in options.templates for pair in sources(path)):
            if source in seen:
                continue
            seen.add(source)
            copy = pathlib.Path(work) / f"{name}.jinja"
            copy.write_text(source, newline="")
            more = ["--chat-template", str(copy)]
            compared = templates(options.flm, folder, source, tokenizer.special_tokens_map, more, tokenizer)
            found.append(report(f"template {name}", *compared))
    if found:
        count, wrong, refused = map(sum, zip(*found))
        equal = sum(not w for _, w, _ in found)
        print(
            f"{equal} of {len(found)} templates equal in all conversations; {count - wrong} of {count}"
            f" prompts and their ids equal, of which {refused} are refused by both"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
