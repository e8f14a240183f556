"""Pairs for a reward model: nothing is cut, nothing follows the end of an answer, and each pair keeps its margin."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.data import FORMATS
from fledge.data.encoding.examples import EncodingConfig
from fledge.data.encoding.ranked import encode_ranked
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Conversation, PreferencePair, deserialize, serialize
from fledge.data.parsing.rows import parse_pair_with_margin, parse_row
from fledge.forecast.planning import dry_run
from fledge.recipe import Source, load_recipe, recipe_from_dict
from fledge.recipe.schema import AugmentConfig, RewardGuardsConfig
from fledge.run import Console
from fledge.tokenizer import Message, Tokenizer
from tests.support import markdown

SOURCE = Source(path="x.jsonl")
ROW = {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."}


def _config(max_seq_len: int = 64, truncation: Any = "keep_recent") -> EncodingConfig:
    return EncodingConfig(
        max_seq_len=max_seq_len, truncation=truncation, train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=1
    )


def _pair(chosen: str = "yes", rejected: str = "no", margin: float | None = None) -> PreferencePair:
    return PreferencePair((Message("user", "question"),), chosen, rejected, margin=margin)


def test_a_sequence_ends_with_the_token_that_ends_the_answer_and_padding_without_weight(chatml: Tokenizer) -> None:
    (encoded,) = encode_ranked([_pair()], chatml, _config())
    (example,) = encoded.examples
    for (tokens, weights), answer in zip(example, ("yes", "no"), strict=True):
        assert tokens[-1] == chatml.pad and weights[-1] == 0
        assert tokens[-2] in chatml.stop_ids and weights[-2] == 1
        assert chatml.decode(tokens[weights > 0].tolist(), skip_special=True) == answer


def test_a_pair_that_fits_exactly_is_whole_and_a_longer_one_is_dropped_with_its_reason(chatml: Tokenizer) -> None:
    pairs = [_pair("yes", "no"), _pair("yes " * 30, "no"), _pair("no", "yes", margin=2.0)]
    longest = max(len(tokens) for tokens, _ in next(encode_ranked(pairs[:1], chatml, _config())).examples[0])
    fits, long, last = encode_ranked(pairs, chatml, _config(longest - 1))
    assert len(fits.examples) == 1 and not fits.events
    assert not long.examples and [(event.state, event.reason) for event in long.events] == [("dropped", "answer does not fit")]
    assert (fits.margin, last.margin) == (0.0, 2.0)
    (short,) = encode_ranked(pairs[:1], chatml, _config(longest - 2))
    assert not short.examples


def test_an_item_of_another_kind_is_an_error(chatml: Tokenizer) -> None:
    conversation = Conversation((Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(TypeError, match="is no pair"):
        list(encode_ranked([conversation], chatml, _config()))


@pytest.mark.parametrize(("value", "margin"), [(1, 1.0), ("0.5", 0.5), (-2.5, -2.5), (None, None), (" ", None)])
def test_the_margin_of_a_row_is_read(value: Any, margin: float | None) -> None:
    item = parse_row({**ROW, "margin": value}, SOURCE, parse_pair_with_margin)
    assert isinstance(item, PreferencePair) and item.margin == margin
    assert deserialize(serialize(item)) == item


@pytest.mark.parametrize("value", ["large", True, float("inf"), [1]])
def test_a_margin_that_is_no_number_drops_its_row_with_the_reason(value: Any) -> None:
    with pytest.raises(RowError, match="margin is no number"):
        parse_row({**ROW, "margin": value}, SOURCE, parse_pair_with_margin)


def test_reasoning_and_margin_are_kept_together() -> None:
    pair = PreferencePair((Message("user", "q"),), "a", "b", None, ("thought", None), margin=0.5)
    assert deserialize(serialize(pair)) == pair
    assert deserialize(serialize(_pair())) == _pair()


def test_a_build_has_the_margins_of_its_rows(tmp_path: Path, chatml: Tokenizer) -> None:
    from fledge.data import collect, encode
    from fledge.recipe.schema_keys import KINDS

    file = tmp_path / "pairs.jsonl"
    rows = [{**ROW, "rejected": "Wrong.", "chosen": f"It is {n}.", "margin": n / 4} for n in range(12)]
    rows[3].pop("margin")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage: Any = KINDS["reward"].model_validate(
        {"kind": "reward", "data": {"train": str(file), "validation": 0.25, "max_seq_len": 64}}
    )
    dataset = encode(collect(stage, "reward", 1), chatml)
    assert dataset.validation is not None
    found = []
    for packed in (dataset.train, dataset.validation):
        examples = packed.examples
        assert examples.margins is not None and examples.margins.dtype == np.float32
        for number, margin in enumerate(examples.margins.tolist()):
            tokens, weights = examples.sequence(2 * number)
            n = int(chatml.decode(tokens[weights > 0].tolist(), skip_special=True).split()[-1].strip("."))
            found.append((n, margin))
    assert sorted(found) == [(n, 0.0 if n == 3 else n / 4) for n in range(12)]
    before = dataset.train.fingerprint()
    file.write_text("".join(json.dumps({**row, "margin": 7}) + "\n" for row in rows))
    assert encode(collect(stage, "reward", 1), chatml).train.fingerprint() != before


def test_a_margin_is_not_read_by_a_preference_stage_and_told() -> None:
    from fledge.data.parsing.rows import read_row

    assert read_row({**ROW, "margin": 1}, SOURCE, FORMATS["preference"].parse).unread_columns == ["margin"]
    assert read_row({**ROW, "margin": 1}, SOURCE, FORMATS["reward"].parse).unread_columns == []


def test_stages_of_rewards_need_no_answers_and_no_prefix(tmp_path: Path) -> None:
    from fledge.errors import FledgeError

    for change, message in (
        ({"evaluation": {"generated_answers": {}}}, "a reward model writes none"),
        ({"prompt_tests": {"prompts": "x.yaml"}}, "a reward model writes none"),
        ({"adapter": {"peft_type": "PREFIX_TUNING"}, "init_from": "x"}, "a reward stage has no prefix"),
        ({"center_rewards_coefficient": -1}, "center_rewards_coefficient"),
    ):
        stage = {"kind": "reward", "data": {"train": str(tmp_path / "x.jsonl")}, **change}
        with pytest.raises(FledgeError, match=message):
            dry_run(recipe_from_dict({"name": "x", "stages": {"reward": stage}}), Console(quiet=True))


def test_the_recipe_of_the_quickstart_trains_a_reward_model() -> None:
    recipe = load_recipe([str(markdown.ROOT / "recipes" / "reward-quickstart.yaml")])
    (stage,) = recipe.stages.values()
    assert stage.trains_reward_model and stage.loss_unit == "nats/pair" and recipe.model.path
    assert isinstance(stage.guards, RewardGuardsConfig) and stage.guards.validation_increase.patience == 2
