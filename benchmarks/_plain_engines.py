"""Each engine by hand: what anyone would write to time it, with nothing of this project.

``PYTHON benchmarks/_plain_engines.py ENGINE MODEL PROMPT_TOKENS NEW_TOKENS REPETITIONS THREADS``
prints JSON, ``ttft_s`` and ``tpot_s``, a list each. PYTHON is of the engine's environment. Time
to the first token is that of generating one; time per token what each further one adds to it.
``engines.py`` compares attempts with them.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[int], int], object]


def onnxruntime(model: str, threads: int) -> Generate:
    """ONNX Runtime GenAI's own loop."""
    import numpy as np
    import onnxruntime_genai as genai

    config = genai.Config(model)
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    loaded = genai.Model(config)

    def generate(prompt: list[int], new_tokens: int) -> None:
        parameters = genai.GeneratorParams(loaded)
        length = len(prompt) + new_tokens
        parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
        generator = genai.Generator(loaded, parameters)
        generator.append_tokens(np.array([prompt], np.int32))
        while not generator.is_done():
            generator.generate_next_token()

    return generate


def openvino(model: str, threads: int) -> Generate:
    """OpenVINO GenAI's pipeline for one user; a scheduler makes it the one for batches."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    pipeline = genai.LLMPipeline(model, "CPU", scheduler_config=scheduler, **options)

    def generate(prompt: list[int], new_tokens: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = new_tokens, True
        ids = ov.Tensor(np.array([prompt], np.int64))
        mask = ov.Tensor(np.ones((1, len(prompt)), np.int64))
        return pipeline.generate(genai.TokenizedInputs(ids, mask), config)

    return generate


def vllm(model: str, threads: int) -> Generate:
    """vLLM's offline interface."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(threads)}
    from vllm import LLM, SamplingParams, TokensPrompt

    loaded = LLM(
        model,
        dtype="bfloat16",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=512,
        skip_tokenizer_init=True,
    )

    def generate(prompt: list[int], new_tokens: int) -> Any:
        sampling = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        return loaded.generate(TokensPrompt(prompt_token_ids=prompt), sampling, use_tqdm=False)

    return generate


def llamacpp(model: str, threads: int) -> Generate:
    """llama.cpp's server inside this process."""
    import xllamacpp as llama

    parameters = llama.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = 512
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = llama.Server(parameters)

    def generate(prompt: list[int], new_tokens: int) -> None:
        request = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0.0}
        server.handle_completions(
            {**request, "ignore_eos": True, "cache_prompt": False}, lambda answer: None
        )

    return generate


ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino, "vllm": vllm, "llamacpp": llamacpp}


def main() -> None:
    """Load, generate once that is not counted, then so many times."""
    engine, model = sys.argv[1:3]
    prompt_tokens, new_tokens, repetitions, threads = map(int, sys.argv[3:7])
    generate = ENGINES[engine](model, threads)
    draw = random.Random(1)
    prompt = [draw.randrange(100, 40_000) for _ in range(prompt_tokens)]

    def seconds(tokens: int) -> float:
        begin = time.perf_counter()
        generate(prompt, tokens)
        return time.perf_counter() - begin

    seconds(new_tokens)
    ttft_s, tpot_s = [], []
    for _ in range(repetitions):
        ttft_s.append(seconds(1))
        tpot_s.append((seconds(new_tokens) - ttft_s[-1]) / (new_tokens - 1))
    print(json.dumps({"ttft_s": ttft_s, "tpot_s": tpot_s}))


if __name__ == "__main__":
    main()
