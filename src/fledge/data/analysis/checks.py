"""What would make a training run meaningless, and what is worth a look before it. Findings only; nothing here prints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fledge.data.analysis.build_stats import Part, RowLocator, training_part
from fledge.data.analysis.statistics import SHORT_ANSWER, SourceStatistics, StageStatistics
from fledge.data.build.load import StageDataset
from fledge.data.build.phases import TRAIN, VALIDATION, keep_mask
from fledge.data.build.shard_items import ShardRows
from fledge.data.build.shards import BuildPlan
from fledge.data.report import SourceReport
from fledge.data.storage import ConcatenatedArrays, load_arrays
from fledge.findings import Finding, Severity
from fledge.tokenizer import Message, TemplateError, Tokenizer

ALIKE, ALIKE_LEAST = 0.95, 20  # share of equal answers, of at least so many
UNKNOWN = 0.01  # share of unknown tokens
DROPPED = 0.1  # share of a source's rows, beside duplicates, where the recipe sets no limit
DUPLICATES = 0.01
DOMINANT, SWAMPING, FEW_OPENINGS = 0.8, 0.5, 0.1  # shares of an epoch's tokens; distinct openings of its answers
PASSES = 10  # through a source in one epoch
IDENTITY = 0.1
CUT = 0.05
SHORT = 0.5
REFUSED = "the chat template refuses it"
BLOCK = 2**22  # tokens looked at together


@dataclass(frozen=True)
class Tokens:
    """What one scan over a file of tokens found; it belongs to one source."""

    source: int
    largest: int
    unknown: int
    size: int
    first_unknown: int  # sequence, or -1


class CheckContext:
    """The build of a stage, as the checks see it. `vocabulary` is the number of tokens that the model knows, `max_positions`
    the most tokens of a row that it takes, and `max_dropped` the largest share of a source's rows that may be dropped; None:
    no limit."""

    def __init__(
        self,
        data: StageDataset,
        statistics: StageStatistics,
        tokenizer: Tokenizer,
        vocabulary: int | None = None,
        max_dropped: float | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.data, self.statistics, self.tokenizer = data, statistics, tokenizer
        self.vocabulary, self.max_dropped, self.max_positions = vocabulary, max_dropped, max_positions
        self.plan = BuildPlan.read(data.folder / "build_plan.json")
        self.kind, self.context = statistics.kind, statistics.context
        self.places = RowLocator(data, self.plan)
        self.accounts = data.ledger.sources

    @cached_property
    def trained(self) -> list[tuple[SourceStatistics, SourceReport, Part]]:
        """The training sources."""
        return [
            (source, self.accounts[number], training_part(self.data, self.plan, number))
            for number, source in enumerate(self.statistics.sources)
            if source.part == "train"
        ]

    def first(self, part: Part) -> str:
        """Where the first training example of a source stands."""
        return self.places.example(int(part.examples[0])) if len(part.examples) else ""

    def patch(self, key: str, value: Any) -> dict[str, Any]:
        """A recipe patch of one key of the stage."""
        return {f"stages.{self.statistics.stage}.{key}": value}

    def longer_rows(self) -> dict[str, Any] | None:
        """A recipe patch to rows of twice as many tokens, or as many as the model takes; None where they are that long."""
        length = 2 * self.context if self.max_positions is None else min(2 * self.context, self.max_positions)
        return self.patch("data.max_seq_len", length) if length > self.context else None

    @cached_property
    def scans(self) -> list[Tokens]:
        """One scan over all training tokens."""
        tokens = self.data.train.examples.tokens
        assert isinstance(tokens, ConcatenatedArrays)
        return [self._scan(array, int(start)) for array, start in zip(tokens.arrays, tokens.starts[:-1], strict=True)]

    def _scan(self, array: np.ndarray, start: int) -> Tokens:
        examples, unknown = self.data.train.examples, unknown_token(self.tokenizer)
        assert examples.source is not None
        largest, count, first = 0, 0, -1
        for begin in range(0, len(array), BLOCK):
            block = array[begin : begin + BLOCK]
            largest = max(largest, int(block.max()))
            found = np.flatnonzero(block == (-1 if unknown is None else unknown))
            if len(found) and first < 0:
                first = start + begin + int(found[0])
            count += len(found)
        source = int(examples.source[self.sequence_at(start) // examples.per_example])
        return Tokens(source, largest, count, len(array), self.sequence_at(first) if first >= 0 else -1)

    def sequence_at(self, token: int) -> int:
        """The sequence that a token of the training data lies in."""
        return int(np.searchsorted(self.data.train.examples.offsets, token, side="right")) - 1

    def sequence_place(self, sequence: int) -> str:
        """Where the row of a sequence stands."""
        return self.places.example(sequence // self.data.train.examples.per_example)


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for what cannot be encoded; None where everything can."""
    model = tokenizer.core.model
    number = getattr(model, "unk_id", None)
    if number is not None:
        return int(number)
    text = getattr(model, "unk_token", None)
    return None if text is None else tokenizer.core.token_to_id(text)


