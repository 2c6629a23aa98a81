#!/usr/bin/env python3
"""How often the 95 % intervals of `flm eval score` cover the truth, in simulated worlds.

    interval_coverage.py --flm target/release/flm --work DIR [--worlds 400] [--rows 1,2,3,5,7,10,50]

A world is two models' judgments of the same questions, so many in each of AlignBench's eight categories. The pairs
of scores are drawn from a joint distribution that is written down, so that all means are known exactly:

- uniform: both 1 to 10, independent;
- difficulty: hard questions are hard for both;
- skewed: mostly 8 to 10, now and then 1 to 3;
- ties: four of five questions are scored alike.

`flm eval score A --baseline B --json` gives the intervals of A and of the paired difference. Counted are how
often there is an interval, and how often it covers the truth where there is one: of the overall score, of
the halves, of the categories (all eight together). Right is 93 to 97 %, give or take two standard errors of the
count, or no interval.

Exit status 1 where one is wrong. --plant adds 0.6 to every truth, to see it fail."""

import argparse
import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

REASONING = ["数学计算", "逻辑推理"]
LANGUAGE = ["基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"]
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--worlds", type=int, default=400)
p.add_argument("--rows", default="1,2,3,5,7,10,50", type=lambda s: [int(n) for n in s.split(",")])
p.add_argument("--kinds", default="uniform,difficulty,skewed,ties", type=lambda s: s.split(","))
p.add_argument("--seed", type=int, default=1)
p.add_argument("--plant", action="store_true")
a = p.parse_args()


def clamp(score):
    return max(1, min(10, score))


def joint(kind, category):
    """Pairs of scores and their probabilities, in a category."""
    found = defaultdict(float)
    if kind == "uniform":
        for x in range(1, 11):
            for y in range(1, 11):
                found[x, y] += 0.01
    elif kind == "difficulty":
        for hard in (-3, -1, 0, 1, 3):
            for mine in (-1, 0, 1):
                for theirs in (-2, 0, 2):
                    pair = clamp(6 + category % 3 + hard + mine), clamp(6 + category % 2 + hard + theirs)
                    found[pair] += 1 / 45
    elif kind == "skewed":
        high, low = [(8, 0.2), (9, 0.5), (10, 0.15)], [(1, 0.05), (2, 0.05), (3, 0.05)]
        for x, p_x in high + low:
            for y, p_y in high + low:
                found[x, y] += p_x * p_y
    else:
        for x in range(1, 11):
            found[x, x] += 0.08
            for away, share in ((-3, 0.004), (-1, 0.006), (1, 0.007), (2, 0.003)):
                found[clamp(x), clamp(x + away)] += share
    return list(found), list(found.values())


def halves(means):
    """AlignBench's means of the categories' means."""
    reasoning = sum(means[name] for name in REASONING) / 2
    language = sum(means[name] for name in LANGUAGE) / 6
    return {"overall": (reasoning + language) / 2, "reasoning": reasoning, "language": language}


def truths(kind):
    """Means of A and of A less B: of the categories and above."""
    found = []
    for of in (lambda x, y: x, lambda x, y: x - y):
        means = {}
        for number, name in enumerate(REASONING + LANGUAGE):
            pairs, weights = joint(kind, number)
            means[name] = sum(of(*pair) * w for pair, w in zip(pairs, weights)) / sum(weights)
        found.append((means, halves(means)))
    if a.plant:
        found = [({n: m + 0.6 for n, m in c.items()}, {n: m + 0.6 for n, m in h.items()}) for c, h in found]
    return found


def world(kind, rows, random_):
    """A world's two files; the judgments of B stand in another order."""
    files = [[], []]
    for number, name in enumerate(REASONING + LANGUAGE):
        pairs, weights = joint(kind, number)
        for k, pair in enumerate(random_.choices(pairs, weights, k=rows)):
            for file, score in zip(files, pair):
                judgment = f"{{'综合得分': {score}}}"
                file.append({"question_id": number * rows + k + 1, "category": name, "judgment": judgment})
    random_.shuffle(files[1])
    paths = [a.work / "a.jsonl", a.work / "b.jsonl"]
    for path, file in zip(paths, files):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in file), encoding="utf8")
    done = subprocess.run(
        [a.flm, "eval", "score", paths[0], "--baseline", paths[1], "--json", "--quiet"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"flm eval score: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    return told["intervals"]["strict"], told["baseline"]["comparison"]["intervals"]


a.work.mkdir(parents=True, exist_ok=True)
failed = 0
random_ = random.Random(a.seed)
print(f"{'world':<11}{'rows':>5}  {'what':<22}{'given':>8}{'covered':>9}{'±':>6}")
for kind in a.kinds:
    for rows in a.rows:
        # given, covered, asked
        counts = defaultdict(lambda: [0, 0, 0])
        # so few rows are to have no interval: that shows in a few worlds
        for _ in range(a.worlds if rows >= 7 else min(a.worlds, 40)):
            both = world(kind, rows, random_)
            for what, found, (means, above) in zip(("score", "difference"), both, truths(kind)):
                parts = [("overall", found["overall"], above["overall"])]
                parts += [("halves", found[name], above[name]) for name in ("reasoning", "language")]
                parts += [("categories", found["categories"].get(name), mean) for name, mean in means.items()]
                for part, interval, truth in parts:
                    count = counts[what, part]
                    count[2] += 1
                    if interval is not None:
                        count[0] += 1
                        count[1] += interval[0] - 1e-9 <= truth <= interval[1] + 1e-9
        for (what, part), (given, covered, asked) in counts.items():
            share = covered / given if given else None
            error = (0.95 * 0.05 / given) ** 0.5 if given else 0
            good = share is None or 0.93 - 2 * error <= share <= 0.97 + 2 * error
            failed += not good
            told = "–" if share is None else f"{100 * share:.1f} %"
            off = "" if share is None else f"{100 * error:.1f}"
            given = f"{100 * given / asked:.0f} %"
            print(
                f"{kind:<11}{rows:>5}  {what + ', ' + part:<22}{given:>8}{told:>9}{off:>6}{'' if good else '  BAD'}",
                flush=True,
            )
sys.exit(1 if failed else 0)
