"""Which variants no training row may hold: names, spellings and combinations that only validation or test have."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fledge.tasks.names import PLAIN, Name, Variant, fold, variants

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
NAMES, SPELLINGS, COMBINATIONS = GROUPS = ("names", "spellings", "combinations")  # what is new to the model in a row
HELD_NAMES = {TEST: 0.18, VALIDATION: 0.09}  # of the names of each standard name
HELD_SPELLINGS = {TEST: 0.15, VALIDATION: 0.07}
HELD_COMBINATIONS = {TEST: 0.12, VALIDATION: 0.06}
PLAIN_SHARE = 0.5  # of drawn variants: the name as it is
MIN_HELD_CHARACTERS = {True: 4, False: 2}  # of a held-out form: of ASCII letters (True), of others


def stable_fraction(*values: object) -> float:
    """A number in [0, 1) that depends only on the values, on every machine and Python version."""
    digest = hashlib.sha256("\x1f".join(map(str, values)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / float(1 << 56)


class Pool:
    """Variants to draw from."""

    def __init__(self, variants: Iterable[Variant]) -> None:
        self.variants = tuple(variants)
        self._by_lang: dict[str, dict[str | None, dict[Name, list[Variant]]]] = {}
        for variant in self.variants:
            of_standard = self._by_lang.setdefault(variant.name.lang, {}).setdefault(variant.standard, {})
            of_standard.setdefault(variant.name, []).append(variant)

    def draw(self, rng: random.Random, lang: str, nameless: float = 0.0) -> Variant:
        """A random variant in the language, if there is one: first its standard name, so that all are equally frequent, then a
        name, then how it is written. `nameless`: probability of a name without a standard name, beyond its own turn.
        """
        by_standard = self._by_lang.get(lang) or next(iter(self._by_lang.values()))
        standard = None if None in by_standard and rng.random() < nameless else rng.choice(list(by_standard))
        name, written = rng.choice(list(by_standard[standard].items()))
        plain = [variant for variant in written if variant.text == name.text]
        return rng.choice(plain if plain and rng.random() < PLAIN_SHARE else written)


class Forms:
    """Folded forms, and whether a text holds one of them."""

    def __init__(self, forms: Iterable[str]) -> None:
        self.forms = frozenset(forms)
        self._lengths = sorted({len(form) for form in self.forms})

    def found_in(self, text: str) -> str | None:
        """A form that the text holds, also across blanks, marks and the borders of its words; None if it holds none."""
        folded = fold(text)
        for length in self._lengths:
            for start in range(len(folded) - length + 1):
                if (piece := folded[start : start + length]) in self.forms:
                    return piece
        return None


def split_of(seed: int, shares: dict[str, float], *key: object) -> str:
    """The split of a key, by its hash."""
    fraction = stable_fraction(seed, *key)
    for split, share in shares.items():
        if fraction < share:
            return split
        fraction -= share
    return TRAIN


@dataclass(frozen=True)
class NameSplit:
    """The variants of a kind of names, such as vehicles, divided by a seed.

    A held-out name appears in no row of training, in no spelling of it either; a held-out spelling is one of a name that
    training has. No variant of training holds a held-out form as a part of it, and none of validation one of test. What
    answers and system prompts show (`shown`) is not held out.
    """

    seed: int
    kind: str
    names: tuple[Name, ...]
    shown: tuple[str, ...] = ()

    @cached_property
    def _name_splits(self) -> dict[Name, str]:
        """The split of each name. Of each standard name some are held out; others' names do not hold them."""
        folded = {name: fold(name.text) for name in self.names}
        shown = list(map(fold, self.shown))
        splits = dict.fromkeys(self.names, TRAIN)
        for standard in dict.fromkeys(name.standard for name in self.names):
            own = [name for name in self.names if name.standard == standard]
            able = [
                name
                for name in own
                if _long_enough(folded[name])
                and not _is_part(folded[name], [*shown, *(form for other, form in folded.items() if other != name)])
            ]
            ranked = sorted(able, key=lambda name: stable_fraction(self.seed, self.kind, "name", name.text))
            for split, share in HELD_NAMES.items():
                count = max(1, round(share * len(own)))
                for name in ranked[:count] if len(own) > 3 else ():
                    splits[name] = split
                del ranked[:count]
        return splits

    @cached_property
    def by_split(self) -> dict[str, dict[str, Pool]]:
        """Variants by split and group; the training variants are the group `combinations` of every split."""
        chosen: dict[str, dict[str, list[Variant]]] = {split: {NAMES: [], SPELLINGS: []} for split in SPLITS}
        trained = [fold(name.text) for name, split in self._name_splits.items() if split == TRAIN]
        trained += map(fold, self.shown)
        for variant in variants(self.names):
            split, group = self._name_splits[variant.name], NAMES
            can_be_held = _long_enough(variant.folded) and not _is_part(variant.folded, trained)
            if split != TRAIN and not can_be_held:
                continue  # training could not do without it, and it is a spelling of a held-out name
            if split == TRAIN and variant.rule != PLAIN and can_be_held:
                split, group = split_of(self.seed, HELD_SPELLINGS, self.kind, "spelling", variant.folded), SPELLINGS
            chosen[split][group].append(variant)
        test = _closed(chosen[TEST], Forms(()))
        held = {variant.folded for group in test.values() for variant in group.variants}
        validation = _closed(chosen[VALIDATION], Forms(held))
        held |= {variant.folded for group in validation.values() for variant in group.variants}
        train = _closed(chosen[TRAIN], Forms(held))
        seen = Pool((*train[NAMES].variants, *train[SPELLINGS].variants))
        return {
            TRAIN: {COMBINATIONS: seen},
            VALIDATION: {**validation, COMBINATIONS: seen},
            TEST: {**test, COMBINATIONS: seen},
        }

    def held_out_from(self, split: str) -> frozenset[str]:
        """The folded forms that no row of a split may hold: those of the splits after it."""
        later = SPLITS[SPLITS.index(split) + 1 :]
        return frozenset(
            variant.folded
            for other in later
            for group in (NAMES, SPELLINGS)
            for variant in self.by_split[other][group].variants
        )

    def held_out_names(self, split: str) -> list[str]:
        """The names that only this split and later ones have, as they are usually written."""
        return [variant.text for variant in self.by_split[split][NAMES].variants if variant.rule == PLAIN]

    def counts(self) -> dict[str, dict[str, int]]:
        """The numbers of variants by split and rule; held-out names, with their spellings, count as `unseen names`."""
        counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        for split, groups in self.by_split.items():
            for group, pool in groups.items():
                if split == TRAIN or group != COMBINATIONS:
                    counts[split].update("unseen names" if group == NAMES else variant.rule for variant in pool.variants)
        return {split: dict(count) for split, count in counts.items()}


def _long_enough(form: str) -> bool:
    return len(form) >= MIN_HELD_CHARACTERS[form.isascii()]


def _is_part(form: str, others: Iterable[str]) -> bool:
    """Whether another form holds this one."""
    return any(form in other for other in others)


def _closed(groups: dict[str, list[Variant]], forbidden: Forms) -> dict[str, Pool]:
    """The variants without those that hold a forbidden form."""
    return {
        group: Pool(variant for variant in chosen if forbidden.found_in(variant.text) is None)
        for group, chosen in groups.items()
    }
