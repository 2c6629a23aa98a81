#!/usr/bin/env python3
"""The instruction samples and the AlignBench-style questions of the built-in model.
usage: instructions.py classics.jsonl OUT_DIR

Writes OUT_DIR/instructions.jsonl (200 samples, `messages`) and OUT_DIR/questions.jsonl (60 questions in
AlignBench's eight categories). A question is of a kind that the samples teach, and none of them is among
the samples: the same seed draws both, without replacement. Lines of verse come from classics.jsonl (public
domain; see NOTICE beside the built-in model), everything else from the tables below."""
import argparse, json, pathlib, random

SAMPLES, QUESTIONS, SEED = 25, (8, 8, 8, 8, 7, 7, 7, 7), 20240702

NUMBERS = "零一二三四五六七八九十"
NAMES = ["甲", "乙", "丙", "丁", "张三", "李四", "王五", "赵六"]
MORE = [("高", "最高"), ("大", "最大"), ("重", "最重"), ("快", "最快"), ("早", "最早"), ("长", "最长")]
POETS = ["李白", "杜甫", "白居易", "王维", "孟浩然", "李商隐", "杜牧", "刘禹锡", "柳宗元", "韩愈", "元稹", "岑参", "高适",
         "王昌龄", "贾岛", "孟郊", "李贺", "温庭筠", "韦应物", "刘长卿", "张籍", "王建", "许浑", "罗隐", "韦庄", "皎然",
         "贯休", "齐己", "陆龟蒙", "皮日休", "姚合", "张祜", "司空图", "韩偓"]
SEASONS = {"春": "春天", "夏": "夏天", "秋": "秋天", "冬": "冬天"}


def number(n):
    return NUMBERS[n] if n <= 10 else "十" + NUMBERS[n - 10] if n < 20 else "二十"


def lines(text):
    """The half-lines of five or seven characters of a poem, in pairs."""
    for couplet in text.split("\n"):
        first, comma, second = couplet.partition("，")
        if comma and len(first) in (5, 7) and len(second) == len(first) + 1 and second[-1] in "。":
            yield first, second[:-1]


def kinds(poems):
    """category, subcategory -> list of (question, answer)."""
    famous = [p for p in poems if p["work"] in ("唐诗三百首", "千家诗")]
    couplets = sorted({pair for p in famous for pair in lines(p["text"])})
    season = sorted({(a + "，" + b + "。", SEASONS[s]) for p in poems if p["work"] == "全唐诗" for a, b in lines(p["text"])
                     for s in SEASONS if s in a + b and not any(o in a + b for o in SEASONS if o != s)})
    by_season = {s: [x for x in season if x[1] == s] for s in SEASONS.values()}
    titles = sorted({(p["title"], p["author"]) for p in famous
                     if p["author"] in POETS and 2 <= len(p["title"]) <= 6 and " " not in p["title"]})
    titles = [(t, a) for t, a in titles if sum(x == t for x, _ in titles) == 1]
    pairs = sorted({(x, y) for p in poems if p["work"] == "声律启蒙" for s in p["text"].replace("。", "，").replace("\n", "，").split("，")
                    for x, d, y in [s.partition("对")] if d and len(x) == len(y) and 1 <= len(x) <= 2})
    openings = sorted({(a[:2], a, b) for a, b in couplets if len(a) == 5})
    trios = [(a, b, c, m) for a in NAMES for b in NAMES for c in NAMES for m in MORE if len({a, b, c}) == 3]
    sums = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    take = lambda rng, rows, n: rng.sample(rows, n)

    def chosen(rng, n):
        yield ("专业能力", "中国文学"), [(f"《{t}》的作者是谁？", f"《{t}》的作者是{a}。") for t, a in take(rng, titles, n)]
        yield ("中文理解", "诗文理解"), [(f"“{t}”写的是哪个季节？", f"写的是{s}。") for rows in by_season.values()
                                   for t, s in take(rng, rows, (n + 3) // 4)]
        yield ("基本任务", "续写"), [(f"请写出“{a}”的下一句。", f"下一句是“{b}”。") for a, b in take(rng, couplets, n)]
        yield ("数学计算", "初等数学"), [(f"{number(a)}加{number(b)}等于几？", f"{number(a)}加{number(b)}等于{number(a + b)}。")
                                   for a, b in take(rng, sums, n)]
        yield ("文本写作", "诗歌"), [(f"请用“{w}”开头写一句诗。", f"{a}，{b}。") for w, a, b in take(rng, openings, n)]
        yield ("综合问答", "对仗"), [(f"“{x}”对什么？", f"“{x}”对“{y}”。") for x, y in take(rng, pairs, n)]
        yield ("角色扮演", "名人"), [(q.format(p), f"我是{p}，是唐代的诗人。") for p, q in take(rng, [
            (p, q) for p in POETS for q in ("你是{}，请介绍你自己。", "假如你是{}，你会怎样介绍自己？")], n)]
        yield ("逻辑推理", "推理"), [(f"{a}比{b}{m}，{b}比{c}{m}，谁{most}？", f"{a}{most}。")
                                 for a, b, c, (m, most) in take(rng, trios, n)]
    return chosen


def main():
    ap = argparse.ArgumentParser(description=__doc__); ap.add_argument("classics"); ap.add_argument("out", type=pathlib.Path)
    a = ap.parse_args()
    poems = [json.loads(line) for line in open(a.classics, encoding="utf-8")]
    rng = random.Random(SEED)
    samples, questions = [], []
    for ((category, sub), rows), count in zip(kinds(poems)(rng, SAMPLES + max(QUESTIONS)), QUESTIONS):
        rows = sorted(set(rows)); rng.shuffle(rows)
        asked = {q for q, _ in rows}
        assert len(asked) == len(rows) >= SAMPLES + count, category
        samples += [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": r}]} for q, r in rows[:SAMPLES]]
        questions += [{"category": category, "subcategory": sub, "question": q, "reference": r} for q, r in rows[SAMPLES:SAMPLES + count]]
    rng.shuffle(samples)
    a.out.mkdir(parents=True, exist_ok=True)
    write(a.out / "instructions.jsonl", samples)
    write(a.out / "questions.jsonl", [{"question_id": i + 1, **q} for i, q in enumerate(questions)])
    print(f"{len(samples)} samples, {len(questions)} questions")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
