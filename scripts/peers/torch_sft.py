#!/usr/bin/env python3
"""Steps of full-parameter training in PyTorch on the CPU, f32, AdamW, clipping to norm 1, to measure `flm sft` against.

  python torch_sft.py DIR TEXT [--rows 4] [--context 256] [--steps 5] [--threads 2]

DIR is a model that AutoModelForCausalLM knows, with its tokenizer; TEXT is cut into rows. One JSON object on stdout: seconds and
losses of the steps, peak memory in bytes. Needs torch, transformers and safetensors.
"""
import argparse, json, os, resource, time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ap = argparse.ArgumentParser(); ap.add_argument("dir"); ap.add_argument("text")
for name, value in [("rows", 4), ("context", 256), ("steps", 5), ("threads", 2)]: ap.add_argument(f"--{name}", type=int, default=value)
a = ap.parse_args()
torch.set_num_threads(a.threads)
model = AutoModelForCausalLM.from_pretrained(a.dir, dtype=torch.float32).train(); model.config.use_cache = False
ids = torch.tensor(AutoTokenizer.from_pretrained(a.dir)(open(a.text, encoding="utf-8").read()).input_ids)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
seconds, losses = [], []
for step in range(a.steps):
    batch = ids[step * a.rows * a.context:][: a.rows * a.context].reshape(a.rows, a.context)
    start = time.perf_counter()
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward(); torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step(); optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start); losses.append(loss.item())
print(json.dumps({"seconds": seconds, "losses": losses, "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
