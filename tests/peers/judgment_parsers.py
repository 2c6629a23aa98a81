#!/usr/bin/env python3
"""2,000 judgments through `flm eval judge` and `flm eval score`, read a second time in Python.

    judgment_parsers.py --flm target/release/flm --work DIR [--count 2000]

A judge on the loopback answers each question in one of many forms (dicts, JSON, thinking, quotations, decimals, full
width, tables, nothing at all) and in one of many ways (whole, in parts, as a stream, after an error, cut,
filtered, refused). Compared are

- the ways: which answers become rows, refused rows or failures, and that a row holds the text as it was sent;
- `released`: rating and score of every row against AlignBench's expressions, written here with Python's `re`; the
  table of categories and dimensions against show_result.py's and dimension_calculate.py's rules;
- `strict`: the verdict of every row against a reader written here from the help of `flm eval score`, and against
  what the form was made to say; of odd forms, in which the number after the name is not the verdict, it may
  make nothing, but no other number.

One table says, form by form, how many rows `released` gives a number (and how often the right one), how many
`strict` scores, how often that is right and how often as here; two differences of each kind are shown. The exit
status is 1 where a way, `released` or `strict` against the form differs. --plant moves one score in each comparison."""

import argparse
import json
import random
import re
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--count", type=int, default=2000)
p.add_argument("--seed", type=int, default=1)
p.add_argument("--plant", action="store_true")
a = p.parse_args()
REASONING = ["数学计算", "逻辑推理"]
LANGUAGE = ["基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"]
AMBIGUOUS, MISSING, OUT = "ambiguous", "missing", "out of range"
r = random.Random(a.seed)


def dims(n, quote="'", gap=" ", colon=":", end=""):
    """The inside of a dict: some dimensions, then the total."""
    names = r.sample(["事实正确性", "满足用户需求", "清晰度", "完备性", "逻辑连贯性"], r.randint(0, 3))
    pairs = [(name, r.randint(1, 10)) for name in names] + [("综合得分", n)]
    return f",{gap}".join(f"{quote}{k}{quote}{colon}{gap}{v}{end}" for k, v in pairs)


def wide(n):
    return "".join(chr(ord(c) + 0xFEE0) for c in str(n))


TALK = [
    "回答大体正确。",
    "与参考答案相比，第二步有误。",
    "语言通顺，但不完整。",
    "1. 事实：对。\n2. 需求：部分满足。",
    "The answer is fine.",
]


def lines(n, quote="'"):
    return "{\n  " + dims(n, quote).replace(", ", ",\n  ") + "\n}"


