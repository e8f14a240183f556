"""One table builds the objective of every kind of stage, and the recipe knows exactly what the tables hold."""

from typing import Any, get_args

import pytest
import torch

from fledge.data import PackedDataset
from fledge.objective import BUILDERS, PREFERENCE_LOSSES, CausalLMObjective, DPOObjective, ObjectiveContext, build_objective
from fledge.objective.preference_losses import SMOOTHED_LOSSES
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage
from fledge.recipe.schema_keys import KINDS
from tests.support.packed import pack_pairs, random_pairs

DATA = {"train": "x.jsonl"}


def _stage(kind: str, **more: Any) -> Any:
    return KINDS[kind].model_validate({"kind": kind, "data": DATA, **more})


def test_every_kind_of_stage_and_every_loss_of_the_recipe_has_its_entry() -> None:
    assert set(BUILDERS) == set(KINDS)
    assert set(get_args(PreferenceStage.model_fields["loss_type"].annotation)) == set(PREFERENCE_LOSSES)


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_the_recipe_allows_label_smoothing_where_the_loss_has_it(loss_type: str) -> None:
    if loss_type in SMOOTHED_LOSSES:
        assert _stage("preference", loss_type=loss_type, label_smoothing=0.1).label_smoothing == 0.1
        return
    with pytest.raises(ValueError, match=f"defined for loss_type sigmoid only, not for {loss_type}: set label_smoothing to 0"):
        _stage("preference", loss_type=loss_type, label_smoothing=0.1)
    assert _stage("preference", loss_type=loss_type).label_smoothing == 0


@pytest.mark.parametrize("kind", ["pretrain", "sft"])
def test_language_stages_predict_the_next_token_with_the_settings_of_their_recipe(kind: str) -> None:
    sizes, data = torch.ones(97), pack_pairs(random_pairs(2))
    stage: PretrainStage | SftStage = _stage(kind, label_smoothing=0.2)
    objective = build_objective(ObjectiveContext(stage=stage, data=data, split="training", token_bytes=sizes))
    assert objective == CausalLMObjective(0.2, None, sizes)


def test_a_preference_stage_is_built_with_its_loss_and_the_reference_of_its_split() -> None:
    data, requests = pack_pairs(random_pairs(3)), list[tuple[PackedDataset, str]]()

    def reference(data: PackedDataset, split: str) -> torch.Tensor:
        requests.append((data, split))
        return torch.zeros(data.examples.count, 2)

    stage = _stage("preference", loss_type="ipo", beta=0.3, sft_loss_weight=0.5)
    objective = build_objective(ObjectiveContext(stage=stage, data=data, split="validation", reference=reference))
    assert isinstance(objective, DPOObjective) and requests == [(data, "validation")]
    assert (objective.loss_type, objective.beta, objective.sft_loss_weight) == ("ipo", 0.3, 0.5)
    assert torch.equal(torch.as_tensor(objective.reference), torch.zeros(3, 2))


def test_a_preference_stage_needs_no_reference_during_autotune() -> None:
    objective = build_objective(
        ObjectiveContext(stage=_stage("preference"), data=pack_pairs(random_pairs(2)), split="training")
    )
    assert isinstance(objective, DPOObjective) and objective.reference is None
