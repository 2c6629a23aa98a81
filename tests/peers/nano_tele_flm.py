#!/usr/bin/env python3
"""A random nano Tele-FLM in f32 with multipliers that are no powers of two and a SentencePiece tokenizer.

    nano_tele_flm.py OUT [--tied]"""
import json, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import save_file

SPM = Path(__file__).resolve().parent.parent / "fixtures" / "spm" / "tokenizer_llama.model"
out, tied = Path(sys.argv[1]), "--tied" in sys.argv
hidden, layers, heads, kv, ffn, rows = 128, 4, 4, 2, 352, 2048
config = dict(model_type="TeleFLM", architectures=["TeleFLMForCausalLM"], hidden_size=hidden, intermediate_size=ffn,
              num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, vocab_size=rows,
              max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=tied,
              use_mup=True, input_mult=3.0, output_mult=0.7, mup_scale_factor=4.0, bos_token_id=1, eos_token_id=2,
              hidden_act="silu", torch_dtype="float32")
g = torch.Generator().manual_seed(2407)
normal = lambda *shape, scale=1.0: torch.randn(*shape, generator=g) * scale
d = hidden // heads
w = {"model.embed_tokens.weight": normal(rows, hidden, scale=0.5)}
for i in range(layers):
    p = f"model.layers.{i}."
    for name, n, m in [("self_attn.q_proj", heads * d, hidden), ("self_attn.k_proj", kv * d, hidden),
                       ("self_attn.v_proj", kv * d, hidden), ("self_attn.o_proj", hidden, heads * d),
                       ("mlp.gate_proj", ffn, hidden), ("mlp.up_proj", ffn, hidden), ("mlp.down_proj", hidden, ffn)]:
        w[f"{p}{name}.weight"] = normal(n, m, scale=1.4 / m ** 0.5)
    for name in ("input_layernorm", "post_attention_layernorm"):
        w[f"{p}{name}.weight"] = 1 + normal(hidden, scale=0.1)
w["model.norm.weight"] = 1 + normal(hidden, scale=0.1)
if not tied:
    w["lm_head.weight"] = normal(rows, hidden, scale=8 / hidden ** 0.5)
out.mkdir(parents=True)
save_file(w, out / "model.safetensors", metadata={"format": "pt"})
(out / "config.json").write_text(json.dumps(config, indent=2))
shutil.copy(SPM, out / "tokenizer.model")
(out / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
