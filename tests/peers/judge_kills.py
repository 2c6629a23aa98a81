#!/usr/bin/env python3
"""`flm eval judge` killed at random moments: the rows of an evaluation that nobody disturbed.

    judge_kills.py --flm target/release/flm --work DIR [--kills 50] [--questions 60]

A judge on the loopback answers by the number of the question: a good judgment, a slow one, one after an error or a
broken connection, one without a score, a refusal (HTTP 400, `refusal`, `content_filter`), one cut by the token
limit, an error that never passes. One evaluation runs undisturbed. Others are killed (SIGKILL) three to six
times each, at random moments, then run to their end, until there were --kills kills. Of each

- the rows are those of the undisturbed one, key by key, each question once (their order may differ);
- what failed is what failed there, with the same reasons;
- no run asks for a question that had a row when it began.

Two more evaluations begin with one good answer and go on with twelve whose judgments are cut, or empty. The rest
has to come all the same, undisturbed and after a kill behind the first row.

Exit status 1 where one of these fails. --plant loses the last row after each kill, repeats it, or changes one in the
end, to see it fail."""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--kills", type=int, default=50)
p.add_argument("--questions", type=int, default=60)
p.add_argument("--seed", type=int, default=1)
p.add_argument("--plant", choices=["lose", "repeat", "change"])
a = p.parse_args()

CATEGORIES = ["数学计算", "逻辑推理", "基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"]
KINDS = (
    ["good"] * 6 + ["slow"] * 4 + ["error once", "broken once", "no score", "400", "refusal", "filter", "cut"]
)
random_ = random.Random(a.seed)
failed = []
kinds, asked, seen, known, run = {}, [], {}, set(), 0
lock = threading.Lock()


def completion(content, finish="stop", **message):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
    return {"object": "chat.completion", "model": "critic-1", "choices": [choice], "usage": usage}


class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = int(re.search(r"第(\d+)号", body["messages"][0]["content"])[1])
        with lock:
            asked.append((run, number))
            seen[number] = times = seen.get(number, 0) + 1
        kind = kinds[number]
        try:
            self.answer(number, kind, times)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self, number, kind, times):
        score = 1 + number % 10
        good = f"评语{number}。\n{{'事实正确性': {score}, '综合得分': {score}}}"
        if kind == "slow":
            time.sleep(0.1 + 0.02 * (number % 10))
        if kind == "down" or kind == "error once" and times % 2:
            return self.send(500, {"error": {"message": "overloaded"}})
        if kind == "broken once" and times % 2:
            self.close_connection = True
            return self.connection.close()
        if kind == "400":
            return self.send(
                400, {"error": {"code": "content_filter", "message": f"prompt {number} filtered"}}
            )
        if kind == "refusal":
            return self.send(200, completion(None, refusal="I will not"))
        if kind == "filter":
            return self.send(200, completion("这个", finish="content_filter"))
        if kind == "empty":
            return self.send(200, completion(""))
        if kind == "cut":
            return self.send(200, completion(good[:-3], finish="length"))
        self.send(200, completion("难以评价。" if kind == "no score" else good))

    def send(self, status, body):
        body = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Judge)
threading.Thread(target=server.serve_forever, daemon=True).start()


def check(what, good):
    print(f"  {'ok ' if good else 'BAD'} {what}", flush=True)
    if not good:
        failed.append(what)


