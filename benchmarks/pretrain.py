"""Pretraining speed of the 26M preset (16 rows of 512 tokens) against transformers.Trainer and against a plain loop.

The first opponent trains an equal Llama configuration on equal packed rows with an equal optimizer: once as it ships
(fp32), once at its best (bf16 and torch.compile). The plain loop (`plain_loop.py`) has an equal model, bf16, torch.compile and
AdamW. fledge runs its own loop's step as its probe decides. All take turns in one process.

`--small` trains a model of 13M parameters instead, 16 rows of 256 tokens, against the plain loop alone: fledge with the default
recipe's optimizer, Muon, and with AdamW.

Real text is read from $FLEDGE_DATA or ../shared/data; without it, from the quickstart's world.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import interleave, options, ratios, report
from plain_loop import PlainLoop
from torch import Tensor
from training import Training, fresh, packed, web_text

from fledge.autotune.benchmark import matmul_peak, product_sizes
from fledge.data import Batch
from fledge.model.cost import parameters, training_flops_per_token
from fledge.recipe import Recipe, recipe_from_dict

SMALL = {
    "hidden_size": 384, "num_hidden_layers": 7, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024,
}  # fmt: skip
ADAMW = {"name": "adamw", "learning_rate": 5e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}


def make_recipe(
    rows: int, context: int, model: dict, quick: bool, folder: Path, accumulation: int = 1, optimizer: dict | None = None
) -> Recipe:
    """A recipe on real text, `rows` at a time; the 26M preset with the changes of `model`."""
    stage = {
        "data": {"train": web_text(quick, folder), "validation": 0.0, "max_seq_len": context},
        "batch": {"micro_batch_size": rows, "gradient_accumulation_steps": accumulation},
        "duration": "10000 steps",
        "schedule": {"warmup": 5},
    }
    if optimizer:
        stage["optimizer"] = optimizer
    return recipe_from_dict({"preset": "26m", "model": model, "stages": {"pretrain": stage}})


class Opponent:
    """transformers.Trainer on equal rows; a call returns the seconds of its fastest step after the first."""

    def __init__(self, recipe: Recipe, rows: list[Tensor], vocab: int, best: bool) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = recipe.model
        self.rows, self.best, self.micro = rows, best, recipe.stages["pretrain"].batch.micro_batch_rows
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab, hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
                num_hidden_layers=sizes.num_hidden_layers, num_attention_heads=sizes.num_attention_heads,
                num_key_value_heads=sizes.num_key_value_heads, max_position_embeddings=sizes.max_position_embeddings,
                tie_word_embeddings=True, use_cache=False,
            )
        )  # fmt: skip

    def __call__(self) -> float:
        """Train a few steps; returns the seconds of the fastest after the first."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        marks: list[float] = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *positional: object, **named: object) -> None:
                marks.append(time.perf_counter())

            def on_step_end(self, *positional: object, **named: object) -> None:
                marks[-1] = time.perf_counter() - marks[-1]

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=self.micro, max_steps=2, learning_rate=5e-4, weight_decay=0.1,
                report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
                bf16=self.best, torch_compile=self.best,
            )  # fmt: skip
            dataset = [{"input_ids": row, "labels": row} for row in self.rows]
            Trainer(self.model, arguments, train_dataset=dataset, callbacks=[Clock()]).train()  # type: ignore[arg-type]
        return min(marks[1:])


def contenders_of(small: bool, quick: bool, rows: int, context: int, folder: Path) -> tuple[Recipe, dict[str, Training], dict]:
    """fledge's recipe; fledge, with each optimizer that is compared; and the opponents."""
    model = {**(SMALL if small else {}), **({"num_hidden_layers": 2} if quick else {})}
    recipe = make_recipe(rows, context, model, quick, folder, optimizer={**ADAMW, "name": "muon"} if small else None)
    data, tokenizer = packed(recipe, "pretrain")
    full: list[Tensor] = []
    for start in range(0, min(len(data), 64), rows):
        batch: Batch = data.batch(start, rows)
        full += list(batch.input_ids)
    vocab = tokenizer.vocab_size
    ours = {"fledge": Training(recipe, "pretrain", data, fresh(recipe, vocab))}
    if small:
        with_adamw = make_recipe(rows, context, model, quick, folder, optimizer=ADAMW)
        decision = ours["fledge"].decision
        ours["fledge_adamw"] = Training(with_adamw, "pretrain", data, fresh(with_adamw, vocab), decision)
    opponents: dict = {"plain": PlainLoop(recipe.model, vocab, [torch.cat((row, row[:1])) for row in full], rows)}
    if not small:
        opponents["as_shipped"] = Opponent(recipe, full, vocab, best=False)
        opponents["best"] = Opponent(recipe, full, vocab, best=True)
    return recipe, ours, opponents


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--small", action="store_true", help="13M parameters, 16 rows of 256 tokens, against the plain loop")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --small 20, with --quick 2)")
    chosen = parser.parse_args()
    rows, context = (4, 256) if chosen.quick else (16, 256 if chosen.small else 512)
    with tempfile.TemporaryDirectory() as name:
        recipe, ours, opponents = contenders_of(chosen.small, chosen.quick, rows, context, Path(name))
    for run in (ours | opponents).values():
        run()
    seconds = interleave(ours | opponents, chosen.rounds or (2 if chosen.quick else 20 if chosen.small else 5))
    for training in ours.values():
        training.loader.close()
    fledge, tokens = ours["fledge"], rows * context
    median = {name: statistics.median(times) for name, times in seconds.items()}
    device, vocab = fledge.decision.device, fledge.model.vocab_size
    peak = matmul_peak(device, fledge.model.compute_dtype, product_sizes(recipe.model, device))
    flops = training_flops_per_token(recipe.model, vocab, context) * tokens
    ranges = {f"{opponent} / {name}": ratios(seconds[opponent], seconds[name]) for name in ours for opponent in opponents}
    report(
        {
            "tokens_per_second": {name: round(tokens / times) for name, times in median.items()},
            "mfu": round(flops / median["fledge"] / peak, 3),
            "ratios": ranges,
            "matmul_peak_gflops": round(peak / 1e9),
            "parameters": parameters(recipe.model, vocab).total,
            "batch": [rows, context],
            "decision": fledge.decision.as_dict(),
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
