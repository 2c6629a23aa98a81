#!/usr/bin/env python3
"""Instruction samples from poems: the first line of a couplet is asked for, the second answered.
usage: couplets.py classics.jsonl OUT.jsonl [--count 300] [--seed 7] [--validation OTHERS.jsonl] [--questions ASKED.jsonl]
The input has one JSON object a line with work, title, author, text (one couplet a line of text).
--questions asks for 24 of the couplets in AlignBench's format."""
import argparse, json, random

ap = argparse.ArgumentParser(); ap.add_argument("classics"); ap.add_argument("out")
ap.add_argument("--count", type=int, default=300); ap.add_argument("--seed", type=int, default=7); ap.add_argument("--questions"); ap.add_argument("--validation"); a = ap.parse_args()
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
if a.validation:
    with open(a.validation, "w", encoding="utf-8") as out:
        for sample in samples[a.count : a.count + 40]: out.write(json.dumps(sample, ensure_ascii=False) + "\n")
if a.questions:
    with open(a.questions, "w", encoding="utf-8") as out:
        for index, sample in enumerate(samples[: a.count : max(1, a.count // 24)][:24]):
            question, answer = (m["content"] for m in sample["messages"])
            out.write(json.dumps({"question_id": index + 1, "category": "基本任务", "subcategory": "续写", "question": question,
                                  "reference": answer}, ensure_ascii=False) + "\n")
