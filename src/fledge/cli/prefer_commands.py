"""The actions of `fledge prefer`: each calls one function and shows its result."""

import argparse
import json

from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.localization import shown


def run_prefer(options: argparse.Namespace) -> None:
    """Run the action that the options name."""
    ACTIONS[options.action](options)


def _sample(options: argparse.Namespace) -> None:
    from fledge.prefer.sampling import SampleSettings, sample
    from fledge.run import Console

    if options.limit is not None and options.limit < 1:
        raise FledgeError(f"must be 1 or more, not {options.limit}", where="--limit")
    names = ("n", "temperatures", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "seed")
    try:
        settings = SampleSettings(**{name: getattr(options, name) for name in names})
    except FledgeError as error:  # it names the parameter
        raise FledgeError(error.what, where=f"--{error.where}".replace("_", "-"), hint=error.hint) from None
    summary = sample(
        options.model,
        options.prompts,
        options.out,
        settings,
        adapter=options.adapter,
        system=options.system,
        limit=options.limit,
        console=Console(),
    )
    _print(summary)
    _print([f"next: fledge prefer rank {options.out} --by rules|judge|reward-model|person --out ratings.jsonl"])


def _rank(options: argparse.Namespace) -> None:
    from fledge.prefer.rank import RankOptions, rank
    from fledge.run import Console

    made = RankOptions(
        rater=options.by if options.rater is None else options.rater,
        rules=tuple(options.rule),
        timeout=options.timeout,
        model=options.model,
        question=options.question,
        comparisons=options.comparisons,
        repeat=options.repeat,
        seed=options.seed,
    )
    _print(rank(options.answers, options.by, options.out, made, Console()))


def _pairs(options: argparse.Namespace) -> None:
    from fledge.prefer.pair_files import PairOptions, make_pairs, report_lines
    from fledge.prefer.pairs import PairSettings
    from fledge.run import Console

    settings = PairSettings(
        per_prompt=options.per_prompt, min_margin=options.min_margin, keep_cut=options.keep_cut, seed=options.seed
    )
    made = PairOptions(
        settings=settings,
        answers=tuple(options.answers),
        people=tuple(options.human),
        mix=options.mix,
        validation=options.validation,
    )
    report = make_pairs(options.ratings, options.out, made, Console())
    if options.json:
        print(escaped_json(json.dumps(report, ensure_ascii=False, indent=1)))
    else:
        _print(report_lines(report, options.out))


def _agreement(options: argparse.Namespace) -> None:
    from fledge.prefer.agreement import agreement

    agreement(options.ratings, as_json=options.json)


def _print(lines: list[str]) -> None:
    for line in lines:
        print(shown(line))


ACTIONS = {"sample": _sample, "rank": _rank, "pairs": _pairs, "agreement": _agreement}
