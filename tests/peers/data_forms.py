#!/usr/bin/env python3
"""The forms in which people have training data: what `flm sft --dry-run` makes of each, beside transformers.

    data_forms.py --flm target/release/flm --work DIR MODEL_DIR

MODEL_DIR has a tokenizer with a chat template (SmolLM2). Each form is a small file with rows written for this
script, in the keys of a public data set. What a row says, and which turns of it are learned, stands beside it as a
conversation. A form is either

- read: samples, all tokens and learned tokens are those of transformers' apply_chat_template on the conversations
  (learned is an answer with the token that ends it); or
- refused, or its rows left out: flm names the key, or what is wrong.

Parquet and zstd need the packages pyarrow and zstandard; without them those two are not tried. One table is printed;
the exit status is 1 where a form does something else. --plant drops the last turn of every conversation that is
expected, to see it fail."""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("model", type=lambda s: Path(s).resolve())
p.add_argument("--flm", default="target/release/flm", type=lambda s: Path(s).resolve())
p.add_argument("--work", required=True, type=Path)
p.add_argument("--plant", action="store_true")
a = p.parse_args()
tokenizer = AutoTokenizer.from_pretrained(a.model)
forms, failed = [], 0


def chat(*turns, system=None, but=()):
    """A conversation: the turns' texts in order, the user first; `but` are answers that are not learned."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return messages, {
        id(m) for n, m in enumerate(messages) if m["role"] == "assistant" and m["content"] not in but
    }


def read(name, file, rows, expected, *options, said=None):
    forms.append((name, file, rows, expected, options, said))


def refused(name, file, rows, said, *options):
    forms.append((name, file, rows, None, options, said))


def count(conversation):
    """All tokens and learned ones, of a conversation or a text."""
    if isinstance(conversation, str):
        ids = tokenizer(conversation, add_special_tokens=False).input_ids
        return len(ids) + 1, len(ids)
    messages, learned = conversation
    render = lambda m, prompt=False: tokenizer.apply_chat_template(
        m, tokenize=False, add_generation_prompt=prompt
    )  # noqa: E731
    text = render(messages)
    spans = []
    for n, message in enumerate(messages):
        if id(message) in learned:
            begin = len(render(messages[:n], True))
            end = len(render(messages[: n + 1]).rstrip("\n"))
            spans.append((begin, end))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    same = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert encoded.input_ids == same
    starts = [begin for begin, _ in encoded.offset_mapping]
    return len(same), sum(any(b <= at < e for b, e in spans) for at in starts)


def write(path, rows):
    lines = rows if isinstance(rows, str) else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    whole = json.dumps(rows, ensure_ascii=False, indent=1)
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        return pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = (whole if ".json" in path.name and ".jsonl" not in path.name else lines).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        import zstandard

        data = zstandard.compress(data)
    path.write_bytes(data)


Q = ["Which is heavier, lead or cork?", "Name a river in Africa.", "桥是用什么造的？", "Add 17 and 25."]
A = ["Lead, by far.", "The Zambezi.\nIt ends in Mozambique.", "多半是石头和钢。", "17 + 25 = 42"]
PAIRS = [chat(q, r) for q, r in zip(Q, A)]
LONG = chat(Q[0], A[0], "And dry sand?", "In between.")
OTHERS = dict(zip("rs", ["It depends.", "No idea."]))

alpaca = [{"instruction": q, "input": "", "output": r} for q, r in zip(Q, A)]
given = [{"instruction": "Put it shorter.", "input": Q[1], "output": A[1]}]
with_input = chat("Put it shorter.\n\n" + Q[1], A[1])
read("Alpaca, English", "alpaca_en.json", alpaca[:2] + given, PAIRS[:2] + [with_input])
read("Alpaca, Chinese", "alpaca_zh.json", alpaca[2:], PAIRS[2:])
read(
    "Alpaca with system and history",
    "alpaca_history.json",
    [dict(alpaca[0], system="Be brief.", history=[[Q[1], A[1]], [Q[2], A[2]]])],
    [chat(Q[1], A[1], Q[2], A[2], Q[0], A[0], system="Be brief.")],
)
who = [{"instruction": "hi", "input": "", "output": "Hello! I am {{name}}, made by {{author}}."}]
read("identity, with {{name}}", "identity.json", who, [chat("hi", who[0]["output"])])
openai = [{"messages": m} for m, _ in (LONG, PAIRS[2])]
read("OpenAI's chat", "toy_chat.jsonl", openai, [LONG, PAIRS[2]])
weighed = json.loads(json.dumps(openai[:1]))
weighed[0]["messages"][1]["weight"], weighed[0]["messages"][3]["weight"] = 0, 1
read(
    "OpenAI's chat with weight",
    "weight.jsonl",
    weighed,
    [chat(Q[0], A[0], "And dry sand?", "In between.", but=[A[0]])],
)
legacy = [{"prompt": q, "completion": r} for q, r in zip(Q, A)]
read("prompt and completion", "completion.jsonl", legacy, PAIRS)
share = [
    {"id": str(n), "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": r}]}
    for n, (q, r) in enumerate(zip(Q, A))
]
read("ShareGPT, FastChat", "dummy_conversation.json", share, PAIRS)
adgen = [{"content": q, "summary": r} for q, r in zip(Q, A)]
refused("AdvertiseGen (content, summary)", "advertise.jsonl", adgen, "content")
read(
    "AdvertiseGen with data.columns",
    "advertise.jsonl",
    adgen,
    PAIRS,
    'data.columns={prompt = "content", response = "summary"}',
)
kto = [{"messages": PAIRS[n][0], "label": n % 2 == 0} for n in range(4)]
read("KTO: only rows of label true", "kto_en_demo.json", kto, PAIRS[::2], said="label")
dpo = [
    {
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": r},
        "rejected": {"from": "gpt", "value": "No idea."},
    }
    for q, r in zip(Q, A)
]
read("DPO, LLaMA-Factory (chosen is an object)", "dpo_en_demo.json", dpo, PAIRS, said="chosen")
longer = {
    "conversations": [
        {"from": "human", "value": Q[0]},
        {"from": "gpt", "value": A[0]},
        {"from": "human", "value": Q[1]},
    ]
}
longer.update(chosen={"from": "gpt", "value": A[1]}, rejected={"from": "gpt", "value": "No idea."})
read(
    "DPO, LLaMA-Factory, after an answer",
    "dpo_zh_demo.json",
    [longer],
    [chat(Q[0], A[0], Q[1], A[1], but=[A[0]])],
    said="chosen",
)
read(
    "DPO, prompt and texts",
    "dpo_text.jsonl",
    [{"prompt": q, "chosen": r, "rejected": "No idea."} for q, r in zip(Q, A)],
    PAIRS,
    said="chosen",
)
read(
    "DPO, UltraFeedback (lists of turns)",
    "dpo_lists.jsonl",
    [
        {"prompt": q, "chosen": PAIRS[n][0], "rejected": chat(q, "No idea.")[0], "score_chosen": 8.0}
        for n, q in enumerate(Q)
    ],
    PAIRS,
    said="chosen",
)
hh = [
    {"chosen": f"\n\nHuman: {q}\n\nAssistant: {r}", "rejected": f"\n\nHuman: {q}\n\nAssistant: No."}
    for q, r in zip(Q, A)
]
refused("HH-RLHF (dialogues in one text)", "hh.jsonl.gz", hh, "chosen")


def node(number, parent, role, text, *replies):
    found = {
        "message_id": f"m{number}",
        "parent_id": f"m{parent}" if parent else None,
        "role": role,
        "text": text,
        "lang": "en",
    }
    return dict(found, replies=list(replies)) if replies != (None,) else found


tree = node(
    1,
    0,
    "prompter",
    Q[0],
    node(2, 1, "assistant", A[0], node(4, 2, "prompter", Q[1], node(5, 4, "assistant", A[1]))),
    node(3, 1, "assistant", OTHERS["r"]),
)
ways = [chat(Q[0], A[0], Q[1], A[1]), chat(Q[0], OTHERS["r"])]
read("OASST, first messages with replies", "oasst_message.jsonl", [tree], ways)
read(
    "OASST, trees",
    "oasst_tree.jsonl.gz",
    [{"message_tree_id": "m1", "tree_state": "ready_for_export", "prompt": tree}],
    ways,
)
flat = [
    node(1, 0, "prompter", Q[0], None),
    node(2, 1, "assistant", A[0], None),
    node(3, 1, "assistant", OTHERS["r"], None),
    node(4, 2, "prompter", Q[1], None),
    node(5, 4, "assistant", A[1], None),
]
read("OASST, a row a message", "oasst_flat.jsonl", flat, ways)
read("OASST, Parquet", "oasst_flat.parquet", flat, ways)
dolly = [{"instruction": Q[0], "context": "", "response": A[0], "category": "open_qa"}]
dolly += [
    {
        "instruction": "Which river is meant?",
        "context": "It ends in Mozambique.",
        "response": "The Zambezi.",
        "category": "closed_qa",
    }
]
read(
    "Dolly",
    "dolly.jsonl",
    dolly,
    [PAIRS[0], chat("Which river is meant?\n\nIt ends in Mozambique.", "The Zambezi.")],
)
read("Firefly", "firefly.jsonl", [{"kind": "QA", "input": q, "target": r} for q, r in zip(Q, A)], PAIRS)
moss = {
    "conversation_id": "1",
    "meta_instruction": "You are kind.\n",
    "num_turns": 1,
    "chat": {
        "turn_1": {
            "Human": f"<|Human|>: {Q[1]}<eoh>\n",
            "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
            "Commands": "<|Commands|>: None<eoc>\n",
            "Tool Responses": "<|Results|>: None<eor>\n",
            "MOSS": f"<|MOSS|>: {A[1]}<eom>\n",
        }
    },
}
read("MOSS 003", "moss3.jsonl", [moss], [chat(Q[1], A[1], system="You are kind.")])
searched = json.loads(json.dumps(moss))
searched["chat"]["turn_1"]["Commands"] = '<|Commands|>: Search("river")<eoc>\n'
refused("MOSS 003 with a tool", "moss3_tool.jsonl", [searched], "Commands")
moss2 = {
    "id": 1,
    "prefix": "You are kind.",
    "num_turns": 2,
    "plain_text": f"[Human]: {Q[0]}<eoh> [MOSS]: {A[0]}<eoa> [Human]: {Q[3]}<eoh> [MOSS]: {A[3]}<eoa>",
}
read("MOSS 002", "moss2.jsonl", [moss2], [chat(Q[0], A[0], Q[3], A[3], system="You are kind.")])
read(
    "UltraChat",
    "ultrachat.jsonl",
    [{"id": "0", "data": [Q[0], A[0], Q[1], A[1]]}],
    [chat(Q[0], A[0], Q[1], A[1])],
)
read("UltraChat, zstd", "ultrachat.jsonl.zst", [{"id": "0", "data": [Q[0], A[0]]}], [PAIRS[0]])
coig = [
    {"task_id": "1", "trans_instruction": q, "trans_input": "", "trans_output": r, "old_instruction": "x"}
    for q, r in zip(Q, A)
]
read("COIG, translated", "coig_translated.jsonl", coig, PAIRS)
exam = {
    "textbox_q_instruction": "选一个。",
    "textbox_q_context": "",
    "textbox_question": Q[2],
    "textbox_answer": A[2],
    "textbox_answer_analysis": "略",
}
read("COIG, exam", "coig_exam.jsonl", [exam], [chat("选一个。\n\n" + Q[2], A[2])])
refused("COIG, exam without an answer", "coig_exam_empty.jsonl", [dict(exam, textbox_answer=None)], "answer")
counter = {
    "instruction": "谈话",
    "conversations": [{"question": Q[0], "answer": A[0]}, {"question": Q[2], "answer": A[2]}],
}
read("COIG, conversations", "coig_chat.jsonl", [counter], [chat(Q[0], A[0], Q[2], A[2], system="谈话")])
read("LIMA", "lima.jsonl", [{"conversations": [q, r], "source": "web"} for q, r in zip(Q, A)], PAIRS)
tele = {"dialog": [{"role": "user", "content": Q[2]}, {"role": "bot", "content": A[2]}]}
read("TeleChat, dialog", "telechat.jsonl", [tele], [PAIRS[2]])
belle = {
    "id": "b1",
    "conversations": [{"from": "human", "value": Q[0]}, {"from": "assistant", "value": A[0]}],
}
read("BELLE, conversations", "belle_multi.json", [belle], [PAIRS[0]])
seed = {
    "id": "seed_1",
    "name": "weigh",
    "instruction": Q[0],
    "instances": [{"input": "", "output": A[0]}],
    "is_classification": False,
}
refused("Stanford's seed tasks", "seed_tasks.jsonl", [seed], "instances")
refused("BELLE's seed tasks", "zh_seed_tasks.json", [dict(seed, name="称重", instruction=Q[2])], "instances")
tool = {
    "conversations": [
        {"from": "human", "value": "What time is it?"},
        {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "Noon."},
    ],
    "tools": '[{"name": "clock", "description": "the time", "parameters": {}}]',
}
refused("Glaive's tool calls, ShareGPT", "glaive_toolcall.json", [tool], "function_call")
call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
calls = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": None, "tool_calls": [call]},
]
calls += [
    {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Noon."},
]
refused("OpenAI's tool calls", "tool_calls.jsonl", [{"messages": calls}], "tool_calls")
parts = [
    {"role": "user", "content": [{"type": "text", "text": Q[0]}]},
    {"role": "assistant", "content": [{"type": "text", "text": A[0]}]},
]
read("content in parts of text", "parts.jsonl", [{"messages": parts}], [PAIRS[0]])
parts = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, PAIRS[0][0][1]]
refused("content with a picture", "mllm_parts.json", [{"messages": parts}], "image_url")
seen = [{"messages": [{"role": "user", "content": "<image>" + Q[0]}, PAIRS[0][0][1]], "images": ["1.jpg"]}]
refused("pictures beside messages", "mllm_demo.json", seen, "images")
thought = [{"messages": [PAIRS[3][0][0], dict(PAIRS[3][0][1], reasoning_content="7 + 5 is 12.")]}]
refused("reasoning_content", "reasoning.jsonl", thought, "reasoning_content")
read(
    "reasoning_content, ignored by choice", "reasoning.jsonl", thought, [PAIRS[3]], 'data.unrendered="ignore"'
)
swift = json.loads(json.dumps(openai[:1]))
swift[0]["messages"][1]["loss"] = False
read(
    "ms-swift, loss false",
    "swift.jsonl",
    swift,
    [chat(Q[0], A[0], "And dry sand?", "In between.", but=[A[0]])],
)
read(
    "web text with its source",
    "c4_demo.jsonl",
    [{"text": A[1], "url": "x", "timestamp": "1"}],
    [A[1]],
    said="url",
)
read("plain text", "wiki_demo.txt", A[1] + "\n\n" + A[2], [A[1] + "\n\n" + A[2]])
null = [{"instruction": Q[0], "input": "", "output": None, "text": Q[0] + A[0]}]
refused("Alpaca with output null beside text", "null_output.jsonl", null, "output")
asked = [{"question_id": 81, "category": "writing", "turns": [Q[0], Q[1]]}]
refused("questions of MT-Bench (no answers)", "mt_bench.jsonl", asked, "turns")
align = [{"question_id": 1, "category": "数学计算", "question": q, "reference": r} for q, r in zip(Q, A)]
refused("questions of AlignBench", "alignbench.jsonl", align, "reference")


def run(path, options):
    settings = [f'data.files=["{path}"]', f'model="{a.model}"', f'output="{a.work / "out"}"', *options]
    command = [
        a.flm,
        "sft",
        a.work / "recipe.toml",
        *settings,
        "--dry-run",
        "--tokens-per-second",
        "100",
        "--json",
    ]
    done = subprocess.run([*map(str, command), "--no-source-digests"], capture_output=True, text=True)
    return (json.loads(done.stdout)["data"] if done.returncode == 0 else None), done.stderr.strip()


a.work.mkdir(parents=True, exist_ok=True)
a.work = a.work.resolve()
(a.work / "recipe.toml").write_text(
    "[data]\nfiles = []\ncontext_length = 2048\npacking = false\nvalidation = 0.0\n[train]\nepochs = 1\nbatch_size = 1\n"
    "micro_batch_size = 1\n[optimizer]\nlearning_rate = 1e-5\n"
)
print("| form | flm | samples | tokens | learned | transformers |")
print("|---|---|---:|---:|---:|---:|")
for name, file, rows, expected, options, said in forms:
    path = a.work / file
    try:
        write(path, rows)
    except ImportError as missing:
        print(f"| {name} | not tried: {missing.name} is missing | | | | |")
        continue
    found, message = run(path, options)
    told = message.splitlines()[-1].replace(str(a.work) + "/", "") if message else ""
    if expected is None:
        good = found is None and said in message
        what = f"refused: {told.removeprefix('error: ')}" if found is None else f"read {found}"
        print(f"| {name} | {what} | | | | {'' if good else 'BAD'} |", flush=True)
    else:
        if a.plant:
            expected = [c if isinstance(c, str) else (c[0][:-1], c[1]) for c in expected]
        tokens, learned = (sum(part) for part in zip(*map(count, expected)))
        if found is None:
            good = False
            print(f"| {name} | {told} | | | | {len(expected)}: {tokens}, {learned} BAD |", flush=True)
        else:
            notes = json.dumps(
                {k: found[k] for k in ("left_out", "unread", "chosen") if k in found}, ensure_ascii=False
            )
            kept = found["samples"] - found["dropped"]
            good = (kept, found["tokens"], found["targets"]) == (len(expected), tokens, learned)
            good = good and (said is None or said in notes)
            what = "read" + ("" if notes == "{}" else f", said: {notes}")
            wanted = f"{tokens}, {learned}" + ("" if good else f" in {len(expected)} BAD")
            print(
                f"| {name} | {what} | {kept} | {found['tokens']} | {found['targets']} | {wanted} |",
                flush=True,
            )
    failed += not good
print(f"{len(forms)} forms, {failed} wrong", file=sys.stderr)
sys.exit(1 if failed else 0)
