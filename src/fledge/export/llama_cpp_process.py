"""A process that computes with llama.cpp: it reads a request from one JSON file and writes the answer to another.

It is a process of its own because llama.cpp ends the whole process where it finds a mistake in a file. It imports nothing of
fledge.
"""

import json
import sys
import urllib.request
from importlib import import_module
from typing import Any

BIAS = 1e6  # makes a token certain to be drawn; the reported log-probability is that of before


def start(model: str, positions: int, threads: int) -> Any:
    """A server of llama.cpp on this machine, for one request at a time, with a float32 cache."""
    module = import_module("xllamacpp")  # its names are made when it is loaded, so that no checker of types knows them
    params = module.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.n_gpu_layers = positions, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = params.ui = params.fit_params = False
    params.use_jinja, params.verbosity = True, -1
    params.cache_type_k = params.cache_type_v = module.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = module.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return module.Server(params)


def draw(server: Any, prompt: list[int], token: int, top: int = 1) -> dict[str, Any]:
    """The only choice of a completion in which the next token is `token`, with the `top` likeliest tokens."""
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": top,
            "temperature": 0,
            "cache_prompt": True,
            "logit_bias": [[token, BIAS]],
        }
    )
    if "choices" not in answer:
        raise ValueError(f"llama.cpp answers {json.dumps(answer)[:300]}")
    return answer["choices"][0]


def log_probability(server: Any, prompt: list[int], token: int, control: int) -> float:
    """log p(token | prompt). `control`: any control token.

    Of a token that ends inside of a character llama.cpp reports nothing. It is then looked up among the likeliest tokens, while
    a control token is drawn.
    """
    report, top = draw(server, prompt, token)["logprobs"], 64
    entries = [] if report is None else report["content"]
    while token not in (found := {entry["id"]: entry["logprob"] for entry in entries}):
        report = draw(server, prompt, control, top)["logprobs"]
        entries = report["content"][0]["top_logprobs"]
        if len(entries) < top and token not in {entry["id"] for entry in entries}:
            raise ValueError(f"llama.cpp says nothing about the token {token}")
        top *= 32
    return float(found[token])


def post(server: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of one of the server's pages. No proxy stands between."""
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)


def tokens(server: Any, text: str, *, is_prompt: bool) -> list[int]:
    """The tokens of a text; of a prompt, with control tokens parsed and BOS where the file asks for it."""
    body = {"content": text, "add_special": is_prompt, "parse_special": is_prompt}
    return post(server, "/tokenize", body)["tokens"]


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """The answers to a request: log-probabilities of sequences, tokens of texts, prefixes and conversations, and which tokens
    end an answer."""
    server = start(request["model"], request["positions"], request["threads"])
    conversations = [post(server, "/apply-template", {"messages": each})["prompt"] for each in request["conversations"]]
    first = request["sequences"][0][:1]
    return {
        "log_probabilities": [
            [
                log_probability(server, sequence[:index], sequence[index], request["stops"][0])
                for index in range(1, len(sequence))
            ]
            for sequence in request["sequences"]
        ],
        "texts": [tokens(server, text, is_prompt=False) for text in request["texts"]],
        "conversations": [tokens(server, text, is_prompt=True) for text in conversations],
        "stops": [draw(server, first, token)["finish_reason"] == "stop" for token in request["stops"]],
    }


def main(request_file: str, answer_file: str) -> None:
    """Answer the request in one file into another one."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    answer = answer_request(request)
    with open(answer_file, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
