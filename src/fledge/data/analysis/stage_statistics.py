"""Statistics of a stage's data, computed from the records of the build and from the results of `measure`.

Nothing here prints.
"""

from collections import Counter
from functools import cached_property

import numpy as np

from fledge.data.analysis.lengths import Lengths
from fledge.data.analysis.pre_tokenization import Measured, NearDuplicates
from fledge.data.analysis.source_counts import SourceCounts, TrainingSequences
from fledge.data.analysis.statistics import (
    SHORT_ANSWER,
    AnswerStatistics,
    ContextFit,
    EpochStatistics,
    MixtureStatistics,
    Opening,
    SourceStatistics,
    StageStatistics,
    TrainingStatistics,
)
from fledge.data.build.load import StageDataset
from fledge.data.build.plan import Split
from fledge.data.cleaning.duplicates import first_occurrences
from fledge.data.cleaning.languages import LANGUAGES
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.report import SourceReport
from fledge.data.storage import load_arrays

OPENINGS_SHOWN = 10
TOO_LONG = (  # why encoding drops rows for their length
    "prompt longer than the context",
    "prompt longer than max_prompt_length",
    "answers equal after the cut",
)


def stage_statistics(dataset: StageDataset, measured: Measured | None = None) -> StageStatistics:
    """The statistics of one stage. Without `measured`, near duplicates and lengths in tokens are None."""
    stage, plan = _StageCounts(dataset, measured), dataset.plan
    return StageStatistics(
        stage=plan.name,
        kind=plan.kind,
        context=plan.data.max_seq_len,
        near_threshold=measured.threshold if measured is not None else plan.data.clean.near_duplicates,
        epoch=stage.epoch(),
        mixture=tuple(stage.mixture_statistics),
        sources=tuple(stage.source(number, report) for number, report in enumerate(dataset.report.sources)),
    )


