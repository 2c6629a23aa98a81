#!/usr/bin/env python3
"""What transformers makes of `flm convert --layout llama`: logits and token ids. Run by hand, see llama-layout.md.

  python tests/peers/llama_layout.py target/debug/flm            compare, print figures; exit status 1 past the bounds
  python tests/peers/llama_layout.py target/debug/flm --write    also write tests/fixtures/models/*.llama.golden.safetensors

Needs torch, transformers, safetensors, sentencepiece.
"""
import json, os, pathlib, shutil, subprocess, sys, tempfile

import sentencepiece, torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

root = pathlib.Path(__file__).resolve().parents[2]
models, spm = root / "tests/fixtures/models", root / "tests/fixtures/spm"
flm, write = sys.argv[1], "--write" in sys.argv
IDS = [1, 5, 17, 300, 42]
USER_DEFINED = ("<_system>", "<_user>", "<_bot>", "<_end>")
bad = 0


def convert(source, out):
    done = subprocess.run([flm, "convert", source, out, "--layout", "llama", "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def logits(scratch):
    """Against the reference of tests/fixtures/models/teleflm_ref.py, which knows multipliers and no Llama."""
    global bad
    for checkpoint in ("teleflm-f32-st", "teleflm-bf16-shbin", "teleflm-gqa-bf16-shbin", "teleflm-hd32-bf16-shbin"):
        base = checkpoint.rsplit("-", 1)[0]
        out = scratch / checkpoint
        folded = convert(models / checkpoint, out)["folded"]
        assert AutoConfig.from_pretrained(out).model_type == "llama"
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        assert type(model).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            got = model(torch.tensor([IDS])).logits[0]
        expected = load_file(models / f"{base}.golden.safetensors")["short.logits.f32"].reshape(got.shape)
        difference = relative(got, expected)
        bad += difference > 1e-5
        parts = ", ".join(f"{f['tensor']} x {f['factor']:g} in {f['dtype']} ({f['rounded']} rounded)" for f in folded)
        print(f"{checkpoint:26} {difference:.1e} of the largest logit   {parts}")
        if write:
            save_file({"logits": got.contiguous()}, models / f"{base}.llama.golden.safetensors")


def tokens(scratch):
    """Against the sentencepiece library, on the texts of tests/fixtures/spm."""
    global bad
    for name in ("tokenizer", "tokenizer_llama", "tokenizer_noprefix"):
        source, out = scratch / f"{name}-source", scratch / name
        shutil.copytree(models / "teleflm-f32-st", source)
        shutil.copy(spm / f"{name}.model", source / "tokenizer.model")
        config = json.loads((root / "tests/fixtures/configs/tokenizer_config.json").read_text())
        pieces = sentencepiece.SentencePieceProcessor(str(spm / f"{name}.model"))
        if pieces.id_to_piece(3) != "<pad>":
            del config["added_tokens_decoder"]["3"], config["pad_token"]
        config["chat_template"] = "{% for m in messages %}<_user>{{ m.content }}<_bot>{% endfor %}"
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        convert(source, out)
        tokenizer = AutoTokenizer.from_pretrained(out)
        texts = [json.loads(line)["text"] for line in open(spm / f"{name}.golden.jsonl", encoding="utf8")]
        special = [t for t in texts if any(s in t for s in ("<unk>", "<s>", "</s>", "<pad>"))]
        plain = [t for t in texts if t not in special]
        wrong = [t for t in plain if tokenizer(t)["input_ids"] != pieces.encode(t)]
        # the tokenizers library cuts a text at these before it puts a dummy prefix in front
        user_defined = [t for t in wrong if any(s in t for s in USER_DEFINED)]
        back = [t for t in plain if tokenizer.decode(tokenizer(t)["input_ids"]) != pieces.decode(pieces.encode(t))]
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "你好, Bot"}], tokenize=False)
        same_chat = tokenizer(chat)["input_ids"] == pieces.encode(chat)
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        bad += len(wrong) > len(user_defined) or ids != (pieces.bos_id(), pieces.eos_id())
        print(f"{name:26} {type(tokenizer).__name__}: {len(plain) - len(wrong)} of {len(plain)} texts have sentencepiece's ids, "
              f"{len(plain) - len(back)} decode alike, chat {'same' if same_chat else 'OTHER'}; "
              f"of the others {len(user_defined)} name user-defined pieces; {len(special)} texts name special tokens")
        for text in [t for t in wrong if t not in user_defined][:8]:
            print("   ", repr(text), pieces.encode(text)[:12], tokenizer(text)["input_ids"][:12])


with tempfile.TemporaryDirectory() as scratch:
    print("transformers", transformers.__version__, "torch", torch.__version__)
    logits(pathlib.Path(scratch))
    tokens(pathlib.Path(scratch))
sys.exit(bad > 0)
