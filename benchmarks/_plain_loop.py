"""Generation by hand: what anyone would write to time a model, with nothing of this project.

``python benchmarks/_plain_loop.py DIRECTORY DTYPE BATCH PROMPT_TOKENS NEW_TOKENS REPETITIONS
THREADS`` prints JSON: ``ttft_s`` and ``decode_tokens_per_s``, a list each. ``accuracy.py`` compares
the orchestrator's figures with them.
"""

import json
import sys
import time
from typing import Any

import torch


def generate(model: Any, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens/s of those after it; prompt of (batch, length)."""
    start = time.perf_counter()
    output = model(prompt, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    begin = time.perf_counter()
    for _ in range(new_tokens - 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
    return begin - start, len(prompt) * (new_tokens - 1) / (time.perf_counter() - begin)


def main() -> None:
    """Load a model, warm up once, time it so many times."""
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, sys.argv[2])
    batch, prompt_tokens, new_tokens, repetitions, threads = map(int, sys.argv[3:8])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(100, 40_000, (batch, prompt_tokens), generator=generator)
    with torch.inference_mode():
        generate(model, prompt, new_tokens)
        found = [generate(model, prompt, new_tokens) for _ in range(repetitions)]
    ttft_s, rates = zip(*found, strict=True)
    print(json.dumps({"ttft_s": ttft_s, "decode_tokens_per_s": rates}))


if __name__ == "__main__":
    main()
