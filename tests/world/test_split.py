"""No held-out combination or phrasing occurs in any training file, judged by the text itself."""

import json
import random
import re
from pathlib import Path

import pytest

from fledge.world import Question
from fledge.world.arithmetic import pair_key as sum_key
from fledge.world.columns import set_key
from fledge.world.explain import BOOK as EXPLAIN
from fledge.world.explain import TERMS
from fledge.world.lexicon import (
    CATEGORIES,
    COLOUR,
    COUNTABLE,
    NUMBERS_EN,
    NUMBERS_ZH,
    SUBJECTS,
    VERBS,
    WORDS,
    full_stop,
    is_a_sentence,
    other_language,
)
from fledge.world.phrases import ENDINGS, OPENERS
from fledge.world.records import LANGS, QUESTION, TRAIN, VALIDATION
from fledge.world.standardise import FUELS, POLLUTANTS, VEHICLES, aliases, undecorated
from fledge.world.system_rules import CLOSINGS
from fledge.world.tasks import BOOKS, TASKS
from fledge.world.translate import phrase_pair, sentence_pair
from fledge.world.verse import FRIENDS, PATTERNS, THEMES, pair_key
from fledge.world.world_seed import WorldSeed
from tests.world.conftest import SEED, read

WORLD = WorldSeed(SEED)
ALL_BOOKS = [(book, lang) for books in BOOKS.values() for book in books for lang in LANGS]


def bare(prompt: str) -> str:
    """A prompt without its greeting and its final mark."""
    for opener in filter(None, OPENERS["zh"] + OPENERS["en"]):
        prompt = prompt.removeprefix(opener)
    return prompt.rstrip(ENDINGS)


@pytest.mark.parametrize("task", TASKS)
def test_every_draw_belongs_to_the_requested_split(task: str) -> None:
    rng = random.Random(1)
    for lang in LANGS:
        for _ in range(150):
            item = TASKS[task](rng, WORLD, lang, TRAIN)
            support = item.details.get("intent") in ("greeting", "thanks") or item.key.startswith("word|")
            noun = task == "explain" and item.reference in {is_a_sentence(word, lang) for word in WORDS}
            assert not item.phrase.held_out and (support or noun or not WORLD.held_out(task, item.key))
            assert WORLD.held_out(task, TASKS[task](rng, WORLD, lang, VALIDATION).key)
            item = TASKS[task](rng, WORLD, lang, QUESTION)
            by_phrase = task in ("identity", "explain") or "|identity|" in item.key
            assert item.phrase.held_out and (by_phrase or WORLD.held_out(task, item.key))


def test_about_15_percent_of_operand_pairs_and_four_listings_are_held_out() -> None:
    share = sum(WORLD.held_out("arithmetic", sum_key(a, b)) for a in range(10, 100) for b in range(10, a + 1)) / 4095
    assert 0.12 < share < 0.18
    assert len(WORLD.held_out_listings) == 4 and len({key.split("|")[0] for key in WORLD.held_out_listings}) == 4


def test_no_held_out_operand_pair_occurs_in_training(training_text: str) -> None:
    pairs = re.findall(r"(?<!\d)(\d\d)\s*(?:[+-]|加|减|plus|minus)\s*(\d\d)(?!\d)", training_text)
    assert len(pairs) > 500
    assert [pair for pair in pairs if WORLD.held_out("arithmetic", sum_key(int(pair[0]), int(pair[1])))] == []


def test_no_held_out_translation_occurs_in_training(training_text: str) -> None:
    nouns, hues = range(len(COUNTABLE)), range(len(COLOUR))
    pairs = [phrase_pair(n, c, x) for n in range(1, 10) for c in hues for x in nouns]
    pairs += [sentence_pair(s, v, c, x) for s in range(len(SUBJECTS)) for v in range(len(VERBS)) for c in hues for x in nouns]
    held_out = [pair for pair in pairs if WORLD.held_out("translate", pair.key)]
    assert 0.08 < len(held_out) / len(pairs) < 0.16
    assert [pair for pair in held_out if pair.zh in training_text or pair.en in training_text] == []


def test_no_held_out_alias_pair_occurs_in_training(training_text: str) -> None:
    text = training_text.lower()
    for fuel in FUELS["zh"] + FUELS["en"]:
        text = text.replace(fuel, "")
    text = text.replace(" ", "")
    names = [
        sorted({undecorated(alias) for lang in LANGS for alias, _ in aliases(table, lang)}, key=len, reverse=True)
        for table in (VEHICLES, POLLUTANTS)
    ]
    either = ["|".join(map(re.escape, table)) for table in names]
    pairs = re.findall(f"({either[0]})[，,]({either[1]})", text)
    assert len(pairs) > 400
    assert [pair for pair in pairs if WORLD.held_out("standardise", "|".join(pair))] == []


def test_no_held_out_column_set_occurs_in_training(training_text: str) -> None:
    objects = [json.loads(text) for text in re.findall(r"\{[^{}]*\}", training_text)]
    mappings = [mapping for mapping in objects if set(mapping) != {"vehicle", "pollutant"}]
    assert len(mappings) > 400
    assert [mapping for mapping in mappings if WORLD.held_out("columns", set_key(list(mapping)))] == []


