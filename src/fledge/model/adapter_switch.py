"""Several adapters on one base model, of which one at a time is in use."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fledge.errors import FledgeError
from fledge.model.adapters import LoraLinear, adapter_modules, parameter_slots, put_module, whole_modules
from fledge.model.protocol import Adapter, LanguageModel

NO_ADAPTER = "none"  # the name of the base model alone


@dataclass(frozen=True)
class _Swap:
    """A parameter of a module of `modules_to_save`, as the base has it and as the adapter has it."""

    module: nn.Module
    attribute: str
    base: nn.Parameter
    own: nn.Parameter


@dataclass(frozen=True)
class _Parts:
    """What an adapter puts into the model: modules by name, and parameters."""

    adapter: Adapter
    modules: dict[str, nn.Module]
    swaps: list[_Swap]


class AdapterSwitch:
    """A base model, and adapters for it by name, each with its own settings. `use` puts one of them in place, or none.

    The weights of the base are never written to: an adapted layer shares the weight of the layer that it replaces, and modules
    of `modules_to_save` get parameters of their own. So the model with an adapter computes what `load_model` gives for the
    directory of the adapter, and the model without one is the base, bit for bit.
    """

    def __init__(self, model: LanguageModel) -> None:
        assert model.adapter is None
        self.model = model
        self.active: str | None = None
        self._adapters: dict[str, _Parts] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._adapters)

    def add(self, name: str, adapter: Adapter, attach: Callable[[Adapter, LanguageModel], None]) -> None:
        """Add an adapter, which `attach` puts on the model with its weights. It is not in use yet.

        Raises FledgeError if its settings fit no layer of the model, and what `attach` raises; nothing has changed then.
        """
        self.use(None)
        parts = _Parts(adapter, {}, _swaps(self.model, adapter))
        _set_parameters(parts, own=True)
        try:
            attach(adapter, self.model)
        finally:
            parts.modules.update(adapter_modules(self.model))
            self._take_out(parts)
        self._adapters[name] = parts

    def use(self, name: str | None) -> None:
        """Put the adapter with this name in place; None: the base alone. Raises FledgeError for an unknown name."""
        if name is not None and name not in self._adapters:
            raise self._unknown(name)
        if self.active is not None:
            self._take_out(self._adapters[self.active])
        self.active = name
        if name is not None:
            parts = self._adapters[name]
            _set_parameters(parts, own=True)
            for path, module in parts.modules.items():
                put_module(self.model, path, module.train(self.model.training))
            self.model.adapter = parts.adapter

    def _take_out(self, parts: _Parts) -> None:
        """Make the model the base again."""
        for path, module in parts.modules.items():
            base = module.replaced().train(self.model.training) if isinstance(module, LoraLinear) else None
            put_module(self.model, path, base)
        _set_parameters(parts, own=False)
        self.model.adapter = None

    def _unknown(self, name: str) -> FledgeError:
        if not self._adapters:
            return FledgeError(f"no adapter is called '{name}': the model has none", where="adapter")
        names = [*self._adapters, NO_ADAPTER]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return FledgeError(f"no adapter is called '{name}'", where="adapter", hint=f"{hint}there are {', '.join(names)}")


def _swaps(model: LanguageModel, adapter: Adapter) -> list[_Swap]:
    """A copy of each parameter of `modules_to_save`, for every module that has it: tied weights stay tied."""
    chosen = {id(one) for module in whole_modules(model, adapter.config).values() for one in module.parameters()}
    slots = parameter_slots(model, chosen)
    copies = {parameter: nn.Parameter(parameter.detach().clone()) for parameter in {each for _, _, each in slots}}
    return [_Swap(module, attribute, parameter, copies[parameter]) for module, attribute, parameter in slots]


def _set_parameters(parts: _Parts, own: bool) -> None:
    for swap in parts.swaps:
        setattr(swap.module, swap.attribute, swap.own if own else swap.base)
