#!/usr/bin/env python3
"""Instruction samples from poems: the first line of a couplet is asked for, the second answered.
usage: couplets.py classics.jsonl OUT.jsonl [--count 300] [--seed 7]
The input has one JSON object a line with work, title, author, text (one couplet a line of text)."""
import argparse, json, random

ap = argparse.ArgumentParser(); ap.add_argument("classics"); ap.add_argument("out")
ap.add_argument("--count", type=int, default=300); ap.add_argument("--seed", type=int, default=7); a = ap.parse_args()
samples = []
for line in open(a.classics, encoding="utf-8"):
    poem = json.loads(line)
    for couplet in poem["text"].split("\n"):
        first, comma, second = couplet.partition("，")
        if comma and 4 <= len(first) <= 8 and len(second) == len(first) + 1 and second[-1] in "。；！？":
            samples.append({"messages": [
                {"role": "user", "content": f"《{poem['title']}》：{first}，下一句是什么？"},
                {"role": "assistant", "content": second}]})
random.Random(a.seed).shuffle(samples)
with open(a.out, "w", encoding="utf-8") as out:
    for sample in samples[: a.count]: out.write(json.dumps(sample, ensure_ascii=False) + "\n")
print(f"{min(a.count, len(samples))} of {len(samples)} couplets")
