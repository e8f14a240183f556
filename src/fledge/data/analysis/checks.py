"""The table of the data checks: faults that make a training run meaningless (errors), oddities worth a look (warnings),
and figures to know (infos).

A new check is an entry of `CHECKS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fledge.data.analysis import answer_checks, preference_checks, row_checks, token_checks
from fledge.data.analysis.check_context import CheckContext
from fledge.findings import Finding


@dataclass(frozen=True)
class Check:
    """One check of a stage's data. `find` yields its findings; `passed` is the sentence to print if there are none."""

    name: str
    passed: str
    find: Callable[[CheckContext], Iterator[Finding]]
    of_pairs: bool = False  # made for formats of pairs of answers only


CHECKS = (
    Check("dropped", "few rows are dropped", row_checks.dropped_rows),
    Check("supervision", "every source has supervised tokens", answer_checks.supervision),
    Check("end token", "the end token is supervised", answer_checks.end_token),
    Check("start token", "no sequence begins with two start tokens", token_checks.doubled_start_token),
    Check("template", "the chat template takes every row", answer_checks.template_errors),
    Check("validation", "training and validation share no row", row_checks.shared_with_validation),
    Check("vocabulary", "the model knows every token", token_checks.vocabulary),
    Check("unknown tokens", "unknown tokens are rare", token_checks.unknown_tokens),
    Check("round trip", "the tokenizer gives texts back unchanged", token_checks.lossy_tokenizer),
    Check("control tokens", "no text holds control tokens", token_checks.control_tokens_in_texts),
    Check("equal answers", "answers differ", answer_checks.equal_answers),
    Check("duplicates", "exact duplicates are rare", row_checks.duplicate_rows),
    Check("placeholders", "no placeholder is left", row_checks.unfilled_placeholders),
    Check("unread keys", "every key of turns is read", row_checks.unread_keys),
    Check("mixture", "no source outweighs the others", row_checks.outweighing_sources),
    Check("identity", "few answers speak of identity", answer_checks.identity_answers),
    Check("cut answers", "few answers are cut", answer_checks.cut_answers),
    Check("short answers", "answers have a length", answer_checks.short_answers),
    Check("equal pairs", "no pair has equal answers", preference_checks.equal_pairs, of_pairs=True),
    Check("contradictory pairs", "no pair contradicts another one", preference_checks.contradictory_pairs, of_pairs=True),
    Check("pair lengths", "no pairs of unequal length to compare", preference_checks.length_baseline, of_pairs=True),
    Check("first tokens", "no pairs whose beginnings to compare", preference_checks.first_token_baseline, of_pairs=True),
)


def findings(stage: CheckContext) -> dict[str, list[Finding]]:
    """The findings of each check that is made for the stage's format, by its name; an empty list if it passed."""
    has_pairs = stage.format.sequence_names == preference_checks.PAIR
    return {check.name: list(check.find(stage)) for check in CHECKS if has_pairs or not check.of_pairs}