def _noted(account: SourceReport, reason: str) -> tuple[str, str]:
    """Place and detail of the first row with a reason."""
    places = account.examples_by_reason.get(reason)
    return (places[0]["where"], places[0]["detail"]) if places else ("", "")


def _of(count: int, whole: int) -> str:
    return f"{count:,} of {whole:,} rows ({count / whole:.1%})" if whole else f"{count:,} rows"


def _of_source(source: str, check: str, severity: Severity, message: str, **more: Any) -> Finding:
    """A finding about one source of rows."""
    return Finding(check=check, severity=severity, message=message, evidence={"source": source}, **more)


# -- errors -------------------------------------------------------------------------------------------------------------


def _dropped(stage: CheckContext) -> Iterator[Finding]:
    for account in stage.accounts:
        dropped, limit = sum(account.dropped.values()), stage.max_dropped
        if not dropped:
            continue
        where = _noted(account, account.dropped.most_common(1)[0][0])[0]
        message = f"{_of(dropped, account.rows)} are dropped: {account.reasons()}"
        others = dropped - account.dropped["exact duplicate"] - account.dropped["near duplicate"]
        if limit is not None and dropped > limit * account.rows:
            hint = f"mend the rows, or raise data.max_drop_fraction ({limit:.3g})"
            yield _of_source(account.name, "dropped", "error", message, where=where, hint=hint)
        elif limit is None and others > DROPPED * account.rows:
            hint = "`fledge data account` shows each of them; data.max_drop_fraction sets a limit"
            yield _of_source(account.name, "dropped", "warning", message, where=where, hint=hint)


def _supervision(stage: CheckContext) -> Iterator[Finding]:
    for source, _, part in stage.trained:
        if not part.supervised.any():
            why = "no answer has a supervised token" if len(part.examples) else "all its rows went to validation"
            hint = "check the weights of the turns" if len(part.examples) else "lower data.validation, or give it more rows"
            yield _of_source(
                source.name,
                "supervision",
                "error",
                f"nothing is supervised: {why}",
                where=stage.first(part),
                hint=hint,
            )


def _end_token(stage: CheckContext) -> Iterator[Finding]:
    if stage.kind == "pretrain":  # every document is written between its control tokens
        return
    for source, account, part in stage.trained:
        if len(part.lengths) and part.supervised.any() and not part.ended:
            yield _of_source(
                source.name,
                "end token",
                "error",
                f"the end token is never supervised in {len(part.lengths):,} sequences: the model would not learn to stop",
                where=stage.first(part),
                hint="lengthen data.max_seq_len if every answer is cut, else use a chat template that ends answers with the "
                "end token",
                patch=stage.longer_rows() if account.truncated >= account.used else None,
            )


def _start_token(stage: CheckContext) -> Iterator[Finding]:
    """Two equal control tokens at the beginning: a template and something else both wrote one."""
    examples, doubled = stage.data.train.examples, _doubled(stage)
    for source, _, part in stage.trained:
        sequences = (part.examples[:, None] * examples.per_example + np.arange(examples.per_example)).ravel()
        mine = sequences[doubled[sequences]]
        if len(mine):
            token = stage.tokenizer.decode(examples.sequence(int(mine[0]))[0][:1].tolist())
            yield _of_source(
                source.name,
                "start token",
                "error",
                f"{len(mine):,} sequences begin with {token} twice",
                where=stage.sequence_place(int(mine[0])),
                hint="take it out of the chat template, or out of the rows' texts",
            )


def _doubled(stage: CheckContext) -> np.ndarray:
    """Which sequences begin with the same control token twice: bool [S]."""
    examples = stage.data.train.examples
    assert isinstance(examples.tokens, ConcatenatedArrays)
    special = [number for number, token in stage.tokenizer.core.get_added_tokens_decoder().items() if token.special]
    doubled = np.diff(examples.offsets) > 1
    for array, start in zip(examples.tokens.arrays, examples.tokens.starts[:-1], strict=True):
        first, last = np.searchsorted(examples.offsets[:-1], [start, start + len(array)])
        mine = first + np.flatnonzero(doubled[first:last])
        begins = examples.offsets[mine] - start
        doubled[mine] = (array[begins] == array[begins + 1]) & np.isin(array[begins], special)
    return doubled


