"""The model as it was when a stage began to train its adapter: the same base, and a copy of the adapter's weights."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn

from fledge.model.adapters import parameter_slots
from fledge.model.protocol import LanguageModel


class AdapterReference:
    """A model with the adapter that it had at an earlier time, without a second copy of the base.

    `model`: the model in training; `weights`: copies of its trained parameters of that time, by name. Where the adapter was new
    then, this is the base model.
    """

    def __init__(self, model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
        self.model = model
        self._weights = {name: nn.Parameter(tensor) for name, tensor in weights.items()}

    @contextmanager
    def in_place(self) -> Iterator[LanguageModel]:
        """A context in which the model has the earlier adapter. The parameters in training are put aside and not written to, so
        that a backward pass through them may follow."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters() if name in self._weights}
        slots = parameter_slots(self.model, names)
        try:
            for module, attribute, parameter in slots:
                setattr(module, attribute, self._weights[names[id(parameter)]])
            yield self.model
        finally:
            for module, attribute, parameter in slots:
                setattr(module, attribute, parameter)


def reference_model(reference: LanguageModel | AdapterReference) -> AbstractContextManager[LanguageModel]:
    """A context with the model that computes the log-probabilities of a reference."""
    return reference.in_place() if isinstance(reference, AdapterReference) else nullcontext(reference)
