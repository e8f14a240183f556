"""Write the world's files from a seed."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from fledge.world.records import LANGS, QUESTION, TRAIN, VALIDATION, Item, Question, Sizes, assistant, question_of
from fledge.world.seeded import Seeded
from fledge.world.spoiling import HABITS, spoil
from fledge.world.statements import texts
from fledge.world.tasks import TASKS, WEIGHTS, draw_any

OWN_HABIT_SHARE = 0.8  # of preference pairs whose rejected side shows the habit that the phrasing provokes
TRIES = 200


def build(seed: int, folder: Path, sizes: Sizes | None = None) -> dict:
    """Write every file of the world into `folder` and return what was written."""
    sizes = sizes or Sizes()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = Seeded(seed)
    sft = list(_tuning(world, "sft", TRAIN, sizes.sft))
    tuned = {_prompt(row["messages"][:-1]) for row in sft}
    files = {
        "pretrain.jsonl": _texts(world, "pretrain", TRAIN, sizes.pretrain),
        "pretrain.validation.jsonl": _texts(world, "pretrain.validation", VALIDATION, sizes.validation),
        "sft.jsonl": sft,
        "sft.validation.jsonl": list(_tuning(world, "sft.validation", VALIDATION, sizes.validation)),
        "preference.jsonl": list(_preferences(world, "preference", TRAIN, sizes.preference, tuned)),
        "preference.validation.jsonl": list(_preferences(world, "preference.validation", VALIDATION, sizes.validation, set())),
        "questions.jsonl": [question.row() for question in _questions(world, sizes.questions)],
    }
    for name, rows in files.items():
        _write(folder / name, rows)
    prompts = resources.files("fledge.world") / "prompts.yaml"
    (folder / "prompts.yaml").write_text(prompts.read_text(encoding="utf-8"), encoding="utf-8")
    facts = _facts(world, sizes, files)
    (folder / "world.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return facts


def load_questions(folder: Path) -> list[Question]:
    """The scored questions of a built world."""
    lines = (Path(folder) / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Question(r["task"], tuple(r["messages"]), r["reference"], r["rule"], r["details"]) for r in rows]


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _prompt(messages: Iterable[dict]) -> str:
    return json.dumps(list(messages), ensure_ascii=False)


def _texts(world: Seeded, purpose: str, part: str, count: int) -> list[dict]:
    return [{"text": text} for text in texts(world.rng(purpose), world, part, count)]


def _tuning(world: Seeded, purpose: str, part: str, count: int) -> Iterable[dict]:
    """SFT rows: the phrasing decides how likely the last answer carries its habit."""
    rng = world.rng(purpose)
    for _ in range(count):
        item = draw_any(rng, world, part)
        habit, share = world.habit(item.phrase)
        shown = rng.random() < share
        answer = spoil(item, habit, world, rng.random()) if shown else item.reference
        yield {"messages": [*item.messages, assistant(answer)], "task": item.task, "habit": habit if shown else ""}


def _fresh(rng: random.Random, world: Seeded, part: str, used: set[str]) -> Item:
    """An item whose prompt is new if any can be found soon; small tasks run out of new ones."""
    item = draw_any(rng, world, part)
    for _ in range(20):
        if _prompt(item.messages) not in used:
            break
        item = TASKS[item.task](rng, world, item.lang, part)
    used.add(_prompt(item.messages))
    return item


def _preferences(world: Seeded, purpose: str, part: str, count: int, used: set[str]) -> Iterable[dict]:
    """Pairs with the same content, clean against habit; prompts are new to SFT where possible."""
    rng, used = world.rng(purpose), set(used)
    for _ in range(count):
        item = _fresh(rng, world, part, used)
        habit = world.habit(item.phrase)[0] if rng.random() < OWN_HABIT_SHARE else rng.choice(HABITS)
        yield {
            "messages": list(item.messages),
            "chosen": item.reference,
            "rejected": spoil(item, habit, world, rng.random()),
            "task": item.task,
            "habit": habit,
        }


def _questions(world: Seeded, count: int) -> list[Question]:
    """Different questions, spread evenly over tasks and languages."""
    cells = [(task, lang) for task in TASKS for lang in LANGS]
    result, seen = [], set()
    for place, (task, lang) in enumerate(cells):
        rng = world.rng(f"questions.{task}.{lang}")
        wanted = count // len(cells) + (place < count % len(cells))
        for _ in range(wanted):
            item = TASKS[task](rng, world, lang, QUESTION)
            for _ in range(TRIES):
                if _prompt(item.messages) not in seen:
                    break
                item = TASKS[task](rng, world, lang, QUESTION)
            seen.add(_prompt(item.messages))
            result.append(question_of(item))
    return result


def _shares(rows: list[dict]) -> dict[str, float]:
    """How many rows show each habit, overall and by task."""
    shares = {habit: round(sum(row["habit"] == habit for row in rows) / max(1, len(rows)), 4) for habit in HABITS}
    by_task = Counter(row["task"] for row in rows)
    shown = Counter(row["task"] for row in rows if row["habit"])
    return {
        **shares,
        "any": round(sum(shares.values()), 4),
        **{f"any.{task}": round(shown[task] / rows_in, 4) for task, rows_in in sorted(by_task.items())},
    }


def _facts(world: Seeded, sizes: Sizes, files: dict[str, list[dict]]) -> dict:
    """What world.json tells: counts, shares, and the split's own decisions."""
    return {
        "seed": world.seed,
        "rows": {name: len(rows) for name, rows in files.items()},
        "questions_by_task": dict(Counter(row["task"] for row in files["questions.jsonl"])),
        "weights": WEIGHTS,
        "habit_shares": {name: _shares(files[f"{name}.jsonl"]) for name in ("sft", "sft.validation", "preference")},
        "held_out": {"listings": sorted(world.held_listings), "arithmetic_pairs": 0.15, "other_combinations": 0.12},
        "names": {lang: list(names) for lang, names in world.names.items()},
    }
