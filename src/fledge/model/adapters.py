"""Adapters on a model: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024), and a prefix (`prefix.py`).

An adapted layer keeps the weight of the layer that it replaces, under the same name. Only the adapter is trained. The
definitions are those of PEFT, so that adapters can be exchanged with it (`adapter_files.py`).
"""

import difflib
import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.dropout import dropout
from fledge.model.linear import Linear
from fledge.model.prefix import Prefix
from fledge.model.protocol import Adapter, LanguageModel, matrix_layers
from fledge.model.quantization import quantized_numbers, quantized_weights
from fledge.recipe.schema import AdapterConfig
from fledge.recipe.sections.adapter import ALL_LINEAR, LORA, PREFIX

Module = TypeVar("Module", bound=nn.Module)


class LoraLinear(Linear):
    """x·Wᵀ + b + s·dropout(x)·Aᵀ·Bᵀ with the frozen W [out, in] and b of `base`, and the trained A [r, in] and B [out, r].

    With DoRA each row of W + s·B·A is divided by its length, which counts as a constant in the backward pass (Liu et al. 2024,
    §4.3), and multiplied by a trained number, at first the length of the row of W.
    """

    def __init__(self, base: nn.Linear, config: AdapterConfig, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)
        self._replaced = (base,)  # in a tuple, so that its parameters are not counted twice
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_parameter("weight", base.weight)  # pyright: ignore[reportArgumentType]
        self.register_parameter("bias", base.bias)
        self.quantized = base.quantized if isinstance(base, Linear) else None
        like = base.weight if self.quantized is None else self.quantized.levels  # the device
        self.scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        self.dropout = config.lora_dropout
        self.lora_A = nn.Parameter(like.new_zeros(rank, base.in_features, dtype=torch.float32))
        self.lora_B = nn.Parameter(like.new_zeros(base.out_features, rank, dtype=torch.float32))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if config.use_dora:
            self.lora_magnitude_vector = nn.Parameter(torch.linalg.vector_norm(super().dense_weight().detach().float(), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        out, drops = super().forward(x), self.training and self.dropout > 0
        dropped = dropout(x, self.dropout) if drops else x
        update = F.linear(F.linear(dropped, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scaling
        if self.lora_magnitude_vector is None:
            return out + update
        ratio = self._row_ratio()
        product = super().forward(dropped) if drops else out
        if self.bias is not None:
            product = product - self.bias.to(x.dtype)
        return out + (ratio - 1).to(x.dtype) * product + ratio.to(x.dtype) * update

    def _row_ratio(self) -> Tensor:
        """DoRA's factor of each row [out]: its trained length ÷ its length in W + s·B·A."""
        assert self.lora_magnitude_vector is not None
        with torch.no_grad():
            length = torch.linalg.vector_norm(super().dense_weight() + self.update(), dim=1)
        return self.lora_magnitude_vector / length

    def update(self) -> Tensor:
        """s·B·A [out, in] in float32."""
        return self.scaling * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """The weight [out, in] of a plain layer with the same outputs (without dropout)."""
        merged = super().dense_weight() + self.update()
        return merged if self.lora_magnitude_vector is None else merged * self._row_ratio()[:, None]

    def replaced(self) -> nn.Linear:
        """The layer that this one has replaced, with the weight as it is now."""
        (base,) = self._replaced
        base.weight, base.bias = self.weight, self.bias  # pyright: ignore[reportAttributeAccessIssue]
        return base


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def adapter_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that an adapter has put into a model, by name: adapted layers, or a prefix."""
    prefix = model.prefix if isinstance(model, LanguageModel) else None
    return dict(lora_layers(model)) if prefix is None else {"prefix": prefix}


def attach_adapter(model: LanguageModel, adapter: Adapter, seed: int) -> None:
    """Put an adapter on a model and freeze all else. A is drawn as in PEFT (uniform in ±1/√in), from the seed and the number of
    the layer; B is zero, so that at first nothing changes. The values of a prefix are
    small random numbers, which change the outputs at once.

    Raises FledgeError if the settings fit no layer of the model, and if it has an adapter already.
    """
    if model.adapter is not None:
        raise FledgeError("the model has an adapter already", where="adapter")
    ATTACH[adapter.config.peft_type](model, adapter.config, seed)
    model.adapter = adapter


def _attach_lora(model: LanguageModel, config: AdapterConfig, seed: int) -> None:
    targets, saved = target_layers(model, config), whole_modules(model, config)
    _check_not_quantized(saved)
    model.requires_grad_(False)
    for number, (name, base) in enumerate(targets.items()):
        full = model.file_name(name)
        layer = LoraLinear(base, config, *_rank_and_alpha(config, full))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        with torch.no_grad():
            drawn = torch.empty(layer.lora_A.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            layer.lora_A.copy_(drawn)
        put_module(model, name, layer.train(base.training))
    for module in saved.values():
        module.requires_grad_(True)


def _check_not_quantized(saved: Mapping[str, nn.Module]) -> None:
    """FledgeError for a module to be trained whole whose weights are in 4 bits."""
    for name, module in saved.items():
        if quantized_weights(module):
            raise FledgeError(
                f"{name} has weights in 4 bits, which cannot be trained whole",
                where="adapter.modules_to_save",
                hint="leave it out, or leave the section quantization out",
            )


def _attach_prefix(model: LanguageModel, config: AdapterConfig, seed: int) -> None:
    prefix = Prefix(model.config, config.num_virtual_tokens)
    prefix.init_weights(seed)
    model.requires_grad_(False)
    model.set_prefix(prefix.to(model.device))


ATTACH: dict[str, Callable[[LanguageModel, AdapterConfig, int], None]] = {LORA: _attach_lora, PREFIX: _attach_prefix}


def target_layers(model: LanguageModel, config: AdapterConfig) -> dict[str, nn.Linear]:
    """The linear layers that the settings name. Raises FledgeError for a name that fits none, with the nearest names."""
    if config.target_modules == ALL_LINEAR:
        return matrix_layers(model)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if isinstance(config.target_modules, list):
        chosen = _named(model, linear, config.target_modules, _ends_with_name, "target_modules")
    else:
        chosen = _named(model, linear, [config.target_modules], _fits_expression, "target_modules")
    own = model.lm_head_weight if model.score_weight is None else model.score_weight
    head = next((name for name, module in chosen.items() if module.weight is own), None)
    if head is not None:
        hint = "leave it out, or train it whole: modules_to_save"
        raise FledgeError(f"the head ({head}) cannot have an adapter", where="adapter.target_modules", hint=hint)
    return chosen


def whole_modules(model: LanguageModel, config: AdapterConfig) -> dict[str, nn.Module]:
    """The modules whose names end with one of `modules_to_save`, which is PEFT's rule: norm means input_layernorm too."""
    with_weights = {name: module for name, module in model.named_modules() if name and _has_weights(module)}
    return _named(model, with_weights, config.modules_to_save, str.endswith, "modules_to_save")


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or bool(quantized_weights(module))


def _named(
    model: LanguageModel, modules: Mapping[str, Module], wanted: Sequence[str], fits: Callable[[str, str], bool], key: str
) -> dict[str, Module]:
    """The modules whose names in the files fit one of the wanted names, in the order of the model. Raises FledgeError for a
    wanted name that fits none; `key`: where it is written."""
    full = {name: model.file_name(name) for name in modules}
    for one in wanted:
        if not any(fits(name, one) for name in full.values()):
            raise _unknown_module(one, key, list(full.values()))
    return {name: module for name, module in modules.items() if any(fits(full[name], one) for one in wanted)}


def _ends_with_name(full: str, wanted: str) -> bool:
    """Whether a module has this name, or a name that ends with it after a dot, as in PEFT."""
    return full == wanted or full.endswith(f".{wanted}")


def _fits_expression(full: str, expression: str) -> bool:
    """Whether a regular expression describes a whole name, as in PEFT."""
    try:
        return re.fullmatch(expression, full) is not None
    except re.error as error:
        raise _no_expression(expression, "target_modules", error) from None


def _unknown_module(name: str, key: str, full_names: list[str]) -> FledgeError:
    ends = list(dict.fromkeys(full.rpartition(".")[2] for full in full_names))
    near = difflib.get_close_matches(name, [*ends, *full_names], n=3, cutoff=0.5) or ends
    return FledgeError(
        f"no {'adapted ' * key.endswith('_pattern')}module of the model is called '{name}'",
        where=f"adapter.{key}",
        hint=f"the nearest are {', '.join(near[:8])}",
    )


def check_patterns(model: LanguageModel, config: AdapterConfig) -> None:
    """FledgeError for a key of `rank_pattern` or `alpha_pattern` that fits no adapted layer, with the nearest names."""
    if config.peft_type == PREFIX:
        return
    adapted = [model.file_name(name) for name in target_layers(model, config)]
    for key, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in patterns:
            if not any(_fits_end(full, pattern, key) for full in adapted):
                raise _unknown_module(pattern, key, adapted)


def _rank_and_alpha(config: AdapterConfig, full: str) -> tuple[int, float]:
    """Rank and lora_alpha of a module: of the first pattern that fits its name's end, else the common ones."""

    def value(key: str, patterns: Mapping[str, float], common: float) -> float:
        fitting = (number for pattern, number in patterns.items() if _fits_end(full, pattern, key))
        return next(fitting, common)

    rank = value("rank_pattern", config.rank_pattern, config.r)
    return int(rank), float(value("alpha_pattern", config.alpha_pattern, config.lora_alpha))


def _fits_end(full: str, pattern: str, key: str) -> bool:
    """Whether a regular expression describes the end of a name after a dot, as in PEFT; `key`: where it is written."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", full) is not None
    except re.error as error:
        raise _no_expression(pattern, key, error) from None


def _no_expression(text: str, key: str, error: re.error) -> FledgeError:
    hint = "write a list for names, such as [q_proj]" if key == "target_modules" else None
    return FledgeError(f"'{text}' is no regular expression: {error}", where=f"adapter.{key}", hint=hint)


def put_module(model: nn.Module, name: str, module: nn.Module | None) -> None:
    """Put a module, or none, in the place of the one with this name."""
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)


def has_same_adapter(model: LanguageModel, config: AdapterConfig) -> bool:
    """Whether the adapter of a model is what these settings would give it, however its modules are named."""
    if model.adapter is None:
        return False
    if config.peft_type == PREFIX or model.adapter.config.peft_type == PREFIX:
        return config == model.adapter.config
    named_alike = config.model_copy(update={"target_modules": model.adapter.config.target_modules})
    return named_alike == model.adapter.config and set(target_layers(model, config)) == {name for name, _ in lora_layers(model)}


def parameter_slots(model: nn.Module, chosen: Container[int]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """(module, attribute, parameter) of every place of the parameters whose ids are chosen: a tied one has several."""
    return [
        (module, attribute, parameter)
        for module in model.modules()
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(parameter) in chosen
    ]


def adapter_weights(model: LanguageModel) -> dict[str, Tensor]:
    """The trained parameters of a model with an adapter, by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def merge_adapter(model: LanguageModel) -> None:
    """Add the adapter to the weights and remove it; all weights can be trained again. Tied weights stay tied. FledgeError for a
    prefix, which is no change of weights."""
    if model.adapter is not None and model.adapter.config.peft_type == PREFIX:
        raise FledgeError(
            "a prefix cannot be merged: it stands before the text, and no weights compute the same without it",
            where="adapter",
            hint="use it as an adapter, with its base model",
        )
    if quantized_numbers(model):
        raise FledgeError("an adapter cannot be added to weights in 4 bits", where="adapter", hint="load the base model whole")
    for name, layer in list(lora_layers(model)):
        merged, base = layer.dense_weight(), layer.replaced()
        base.weight.copy_(merged)
        put_module(model, name, base.train(layer.training))
    model.adapter = None
    model.requires_grad_(True)


def trained_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of trained and of all parameters, those in 4 bits included."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, trained in counts if trained), sum(count for count, _ in counts) + quantized_numbers(model)
