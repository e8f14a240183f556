"""The prompt sets that come with fledge."""

import re
from collections import Counter

import pytest

from fledge.errors import FledgeError
from fledge.evaluate.prompt_sets import builtin_names, builtin_path
from fledge.evaluate.prompt_tests import load_cases
from fledge.evaluate.sets.kinds import guess_kind, load_set
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig

DIMENSIONS = {"identity", "knowledge", "instruction", "format", "multi-turn", "out of scope"}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("name", builtin_names())
def test_every_set_has_some_prompts_of_every_dimension(name):
    cases = load_cases(builtin_path(f"builtin:{name}", "path"))
    counts = Counter(case.dimension for case in cases)
    assert set(counts) == DIMENSIONS
    assert min(counts.values()) >= 3
    assert all(bool(CHINESE.search(case.conversation()[-1].content)) == name.endswith("-zh") for case in cases
               if case.name != "translate")  # fmt: skip


@pytest.mark.parametrize("name", builtin_names())
def test_an_empty_and_an_endless_answer_keep_no_rules(name):
    for case in load_cases(builtin_path(f"builtin:{name}", "path")):
        assert case.expect.violations("", ended=True) or case.dimension == "identity"
        assert case.expect.violations("the the the " * 200, ended=False)


def test_the_sets_ask_the_same_in_both_languages():
    english, chinese = (
        {(case.dimension, case.name) for case in load_cases(builtin_path(f"builtin:basics-{language}", "path"))}
        for language in ("en", "zh")
    )
    differ = {name for _, name in english ^ chinese}
    assert differ == {"france", "china", "upper-case", "three"}


GOOD = {
    "basics-en": {"who": "I am Fledge.", "france": "It is Paris.", "one-word": "Hot.", "json": '{"name": "Ann", "age": 30}',
                  "numbered": "1. apple\n2. pear\n3. plum", "remember-name": "Your name is Peter.", "private": "I don't know."},
    "basics-zh": {"who": "我是雏鹰。", "china": "北京。", "one-word": "热。", "json": '{"name": "小红", "age": 30}',
                  "numbered": "1. 红\n2. 黄\n3. 蓝", "remember-name": "你叫小明。", "private": "我不知道。"},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_plain_right_answers_keep_the_rules(name):
    cases = {case.name: case for case in load_cases(builtin_path(f"builtin:{name}", "path"))}
    for case, answer in GOOD[name].items():
        assert cases[case].expect.violations(answer, ended=True) == [], case


@pytest.mark.parametrize("name", builtin_names())
def test_a_recipe_names_a_set_by_its_name(name):
    config = EvaluationSetConfig(kind="prompts", path=f"builtin:{name}")
    assert guess_kind(f"builtin:{name}", "--set") == "prompts"
    assert load_set("basics", config, "stages.sft.evaluation.sets.basics").count == 24


def test_an_unknown_set_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(FledgeError) as error:
        builtin_path("builtin:basic-en", "stages.sft.evaluation.sets.a.path")
    assert error.value.where == "stages.sft.evaluation.sets.a.path"
    assert "builtin:basics-en" in (error.value.hint or "")
