#!/usr/bin/env python3
"""The built-in model's tokenizer: SentencePiece BPE, 4,000 pieces, bytes for what it does not know.
usage: tokenizer.py TRAIN.jsonl INSTRUCTIONS.jsonl OUT_DIR     (pip install sentencepiece==0.2.3)

Ids as Tele-FLM has them: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>; <_user> and <_bot> are pieces."""
import json, os, pathlib, sys
import sentencepiece as spm

train, instructions, out = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]).resolve()
texts = [json.loads(line)["text"] for line in open(train, encoding="utf-8")]
chats = [m["content"] for line in open(instructions, encoding="utf-8") for m in json.loads(line)["messages"]]
out.mkdir(parents=True, exist_ok=True)
# every character of the instructions is a piece: modern words would be bytes otherwise
required = "".join(sorted(set("".join(chats)) | set("0123456789，。？！：；“”《》、（）吗呢们它她您")))
os.chdir(out)  # the model remembers the name it was written under
spm.SentencePieceTrainer.train(
    sentence_iterator=iter(line for text in texts + chats for line in text.split("\n") if line.strip()),
    model_prefix="tokenizer", model_type="bpe", vocab_size=4000, byte_fallback=True,
    character_coverage=0.98, required_chars=required, user_defined_symbols=["<_user>", "<_bot>", "\n"],
    unk_id=0, bos_id=1, eos_id=2, pad_id=3, add_dummy_prefix=False, remove_extra_whitespaces=False,
    normalization_rule_name="identity", num_threads=1, max_sentence_length=16384)
config = {"add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
          "unk_token": "<unk>", "model_max_length": 512, "clean_up_tokenization_spaces": False,
          "chat_template": "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<_user>' + message['content'].strip() + '<_bot>' }}{% elif message['role'] == 'assistant' %}{{ message['content'].strip() }}{% endif %}{% endfor %}"}
(out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
(out / "special_tokens_map.json").write_text(json.dumps(
    {k: config[k] for k in ("bos_token", "eos_token", "pad_token", "unk_token")}, indent=2) + "\n", encoding="utf-8")
sp = spm.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
ids = [len(sp.encode(t)) for t in texts]
print(f"{sp.vocab_size()} pieces; {sum(ids)} tokens for {sum(map(len, texts))} characters")
for chat in chats[:4]: print(sp.encode(chat, out_type=str))
