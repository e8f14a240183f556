"""The YAML of recipes: YAML 1.1 as PyYAML has it, with 1e-4 a number and 2024-01-31 a text. Read and written alike."""

import re

import yaml


class RecipeLoader(yaml.SafeLoader):
    """Reads recipes."""


class RecipeDumper(yaml.SafeDumper):
    """Writes recipes; quotes every text that RecipeLoader would take for something else."""


for _side in (RecipeLoader, RecipeDumper):
    _side.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML writes Unicode's own line breaks as they are and reads them back as plain ones: escape them."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeDumper.add_representer(str, _text)