def _template(stage: CheckContext) -> Iterator[Finding]:
    if stage.kind == "pretrain":
        return
    unfit = _unfit(stage.tokenizer)
    for source, account, _ in stage.trained:
        count = account.dropped[REFUSED]
        if count:
            where, detail = _noted(account, REFUSED)
            yield _of_source(
                source.name,
                "template",
                "error" if unfit else "warning",
                f"the chat template refuses {_of(count, account.rows)}: {detail}",
                where=where,
                hint=unfit or "another tokenizer.template may have a place for them",
                patch={"tokenizer.template": "chatml"} if unfit else None,
            )


def _unfit(tokenizer: Tokenizer) -> str:
    """What to do about a template that refuses plain rounds of question and answer; empty where it takes them."""
    rounds = (Message("user", "1"), Message("assistant", "2"), Message("user", "3"), Message("assistant", "4"))
    try:
        tokenizer.template.render(rounds)
    except TemplateError:
        return "put {% generation %} … {% endgeneration %} around answers in the template, or set tokenizer.template to chatml"
    return ""


def _kept_hashes(stage: CheckContext, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Content hashes of the rows on one side [N, 2], and of each its shard and its number there."""
    hashes, shards, inside = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for shard in stage.plan.of_part("train", "validation"):
        keep = keep_mask(stage.data.folder, shard)
        chosen = np.flatnonzero(keep == side)
        hashes.append(load_arrays(stage.data.folder / "rows" / shard.folder / "rows.safetensors")["hash"][chosen])
        shards.append(np.full(len(chosen), shard.number))
        inside.append(chosen)
    return np.concatenate(hashes), np.concatenate(shards), np.concatenate(inside)


def _validation(stage: CheckContext) -> Iterator[Finding]:
    train, shards, inside = _kept_hashes(stage, TRAIN)
    held_out, *_ = _kept_hashes(stage, VALIDATION)
    suspects = np.flatnonzero(np.isin(train[:, 0], held_out[:, 0]))
    known = set(map(tuple, held_out.tolist()))
    shared = [index for index in suspects.tolist() if tuple(train[index].tolist()) in known]
    if shared:
        shard = stage.plan.shards[int(shards[shared[0]])]
        where = ShardRows.of(stage.data.folder, shard).where(int(inside[shared[0]]))
        yield _of_source(
            stage.plan.sources[shard.source].name,
            "validation",
            "error",
            f"{len(shared):,} rows are trained on and validated on",
            where=where,
            hint="set data.clean.decontaminate to true, or take them out of one side",
            patch=stage.patch("data.clean.decontaminate", True),
        )


def _vocabulary(stage: CheckContext) -> Iterator[Finding]:
    limit = stage.vocabulary
    largest = max((scan.largest for scan in stage.scans), default=0)
    if limit is not None and largest >= limit:
        yield Finding(
            check="vocabulary",
            severity="error",
            message=f"the data has token {largest:,}, but the model knows {limit:,} tokens",
            hint="use the tokenizer that belongs to the model",
        )


def _unknown(stage: CheckContext) -> Iterator[Finding]:
    for number, (source, _, _) in enumerate(stage.trained):
        mine = [scan for scan in stage.scans if scan.source == number]
        count, size = sum(scan.unknown for scan in mine), sum(scan.size for scan in mine)
        if count > UNKNOWN * size:
            first = next(scan.first_unknown for scan in mine if scan.unknown)
            yield _of_source(
                source.name,
                "unknown tokens",
                "error",
                f"{count:,} of {size:,} tokens ({count / size:.1%}) are unknown to the tokenizer",
                where=stage.sequence_place(first),
                hint="use a tokenizer made for this language, or train one",
            )


def _alike(stage: CheckContext) -> Iterator[Finding]:
    for source, _, part in stage.trained:
        answers = source.answers
        if answers is not None and answers.count >= ALIKE_LEAST and answers.most_frequent_share > ALIKE:
            text = answers.openings[0].text
            yield _of_source(
                source.name,
                "equal answers",
                "error",
                f"{answers.most_frequent_share:.1%} of {answers.count:,} answers are the same (“{text}…”)",
                where=stage.first(part),
                hint="check which column holds the answers (columns.response)",
            )


# -- warnings -----------------------------------------------------------------------------------------------------------


def _duplicates(stage: CheckContext) -> Iterator[Finding]:
    left_out = stage.plan.stage.data.clean.exact_duplicates
    for source, account, _ in stage.trained:
        if source.exact_duplicates > DUPLICATES * source.rows:
            what = "are left out, being" if left_out else "are trained on although they are"
            where, detail = _noted(account, "exact duplicate")
            yield _of_source(
                source.name,
                "duplicates",
                "warning",
                f"{_of(source.exact_duplicates, source.rows)} {what} equal to an earlier one",
                where=f"{where} ({detail})" if where else "",
                hint="look where they come from" if left_out else "set data.clean.exact_duplicates to true",
                patch=None if left_out else stage.patch("data.clean.exact_duplicates", True),
            )


def _placeholders(stage: CheckContext) -> Iterator[Finding]:
    for source, account, _ in stage.trained:
        count = account.noticed["unfilled placeholder"]
        if count:
            where, detail = _noted(account, "unfilled placeholder")
            yield _of_source(
                source.name,
                "placeholders",
                "warning",
                f"{_of(count, source.rows)} hold placeholders such as {detail}",
                where=where,
                hint="fill them in before training",
            )


def _mixture(stage: CheckContext) -> Iterator[Finding]:
    entries = stage.statistics.mixture
    for entry, (source, _, _) in zip(entries, stage.trained, strict=True):
        share, answers = entry.token_share, source.answers
        few = answers is not None and answers.distinct_openings < FEW_OPENINGS * answers.count
        if len(entries) > 1 and (share > DOMINANT or (share > SWAMPING and few)):
            alike = f", and its answers begin in few ways ({answers.distinct_openings:,})" if few and answers else ""
            yield _of_source(
                source.name,
                "mixture",
                "warning",
                f"it gives {share:.0%} of an epoch's tokens{alike}",
                hint="set share, ratio or max_rows of the source, or repeat the others",
            )
        if entry.passes > PASSES:
            yield _of_source(
                source.name,
                "mixture",
                "warning",
                f"an epoch takes each of its rows {entry.passes:.1f} times",
                hint="lower its share or repeat, or give it more rows",
            )


def _identity(stage: CheckContext) -> Iterator[Finding]:
    share = stage.statistics.epoch.identity_share
    if share is not None and share > IDENTITY:
        most = max(stage.trained, key=lambda known: known[0].answers.identity if known[0].answers else 0)
        yield _of_source(
            most[0].name,
            "identity",
            "warning",
            f"{share:.0%} of an epoch's answers say who the assistant is",
            where=stage.first(most[2]),
            hint="lower its share, ratio or repeat",
        )


def _cut(stage: CheckContext) -> Iterator[Finding]:
    for source, account, _ in stage.trained:
        if stage.kind != "pretrain" and account.truncated > CUT * account.used:
            yield _of_source(
                source.name,
                "cut answers",
                "warning",
                f"{_of(account.truncated, account.used)} are cut to the context of {stage.context:,} tokens "
                f"({account.tokens_lost:,} tokens lost)",
                where=_noted(account, "answer cut to the context")[0],
                hint="lengthen data.max_seq_len",
                patch=stage.longer_rows(),
            )


def _short(stage: CheckContext) -> Iterator[Finding]:
    for source, _, part in stage.trained:
        share = source.training.short_share if source.training else None
        if share is not None and share > SHORT:
            yield _of_source(
                source.name,
                "short answers",
                "warning",
                f"{share:.0%} of the answers have fewer than {SHORT_ANSWER} tokens",
                where=stage.first(part),
                hint="check which column holds the answers (columns.response)",
            )


@dataclass(frozen=True)
class Check:
    """One question to the data; `passed` says what holds where nothing is found."""

    name: str
    passed: str
    find: Callable[[CheckContext], Iterator[Finding]]


CHECKS = (
    Check("dropped", "few rows are dropped", _dropped),
    Check("supervision", "every source has supervised tokens", _supervision),
    Check("end token", "the end token is supervised", _end_token),
    Check("start token", "no sequence begins with two start tokens", _start_token),
    Check("template", "the chat template takes every row", _template),
    Check("validation", "training and validation share no row", _validation),
    Check("vocabulary", "the model knows every token", _vocabulary),
    Check("unknown tokens", "unknown tokens are rare", _unknown),
    Check("equal answers", "answers differ", _alike),
    Check("duplicates", "exact duplicates are rare", _duplicates),
    Check("placeholders", "no placeholder is left", _placeholders),
    Check("mixture", "no source outweighs the others", _mixture),
    Check("identity", "few answers speak of identity", _identity),
    Check("cut answers", "few answers are cut", _cut),
    Check("short answers", "answers have a length", _short),
)


def findings(stage: CheckContext) -> dict[str, list[Finding]]:
    """What each check found; an empty list where it passed."""
    return {check.name: list(check.find(stage)) for check in CHECKS}
