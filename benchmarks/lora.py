"""LoRA on real chats: fledge against TRL's SFTTrainer with PEFT, in useful tokens per second and in memory.

Both adapt equal weights with equal adapters (rank 16, all seven linear layers of a block) on equal sequences, as `sft.py` does
it: fledge reads, renders and encodes the conversations, and the opponent gets these tokens with labels on the answers. The
model is Qwen2-shaped with random weights (biases on q, k and v, tied head), or the one in `--model DIR`. TRL runs as it
ships, and at its best: the fastest of several ways to pack, with the frozen weights in float32 or bfloat16, each tried first.

Memory is the highest resident size of a process of its own that takes a few steps, less its size before the model is loaded,
when the libraries of both are loaded already.
TRL's is that of its best way, and fledge takes as many rows at a time for it (`memory_ratio`); `memory_ratio_as_timed` is that
of fledge with all rows of a batch at a time, as it is timed. Where the best way takes rows one by one, fledge is timed so as
well: `ratio_best_equal_rows`. The mean loss of both on the same rows is given before, and after the steps that each has taken
at one learning rate: more for TRL, whose ways are tried first.
With --quick neither compiles anything, and one of TRL's ways is tried.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import options, ratios, report
from opponent import comparison, fastest, load_libraries_aside, memories, resident, resident_at_start, take_turns
from sft import PACKED, UNIT, WAYS, Opponent, as_rows, fledge_works, make_recipe, summary, ways_of
from training import Training, packed

from fledge.data import PackedDataset
from fledge.model.adapters import attach_adapter, trained_parameters
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.protocol import Adapter, LanguageModel, eval_mode
from fledge.objective import CausalLMObjective
from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.schema import AdapterConfig
from fledge.tokenizer import Tokenizer, load_tokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": TARGETS}
SHAPE = {"attention_bias": "qkv", "tie_word_embeddings": True, "qk_norm": False}  # Qwen2
LORA_WAYS = {
    **{name: (one_by_one, {**how, "dtype": torch.bfloat16}) for name, (one_by_one, how) in WAYS.items()},
    "packed, float32 weights": (False, PACKED),
}
MEMORY_STEPS = 3
RATE = 2e-4
SAME = {"learning_rate": RATE, "lr_scheduler_type": "constant", "weight_decay": 0.01, "warmup_steps": 0}


class Size(NamedTuple):
    """Rows of a step, positions of a row, layers, and whether compiling is tried."""

    rows: int
    context: int
    layers: int
    compiles: bool


FULL, QUICK = Size(8, 512, 8, True), Size(4, 256, 2, False)


def adapter_recipe(size: Size, folder: Path, one_by_one: bool = False) -> Recipe:
    """The recipe of `sft.py` with AdamW at a constant rate, which TRL gets as well; with `one_by_one` rows are accumulated."""
    recipe = make_recipe(size.rows, size.context, size.layers, folder / "world")
    values = recipe.model_dump()
    values["runtime"]["compile"] = "auto" if size.compiles else False
    values["stages"]["sft"] |= {"optimizer": {"learning_rate": RATE}, "schedule": {"name": "constant", "warmup": 0}}
    if one_by_one:
        values["stages"]["sft"]["batch"] = {"micro_batch_size": 1, "gradient_accumulation_steps": size.rows}
    return recipe_from_dict(values)


def start(recipe: Recipe, folder: Path, directory: Path | None) -> tuple[PackedDataset, Tokenizer, Path]:
    """Data, tokenizer and a model directory: the given one, or a new one of random weights in `folder`."""
    from fledge.data import collect, encode

    if directory is not None:
        tokenizer = load_tokenizer(directory)
        return encode(collect(recipe.stages["sft"], "sft", 0), tokenizer).train, tokenizer, directory
    data, tokenizer = packed(recipe, "sft")
    model = Decoder(recipe.model.model_copy(update=SHAPE), tokenizer.vocab_size)
    model.init_weights(0)
    model.save_pretrained(folder, bos=None, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    tokenizer.save(folder)
    return data, tokenizer, folder


def adapted(folder: Path) -> LanguageModel:
    """The model of a directory with a new adapter."""
    model = load_model(folder)
    attach_adapter(model, Adapter(AdapterConfig.model_validate(SETTINGS), folder, None), seed=0)
    return model


def mean_loss(model: LanguageModel, data: PackedDataset, rows: int) -> float:
    """The mean loss a target token of the first packed rows."""
    with torch.no_grad(), eval_mode(model):
        batch = data.assemble(list(range(rows))).to(model.device)
        return CausalLMObjective().evaluate(model, batch)["loss"].value


def opponents_loss(trainer: Any, data: PackedDataset, rows: int) -> float:
    """The same of TRL's model, whose documents are read one by one."""
    total, count = 0.0, 0
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    batch = data.assemble(list(range(rows)))
    with torch.no_grad():
        for row in range(rows):
            for number in range(1, int(batch.documents[row].max()) + 1):
                chosen = batch.documents[row] == number
                logits = model(batch.input_ids[row, chosen][None]).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, batch.targets[row, chosen], reduction="none")
                weights = batch.loss_weights[row, chosen]
                total, count = total + float((losses * weights).sum()), count + int((weights > 0).sum())
    model.train()
    return total / count


