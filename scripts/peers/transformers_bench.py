#!/usr/bin/env python3
"""Throughput of Hugging Face transformers on the CPU, to measure `flm` against: one JSON object on stdout.

  python transformers_bench.py DIR [--dtype f32] [--prompt 256 512] [--gen 48] [--threads 2] [--repeats 3]

For every prompt length: tokens/s of the prompt (one pass that fills the cache, logits of the last position only) and of decoding
(greedy, one token at a time, after that prompt), each as best, median and the single values. One untimed pass goes first.
`cpu_pressure` is the share of the timed interval in which some runnable task on the machine waited for a processor (the growth of
"some total" in /proc/pressure/cpu): a measurement above about 0.1 is one of a busy machine.

Needs torch, transformers and safetensors; a model that AutoModelForCausalLM knows.
"""
import argparse
import json
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")


def waited_seconds():
    """Seconds since boot in which a task waited for a processor; None where the kernel does not count them."""
    try:
        with open("/proc/pressure/cpu") as f:
            return int(f.readline().rsplit("total=", 1)[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


class Timed:
    """One kind of measurement: tokens/s of every repetition and the pressure while they ran."""

    def __init__(self):
        self.rates, self.seconds, self.waited = [], 0.0, 0.0

    def measure(self, tokens, work):
        waited, start = waited_seconds(), time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        self.rates.append(tokens / seconds)
        self.seconds += seconds
        self.waited = None if waited is None or self.waited is None else self.waited + waited_seconds() - waited
        return result

    def report(self):
        return {
            "best": round(max(self.rates), 2),
            "median": round(statistics.median(self.rates), 2),
            "all": [round(r, 2) for r in self.rates],
            "cpu_pressure": None if self.waited is None else round(self.waited / self.seconds, 3),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", help="checkpoint folder")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="type of the weights and of the arithmetic")
    parser.add_argument("--prompt", type=int, nargs="+", default=[256, 512], help="prompt lengths in tokens")
    parser.add_argument("--gen", type=int, default=48, help="tokens to decode after each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.dir, dtype=dtype).eval()
    load_seconds = time.perf_counter() - start
    vocab = model.config.vocab_size

    def prefill(ids):
        return model(ids, use_cache=True, logits_to_keep=1)

    def decode(out, count):
        for _ in range(count):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)

    runs = []
    with torch.inference_mode():
        for length in args.prompt:
            ids = torch.tensor([[(i * 7919 + 100) % vocab for i in range(length)]])
            decode(prefill(ids), 2)  # untimed: pages in the weights, lets oneDNN build its kernels
            prompt_rate, decode_rate = Timed(), Timed()
            for _ in range(args.repeats):
                out = prompt_rate.measure(length, lambda: prefill(ids))
                decode_rate.measure(args.gen, lambda: decode(out, args.gen))
            runs.append({"prompt_tokens": length, "generated_tokens": args.gen,
                         "prompt_tok_s": prompt_rate.report(), "decode_tok_s": decode_rate.report()})
    print(json.dumps({
        "program": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "checkpoint": args.dir,
        "dtype": args.dtype,
        "threads": args.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_seconds": round(load_seconds, 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "runs": runs,
    }, indent=1))


if __name__ == "__main__":
    main()
