"""What a search has found: a patch of the recipe, the evidence for it, and how sure it is."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fledge.recipe.yaml_dialect import RecipeDumper
from fledge.run import write_json, write_text
from fledge.sweep.space import yaml_text


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """The answer to `fledge tune`. `patch`: keys of the recipe with their new values. `evidence`: sentences with figures.
    `confidence`: how sure it is, and why. `figures`: the numbers behind the sentences, as JSON values."""

    patch: dict[str, Any]
    evidence: list[str]
    confidence: str
    figures: dict[str, Any] = field(default_factory=dict)

    def patch_text(self) -> str:
        """The patch as a recipe file to lay over the recipe: `fledge train RECIPE PATCH`."""
        tree: dict[str, Any] = {}
        for key, value in self.patch.items():
            *sections, name = key.split(".")
            inner = tree
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
        return yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)

    def write(self, folder: Path) -> Path:
        """Write `tune.json` and `patch.yaml`, and return the path of the patch."""
        write_json(folder / "tune.json", asdict(self))
        write_text(folder / "patch.yaml", self.patch_text())
        return folder / "patch.yaml"

    def lines(self, patch: Path) -> list[str]:
        """The result for a person."""
        shown = [f"  {key}: {yaml_text(value)}" for key, value in self.patch.items()]
        return [*shown, *self.evidence, f"how sure: {self.confidence}", f"to train with it: fledge train RECIPE {patch}"]