class _StageCounts:
    """The build of one stage, counted as far as its statistics need it."""

    def __init__(self, dataset: StageDataset, measured: Measured | None) -> None:
        self.dataset, self.build, self.plan, self.measured = dataset, dataset.build, dataset.plan, measured
        self.format = dataset.plan.format

    @cached_property
    def counts(self) -> list[SourceCounts]:
        """The row statistics of each source."""
        return [SourceCounts.of(self.build, number) for number in range(len(self.plan.sources))]

    @cached_property
    def mixture(self) -> Mixture:
        """How an epoch draws from the sources; without quotas, each row once."""
        if self.dataset.train.mixture is not None:
            return self.dataset.train.mixture
        examples = self.dataset.train.examples
        assert examples.source is not None
        quotas = tuple(SourceQuota(name=item.name) for item in self.plan.sources if item.split == "train")
        return Mixture(examples.source, examples.tokens_per_example(), quotas, self.plan.seed)

    @cached_property
    def mixture_statistics(self) -> list[MixtureStatistics]:
        """What the first epoch takes of each source."""
        return [
            MixtureStatistics(**{key: value for key, value in entry.items() if key != "rows"})
            for entry in self.mixture.summary(0)
        ]

    @cached_property
    def exact_duplicates(self) -> list[int]:
        """Rows of each source that equal an earlier row of their split, whether or not they are dropped."""
        counts = [0] * len(self.plan.sources)
        splits: tuple[Split, ...] = ("train", "validation")
        for split in splits:
            shards = self.plan.shards_of(split)
            if not shards:
                continue
            hashes = [load_arrays(self.build.rows(shard) / "rows.safetensors")["hash"] for shard in shards]
            sources = np.repeat([shard.source for shard in shards], [len(values) for values in hashes])
            first = first_occurrences(np.concatenate(hashes))
            for source, count in Counter(sources[first != np.arange(len(first))].tolist()).items():
                counts[source] = count
        return counts

    def kept_column(self, source: int, name: str) -> np.ndarray:
        """A column of rows.safetensors over the rows of a source that stay."""
        columns = [np.zeros(0, np.int64)]
        for shard in self.plan.shards:
            if shard.source != source:
                continue
            values = load_arrays(self.build.rows(shard) / "rows.safetensors")[name]
            masked = self.plan.sources[source].split != "evaluation"
            columns.append(values[self.build.keep_mask(shard) > 0] if masked else values)
        return np.concatenate(columns)

    def source(self, number: int, report: SourceReport) -> SourceStatistics:
        """Everything about one source."""
        planned, counts, measured = self.plan.sources[number], self.counts[number], self.measured
        languages = np.bincount(self.kept_column(number, "language"), minlength=len(LANGUAGES))
        trained = planned.split == "train"
        sequences = TrainingSequences.of(self.dataset, number) if trained else None
        near = NearDuplicates(report.dropped["near duplicate"]) if self.plan.data.clean.near_duplicates else None
        if trained and measured is not None and measured.near is not None:
            near = measured.near.get(number, NearDuplicates())
        lengths = self._token_lengths(number, sequences) if sequences is not None else None
        return SourceStatistics(
            name=planned.name,
            path=planned.path,
            split=planned.split,
            rows=report.rows,
            used_rows=report.used_rows,
            validation_rows=report.validation_rows,
            dropped=dict(report.dropped.most_common()),
            changed=dict(report.changed.most_common()),
            noticed=dict(report.noticed.most_common()),
            schemas=dict(counts.schemas.most_common()),
            columns=_columns(counts),
            exact_duplicates=self.exact_duplicates[number],
            near_duplicates=near.count if near is not None and trained else None,
            near_examples=near.examples if near is not None else (),
            languages={LANGUAGES[i]: int(languages[i]) for i in np.argsort(-languages, kind="stable") if languages[i]},
            characters=Lengths.of(self.kept_column(number, "chars")),
            tokens=None if lengths is None else Lengths.of(lengths),
            answers=_answers(counts) if self.format.has_loss_weights else None,
            training=_training(sequences, self.format.has_loss_weights) if sequences is not None else None,
            fit=self._fit(report, lengths) if trained else None,
        )

    def _token_lengths(self, source: int, sequences: TrainingSequences) -> np.ndarray | None:
        """Tokens of the rows before any cut, which are those of their sequences where nothing is cut; None: not measured."""
        if self.measured is None:
            return None
        if self.format.splits_documents:
            return sequences.lengths
        return self.measured.tokens.get(source, np.zeros(0, np.int64))

    def _fit(self, report: SourceReport, lengths: np.ndarray | None) -> ContextFit:
        limit = self.plan.data.max_seq_len + 1
        return ContextFit(
            share=float((lengths <= limit).mean()) if lengths is not None and len(lengths) else None,
            truncated_rows=report.truncated_rows,
            shortened_rows=report.shortened_rows,
            split_rows=report.split_rows,
            dropped_rows=sum(report.dropped[reason] for reason in TOO_LONG),
            lost_tokens=report.lost_tokens,
        )

    def epoch(self) -> EpochStatistics:
        """The first epoch, as it is packed."""
        train = self.dataset.train
        batch_rows = self.plan.batch.global_batch_rows(train.packed_length)
        rows, tokens = len(train), train.num_tokens
        return EpochStatistics(
            examples=len(self.mixture.sample_epoch(0)),
            packed_rows=rows,
            packed_length=train.packed_length,
            tokens=tokens,
            target_tokens=train.num_target_tokens,
            target_token_fraction=train.num_target_tokens / tokens if tokens else 0.0,
            padding_share=float(train.summary()["padding_share"]),
            steps=-(-rows // batch_rows),
            batch_rows=batch_rows,
            batch_tokens=round(batch_rows * tokens / rows) if rows else 0,
            identity_share=self._identity_share(),
        )

    def _identity_share(self) -> float | None:
        """Share of the epoch's answers that say who the assistant is, if each source's rows are alike; None without answers."""
        if not self.format.has_loss_weights:
            return None
        examples = [entry.examples for entry in self.mixture_statistics]
        numbers = [counts.numbers for counts in self.counts[: len(examples)]]
        shares = [_share(number["identity"], number["answers"]) for number in numbers]
        return _share(sum(share * count for share, count in zip(shares, examples, strict=True)), sum(examples))


def _share(count: float, total: float) -> float:
    return count / total if total else 0.0


def _columns(counts: SourceCounts) -> dict[str, dict[str, int]]:
    """For each column: rows in which it is missing, null, empty."""
    rows = sum(counts.schemas.values())
    return {
        name: {"missing": rows - present, "null": counts.nulls[name], "empty": counts.empty[name]}
        for name, present in sorted(counts.columns.items())
    }


def _answers(counts: SourceCounts) -> AnswerStatistics | None:
    answers, identity = counts.numbers["answers"], counts.numbers["identity"]
    if not answers:
        return None
    most_frequent = sorted(counts.openings.items(), key=lambda pair: (-pair[1], pair[0]))[:OPENINGS_SHOWN]
    return AnswerStatistics(
        count=answers,
        openings=tuple(Opening(text, count, count / answers) for text, count in most_frequent),
        distinct_openings=counts.distinct_openings,
        most_frequent_share=max(counts.equal.values(), default=0) / answers,
        identity=identity,
        identity_share=identity / answers,
    )


def _training(sequences: TrainingSequences, has_answers: bool) -> TrainingStatistics:
    target_tokens, count = int(sequences.target_tokens.sum()), len(sequences.lengths)
    short = int((sequences.target_tokens <= SHORT_ANSWER).sum())
    return TrainingStatistics(
        examples=len(sequences.examples),
        tokens=sequences.tokens,
        target_tokens=target_tokens,
        target_token_fraction=_share(target_tokens, sequences.tokens),
        ended_share=_share(sequences.ended, count) if has_answers else None,
        short_share=_share(short, count) if has_answers else None,
    )
