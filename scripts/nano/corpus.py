#!/usr/bin/env python3
"""The texts that the built-in model is pre-trained on.
usage: corpus.py classics.jsonl OUT_DIR

Writes OUT_DIR/train.jsonl and OUT_DIR/valid.jsonl (every 50th text), a `text` a line: 《title》author, then
the text."""
import json, pathlib, sys

classics, out = sys.argv[1], pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
rows = {"train": [], "valid": []}
for index, line in enumerate(open(classics, encoding="utf-8")):
    text = json.loads(line)
    author = text["author"].strip()
    rows["valid" if index % 50 == 49 else "train"].append(f"《{text['title'].strip()}》{author}\n{text['text'].strip()}\n")
for name, texts in rows.items():
    with open(out / f"{name}.jsonl", "w", encoding="utf-8") as file:
        for text in texts: file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    print(f"{name}: {len(texts)} texts, {sum(map(len, texts))} characters")
