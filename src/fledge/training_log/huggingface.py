"""Logs of transformers.Trainer and of TRL: trainer_state.json, and what stands beside it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.text_files import read_json
from fledge.training_log import tensorboard
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.given import Given
from fledge.training_log.records import TrainingLog, TrainingSettings
from fledge.training_log.rows import Rows
from fledge.training_log.setting_names import flat
from fledge.training_log.settings_map import settings_from
from fledge.training_log.tables import add_record

STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
TOTALS = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
    "train_loss",
    "train_tokens_per_second",
)
"""Figures of the whole run, in the last record."""
TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
TRAINER = re.compile(r"\btrl\b|TRL", re.IGNORECASE)
METHODS = re.compile(r"trained with (SFT|DPO|GRPO|KTO|ORPO|CPO|Reward|PPO|RLOO|BCO)\b", re.IGNORECASE)
FILES = ("config.json", "adapter_config.json", "training_args.yaml", "llamaboard_config.yaml", "training_args.json")


def state_file(target: Path) -> Path | None:
    """The trainer_state.json of a file or folder: its own, or that of its newest checkpoint; None without one."""
    if target.is_file():
        return target if target.name.endswith(STATE) else None
    if (target / STATE).is_file():
        return target / STATE
    numbered = [
        (int(match[1]), path)
        for path in target.glob(f"checkpoint-*/{STATE}")
        if (match := CHECKPOINT.fullmatch(path.parent.name))
    ]
    return max(numbered)[1] if numbered else None


def read_trainer_state(path: Path, given: Given) -> list[TrainingLog]:
    """The log in a trainer_state.json. Raises FledgeError if it is damaged or has no records."""
    state = read_json(path)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not history:
        raise FledgeError("this trainer_state.json has no log_history", where=str(path), hint="the run has logged nothing yet")
    rows, ended = Rows(), None
    for number, record in enumerate(history, 1):
        if not isinstance(record, dict):
            rows.unread["records that are no objects"] += 1
        elif "train_runtime" in record:
            ended = True
            rows.events.append({"kind": "end", **record})
        else:
            add_record(rows, number, _without_times(record, rows))
    settings = _settings(path, state, rows)
    ended = ended or _reached(state)
    if path.parent.name.startswith("checkpoint-"):
        rows.notes.append(f"The log is that of {path.parent.name}: records after that checkpoint are not in it.")
    origin = Origin(source=f"Hugging Face {STATE}", path=str(path), counts="update", settings=settings, ended=ended)
    return [assemble(rows, origin, given)]


def _without_times(record: Mapping[str, Any], rows: Rows) -> dict[str, Any]:
    """A record without the speed of evaluations, which is no figure of the run."""
    left = {name for name in record if name.startswith("eval_") and name.endswith(TIMES)}
    if left:
        rows.unread["speed of evaluations"] += len(left)
    return {name: value for name, value in record.items() if name not in left}


def _reached(state: Mapping[str, Any]) -> bool | None:
    step, last = state.get("global_step"), state.get("max_steps")
    if not isinstance(step, int) or not isinstance(last, int) or last <= 0:
        return None
    return step >= last


def _of_event_files(path: Path) -> TrainingSettings:
    """The arguments that the trainer wrote into the newest event file of TensorBoard in `runs/`, if there is one."""
    folder = path.parent.parent if CHECKPOINT.fullmatch(path.parent.name) else path.parent
    files = [file for file in folder.glob(f"runs/*/{tensorboard.PATTERN}") if file.is_file()]
    if not files:
        return TrainingSettings()
    newest = max(files, key=tensorboard.written_at)
    try:
        return tensorboard.settings_of_texts(tensorboard.read_event_files([newest]))
    except FledgeError:
        return TrainingSettings()


STATE_KEYS = ("max_steps", "num_train_epochs", "train_batch_size", "logging_steps", "eval_steps", "save_steps", "global_step",
              "best_metric", "best_global_step", "num_input_tokens_seen")  # fmt: skip


def _settings(path: Path, state: Mapping[str, Any], rows: Rows) -> TrainingSettings:
    """Settings from the state and from the files beside it; those of the files that hold the arguments come first."""
    known = {name: state[name] for name in STATE_KEYS if state.get(name) is not None}
    micro = known.get("train_batch_size")  # rows of all devices of one process
    settings = settings_from(known, path.name)
    for folder in dict.fromkeys((path.parent, path.parent.parent if CHECKPOINT.fullmatch(path.parent.name) else path.parent)):
        settings = beside(folder, rows, settings)
    settings = settings.updated(_of_event_files(path))
    if micro and settings.micro_batch_rows is None:
        settings = settings.updated(TrainingSettings(micro_batch_rows=float(micro)))
    return settings


def beside(folder: Path, rows: Rows, settings: TrainingSettings) -> TrainingSettings:
    """The settings with what the files of a folder say: model, adapter, arguments, the README of TRL. What cannot be read is
    told; training_args.bin is a pickle and never opened."""
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            tree = _tree(file)
        except FledgeError as error:
            rows.notes.append(f"{name} cannot be read: {error.what}.")
            continue
        if isinstance(tree, dict):
            settings = settings.updated(_of_file(name, tree))
    settings = settings.updated(_of_readme(folder / "README.md"))
    if (folder / "training_args.bin").exists():
        sentence = "training_args.bin is a pickle, which can run code: it is never opened. Give the arguments with --config."
        if sentence not in rows.notes:
            rows.notes.append(sentence)
    return settings


def _tree(file: Path) -> Any:
    if file.suffix == ".json":
        return read_json(file)
    from fledge.training_log.settings import yaml_tree

    return yaml_tree(file)


MODEL_FACTS = ("vocab_size", "hidden_size", "n_embd", "d_model", "tie_word_embeddings", "num_hidden_layers", "model_type",
               "num_attention_heads", "num_key_value_heads", "num_experts", "num_local_experts", "eos_token_id", "pad_token_id",
               "hidden_dropout", "attention_dropout", "dropout_rate", "resid_pdrop")  # fmt: skip


def _of_file(name: str, tree: dict[str, Any]) -> TrainingSettings:
    if name == "config.json":
        return facts_of_model(tree, name)
    found = settings_from(flat(tree), name)
    return found if name != "adapter_config.json" else found.updated(TrainingSettings(initial="trained"))


def facts_of_model(tree: dict[str, Any], where: str) -> TrainingSettings:
    """What the configuration of a model says about a run."""
    return settings_from({key: tree[key] for key in MODEL_FACTS if tree.get(key) is not None}, where)


def _of_readme(file: Path) -> TrainingSettings:
    """The kind of stage that the model card of TRL names."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")[:20_000] if file.is_file() else ""
    except OSError:
        return TrainingSettings()
    match = METHODS.search(text) if TRAINER.search(text) else None
    if match is None:
        return TrainingSettings()
    found = settings_from({"stage": match[1].lower()}, file.name)  # the name is LLaMA-Factory's, not one of this trainer
    return replace(found, other={}, origin=dict.fromkeys(found.origin, f"{file.name}: {match[0]}"))
