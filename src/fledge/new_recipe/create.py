"""What `fledge init` does: it looks at files, chooses sizes, writes the recipe, and says what comes next."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fledge.data.formats import FORMATS
from fledge.errors import FledgeError
from fledge.escaping import escaped
from fledge.new_recipe.data_files import TEST, TRAINING, VALIDATION, DataFile, Unused, alike, find_files, look_at, path_of
from fledge.new_recipe.kinds import RULES, compares
from fledge.new_recipe.recipe_text import recipe_text
from fledge.new_recipe.sizes import Sizes, amount_of, choose_sizes
from fledge.plan.estimate import minutes_text
from fledge.recipe import load_recipe
from fledge.recipe.sections.base import check_name
from fledge.run import Log
from fledge.run.text_files import write_text

SHOWN_REASONS = 3
LARGEST_BATCH = {"cpu": 8, "cuda": 32}


def create_recipe(paths: Sequence[str], out: Path, name: str | None, minutes: float, log: Log) -> list[str]:
    """Write a recipe that trains a new model on files and folders, in about so many minutes on this machine; returns what to
    tell. Raises FledgeError where nothing can be trained on, and for a file `out` that is there."""
    if out.exists() or out.is_symlink():
        raise FledgeError("this file is there", where=str(out), hint="name another one with --out, or remove it")
    if out.suffix not in (".yaml", ".yml"):
        raise FledgeError("a recipe is a YAML file", where=str(out), hint=f"name it {out.with_suffix('.yaml').name}")
    chosen = name or _name_from(out)
    try:
        check_name(chosen)
    except ValueError as error:
        raise FledgeError(str(error), where="--name") from None
    files, unused = _look_at_all(paths, log)
    for one in unused:
        log(f"not used: {one.path}: {one.reason}")
    kinds, more, notes = _by_kind(files, paths)
    for line in [*(f"not used: {one.path}: {one.reason}" for one in more), *notes]:
        log(line)
    unused += more
    sizes = _sizes(kinds, minutes, log)
    command = f"fledge train {shlex.quote(str(out))}"
    text = recipe_text(chosen, kinds, sizes, command, minutes, [*_account(kinds, unused), *notes])
    write_text(out, text)
    try:
        load_recipe([str(out)])
    except FledgeError:  # an error of fledge's own: it is said here, and nothing stays behind
        out.unlink()
        raise
    return _next_steps(out, chosen, kinds, sizes, command)


def _name_from(out: Path) -> str:
    try:
        check_name(out.stem)
    except ValueError:
        return "my-model"
    return out.stem


def _look_at_all(paths: Sequence[str], log: Log) -> tuple[list[DataFile], list[Unused]]:
    """All files that can be used, which are told, and those that cannot."""
    found, unused = find_files(paths)
    files: list[DataFile] = []
    roots = [Path(text).expanduser() for text in paths]
    for path in found:
        root = next((root for root in roots if root in path.parents), path.parent)
        seen = look_at(path, path.relative_to(root).parts[:-1])
        if isinstance(seen, Unused):
            unused.append(seen)
        else:
            files.append(seen)
    for group in alike(files):
        for line in _described(group):
            log(line)
    return files, unused


def _described(group: Sequence[DataFile]) -> list[str]:
    """What files that are alike hold, and what of them is left out."""
    amount = amount_of(group)
    used, what = sum(round(file.used * file.scale) for file in group), RULES[group[0].kind].what
    parts = [f"{len(group):,} files"] if len(group) > 1 else []
    parts.append(f"about {used:,} {what}" if any(file.scale > 1 for file in group) else f"{used:,} {what}")
    parts.append(f"{amount.characters:,} characters")
    if amount.han_share >= 0.01:
        parts.append(f"{amount.han_share:.0%} of its characters Chinese")
    notes = dict.fromkeys(note for file in group for note in (*file.notices, *file.reasons))
    lines = [f"{path_of(group)}: {', '.join(parts)}" + (f" ({'; '.join(notes)})" if notes else "")]
    left_out = [line for file in group for line in file.left_out.lines()]
    lines += [f"  left out: {line}" for line in left_out[:SHOWN_REASONS]]
    if len(left_out) > SHOWN_REASONS:
        lines.append(f"  and {len(left_out) - SHOWN_REASONS:,} more reasons: fledge data account tells all")
    return lines


def _by_kind(files: Sequence[DataFile], paths: Sequence[str]) -> tuple[dict[str, list[DataFile]], list[Unused], list[str]]:
    """The files of each kind of stage, in the order in which stages follow each other; those that are not used: for tests, with
    one label alone, of kinds that a new model cannot learn from yet or that need a stage of their own; and what else to tell.
    FledgeError where there is nothing to train on."""
    found = {kind: those for kind in RULES if (those := [file for file in files if file.kind == kind])}
    if not found:
        raise FledgeError(
            "there is nothing to train on in it",
            where=", ".join(paths),
            hint="a row is a text, a question with an answer, a conversation, or a pair of answers: docs/data.md",
        )
    if all(compares(kind) for kind in found):
        raise FledgeError(
            "these are only comparisons of answers, and a new model cannot answer yet",
            where=", ".join(paths),
            hint="name texts or conversations too; or write a recipe with model.path, a model that was fine-tuned",
        )
    unused: list[Unused] = []
    notes: list[str] = []
    for kind, those in list(found.items()):
        found[kind], kept, told = _without_tests(those)
        unused, notes = unused + kept, notes + told
        if len(set().union(*(file.labels for file in those))) == 1:
            unused += [Unused(file.path, "all its answers have one label, and two are compared") for file in found.pop(kind)]
    answers = any(FORMATS[kind].is_dialogue and not compares(kind) for kind in found)
    why = "one stage of comparisons is enough: add another by hand" if answers else "no conversations teach the model to answer"
    for kind in [kind for kind in found if compares(kind)][1 if answers else 0 :]:
        unused += [Unused(file.path, f"{RULES[kind].what}: {why}") for file in found.pop(kind)]
    return found, unused, notes


def _without_tests(files: Sequence[DataFile]) -> tuple[list[DataFile], list[Unused], list[str]]:
    """The files to train on and to measure with; those that are for tests by their names; and a sentence where the names leave
    nothing to train on: then those for validation are trained on, or those for tests where there are no others."""
    purposes = {file.purpose for file in files}
    notes: list[str] = []
    if TRAINING not in purposes:
        taken = VALIDATION if VALIDATION in purposes else TEST
        files = [replace(file, purpose=TRAINING) if file.purpose == taken else file for file in files]
        names = ", ".join(str(file.path) for file in files if file.purpose == TRAINING)
        notes.append(f"{names}: named for {taken}, but trained on: there are no others of this kind")
    tests = [Unused(file.path, "its name says that it is for tests") for file in files if file.purpose == TEST]
    return [file for file in files if file.purpose != TEST], tests, notes


def _sizes(kinds: dict[str, list[DataFile]], minutes: float, log: Log) -> Sizes:
    """Sizes for this machine, whose speed is measured."""
    log("measuring how fast this machine multiplies …")
    from fledge.autotune.benchmark import fastest_product
    from fledge.autotune.compute_config import chosen_device
    from fledge.recipe.schema import RuntimeConfig

    device = chosen_device(RuntimeConfig())
    return choose_sizes(kinds, minutes * 60, fastest_product(device), LARGEST_BATCH[device])


def _account(kinds: dict[str, list[DataFile]], unused: Sequence[Unused]) -> list[str]:
    """What the recipe says about its data, at its top."""
    lines = [f"Written by fledge init on {time.strftime('%Y-%m-%d')}, from:"]
    for kind, files in kinds.items():
        rows, left_out = sum(file.used for file in files), sum(file.left_out.counts.total() for file in files)
        parts = [f"{len(files):,} file{'s' * (len(files) > 1)} of {RULES[kind].what}: {rows:,}"]
        lines.append("; ".join(["  " + parts[0], *([f"{left_out:,} rows cannot be used"] if left_out else [])]))
    return lines + [escaped(f"  not used: {one.path}: {one.reason}") for one in unused]


def _next_steps(out: Path, name: str, kinds: dict[str, list[DataFile]], sizes: Sizes, command: str) -> list[str]:
    stages = " → ".join(f"{kind} ({RULES[kind].what})" for kind in kinds)
    model, needed = f"{sizes.parameters / 1e6:.1f}M parameters", minutes_text(sizes.seconds)
    lines = [f"{out}: a model of {model}, {stages}, {needed} of training here", f"  {command}"]
    if any(FORMATS[kind].is_dialogue for kind in kinds):
        return [*lines, f"  fledge chat runs/{name}"]
    return [
        *lines,
        f'  fledge generate runs/{name} "…" --raw',
        "there are no conversations: the model will continue texts, and not answer. Name a file of questions and answers too",
    ]
