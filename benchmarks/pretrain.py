"""Pretraining speed of the 26M preset (16 rows of 512 tokens) against transformers.Trainer.

The opponent trains an equal Llama configuration on equal packed rows with an equal optimizer: once as it ships
(fp32), once at its best (bf16 and torch.compile). fledge runs its own loop's step as its probe decides. All take turns
in one process. Real text is read from $FLEDGE_DATA or ../shared/data; without it, from the quickstart's world.
"""

import statistics
import tempfile
import time
from pathlib import Path

from measure import interleave, options, ratios, report
from torch import Tensor
from training import Training, fresh, packed, web_text

from fledge.autotune.benchmark import matmul_peak, product_sizes
from fledge.data import Batch
from fledge.model.cost import parameters, training_flops_per_token
from fledge.recipe import Recipe, recipe_from_dict


def make_recipe(rows: int, context: int, layers: int, quick: bool, folder: Path, accumulation: int = 1) -> Recipe:
    """The 26M preset on real text, `rows` at a time."""
    stage = {
        "data": {"train": web_text(quick, folder), "validation": 0.0, "max_seq_len": context},
        "batch": {"micro_batch_size": rows, "gradient_accumulation_steps": accumulation},
        "duration": "10000 steps",
        "schedule": {"warmup": 5},
    }
    return recipe_from_dict({"preset": "26m", "model": {"num_hidden_layers": layers}, "stages": {"pretrain": stage}})


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


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --quick 2)")
    chosen = parser.parse_args()
    rows, context, layers = (4, 256, 2) if chosen.quick else (16, 512, 8)
    with tempfile.TemporaryDirectory() as name:
        recipe = make_recipe(rows, context, layers, chosen.quick, Path(name))
        data, tokenizer = packed(recipe, "pretrain")
    full: list[Tensor] = []
    for start in range(0, min(len(data), 64), rows):
        batch: Batch = data.batch(start, rows)
        full += list(batch.input_ids)
    fledge = Training(recipe, "pretrain", data, fresh(recipe, tokenizer.vocab_size))
    contenders = {
        "fledge": fledge,
        "as_shipped": Opponent(recipe, full, tokenizer.vocab_size, best=False),
        "best": Opponent(recipe, full, tokenizer.vocab_size, best=True),
    }
    for run in contenders.values():
        run()
    seconds = interleave(contenders, chosen.rounds or (2 if chosen.quick else 5))
    fledge.loader.close()
    tokens = rows * context
    median = {name: statistics.median(times) for name, times in seconds.items()}
    device = fledge.decision.device
    peak = matmul_peak(device, fledge.model.compute_dtype, product_sizes(recipe.model, device))
    flops = training_flops_per_token(recipe.model, tokenizer.vocab_size, context) * tokens
    shipped, best = ratios(seconds["as_shipped"], seconds["fledge"]), ratios(seconds["best"], seconds["fledge"])
    report(
        {
            "tokens_per_second": round(tokens / median["fledge"]),
            "mfu": round(flops / median["fledge"] / peak, 3),
            "ratio_as_shipped": shipped["median"],
            "ratio_best": best["median"],
            "ranges": {"as_shipped": shipped, "best": best},
            "opponent_tokens_per_second": {name: round(tokens / median[name]) for name in ("as_shipped", "best")},
            "matmul_peak_gflops": round(peak / 1e9),
            "parameters": parameters(recipe.model, tokenizer.vocab_size).total,
            "batch": [rows, context],
            "decision": fledge.decision.as_dict(),
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