# a form: its name, what a judge says whose score is n (m is another number, never n), what a careful reader takes
FORMS = [
    ("dict", lambda n, m, t: f"{t}\n{{{dims(n)}}}", None),
    ("dict in one line with the talk", lambda n, m, t: f"{t} {{{dims(n)}}}", None),
    ("dict first, talk after", lambda n, m, t: f"{{{dims(n)}}}\n{t}", None),
    ("dict in several lines", lambda n, m, t: f"{t}\n{lines(n)}", None),
    ("fence", lambda n, m, t: f"{t}\n```python\n{lines(n)}\n```", None),
    ("JSON", lambda n, m, t: f"{t}\n{{{dims(n, chr(34))}}}", None),
    ("JSON fence", lambda n, m, t: f"{t}\n```json\n{lines(n, chr(34))}\n```", None),
    ("no blank", lambda n, m, t: f"{t}\n{{{dims(n, gap='')}}}", None),
    ("full-width colon", lambda n, m, t: f"{t}\n{{{dims(n, colon='：')}}}", None),
    ("full-width digits", lambda n, m, t: f"{t}\n{{'清晰度': 7, '综合得分': {wide(n)}}}", None),
    ("all full width", lambda n, m, t: f"{t}\n｛＇综合得分＇：{wide(n)}｝", None),
    ("curly quotes", lambda n, m, t: f"{t}\n{{‘清晰度’: 7, ‘综合得分’: {n}}}", None),
    ("quoted number", lambda n, m, t: f"{t}\n{{'清晰度': '7', '综合得分': '{n}'}}", None),
    ("分 in the dict", lambda n, m, t: f"{t}\n{{{dims(n, end='分')}}}", None),
    ("n/10 in the dict", lambda n, m, t: f"{t}\n{{'综合得分': {n}/10}}", None),
    ("double braces", lambda n, m, t: f"{t}\n{{{{{dims(n)}}}}}", None),
    (
        "decimal in the dict",
        lambda n, m, t: f"{t}\n{{'清晰度': 7, '综合得分': {min(n, 9)}.5}}",
        lambda n, m: min(n, 9) + 0.5,
    ),
    (
        "decimal outside a dict",
        lambda n, m, t: f"{t}\n'综合得分': {min(n, 9)}.25",
        lambda n, m: min(n, 9) + 0.25,
    ),
    ("bold", lambda n, m, t: f"{t}\n**综合得分**: {n}", None),
    ("bold number", lambda n, m, t: f"{t}\n**综合得分：{n}分**", None),
    ("a line of its own", lambda n, m, t: f"{t}\n综合得分：{n}分", None),
    ("总分", lambda n, m, t: f"{t}\n总分：{n}/10", None),
    ("in a sentence", lambda n, m, t: f"{t}因此综合得分为{n}分。", None),
    ("with the scale", lambda n, m, t: f"{t}\n综合得分（1-10）：{n}", None),
    ("heading", lambda n, m, t: f"{t}\n### 综合得分: {n}\n", None),
    ("table", lambda n, m, t: f"{t}\n| 维度 | 分数 |\n|---|---|\n| 清晰度 | 7 |\n| 综合得分 | {n} |", None),
    ("brackets", lambda n, m, t: f"{t}\n【综合得分】{n}", None),
    ("[[n]]", lambda n, m, t: f"{t}\nRating: [[{n}]]", None),
    ("[[n.5]]", lambda n, m, t: f"{t}\n评分：[[{min(n, 9)}.5]]", lambda n, m: min(n, 9) + 0.5),
    ("Overall Score", lambda n, m, t: f"{t}\nOverall Score: {n}/10", None),
    ("JSON, English key", lambda n, m, t: f'{t}\n{{"clarity": 7, "overall_score": {n}}}', None),
    (
        "thinking, then a dict",
        lambda n, m, t: f"<think>\n先猜 {{'综合得分': {m}}}。\n</think>\n{t}\n{{{dims(n)}}}",
        None,
    ),
    (
        "thinking, then several lines",
        lambda n, m, t: f"<think>像 {{'综合得分': {m}}}</think>{t}\n{lines(n)}",
        None,
    ),
    (
        "thinking, opened by the template",
        lambda n, m, t: f"像 {{'综合得分': {m}}}\n</think>\n\n{t}\n{lines(n, chr(34))}",
        None,
    ),
    (
        "thinking without an end",
        lambda n, m, t: f"<think>\n看来是 {{'综合得分': {n}}}，且慢",
        lambda n, m: MISSING,
    ),
    ("thinking, then nothing", lambda n, m, t: f"<think>{{'综合得分': {n}}}</think>", lambda n, m: MISSING),
    (
        "quotes the answer's dict, then several lines",
        lambda n, m, t: f"回答里写着“{{'综合得分': {m}}}”，不足为凭。\n{lines(n)}",
        None,
    ),
    (
        "dict, then a note that quotes one",
        lambda n, m, t: f"{{'综合得分': {n}}}\n注：回答中的“{{'综合得分': {m}}}”不算。",
        None,
    ),
    ("the scale's lowest, then several lines", lambda n, m, t: f"'综合得分': 1 分是最低。\n{lines(n)}", None),
    (
        "a draft, then a correction",
        lambda n, m, t: f"{{'综合得分': {m}}}\n复核后修正为\n{{'综合得分': {n}}}",
        None,
    ),
    ("a draft in a line, a final dict", lambda n, m, t: f"初步的综合得分是 {m} 分。{t}\n{{{dims(n)}}}", None),
    ("the same twice", lambda n, m, t: f"{{'综合得分': {n}}}\n{t}\n{{'综合得分': {n}}}", None),
    (
        "two different dicts",
        lambda n, m, t: f"{{'综合得分': {n}}}\n{t}\n{{'综合得分': {m}}}",
        lambda n, m: AMBIGUOUS,
    ),
    ("two different lines", lambda n, m, t: f"综合得分：{n}\n综合得分：{m}", lambda n, m: AMBIGUOUS),
    ("a formula after the dict", lambda n, m, t: f"{{{dims(n)}}}\n即 \\frac{{1}}{{2}}", None),
    (
        "a formula before the dict",
        lambda n, m, t: f"由 \\sqrt{{2}} 得 \\frac{{a}}{{b}}。\n{{{dims(n)}}}",
        None,
    ),
    ("object as the value", lambda n, m, t: f'{t}\n{{"综合得分": {{"score": {n}, "reason": "略"}}}}', None),
    ("trailing comma", lambda n, m, t: f"{t}\n{{{dims(n)},}}", None),
    ("no closing brace", lambda n, m, t: f"{t}\n{{'清晰度': 7, '综合得分': {n}", None),
    ("zero", lambda n, m, t: f"{t}\n{{'综合得分': 0}}", lambda n, m: OUT),
    ("out of 100", lambda n, m, t: f"{t}\n{{'综合得分': {n * 10 + 5}}}", lambda n, m: OUT),
    ("huge", lambda n, m, t: f"{t}\n{{'综合得分': {n}{'0' * r.choice([20, 40])}}}", lambda n, m: OUT),
    ("11", lambda n, m, t: f"{t}\n'综合得分': 11", lambda n, m: OUT),
    ("n/100", lambda n, m, t: f"{t}\n综合得分：{n * 10}/100", lambda n, m: MISSING),
    ("a range", lambda n, m, t: f"{t}\n综合得分：{min(n, 8)}-{min(n, 8) + 2}", lambda n, m: MISSING),
    ("null", lambda n, m, t: f"{t}\n{{'清晰度': 7, '综合得分': null}}", lambda n, m: MISSING),
    ("dimensions only", lambda n, m, t: f"{t}\n{{'清晰度': {n}, '完备性': {m}}}", lambda n, m: MISSING),
    ("a comma in a name", lambda n, m, t: f"{t}\n{{'甲', '清晰度': {m}, '综合得分': {n}}}", None),
    ("talk only", lambda n, m, t: t, lambda n, m: MISSING),
    ("refuses in words", lambda n, m, t: "抱歉，我无法评价这个回答。", lambda n, m: MISSING),
    (
        "Chinese numeral",
        lambda n, m, t: f"{t}\n综合得分：{'一二三四五六七八九十'[n - 1]}分",
        lambda n, m: MISSING,
    ),
    ("open brace after the dict", lambda n, m, t: f"{{{dims(n)}}}\n补充：集合 {{1, 2", None),
    ("Windows lines", lambda n, m, t: f"{t}\r\n{{\r\n'清晰度': 7,\r\n'综合得分': {n}\r\n}}\r\n", None),
]