def test_no_held_out_listing_occurs_in_training(training_text: str) -> None:
    text = training_text.lower()
    for key in WORLD.held_out_listings:
        category, count = key.split("|")
        kind, n = CATEGORIES[category], int(count)
        for number in (NUMBERS_ZH[n], count):
            assert f"{number}种{kind.zh}" not in text
        for number in (NUMBERS_EN[n], count):
            assert not re.search(rf"\b{number} {kind.plural}\b", text)


def test_no_held_out_verse_pair_occurs_in_training(training_text: str) -> None:
    for lang in LANGS:
        lines = [match.group("theme", "friend") for match in PATTERNS[lang].finditer(training_text)]
        assert len(lines) > 50
        assert [pair for pair in lines if pair[0] in THEMES[lang] and WORLD.held_out("verse", pair_key(*pair))] == []
        for theme in THEMES[lang]:
            for friend in FRIENDS[lang]:
                request = f"{theme}和{friend}" if lang == "zh" else f"the {theme} and the {friend}"
                assert not (WORLD.held_out("verse", pair_key(theme, friend)) and request in training_text)


def test_no_held_out_explanation_occurs_in_training(training_prompts: set[str]) -> None:
    known_prompts = {bare(prompt) for prompt in training_prompts}
    for lang in LANGS:
        for term in TERMS:
            for template in EXPLAIN[lang].train:
                name = term.named(lang)
                rendered = bare(template.format(x=name))
                assert not (WORLD.held_out("explain", f"{name}|{template}") and rendered in known_prompts), rendered


def test_no_held_out_follow_up_occurs_in_training(folder: Path) -> None:
    held_out = {
        (one, two, kind)
        for one in WORDS
        for two in WORDS
        for kind in ("kind", "word")
        if one is not two and WORLD.held_out("follow_up", f"{kind}|{one.en}|{two.en}")
    }
    forbidden = set()
    for one, two, kind in held_out:
        for lang in LANGS:
            to = other_language(lang)
            texts = [is_a_sentence(noun, lang) if kind == "kind" else noun.named(to) + full_stop(to) for noun in (one, two)]
            forbidden.add(tuple(texts))
    chosen = [
        (row["messages"] if "chosen" in row else row["messages"][:-1], row.get("chosen") or row["messages"][-1]["content"])
        for name in ("sft", "preference")
        for row in read(folder / f"{name}.jsonl")
        if row["task"] == "follow_up"
    ]
    checked = [
        (turns[-2]["content"], answer) for turns, answer in chosen if turns[-1]["content"].rstrip("？").endswith(("呢", "?"))
    ]
    assert len(checked) > 100
    assert [pair for pair in checked if pair in forbidden] == []


def test_no_held_out_closing_word_occurs_in_training(training_text: str) -> None:
    for lang in LANGS:
        for word in CLOSINGS[lang]:
            for noun in WORDS:
                if WORLD.held_out("system", f"ending:{word}|about|{noun.en}"):
                    full = is_a_sentence(noun, lang) + (f"{word}。" if lang == "zh" else f" {word}.")
                    assert full not in training_text


def test_held_out_phrasings_never_occur_in_training(training_prompts: set[str]) -> None:
    known_prompts = {bare(prompt) for prompt in training_prompts}
    for book, lang in ALL_BOOKS:
        for template in book[lang].held_out:
            fixed_texts = map(re.escape, re.split(r"\{\w+\}", bare(template)))
            pattern = re.compile(r"[^，。？?!]+?".join(fixed_texts))
            hits = [prompt for prompt in known_prompts if pattern.fullmatch(prompt)]
            assert hits == [], (template, hits[:3])


def test_held_out_phrasings_consist_of_words_from_training_phrasings() -> None:
    for lang in LANGS:
        pattern = r"[A-Za-z]+" if lang == "en" else r"[\u4e00-\u9fff]"
        known = {
            word.lower()
            for book, of in ALL_BOOKS
            if of == lang
            for template in book[lang].train
            for word in re.findall(pattern, re.sub(r"\{\w+\}", "", template))
        }
        for book, of in ALL_BOOKS:
            for template in book[lang].held_out if of == lang else ():
                words = {word.lower() for word in re.findall(pattern, re.sub(r"\{\w+\}", "", template))}
                assert words <= known, (template, words - known)


def test_each_task_has_enough_phrasings() -> None:
    for task, books in BOOKS.items():
        for lang in LANGS:
            assert sum(len(book[lang].train) for book in books) >= 6, task
            assert sum(len(book[lang].held_out) for book in books) >= 2, task


def test_no_scored_prompt_occurs_in_training(questions: list[Question], training_prompts: set[str]) -> None:
    known_prompts = {bare(prompt) for prompt in training_prompts}
    assert [q.text for q in questions if len(q.messages) == 1 and bare(q.text) in known_prompts] == []
