"""One table builds the objective of every kind of stage, and the recipe knows exactly what the tables hold."""

from typing import Any, get_args

import pytest
import torch

from fledge.data import PackedDataset
from fledge.objective import BUILDERS, PREFERENCE_LOSSES, CausalLMObjective, DPOObjective, ObjectiveContext, build_objective
from fledge.objective.preference_losses import SMOOTHED_LOSSES
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage
from fledge.recipe.schema_keys import KINDS
from fledge.recipe.sections.preference import PAIR_LOSSES
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
    with pytest.raises(ValueError, match=f"loss_type sigmoid or robust only, not for {loss_type}: set label_smoothing to 0"):
        _stage("preference", loss_type=loss_type, label_smoothing=0.1)
    assert _stage("preference", loss_type=loss_type).label_smoothing == 0


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_the_recipe_knows_which_losses_have_a_reference(loss_type: str) -> None:
    assert PAIR_LOSSES[loss_type].has_reference == PREFERENCE_LOSSES[loss_type].has_reference
    smoothing = {"label_smoothing": 0.1} if loss_type == "robust" else {}
    if PREFERENCE_LOSSES[loss_type].has_reference:
        stage = _stage("preference", loss_type=loss_type, precompute_ref_log_probs=False, **smoothing)
        assert stage.keeps_reference_model
        return
    with pytest.raises(ValueError, match=f"loss_type {loss_type} has no reference model: leave precompute_ref_log_probs out"):
        _stage("preference", loss_type=loss_type, precompute_ref_log_probs=True)
    stage = _stage("preference", loss_type=loss_type)
    assert not stage.keeps_reference_model
    assert type(stage).model_validate(stage.model_dump()) == stage  # as a run reads its own snapshot


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss_type": "robust"}, "needs the fraction of labels that are flipped"),
        ({"simpo_gamma": 0.5}, "simpo_gamma belongs to loss_type simpo; this loss_type is sigmoid"),
        ({"loss_type": "orpo", "sft_loss_weight": 0.1}, "is a part of loss_type orpo"),
    ],
)
def test_keys_that_a_loss_does_not_read_or_needs_are_told(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _stage("preference", **keys)


def test_beta_and_gamma_have_the_defaults_of_their_loss() -> None:
    stages = {name: _stage("preference", loss_type=name) for name in ("sigmoid", "sigmoid_norm", "simpo", "orpo")}
    assert {name: stage.beta for name, stage in stages.items()} == {
        "sigmoid": 0.1, "sigmoid_norm": 2.0, "simpo": 2.0, "orpo": 0.1,
    }  # fmt: skip
    assert stages["simpo"].simpo_gamma == 1.0 and stages["sigmoid"].simpo_gamma is None
    assert _stage("preference", loss_type="simpo", beta=0.7).beta == 0.7


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
