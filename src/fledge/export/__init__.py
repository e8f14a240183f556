"""Export of models: Hugging Face directories and GGUF files, compared with fledge after writing."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.export.export import export_model

__all__ = ["export_model"]

__getattr__, __dir__ = lazy_names(__name__, {"fledge.export.export": ("export_model",)})
