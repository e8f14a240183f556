"""Checks of answers: whether they are supervised, end, differ, fit the context, and whether the chat template accepts them."""

from collections.abc import Iterator

from fledge.data.analysis.check_context import CheckContext, count_of_rows, first_event, source_finding
from fledge.data.analysis.statistics import SHORT_ANSWER
from fledge.findings import Finding
from fledge.tokenizer import Message, TemplateError, Tokenizer
from fledge.tokenizer.message import TEMPLATE_REASONS

ALIKE, ALIKE_LEAST = 0.95, 20  # share of equal answers, of at least so many
IDENTITY = 0.1  # share of an epoch's answers
CUT = 0.05  # share of a source's rows
SHORT = 0.5  # share of a source's sequences


def supervision(stage: CheckContext) -> Iterator[Finding]:
    """A source has no supervised token."""
    for source in stage.training_sources:
        if not source.sequences.target_tokens.any():
            trained = len(source.sequences.examples) > 0
            cause = "no answer has a supervised token" if trained else "all its rows went to validation"
            yield source_finding(
                check="supervision",
                severity="error",
                message=f"nothing is supervised: {cause}",
                source=source.name,
                where=stage.first_location(source),
                hint="check the weights of the turns" if trained else "lower data.validation, or give it more rows",
            )


def end_token(stage: CheckContext) -> Iterator[Finding]:
    """No answer of a source has a supervised end token."""
    if not stage.format.has_loss_weights:  # every token counts, the one that ends a document too
        return
    for source in stage.training_sources:
        sequences, report = source.sequences, source.report
        if len(sequences.lengths) and sequences.target_tokens.any() and not sequences.ended:
            yield source_finding(
                check="end token",
                severity="error",
                message=f"the end token is never supervised in {len(sequences.lengths):,} sequences: the model would not learn "
                "to stop",
                source=source.name,
                where=stage.first_location(source),
                hint="lengthen data.max_seq_len if every answer is cut, else use a chat template that ends answers with the "
                "end token",
                patch=stage.longer_rows() if report.truncated_rows >= report.used_rows else None,
            )


def template_errors(stage: CheckContext) -> Iterator[Finding]:
    """The chat template rejects rows of a source; an error if it rejects plain questions and answers too, else a warning."""
    for source in stage.training_sources:
        for reason in TEMPLATE_REASONS:
            count = source.report.dropped[reason]
            if not count:
                continue
            location, detail = first_event(source.report, reason)
            remedy = _template_remedy(stage.tokenizer)
            yield source_finding(
                check="template",
                severity="error" if remedy else "warning",
                message=f"{reason.replace(' it', '')}: {count_of_rows(count, source.report.rows)} dropped: {detail}",
                source=source.name,
                where=location,
                hint=remedy or "another tokenizer.template may have a place for them",
                patch={"tokenizer.template": "chatml"} if remedy else None,
            )


def _template_remedy(tokenizer: Tokenizer) -> str:
    """The hint for a template that rejects plain rounds of question and answer; empty if it accepts them."""
    rounds = (Message("user", "1"), Message("assistant", "2"), Message("user", "3"), Message("assistant", "4"))
    try:
        tokenizer.template.render(rounds)
    except TemplateError:
        return "put {% generation %} … {% endgeneration %} around answers in the template, or set tokenizer.template to chatml"
    return ""


def equal_answers(stage: CheckContext) -> Iterator[Finding]:
    """More than ALIKE of a source's answers are equal (checked from ALIKE_LEAST answers on)."""
    for source in stage.training_sources:
        answers = source.statistics.answers
        if answers is not None and answers.count >= ALIKE_LEAST and answers.most_frequent_share > ALIKE:
            text = answers.openings[0].text
            yield source_finding(
                check="equal answers",
                severity="error",
                message=f"{answers.most_frequent_share:.1%} of {answers.count:,} answers are the same (“{text}…”)",
                source=source.name,
                where=stage.first_location(source),
                hint="check which column holds the answers (columns.response)",
            )


def identity_answers(stage: CheckContext) -> Iterator[Finding]:
    """More than IDENTITY of an epoch's answers say who the assistant is."""
    share = stage.statistics.epoch.identity_share
    if share is not None and share > IDENTITY:
        answers = [source.statistics.answers for source in stage.training_sources]
        counts = [0 if statistics is None else statistics.identity for statistics in answers]
        source = stage.training_sources[counts.index(max(counts))]
        yield source_finding(
            check="identity",
            severity="warning",
            message=f"{share:.0%} of an epoch's answers say who the assistant is",
            source=source.name,
            where=stage.first_location(source),
            hint="lower its token_fraction, ratio or repeat",
        )


def cut_answers(stage: CheckContext) -> Iterator[Finding]:
    """More than CUT of a source's used rows have an answer that is cut to the context."""
    for source in stage.training_sources:
        report = source.report
        by_completion = first_event(report, "answer cut to max_completion_length")[0]
        if report.truncated_rows > CUT * report.used_rows:
            limit = "data.max_completion_length" if by_completion else f"the context of {stage.statistics.context:,} tokens"
            yield source_finding(
                check="cut answers",
                severity="warning",
                message=f"{count_of_rows(report.truncated_rows, report.used_rows)} are cut to {limit} "
                f"({report.lost_tokens:,} tokens lost)",
                source=source.name,
                where=by_completion or first_event(report, "answer cut to the context")[0],
                hint="raise data.max_completion_length" if by_completion else "lengthen data.max_seq_len",
                patch=None if by_completion else stage.longer_rows(),
            )


def short_answers(stage: CheckContext) -> Iterator[Finding]:
    """More than SHORT of a source's answers have fewer than SHORT_ANSWER tokens."""
    for source in stage.training_sources:
        training = source.statistics.training
        if training is not None and training.short_share is not None and training.short_share > SHORT:
            yield source_finding(
                check="short answers",
                severity="warning",
                message=f"{training.short_share:.0%} of the answers have fewer than {SHORT_ANSWER} tokens",
                source=source.name,
                where=stage.first_location(source),
                hint="check which column holds the answers (columns.response)",
            )
