"""The YAML dialect of recipes, for reading and writing: PyYAML's YAML 1.1, but 1e-4 is a number and 2024-01-31 is a text."""

import re

import yaml


class RecipeLoader(yaml.SafeLoader):
    """PyYAML loader for recipes."""


class RecipeDumper(yaml.SafeDumper):
    """PyYAML dumper for recipes; it quotes every text that RecipeLoader would read as another type."""


for _class in (RecipeLoader, RecipeDumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Represent a text. PyYAML would write Unicode line breaks unescaped and read them back as plain ones, so they are
    quoted."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeDumper.add_representer(str, _text)