def measure_memory(who: str, way: str, folder: Path, size: Size, directory: Path | None) -> int:
    """Take a few steps in this process and return how far its resident size rose from that before the model was loaded."""
    one_by_one, arguments = LORA_WAYS[way] if way else (False, {})
    recipe = adapter_recipe(size, folder, one_by_one)
    data, _, source = start(recipe, folder, directory or (folder if (folder / "config.json").exists() else None))
    rows_of_opponent = as_rows(data.examples)
    before = resident_at_start()
    if who == "fledge":
        training = Training(recipe, "sft", data, adapted(source))
        fledge_works(training, MEMORY_STEPS)
        training.loader.close()
    else:
        accumulation = size.rows if one_by_one else 1
        opponent = Opponent(
            source, rows_of_opponent, context=size.context, micro=size.rows, steps=MEMORY_STEPS, accumulation=accumulation,
            adapter=SETTINGS, **SAME, **arguments,
        )  # fmt: skip
        opponent()
    return resident("VmHWM") - before


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--model", type=Path, metavar="DIR", help="adapt this model instead of one with random weights")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --quick 1)")
    parser.add_argument("--steps", type=int, help="steps in each (default 3, with --quick 2)")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else FULL
    rows = size.rows
    load_libraries_aside()
    steps, rounds = chosen.steps or (2 if chosen.quick else 3), chosen.rounds or (1 if chosen.quick else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = adapter_recipe(size, folder)
        data, _, source = start(recipe, folder, chosen.model)
        model = adapted(source)
        fledge, sequences = Training(recipe, "sft", data, model), as_rows(data.examples)

        def make(accumulation: int, **how: Any) -> Opponent:
            return Opponent(
                source,
                sequences,
                context=size.context,
                micro=rows,
                steps=steps,
                accumulation=accumulation,
                adapter=SETTINGS,
                **SAME,
                **how,
            )

        shipped = make(1)
        losses = {"fledge": [mean_loss(model, data, rows)], "TRL": [opponents_loss(shipped.trainer, data, rows)]}
        shipped()
        ways = {"packed": LORA_WAYS["packed"]} if chosen.quick else LORA_WAYS
        way, best, tried = fastest(ways_of(make, rows, ways), UNIT, trials=1 if chosen.quick else 2)
        fledge_works(fledge, steps)
        contenders = {"fledge": lambda: fledge_works(fledge, steps), "as_shipped": shipped, "best": best}
        if LORA_WAYS[way][0]:
            single = Training(adapter_recipe(size, folder, True), "sft", data, adapted(source), fledge.decision)
            fledge_works(single, steps)
            contenders["fledge, row by row"] = lambda: fledge_works(single, steps)
        works = take_turns(contenders, rounds, UNIT)
        equal_rows = works.get("fledge, row by row", works["fledge"])
        fledge.loader.close()
        losses["fledge"].append(mean_loss(model, data, rows))
        losses["TRL"].append(opponents_loss(best.trainer, data, rows))
        common = (folder, size, chosen.model)
        whose = {"fledge": ("fledge", "", *common), "best": ("TRL", way, *common)}
        if LORA_WAYS[way][0]:
            whose["fledge, rows of best"] = ("fledge", way, *common)
        peak = memories(measure_memory, whose)
        peak.setdefault("fledge, rows of best", peak["fledge"])
    trained, total = trained_parameters(model)
    report(
        {
            **comparison(works),
            "ratio_best_equal_rows": ratios([work.speed for work in equal_rows], [work.speed for work in works["best"]]),
            "memory_ratio": round(peak["fledge, rows of best"] / peak["best"], 3),
            "memory_ratio_as_timed": round(peak["fledge"] / peak["best"], 3),
            "memory_bytes": peak,
            "losses_before_and_after": losses,
            "trained_parameters": trained,
            "parameters": total,
            "fledge": {**summary(works["fledge"]), "decision": fledge.decision.as_dict()},
            "as_shipped": {**summary(works["as_shipped"]), "how": shipped.how()},
            "best": {**summary(works["best"]), "is": way, "how": best.how(), "tried_useful_tokens_per_second": tried},
            "batch": [rows, size.context],
            "steps_per_round": steps,
            "rounds": rounds,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
