#!/usr/bin/env python3
"""GGUF files of `flm export gguf` against llama.cpp, the `gguf` package and transformers.

    gguf_peers.py --flm target/debug/flm --node DIR CHECKPOINT [--dtypes f32,bf16,q8_0] [--out DIR]

DIR holds node_modules with node-llama-cpp. See README.md."""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPTS = ["The capital of France is", "Once upon a time, there was a little girl who",
           "def fibonacci(n):\n    ", "The three most important inventions of the 20th century are"]
TEXTS = PROMPTS + ["", " ", "  two  spaces ", "line\nbreaks\r\n\ttabs", "12345 67,890.12 3×4", "don't we'll I'M",
                   "春眠不觉晓，处处闻啼鸟。", "naïve café Ünïcödé", "🚀👩‍👩‍👧 emoji", "a" * 40, "!!!???...", "<s></s><|im_end|>"]


def run(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **more).stdout


def flm(arguments, *more):
    return json.loads(run(arguments.flm, *more, "--json"))


def llama(arguments, model, requests):
    out = run("node", HERE / "llama_cpp.mjs", model, input=json.dumps(requests), cwd=arguments.node)
    return json.loads(out)


def tokens(folder, text):
    """Ids by a tokenizer that is neither flm's nor llama.cpp's."""
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        return tokenizer.encode(text, add_special_tokens=False).ids
    import sentencepiece
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode(text)


def shared(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def reader(path):
    from gguf import GGUFReader
    found = GGUFReader(path)
    types = {}
    for tensor in found.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return f"{len(found.fields)} fields, {len(found.tensors)} tensors {types}"


def logits(arguments, folder, ids, out):
    file = out / "logits.safetensors"
    file.unlink(missing_ok=True)
    return flm(arguments, "logits", folder, "--ids", ",".join(map(str, ids)), "--out", file, "--dtype", "f32")


def transformers_logits(path, ids):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--flm", default="target/debug/flm", type=lambda s: Path(s).resolve())
    p.add_argument("--node", required=True, type=Path)
    p.add_argument("--dtypes", default="f32,bf16,q8_0")
    p.add_argument("--out", type=Path)
    p.add_argument("--tokens", type=int, default=48)
    p.add_argument("--no-transformers", action="store_true")
    a = p.parse_args()
    folder = a.checkpoint
    out = a.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    prompts = [tokens(folder, text) for text in PROMPTS]
    failed = False
    for dtype in a.dtypes.split(","):
        path = out / f"{folder.resolve().name}-{dtype}.gguf"
        path.unlink(missing_ok=True)
        start = time.time()
        summary = flm(a, "export", "gguf", folder, path, "--dtype", dtype)
        print(f"{path.name}: {summary['bytes']} bytes in {time.time() - start:.1f} s, peak memory"
              f" {(summary['peak_memory_bytes'] or 0) >> 20} MiB, {summary['dtypes']}, folded {summary['foldings']}")
        for note in summary["notes"]:
            print(f"  note: {note}")
        print(f"  gguf reader: {reader(path)}")
        requests = [{"ids": prompt, "n": a.tokens} for prompt in prompts] + [{"text": text} for text in TEXTS]
        answers = llama(a, path, requests)["answers"]
        for text, prompt, theirs in zip(PROMPTS, prompts, answers):
            ids = theirs["ids"]
            # What flm finds likeliest after the prompt and each prefix of llama.cpp's continuation: equal
            # throughout where `flm generate` gives the same tokens, and one pass instead of one a token.
            mine = logits(a, folder, prompt + ids, out)["argmax"][len(prompt) - 1:-1]
            same = shared(mine, ids)
            verdict = "same" if same == len(ids) else f"differ after {same}"
            failed |= verdict != "same" and dtype == "f32"
            print(f"  llama.cpp, {len(ids)} greedy tokens: {verdict}; {text[:30]!r} -> {theirs['text'][:60]!r}", flush=True)
        wrong = [(text, tokens(folder, text), answer["ids"]) for text, answer in zip(TEXTS, answers[len(prompts):])
                 if tokens(folder, text) != answer["ids"]]
        print(f"  llama.cpp tokenises {len(TEXTS) - len(wrong)} of {len(TEXTS)} texts alike")
        for text, want, got in wrong:
            print(f"    {text!r}: {want} {got}")
        if not a.no_transformers:
            from safetensors.torch import load_file
            logits(a, folder, prompts[0], out)
            mine, theirs = load_file(out / "logits.safetensors")["logits"], transformers_logits(path, prompts[0])
            error = ((mine - theirs).norm() / theirs.norm()).item()
            failed |= dtype == "f32" and error > 1e-5
            print(f"  transformers on the GGUF against flm on the checkpoint: relative L2 of the logits {error:.2e}")
    sys.exit(failed)


main()
