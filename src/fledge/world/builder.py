"""Writing the files of the world from a seed."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from fledge.errors import FledgeError
from fledge.world.bad_habits import HABITS, add_habit
from fledge.world.natural.dialogue import draw_dialogue
from fledge.world.natural.pairs import draw_pair
from fledge.world.records import LANGS, QUESTION, TRAIN, VALIDATION, Item, Question, Sizes, assistant, question_of
from fledge.world.statements import texts
from fledge.world.tasks import TASKS, WEIGHTS, draw_any
from fledge.world.world_seed import WorldSeed

PROVOKED_HABIT_SHARE = 0.8  # of preference pairs: the rejected answer shows the habit that the phrasing provokes
NATURAL_SHARE = 0.6  # of the conversations of SFT and of the pairs that are in natural words
TRIES = 200
MIN_ROWS, MAX_ROWS = 100, 1_000_000  # of `make_world`


def build(seed: int, folder: Path, sizes: Sizes | None = None) -> dict:
    """Write every file of the world into `folder`. Returns the content of world.json."""
    sizes = sizes or Sizes()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = WorldSeed(seed)
    sft = list(_sft_rows(world, "sft", TRAIN, sizes.sft))
    sft_prompts = {_prompt(row["messages"][:-1]) for row in sft}
    files = {
        "pretrain.jsonl": _text_rows(world, "pretrain", TRAIN, sizes.pretrain),
        "pretrain.validation.jsonl": _text_rows(world, "pretrain.validation", VALIDATION, sizes.validation),
        "sft.jsonl": sft,
        "sft.validation.jsonl": list(_sft_rows(world, "sft.validation", VALIDATION, sizes.validation)),
        "preference.jsonl": list(_preference_rows(world, "preference", TRAIN, sizes.preference, sft_prompts)),
        "preference.validation.jsonl": list(
            _preference_rows(world, "preference.validation", VALIDATION, sizes.validation, set())
        ),
        "questions.jsonl": [question.row() for question in _questions(world, sizes.questions)],
    }
    for name, rows in files.items():
        _write(folder / name, rows)
    prompts = resources.files("fledge.world") / "prompts.yaml"
    (folder / "prompts.yaml").write_text(prompts.read_text(encoding="utf-8"), encoding="utf-8")
    facts = _world_facts(world, sizes, files)
    (folder / "world.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return facts


def make_world(folder: Path, seed: int, rows: int) -> dict:
    """Write a world with `rows` conversations, a third as many texts and a tenth as many pairs, into a new or empty folder.

    Returns the content of world.json. Raises FledgeError for a folder that holds something, and for a number that is too small.
    """
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise FledgeError(f"it must be {MIN_ROWS} to {MAX_ROWS:,}, not {rows:,}", where="--rows")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FledgeError("this folder is not empty", where=str(folder), hint="choose another folder with --out")
    return build(seed, folder, Sizes(pretrain=max(300, rows // 3), sft=rows, preference=max(50, rows // 10)))


def load_questions(folder: Path) -> list[Question]:
    """The scored questions of a built world."""
    with (Path(folder) / "questions.jsonl").open(encoding="utf-8") as lines:  # only a line feed ends a line
        rows = [json.loads(line) for line in lines]
    return [Question(r["task"], tuple(r["messages"]), r["reference"], r["rule"], r["details"]) for r in rows]


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _prompt(messages: Iterable[dict]) -> str:
    return json.dumps(list(messages), ensure_ascii=False)


def _text_rows(world: WorldSeed, purpose: str, split: str, count: int) -> list[dict]:
    return [{"text": text} for text in texts(world.rng(purpose), world, split, count)]


def _sft_rows(world: WorldSeed, purpose: str, split: str, count: int) -> Iterable[dict]:
    """SFT rows. The phrasing decides how likely the last answer shows a habit; conversations in natural words show none."""
    rng = world.rng(purpose)
    for _ in range(count):
        if split == TRAIN and rng.random() < NATURAL_SHARE:
            turns = [turn for exchange in draw_dialogue(rng, world) for turn in exchange.turns]
            yield {"messages": turns, "task": "natural", "habit": ""}
            continue
        item = draw_any(rng, world, split)
        habit, share = world.habit(item.phrase)
        shown = rng.random() < share
        answer = add_habit(item, habit, world, rng.random()) if shown else item.reference
        yield {"messages": [*item.messages, assistant(answer)], "task": item.task, "habit": habit if shown else ""}


def _draw_new_item(rng: random.Random, world: WorldSeed, split: str, used_prompts: set[str]) -> Item:
    """An item with an unused prompt, if a few draws find one; small tasks have too few prompts."""
    item = draw_any(rng, world, split)
    for _ in range(20):
        if _prompt(item.messages) not in used_prompts:
            break
        item = TASKS[item.task](rng, world, item.lang, split)
    used_prompts.add(_prompt(item.messages))
    return item


def _preference_rows(world: WorldSeed, purpose: str, split: str, count: int, used_prompts: set[str]) -> Iterable[dict]:
    """Preference pairs with equal content: a clean answer against an answer with a habit. Prompts are new to SFT if
    possible."""
    rng, used_prompts = world.rng(purpose), set(used_prompts)
    for _ in range(count):
        if split == TRAIN and rng.random() < NATURAL_SHARE:
            yield draw_pair(rng, world)
            continue
        item = _draw_new_item(rng, world, split, used_prompts)
        habit = world.habit(item.phrase)[0] if rng.random() < PROVOKED_HABIT_SHARE else rng.choice(HABITS)
        yield {
            "messages": list(item.messages),
            "chosen": item.reference,
            "rejected": add_habit(item, habit, world, rng.random()),
            "task": item.task,
            "habit": habit,
        }


def _questions(world: WorldSeed, count: int) -> list[Question]:
    """Different questions, distributed evenly over tasks and languages."""
    cells = [(task, lang) for task in TASKS for lang in LANGS]
    result, used_prompts = [], set()
    for index, (task, lang) in enumerate(cells):
        rng = world.rng(f"questions.{task}.{lang}")
        requested = count // len(cells) + (index < count % len(cells))
        for _ in range(requested):
            item = TASKS[task](rng, world, lang, QUESTION)
            for _ in range(TRIES):
                if _prompt(item.messages) not in used_prompts:
                    break
                item = TASKS[task](rng, world, lang, QUESTION)
            used_prompts.add(_prompt(item.messages))
            result.append(question_of(item))
    return result


def _shares(rows: list[dict]) -> dict[str, float]:
    """The fraction of rows that show each habit, overall and by task."""
    shares = {habit: round(sum(row["habit"] == habit for row in rows) / max(1, len(rows)), 4) for habit in HABITS}
    by_task = Counter(row["task"] for row in rows)
    shown = Counter(row["task"] for row in rows if row["habit"])
    return {
        **shares,
        "any": round(sum(shares.values()), 4),
        **{f"any.{task}": round(shown[task] / rows_in, 4) for task, rows_in in sorted(by_task.items())},
    }


def _world_facts(world: WorldSeed, sizes: Sizes, files: dict[str, list[dict]]) -> dict:
    """The content of world.json: counts, habit shares, and what the split holds out."""
    return {
        "seed": world.seed,
        "rows": {name: len(rows) for name, rows in files.items()},
        "questions_by_task": dict(Counter(row["task"] for row in files["questions.jsonl"])),
        "weights": WEIGHTS,
        "habit_shares": {name: _shares(files[f"{name}.jsonl"]) for name in ("sft", "sft.validation", "preference")},
        "held_out": {"listings": sorted(world.held_out_listings), "arithmetic_pairs": 0.15, "other_combinations": 0.12},
        "names": {lang: list(names) for lang, names in world.names.items()},
    }
