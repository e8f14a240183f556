"""What is held out appears nowhere in training: judged by the rows themselves."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.tasks import TASKS
from fledge.tasks.builder import Task, split_rows
from fledge.tasks.names import PLAIN, fold, variants
from fledge.tasks.rows import TaskRow
from fledge.tasks.split import COMBINATIONS, GROUPS, NAMES, SPELLINGS, SPLITS, TEST, TRAIN, VALIDATION, Forms

SEED = 7
ROWS = {TRAIN: 600, VALIDATION: 90, TEST: 90}
MADE = {name: make(SEED) for name, make in TASKS.items()}
SPLIT_ROWS = {
    name: {split: list(split_rows(task, SEED, split, ROWS[split])) for split in SPLITS} for name, task in MADE.items()
}
TASK_NAMES = pytest.mark.parametrize("name", TASKS)


def folded_text(rows: list[TaskRow]) -> str:
    """Everything that a model reads in the rows, folded; a mark between the turns."""
    return "\n".join(fold(turn["content"]) for row in rows for turn in row.messages)


@TASK_NAMES
def test_no_held_out_form_is_a_part_of_any_training_text(name: str) -> None:
    text = folded_text(SPLIT_ROWS[name][TRAIN])
    held = {
        variant.folded
        for names in MADE[name].name_splits
        for split in (VALIDATION, TEST)
        for group in (NAMES, SPELLINGS)
        for variant in names.by_split[split][group].variants
    }
    assert len(held) > 500 and not [form for form in held if form in text]


@TASK_NAMES
def test_no_test_form_is_a_part_of_any_validation_text(name: str) -> None:
    text = folded_text(SPLIT_ROWS[name][VALIDATION])
    for names in MADE[name].name_splits:
        forms = [variant.folded for group in (NAMES, SPELLINGS) for variant in names.by_split[TEST][group].variants]
        assert forms and not [form for form in forms if form in text]


@TASK_NAMES
def test_no_variant_of_training_is_a_spelling_of_a_held_out_name_or_holds_a_held_out_form(name: str) -> None:
    for names in MADE[name].name_splits:
        trained = names.by_split[TRAIN][COMBINATIONS].variants
        for split in (VALIDATION, TEST):
            held_names = {variant.name for variant in names.by_split[split][NAMES].variants}
            assert held_names.isdisjoint(variant.name for variant in trained)
            held = {variant.folded for group in (NAMES, SPELLINGS) for variant in names.by_split[split][group].variants}
            forms = Forms(held)
            assert held and not [one for one in trained if forms.found_in(one.text)]


@TASK_NAMES
def test_held_out_rows_hold_what_their_group_says(name: str) -> None:
    for split in (VALIDATION, TEST):
        rows = SPLIT_ROWS[name][split]
        forms = Forms(
            variant.folded
            for names in MADE[name].name_splits
            for group in (NAMES, SPELLINGS)
            for variant in names.by_split[split][group].variants
        )
        assert Counter(row.group for row in rows) == dict.fromkeys(GROUPS, ROWS[split] // 3)
        for row in rows:
            assert bool(row.held_out) == (row.group != COMBINATIONS) and set(row.held_out) <= set(row.answer)
            assert (forms.found_in(row.question) is not None) == (row.group != COMBINATIONS), row


def combination(task: Task, row: TaskRow) -> str:
    """The split of a row's combination of standard names."""
    if task.name == "vehicle":
        return task.combination_split(row.answer["vehicle"], row.answer["pollutant"])  # type: ignore[attr-defined]
    return task.combination_split(*filter(None, row.answer.values()))  # type: ignore[attr-defined]


@TASK_NAMES
def test_combinations_of_a_held_out_split_are_not_in_training(name: str) -> None:
    task, rows = MADE[name], SPLIT_ROWS[name]
    assert {combination(task, row) for row in rows[TRAIN]} == {TRAIN}
    for split in (VALIDATION, TEST):
        assert {combination(task, row) for row in rows[split] if row.group == COMBINATIONS} == {split}


@TASK_NAMES
def test_training_has_every_standard_name_in_both_languages_and_names_of_every_rule(name: str) -> None:
    rows = SPLIT_ROWS[name][TRAIN]
    answers = {value for row in rows for value in row.answer.values()}
    standards = {
        variant.standard for names in MADE[name].name_splits for variant in names.by_split[TRAIN][COMBINATIONS].variants
    }
    assert answers == standards and None in answers
    assert all(0.4 < share < 0.6 for share in (sum(row.lang == lang for row in rows) / len(rows) for lang in ("zh", "en")))
    for names in MADE[name].name_splits:
        pools = names.by_split
        assert {variant.rule for variant in pools[TRAIN][COMBINATIONS].variants} == {
            variant.rule for split in SPLITS for group in pools[split].values() for variant in group.variants
        }
        assert {name.standard for name in names.names} == {variant.standard for variant in pools[TRAIN][COMBINATIONS].variants}


@TASK_NAMES
def test_a_name_has_one_meaning_whatever_rule_wrote_it(name: str) -> None:
    for names in MADE[name].name_splits:
        meanings: dict[str, set[str | None]] = {}
        for variant in variants(names.names):
            meanings.setdefault(variant.folded, set()).add(variant.standard)
        assert not {form: found for form, found in meanings.items() if len(found) > 1}
        plain = [variant.folded for variant in variants(names.names) if variant.rule == PLAIN]
        assert len(set(plain)) == len(plain)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TASKS)),
    st.integers(0, 2**32),
    st.sampled_from([(TRAIN, COMBINATIONS), *((split, group) for split in (VALIDATION, TEST) for group in GROUPS)]),
)
def test_the_answer_is_json_with_the_row_s_own_fields_for_any_draw(name: str, draw: int, chosen: tuple[str, str]) -> None:
    row = MADE[name].row(random.Random(draw), *chosen)
    assert json.loads(row.messages[-1]["content"]) == row.answer == json.loads(json.dumps(row.answer))
    assert row.question == "\n".join(line.rstrip() for line in row.question.strip().split("\n"))
    assert [turn["role"] for turn in row.messages] == ["system", "user", "assistant"]
    if name == "columns":
        escaped = json.dumps(row.question, ensure_ascii=False)[1:-1]
        assert row.answer and all(key in row.question or key in escaped for key in row.answer)
        named = [value for value in row.answer.values() if value]
        assert len(set(named)) == len(named) > 1
    else:
        assert list(row.answer) == ["vehicle", "pollutant"]
    assert row == MADE[name].row(random.Random(draw), *chosen)


@given(st.text(max_size=60), st.text(min_size=2, max_size=8))
def test_a_form_is_found_in_a_text_exactly_if_the_folded_text_holds_it(text: str, form: str) -> None:
    folded = fold(form)
    assert (Forms([folded] if folded else []).found_in(text) is not None) == (bool(folded) and folded in fold(text))


@given(st.text(alphabet="aB3 ._-()/", max_size=20))
def test_folding_twice_changes_nothing_and_neither_do_case_width_and_separators(text: str) -> None:
    wide = "".join(chr(ord(letter) + 0xFEE0) if letter != " " else "　" for letter in text)
    assert fold(fold(text)) == fold(text) == fold(wide) == fold(text.upper()) == fold(f" {text} _")


@TASK_NAMES
def test_another_seed_holds_out_other_names(name: str, tmp_path: Path) -> None:
    def held(seed: int) -> set[str]:
        splits = TASKS[name](seed).name_splits
        return {text for names in splits for text in names.held_out_names(TEST)}

    assert held(1) != held(2) and held(1) == held(1)
