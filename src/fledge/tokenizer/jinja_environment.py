"""The Jinja environment of chat templates: what transformers gives them, within limits.

A template comes with a downloaded model, so it is foreign code: it may loop for ever or ask for a text of gigabytes. The limits
count steps and characters, not seconds, so that they do not depend on the machine.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import wraps
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from fledge.tokenizer.message import to_json

MAX_STEPS = 2_000_000  # loop iterations and calls of one rendering
MAX_NUMBER = 100_000  # of arguments that filters and methods take: widths, indents, counts
MIN_CHARACTERS, CHARACTERS_PER_INPUT = 4_000_000, 50  # a text may have 4 million characters, and 50 for each of its input
MAX_BITS = 4096  # of whole numbers
MAX_INDENT = 100  # of JSON
STEPS_OF_CALL = 10  # a call takes as long as ten iterations
MADE_FACTOR = 25  # all texts that filters and methods make together, in multiples of the longest text allowed
MARK = "generation_mark"  # the variable that {% generation %} writes before and after its body
COUNTED, JOINED, WEIGHED = "fledge_counted", "fledge_joined", "fledge_weighed"  # put around loops, `~` and lists by _parse
KEEP_VALUES = frozenset((  # filters that make no text of the values in a list
    "length", "count", "first", "last", "list", "map", "select", "reject", "selectattr", "rejectattr", "items", "default", "d",
    "reverse", "batch", "slice", "attr", "dictsort", "sort", "unique", "groupby", "random", "min", "max", "sum", "safe", "int",
))  # fmt: skip
_WIDTH = re.compile(r"\d{6,}")  # in a format: "{:1000000}", "%1000000d"


class LimitError(TemplateError):
    """A template that takes more steps, or makes longer texts, than any conversation needs."""


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    if len(indent) > MAX_INDENT if isinstance(indent, str) else (indent or 0) > MAX_INDENT:
        raise LimitError(f"the chat template indents JSON by more than {MAX_INDENT} characters")
    return to_json(value, ensure_ascii, indent, separators, sort_keys)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox in which chat templates run, with the names that transformers defines.

    `now`: the time that `strftime_now` writes. Texts and loops are limited: LimitError.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime.datetime]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
        self._steps, self._made, self._longest = 0, 0, MIN_CHARACTERS
        self.filters["tojson"] = _to_json
        self.filters = {name: self._limited(name, function) for name, function in self.filters.items()}
        self.filters |= {COUNTED: self._counted, JOINED: self._joined, WEIGHED: self._weighed}
        self.finalize = self._weighed  # of what `{{ … }}` prints
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda format: now().strftime(format),
            "dict": _Dict(self._weighed),
            "namespace": _Namespace,
        }
        self.globals.pop("lipsum", None)
        self.concat = self._concat  # type: ignore[assignment]  # joins the output of blocks, macros and the template

    def start(self, characters: int) -> None:
        """Begin a rendering whose input has so many characters: its counters start at 0."""
        self._steps = self._made = 0
        self._longest = MIN_CHARACTERS + CHARACTERS_PER_INPUT * characters

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = self._filtered(loop.iter, COUNTED)
        return self._joining(template)

    def _filtered(self, value: Any, name: str) -> nodes.Expr:
        parts = (value, name, [], [], None, None)
        return nodes.Filter(*parts, lineno=value.lineno, environment=self)

    def _joining(self, node: Any) -> Any:
        """The node with every `a ~ b` and every list under it in a filter that limits its size."""
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, field, self._joining(value))
            elif isinstance(value, list):
                value[:] = [self._joining(entry) if isinstance(entry, nodes.Node) else entry for entry in value]
        if isinstance(node, nodes.Concat):
            return self._filtered(nodes.List(node.nodes, lineno=node.lineno, environment=self), JOINED)
        computed = isinstance(node, nodes.List | nodes.Dict) and any(
            not isinstance(part, nodes.Const | nodes.Pair) for part in node.iter_child_nodes()
        )
        return self._filtered(node, WEIGHED) if computed else node

    # -- limits ---------------------------------------------------------------------------------------------------------

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Call an object of a template, as every call in a template does; the arguments and the result are limited."""
        self._step(STEPS_OF_CALL)
        self._check_arguments(args, kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            self._check_method(owner, obj.__name__, args)
        return self._checked(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """The sandbox's form of a text's `format`, for texts without absurd widths."""
        if isinstance(getattr(value, "__self__", None), str) and value.__name__ in ("format", "format_map"):
            self._check_format(value.__self__)
        return super().wrap_str_format(value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operation whose result may be much larger than its operands."""
        if operator == "+" and type(left) is str and type(right) is str:
            if len(left) + len(right) > self._longest:
                self._check_length(len(left) + len(right))
            return left + right
        if operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * max(right, 0))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._check_length(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose arguments and result are limited. It keeps the marks by which Jinja passes contexts."""
        growth = _GROWTH.get(name)

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._check_arguments(args, kwargs)
            if name not in KEEP_VALUES:
                for value in args:
                    self._weighed(value)
            if growth is not None:
                self._check_length(growth([*_values(args), *kwargs.values()]))
            if name == "format":
                self._check_format(str(next(iter(_values(args)), "")))
            return self._checked(function(*args, **kwargs))

        return limited

    def _step(self, count: int) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise LimitError(f"the chat template takes more than {MAX_STEPS:,} steps; it may loop for ever")

    def _counted(self, values: Any) -> Any:
        """What a loop goes through, counted: at once where its length is known, else one by one."""
        if isinstance(values, Sized):
            self._step(len(values))
            return values
        return self._counting(values)

    def _counting(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step(1)
            yield value

    def _joined(self, values: list[Any]) -> str:
        return self._concat(str(self._weighed(value)) for value in values)

    def _weighed(self, value: Any) -> Any:
        """The value, if all that it holds is short enough to be written; a list may hold one list many times."""
        if type(value) is str or not isinstance(value, (list, tuple, dict)):
            return value
        waiting, size, longest = [value], 0, self._longest
        while waiting:
            entry = waiting.pop()
            size += len(entry) + 1 if isinstance(entry, Sized) else 1
            if size > longest:
                self._check_length(size)
            if isinstance(entry, dict):
                waiting += [*entry, *entry.values()]
            elif isinstance(entry, list | tuple):
                waiting += entry
        return value

    def _concat(self, parts: Iterable[str]) -> str:
        texts = list(parts)
        self._check_length(sum(map(len, texts)))
        return "".join(texts)

    def _check_length(self, length: int) -> None:
        if length > self._longest:
            raise LimitError(f"the chat template makes a text of more than {self._longest:,} characters")

    def _check_bits(self, bits: int) -> None:
        if bits > MAX_BITS:
            raise LimitError(f"the chat template computes a number of more than {MAX_BITS:,} bits")

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())
            return
        for value, count in ((left, right), (right, left)):
            if isinstance(value, Sized) and isinstance(count, int):
                self._check_length(len(value) * max(count, 0))

    def _check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_NUMBER:
                raise LimitError(f"the chat template passes {value:.3g} to a function; the limit is {MAX_NUMBER:,}")

    def _check_method(self, text: str, name: str, args: tuple[Any, ...]) -> None:
        if name in ("format", "format_map"):
            self._check_format(text)
        elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
            self._check_length(len(text) + text.count(args[0]) * len(args[1]))
        elif name == "join" and args and isinstance(args[0], Sized):
            self._check_length(len(text) * len(args[0]))
        elif name == "expandtabs":
            self._check_length(len(text) + text.count("\t") * (args[0] if args and isinstance(args[0], int) else 8))

    def _check_format(self, text: str) -> None:
        if width := _WIDTH.search(text):
            raise LimitError(f"the chat template formats with a width of {width[0][:20]}")

    def _checked(self, result: Any) -> Any:
        if isinstance(result, str):
            self._check_length(len(result))
            self._made += len(result)
            if self._made > MADE_FACTOR * self._longest:
                raise LimitError(f"the chat template makes more than {self._made:,} characters of texts")
        return result


def _values(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a filter without the environment or context that Jinja passes to some filters first."""
    return args[1:] if args and isinstance(args[0], Environment | EvalContext | Context) else args


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else abs(value) if isinstance(value, int) else 0


def _lines_times_longest(values: list[Any]) -> int:
    """The size of a text that gets one of the other values in each line."""
    return len(str(values[0])) + (str(values[0]).count("\n") + 1) * max(map(_size, values[1:]), default=0)


def _items_times_longest(values: list[Any]) -> int:
    """The size of a text that gets one of the other texts around each item."""
    others = [len(value) for value in values[1:] if isinstance(value, str)]
    return _size(values[0]) * max(others, default=0)


def _replaced(values: list[Any]) -> int:
    texts = [value for value in values if isinstance(value, str)]
    return len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]) if len(texts) >= 3 else 0


_GROWTH: dict[str, Callable[[list[Any]], int]] = {  # filters whose result may be much larger than their arguments
    "indent": _lines_times_longest,
    "replace": _replaced,
    "join": _items_times_longest,
    "wordwrap": _items_times_longest,
    "urlize": _items_times_longest,
}


class Generation(Extension):
    """The Jinja tag {% generation %}…{% endgeneration %}, which writes a mark before and after its body."""

    tags = {"generation"}

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)

    def parse(self, parser: Any) -> Any:
        """The nodes of the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (nodes.Output([nodes.Name(MARK, "load")], lineno=line) for _ in range(2))
        return [before, *body, after]


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Dict:
    """`dict` for templates, without the attributes of the class."""

    def __init__(self, checked: Callable[[Any], Any]) -> None:
        self._checked = checked

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return self._checked(dict(*args, **kwargs))

    def fromkeys(self, *args: Any) -> dict:
        """The keys with one value."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates; names that begin with an underscore are refused, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # so that `self` may be a name
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)  # type: ignore[arg-type]

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the chat template names an attribute of a namespace {name!r}; underscores are reserved")
