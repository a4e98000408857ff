"""Decode speed by hand: what anyone would write to time a model, with nothing of this project.

``python benchmarks/_plain_loop.py DIRECTORY PROMPT_TOKENS NEW_TOKENS REPETITIONS THREADS`` prints a
JSON list of decode tokens/s. ``accuracy.py`` compares the orchestrator's figure with it.
"""

import json
import sys
import time
from typing import Any

import torch


def decode_rate(model: Any, prompt: torch.Tensor, new_tokens: int) -> float:
    """Tokens/s of the tokens after the first, for one prompt of shape (1, length)."""
    output = model(prompt, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    begin = time.perf_counter()
    for _ in range(new_tokens - 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
    return (new_tokens - 1) / (time.perf_counter() - begin)


def main() -> None:
    """Load a model, warm up once, time it so many times."""
    from transformers import AutoModelForCausalLM

    prompt_tokens, new_tokens, repetitions, threads = map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(100, 40_000, (1, prompt_tokens), generator=generator)
    with torch.inference_mode():
        decode_rate(model, prompt, new_tokens)
        print(json.dumps([decode_rate(model, prompt, new_tokens) for _ in range(repetitions)]))


if __name__ == "__main__":
    main()