def near(n):
    """How far two numbers on the scale can be from n."""
    return min(n - 1, 10 - n, 2)


# forms of which a reader may make nothing, but no other number
ODD = [
    ("weighed sum", lambda n, m, t: f"{t}\n综合得分：{n - near(n)} × 0.5 + {n + near(n)} × 0.5 = {n}", None),
    (
        "weighed sum with stars",
        lambda n, m, t: f"{t}\n综合得分 = {n - near(n)}*0.5+{n + near(n)}*0.5={n}",
        None,
    ),
    ("sum", lambda n, m, t: f"{t}\n综合得分：{max(n, 2) - 1} + 1 = {max(n, 2)}", lambda n, m: max(n, 2)),
    ("arrow", lambda n, m, t: f"{t}\n综合得分：{m}→{n}", None),
    ("one or the other", lambda n, m, t: f"{t}\n综合得分：{n}或{m}", lambda n, m: AMBIGUOUS),
    (
        "table with full marks",
        lambda n, m, t: f"{t}\n| 维度 | 满分 | 得分 |\n|---|---|---|\n| 综合得分 | 10 | {n} |",
        None,
    ),
    ("full marks in a sentence", lambda n, m, t: f"{t}总分为10分，本回答得{n}分。", None),
    ("of full marks", lambda n, m, t: f"{t}\n综合得分：10分中的{n}分", None),
    (
        "the reference's score in a sentence",
        lambda n, m, t: f"参考答案的综合得分是8分，这个回答得{n}分。",
        None,
    ),
    ("the best score in a sentence", lambda n, m, t: f"综合得分为10表示完美，本回答得{n}分。", None),
    ("exponent", lambda n, m, t: f"{t}\n{{'综合得分': 1e1}}", lambda n, m: 10),
    (
        "a tag in the note",
        lambda n, m, t: f"{t}\n{{'综合得分': {n}}}\n注：答案里有未闭合的 <think> 标签。",
        None,
    ),
]
# how a judge answers, and what becomes of it
WAYS = [("whole", "row", 60), ("parts", "row", 5), ("stream", "row", 5), ("blank lines before", "row", 3)]
WAYS += [
    ("429, then whole", "row", 3),
    ("500, then whole", "row", 3),
    ("no finish_reason", "row", 3),
    ("reasoning beside", "row", 3),
]
WAYS += [
    ("HTTP 400, content_filter", "refused", 2),
    ("HTTP 403, moderation", "refused", 2),
    ("refusal", "refused", 2),
]
WAYS += [
    ("finish content_filter", "refused", 2),
    ("cut, finish length", "failed", 2),
    ("null content", "failed", 1),
]
WAYS += [
    ("empty, reasoning only", "failed", 1),
    ("error with 200", "failed", 1),
    ("error in the choice", "failed", 1),
]
WAYS += [("HTML with 200", "failed", 1)]
OUTCOME = {name: outcome for name, outcome, _ in WAYS}


