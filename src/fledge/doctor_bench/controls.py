"""Healthy runs: the plain one of each shape, and odd ones that are fine."""

from typing import Any

from fledge.doctor_bench.condition import Control
from fledge.doctor_bench.setup import RunSetup

ONCE = {"": None}
TOKENS = ("pretrain", "sft", "lora", "moe", "seq2seq")
SUPERVISED = ("sft", "lora", "seq2seq")
RESUMED = (*SUPERVISED, "pretrain", "dpo", "kto", "reward")
EVERY = (*TOKENS, "dpo", "kto", "reward", "grpo")
LARGE_VOCABULARY_STEPS = 200


def _tiny_batch(setup: RunSetup, rows: int) -> None:
    """Few rows in an update, and as many more updates."""
    healthy = setup.stage["batch"]["micro_batch_size"] * setup.stage["batch"]["gradient_accumulation_steps"]
    setup.set("batch", micro_batch_size=rows, gradient_accumulation_steps=1)
    setup.stage["duration"] = f"{setup.steps * healthy // rows} steps"


def _duration(setup: RunSetup, text: str) -> None:
    setup.stage["duration"] = text


def _wsd(setup: RunSetup, amount: Any) -> None:
    setup.stage["schedule"] = {"name": "wsd", "warmup": 0.1, "decay_fraction": 0.2}


def _constant(setup: RunSetup, amount: Any) -> None:
    setup.stage["schedule"] = {"name": "constant", "warmup": 0.1}


def _one_cycle(setup: RunSetup, amount: Any) -> None:
    setup.stage["schedule"] = {"name": "onecycle", "warmup": 0.2}


def _epochs(setup: RunSetup, share: float) -> None:
    """A part of the rows, read several times, in as many updates."""
    setup.change_rows(lambda rows: rows[: int(share * len(rows))])


def _large_vocabulary(setup: RunSetup, size: int) -> None:
    """A loss that is high and right. So many tokens need more updates than a small vocabulary."""
    setup.recipe["tokenizer"] = {"vocab_size": size}
    setup.stage["duration"] = f"{max(setup.steps, LARGE_VOCABULARY_STEPS)} steps"


def _batch_warmup(setup: RunSetup, amount: Any) -> None:
    setup.set(
        "batch", micro_batch_size=2, gradient_accumulation_steps=4, warmup={"initial_accumulation_steps": 2, "ramp_steps": 0.2}
    )


def _averaged(setup: RunSetup, decay: float) -> None:
    setup.stage["ema"] = {"decay": decay}


def _early_stopping(setup: RunSetup, amount: Any) -> None:
    setup.stage["early_stopping"] = {"patience": 2, "threshold": 0.02}


def _dropout(setup: RunSetup, share: float) -> None:
    setup.recipe["model"]["dropout"] = share


def _adapter_dropout(setup: RunSetup, share: float) -> None:
    setup.stage["adapter"]["lora_dropout"] = share


def _optimizer(setup: RunSetup, name: str) -> None:
    setup.set("optimizer", name=name)


def _rate(setup: RunSetup, factor: float) -> None:
    from fledge.doctor_bench.faults.rates import scale_rate

    scale_rate(setup, factor)


def _smoothing(setup: RunSetup, share: float) -> None:
    setup.stage["label_smoothing"] = share


def _loss_type(setup: RunSetup, name: str) -> None:
    setup.stage.update(loss_type=name, beta=2.0 if name in ("simpo", "sigmoid_norm") else 0.1)


def _supervised_term(setup: RunSetup, weight: float) -> None:
    setup.stage["sft_loss_weight"] = weight


def _few_validation_rows(setup: RunSetup, rows: int) -> None:
    setup.set("evaluation", max_packed_rows=rows)


def _bias_balanced(setup: RunSetup, amount: Any) -> None:
    setup.recipe["model"]["moe"] = {**setup.recipe["model"]["moe"], "load_balancing": "bias"}


def _kept_reference(setup: RunSetup, amount: Any) -> None:
    setup.stage["precompute_ref_log_probs"] = False


def _all_turns_once(setup: RunSetup, amount: Any) -> None:
    setup.set("data", train_on_turns="last")


def _several_updates(setup: RunSetup, number: int) -> None:
    setup.stage["rollout"] = {**setup.stage["rollout"], "updates_per_rollout": number}


def _no_kl(setup: RunSetup, amount: Any) -> None:
    setup.stage["beta"] = 0.0


CONTROLS: dict[str, Control] = {
    one.name: one
    for one in (
        Control(name="plain", shapes=EVERY, levels=ONCE),
        Control(name="resumed", shapes=RESUMED, levels=ONCE, is_resumed=True),
        Control(name="tiny batch", shapes=("pretrain", "sft"), levels={"": 4}, prepare=_tiny_batch),
        Control(name="wsd decay", shapes=("pretrain", "sft", "kto", "seq2seq"), levels=ONCE, prepare=_wsd),
        Control(name="constant rate", shapes=("pretrain", "sft", "reward", "seq2seq"), levels=ONCE, prepare=_constant),
        Control(name="one cycle", shapes=("pretrain",), levels=ONCE, prepare=_one_cycle),
        Control(name="deliberate epochs", shapes=("pretrain", "sft", "seq2seq"), levels={"": 0.5}, prepare=_epochs),
        Control(name="large vocabulary", shapes=("pretrain",), levels={"": 3000}, prepare=_large_vocabulary),
        Control(name="short run", shapes=("sft", "lora"), levels={"": "40 steps"}, prepare=_duration),
        Control(name="short preferences", shapes=("dpo", "kto", "reward"), levels={"": "20 steps"}, prepare=_duration),
        Control(name="batch warm-up", shapes=("pretrain",), levels=ONCE, prepare=_batch_warmup),
        Control(name="averaged weights", shapes=("pretrain", "sft"), levels={"": 0.95}, prepare=_averaged),
        Control(name="early stopping", shapes=("sft",), levels=ONCE, prepare=_early_stopping),
        Control(name="dropout", shapes=("pretrain",), levels={"": 0.1}, prepare=_dropout),
        Control(name="adapter dropout", shapes=("lora",), levels={"": 0.1}, prepare=_adapter_dropout),
        Control(name="muon", shapes=("pretrain", "moe"), levels={"": "muon"}, prepare=_optimizer),
        Control(name="rate in the band", shapes=("pretrain", "sft", "lora"), levels={"low": 0.5, "high": 1.6}, prepare=_rate),
        Control(name="label smoothing", shapes=("sft",), levels={"": 0.05}, prepare=_smoothing),
        Control(
            name="other preference loss", shapes=("dpo",), levels={"ipo": "ipo", "simpo": "simpo", "hinge": "hinge"},
            prepare=_loss_type,
        ),
        Control(name="preferences with sft loss", shapes=("dpo",), levels={"": 1.0}, prepare=_supervised_term),
        Control(name="reference kept", shapes=("dpo",), levels=ONCE, prepare=_kept_reference),
        Control(name="little validation data", shapes=("pretrain", "sft"), levels={"": 6}, prepare=_few_validation_rows),
        Control(name="experts balanced by bias", shapes=("moe",), levels=ONCE, prepare=_bias_balanced),
        Control(name="last turn only", shapes=("sft",), levels=ONCE, prepare=_all_turns_once),
        Control(name="updates share a rollout", shapes=("grpo",), levels={"": 2}, prepare=_several_updates),
        Control(name="no kl term", shapes=("grpo",), levels=ONCE, prepare=_no_kl),
    )
}  # fmt: skip
"""The first one is what every fault of its shape and seed is compared with."""