def write_answers(path, count):
    rows = [
        {
            "question_id": n,
            "category": CATEGORIES[n % 8],
            "subcategory": "",
            "question": f"第{n}号：{n}加一等于几？",
            "reference": str(n + 1),
            "answer": f"是{n + 1}。",
        }
        for n in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf8")


def start(answers, out):
    global run
    run += 1
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = [a.flm, "eval", "judge", answers, "--out", out, "--judge-model", "critic", "--judge-url", url]
    command += ["--judge-retry-wait", "0.05", "--judge-attempts", "4", "--judge-concurrency", "4"]
    return subprocess.Popen(
        [*map(str, command), "--json", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows_of(out):
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf8").splitlines() if line.endswith("}")]


def to_the_end(answers, out):
    process = start(answers, out)
    stdout, stderr = process.communicate()
    try:
        told = json.loads(stdout)
        return {failure["question_id"]: failure["why"] for failure in told["failed"]}, None
    except ValueError:
        return None, stderr.strip()


def killed(answers, out, moment):
    """Starts a run and kills it: after `moment` seconds, or once there are as many rows as -`moment`."""
    process = start(answers, out)
    if moment > 0:
        time.sleep(moment)
    else:
        while len(rows_of(out)) < -moment and process.poll() is None:
            time.sleep(0.002)
    was_running = process.poll() is None
    process.kill()
    process.communicate()
    known.update(row["question_id"] for row in rows_of(out))
    if a.plant in ("lose", "repeat") and was_running and out.exists():
        lines = out.read_text(encoding="utf8").splitlines(keepends=True)
        lines = lines[:-1] if a.plant == "lose" else lines + lines[-1:]
        out.write_text("".join(lines), encoding="utf8")
    return was_running


def compare(label, found, wanted, failures, wanted_failures):
    ids = [row["question_id"] for row in found]
    by_id = {row["question_id"]: row for row in found}
    right = {row["question_id"]: row for row in wanted}
    twice = sorted({n for n in ids if ids.count(n) > 1})
    missing = sorted(right.keys() - by_id.keys())
    other = [n for n in by_id if by_id[n] != right.get(n)]
    good = not twice and not missing and not other and failures == wanted_failures
    check(
        f"{label}: {len(found)} rows, {sum('refused' in row for row in found)} refused,"
        f" {len(failures or {})} failed"
        + ("" if good else f"; twice {twice}, missing {missing}, other {other}, failed {failures}"),
        good,
    )


def asked_again(first_run, begun):
    """Questions asked for in a run that began with a row of them."""
    return sorted({(r, n) for r, n in asked if r >= first_run and n in begun.get(r, ())})


shutil.rmtree(a.work, ignore_errors=True)
a.work.mkdir(parents=True)
answers, first = a.work / "answers.jsonl", a.work / "undisturbed.jsonl"
write_answers(answers, a.questions)
for n in range(1, a.questions + 1):
    kinds[n] = "down" if n % 20 == 7 else random_.choice(KINDS)
print({kind: sum(k == kind for k in kinds.values()) for kind in dict.fromkeys(KINDS + ["down"])})
began = time.time()
wanted_failures, error = to_the_end(answers, first)
took = time.time() - began
if error:
    sys.exit(f"the undisturbed evaluation: {error}")
wanted = rows_of(first)
print(f"undisturbed: {len(wanted)} rows, {len(wanted_failures)} failed, {took:.1f} s")
total, evaluation = 0, 0
while total < a.kills:
    evaluation += 1
    out, kills, begun, first_run = a.work / f"killed-{evaluation}.jsonl", 0, {}, run + 1
    seen.clear()
    known.clear()
    for _ in range(random_.randint(3, 6)):
        begun[run + 1] = set(known)
        # at most half the time of the whole, and a second: some runs are killed before their first row
        if total + kills < a.kills and killed(answers, out, random_.uniform(0.01, min(took / 2, 1.0))):
            kills += 1
    total += kills
    begun[run + 1] = set(known)
    failures, error = to_the_end(answers, out)
    label = f"evaluation {evaluation}, {kills} kills, rows before each run {[len(b) for b in begun.values()]}"
    if error:
        check(f"{label}: {error}", False)
        continue
    found = rows_of(out)
    if a.plant == "change":
        found[-1]["judgment"] += " "
    compare(label, found, wanted, failures, wanted_failures)
    again = asked_again(first_run, begun)
    check(f"  asked for in spite of a row: {again or 'none'}", not again)
check(f"{total} kills", total == a.kills)

for kind, what in (("cut", "that are cut"), ("empty", "whose judgment is empty")):
    print(f"one good answer, twelve {what}, twenty good ones")
    answers, first = a.work / f"front-{kind}.jsonl", a.work / f"front-{kind}-undisturbed.jsonl"
    out = a.work / f"front-{kind}-killed.jsonl"
    write_answers(answers, 33)
    kinds.clear()
    kinds.update({n: kind if 2 <= n <= 13 else "slow" for n in range(1, 34)})
    kinds[1] = "good"
    wanted_failures, error = to_the_end(answers, first)
    wanted = rows_of(first)
    found = f"{len(wanted)} rows, {len(wanted_failures or {})} failed"
    check(f"undisturbed: {error or found}", error is None and len(wanted) == 21)
    killed(answers, out, -1)
    before = len(rows_of(out))
    failures, error = to_the_end(answers, out)
    label = f"killed with {before} rows"
    if error:
        for _ in range(3):
            to_the_end(answers, out)
        check(f"{label}: {error}; {len(rows_of(out))} rows after three more runs, not 21", False)
    else:
        compare(label, rows_of(out), wanted, failures, wanted_failures)
sys.exit(1 if failed else 0)