def released(text):
    """AlignBench's reading: the last braces, pairs of a name and digits, or else the total anywhere."""
    rating, braces = {}, re.search(r"{(.*?)}(?![^{]*{)", text)
    if braces:
        rating = {name: int(digits) for name, digits in re.findall(r"'(.*?)': (\d+)", braces.group(1))}
    if "综合得分" in rating:
        return rating, rating["综合得分"]
    total = re.search(r"'综合得分': (\d+(\.\d{1,2})?)", text)
    return rating, float(total.group(1)) if total else -1


NAME = r"(?:综合得分|综合评分|总分|overall[ _]score)"
NUMBER = r"(-?\d+(?:\.\d+)?)(?:\s*分)?(?:\s*/\s*(\d+))?"
MARKS = "[\\s\"'‘’“”*_`]*"


def strict(text):
    """The help's rule: after the thinking, the dict or JSON that stands by itself, or after 综合得分, or [[n]]."""
    text = re.split(r"</think>", text)[-1]
    if "<think>" in text:
        return MISSING
    text = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in text)
    value = (
        NAME
        + MARKS
        + r"(?:\([^)]*\)|】)?"
        + MARKS
        + r"(?:[:：为是|]|(?<=】))"
        + r"(?:\s*\{\s*[\"']score[\"']\s*:)?"
        + MARKS
        + NUMBER
    )
    value += r"(?!\s*[-~]\s*\d|\s*分?\s*[是为])"
    found = defaultdict(list)
    blocks = [(m.start(), m.end(), m.group()) for m in re.finditer(r"\{(?:[^{}]|\{[^{}]*\})*\}", text)]
    for match in re.finditer(value, text, re.IGNORECASE):
        number, of = float(match[1]), match[2]
        if of not in (None, "10"):
            continue
        inside = [b for b in blocks if b[0] <= match.start() < b[1]]
        begin, end = inside[0][:2] if inside else match.span()
        before = text[text.rfind("\n", 0, begin) + 1 : begin]
        after = text[end:].split("\n")[0]
        if re.search("[“「][^”」]*$", before):
            continue
        if (
            inside
            and re.fullmatch(r".*[\s:。.!,;`{]", before + " ", re.S)
            and re.fullmatch(r"[\s`。.,;}]*", after)
        ):
            alone = not before.strip() or before.rstrip()[-1] in ":。.!,;`{"
            found[3 if alone else 2].append((begin, end, number))
        else:
            found[2 if not re.sub(r"[\s*#|>.\"'【`-]", "", before) else 1].append((begin, end, number))
    for match in re.finditer(r"\[\[\s*" + NUMBER + r"\s*\]\]", text):
        found[2].append((*match.span(), float(match[1])))
    if not found:
        return MISSING
    best = sorted(found[max(found)])
    numbers = {number for _, _, number in best}
    if len(numbers) > 1 and not re.search("修正|改为|更正|最终", text[best[-2][1] : best[-1][0]]):
        return AMBIGUOUS
    number = best[-1][2]
    return number if 1 <= number <= 10 else OUT


def flm_verdict(told):
    if isinstance(told, str):
        return told
    ((kind, number),) = told.items()
    return number if kind == "scored" else OUT


cases, times, lock = {}, Counter(), threading.Lock()


class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = int(re.search(r"第(\d+)号", body["messages"][0]["content"])[1])
        with lock:
            times[number] += 1
        text, way = cases[number]["text"], cases[number]["way"]
        message, finish, choice = {"role": "assistant", "content": text}, "stop", {}
        if way == "429, then whole" and times[number] == 1:
            return self.send(
                429,
                {"error": {"message": "slow down", "code": "rate_limit_exceeded"}},
                {"retry-after-ms": "20"},
            )
        if way == "500, then whole" and times[number] == 1:
            return self.send(500, "<html>Bad</html>")
        if way == "HTTP 400, content_filter":
            return self.send(400, {"error": {"code": "content_filter", "message": "filtered"}})
        if way == "HTTP 403, moderation":
            return self.send(403, {"error": {"code": 403, "message": "input flagged by moderation"}})
        if way == "HTML with 200":
            return self.send(200, "<!doctype html><title>login</title>")
        if way == "error with 200":
            return self.send(200, {"error": {"message": "upstream error", "code": 502}})
        if way == "stream":
            half = len(text) // 2
            parts = [
                {"delta": {"content": text[:half]}},
                {"delta": {"content": text[half:]}},
                {"delta": {}, "finish_reason": "stop"},
            ]
            events = "".join(
                f"data: {json.dumps({'model': 'critic-1', 'choices': [part]})}\n\n" for part in parts
            )
            return self.send(200, events + "data: [DONE]\n\n")
        if way == "parts":
            third = len(text) // 3
            message["content"] = [{"type": "text", "text": part} for part in (text[:third], text[third:])]
        if way == "reasoning beside":
            message["reasoning_content"] = "{'综合得分': 3}"
        if way == "refusal":
            message.update(content=None, refusal="I will not")
        if way == "finish content_filter":
            finish = "content_filter"
        if way == "cut, finish length":
            finish = "length"
        if way in ("null content", "empty, reasoning only"):
            message.update(content=None if way == "null content" else "", reasoning_content="{'综合得分': 6}")
        if way == "error in the choice":
            message["content"], finish = "", "error"
            choice["error"] = {"code": 502, "message": "upstream"}
        choice.update(index=0, message=message)
        if way != "no finish_reason":
            choice["finish_reason"] = finish
        self.send(
            200,
            {"model": "critic-1", "choices": [choice]},
            before="\n\n\n" if way == "blank lines before" else "",
        )

    def send(self, status, body, headers={}, before=""):
        text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=r.random() < 0.5)
        body = (before + text).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def flm(*arguments):
    done = subprocess.run([a.flm, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        sys.exit(f"flm {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def check(what, good):
    global failed
    print(f"  {'ok ' if good else 'BAD'} {what}", flush=True)
    failed += not good


failed = 0
a.work.mkdir(parents=True, exist_ok=True)
answers, out = a.work / "answers.jsonl", a.work / "judgments.jsonl"
out.unlink(missing_ok=True)
names, _, weights = zip(*WAYS)
with answers.open("w", encoding="utf8") as file:
    for number in range(1, a.count + 1):
        n = r.randint(1, 10)
        m = r.choice([k for k in range(1, 11) if k != n])
        form, make, says = (FORMS + ODD)[number % len(FORMS + ODD)]
        way = r.choices(names, weights)[0]
        cases[number] = {
            "text": make(n, m, r.choice(TALK)),
            "way": way,
            "form": form,
            "says": says(n, m) if says else n,
        }
        row = {"question_id": number, "category": (REASONING + LANGUAGE)[r.randrange(8)], "subcategory": ""}
        row.update(question=f"第{number}号：这是什么？", reference="是它。", answer="也许。")
        cases[number]["category"] = row["category"]
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
threading.Thread(target=server.serve_forever, daemon=True).start()
judge = ["--judge-model", "critic", "--judge-url", f"http://127.0.0.1:{server.server_address[1]}/v1"]
judged = flm(
    "eval", "judge", answers, "--out", out, *judge, "--judge-retry-wait", "0.01", "--judge-attempts", "3"
)
rows = {row["question_id"]: row for row in map(json.loads, out.read_text(encoding="utf8").splitlines())}
scores = flm("eval", "score", out)
read = {row["question_id"]: row for row in scores["rows"]}
print(f"{a.count} answers: {len(rows)} rows, {judged['refused']} refused, {len(judged['failed'])} failed")

print("ways")
gone = {failure["question_id"] for failure in judged["failed"]}
for way, outcome, _ in WAYS:
    of = [n for n, case in cases.items() if case["way"] == way]
    if outcome == "row":
        right = [
            n
            for n in of
            if n in rows and rows[n]["judgment"] == cases[n]["text"] and "refused" not in rows[n]
        ]
    elif outcome == "refused":
        right = [n for n in of if n in rows and "refused" in rows[n] and rows[n]["judgment"] == ""]
    else:
        right = [n for n in of if n in gone and n not in rows]
    check(f"{way}: {len(right)} of {len(of)} {outcome}", len(right) == len(of))

kept = [n for n in rows if "refused" not in rows[n]]
if a.plant:
    read[kept[0]]["score"] = 3.125
    read[kept[1]]["verdict"] = {"scored": 3.125}
print("released")
wrong = []
for n in kept:
    rating, score = released(cases[n]["text"])
    same = lambda x, y: x == y or float(x) == float(y)  # noqa: E731
    for told in (rows[n], read[n]) if not a.plant else (read[n],):
        good = told["rating"].keys() == rating.keys() and all(
            same(told["rating"][k], v) for k, v in rating.items()
        )
        if not (
            good
            and same(told["score"], score)
            and isinstance(told["score"], float) == (isinstance(score, float) or score > 2**64)
        ):
            wrong.append(f"{cases[n]['form']}: {told['rating']}, {told['score']}, not {rating}, {score}")
check(
    f"{len(kept)} rows: rating and score, in the row and from `flm eval score`; {len(wrong)} differ",
    not wrong,
)
print("\n".join(f"      {line}" for line in wrong[:10]), end="\n" if wrong else "")
by_category, by_dimension = defaultdict(list), defaultdict(list)
for n in kept:
    rating, score = released(cases[n]["text"])
    by_category[cases[n]["category"]].append(score)
    for name, value in rating.items():
        if score != -1 and "," not in name:
            by_dimension[name].append(value)
mean = lambda values: sum(values) / len(values)  # noqa: E731
means = {name: mean(values) for name, values in by_category.items()}
half = [mean([means[name] for name in names]) for names in (REASONING, LANGUAGE)]
told = scores["released"]
close = lambda x, y: abs(x - y) <= 1e-12 * abs(y)  # noqa: E731
check(
    "means of the categories, halves, overall",
    all(close(told["categories"][k], v) for k, v in means.items())
    and close(told["reasoning"], half[0])
    and close(told["language"], half[1])
    and close(told["overall"], mean(half)),
)
check(
    "means and counts of the dimensions",
    told["dimensions"].keys() == by_dimension.keys()
    and all(
        close(told["dimensions"][k][0], mean(v)) and told["dimensions"][k][1] == len(v)
        for k, v in by_dimension.items()
    ),
)

print("strict, and what the judge said")
print(f"  {'form':<46}{'rows':>5}{'released':>9}{'strict':>7}{'right':>6}{'as here':>8}")
odd = {form for form, _, _ in ODD}
for form, _, _ in FORMS + ODD:
    of = [n for n in kept if cases[n]["form"] == form]
    verdicts = {n: flm_verdict(read[n]["verdict"]) for n in of}
    numbers = sum(read[n]["score"] != -1 for n in of)
    nothing = (AMBIGUOUS, MISSING, OUT) if form in odd else ()
    right = [n for n in of if verdicts[n] == cases[n]["says"] or verdicts[n] in nothing]
    mine = [n for n in of if verdicts[n] == strict(cases[n]["text"])]
    exact = sum(cases[n]["says"] == read[n]["score"] for n in of)
    scored = sum(not isinstance(v, str) for v in verdicts.values())
    bad = len(right) < len(of)
    failed += bad
    print(
        f"  {form:<46}{len(of):>5}{f'{numbers} ({exact})':>9}{scored:>7}{len(right):>6}{len(mine):>8}{'  BAD' if bad else ''}"
    )
    for others, what in ((set(of) - set(right), "the form says"), (set(of) - set(mine), "read here as")):
        for n in sorted(others)[:2]:
            other = cases[n]["says"] if what == "the form says" else strict(cases[n]["text"])
            print(f"      flm {verdicts[n]}, {what} {other}: {cases[n]['text'][-120:]!r}")
ledger = scores["ledger"]
counts = Counter(
    v if isinstance(v, str) else "scored" for v in (flm_verdict(read[n]["verdict"]) for n in kept)
)
wanted = {
    "scored": counts["scored"],
    "ambiguous": counts[AMBIGUOUS],
    "out_of_range": counts[OUT],
    "missing": counts[MISSING],
}
check(
    f"ledger: {ledger['strict']}, refused {ledger['refused']}",
    ledger["strict"] == wanted and ledger["refused"] == len(rows) - len(kept),
)
sys.exit(1 if failed else 0)
