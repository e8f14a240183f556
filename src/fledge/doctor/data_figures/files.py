"""Figures of files of rows that another trainer has read."""

from collections.abc import Sequence
from pathlib import Path

from fledge.data import FORMATS
from fledge.diagnosis.case import Figure
from fledge.doctor.data_figures.stage import dataset_figures
from fledge.errors import FledgeError
from fledge.inspect.target import recipe_of, without_drop_limit
from fledge.prepare import Preparation

OF_FILES = (
    "examples", "ends_present", "duplicate_share", "repeated_ngrams", "largest_answer_share", "frequent_other_answers",
    "largest_source_share", "identity_share", "unigram_entropy", "bigram_entropy", "max_token_id", "vocab_size",
    "mean_length", "truncated_share", "equal_pairs", "chosen_longer", "pairs_contradicting",
)  # fmt: skip
"""What files say whatever trainer reads them. What it supervises, and in which order it reads, they do not say."""


def data_figures_of_files(
    files: Sequence[Path], tokenizer: Path, kind: str | None, max_seq_len: int, *, sample: int = 2000, seed: int = 7
) -> dict[str, Figure]:
    """The `data/…` figures of files of rows, encoded with the tokenizer in a folder and its chat template.

    `kind`: the kind of stage that the rows are for; None: told from the rows of the files. `max_seq_len`: where the other
    trainer cuts. Rows are read as `fledge data stats` reads them, without cleaning, so that copies stay. What the other trainer
    supervises and in which order it reads is not known and not told. Raises FledgeError for files that cannot be read, rows of
    several kinds and a tokenizer that cannot be loaded.
    """
    if kind is not None and kind not in FORMATS:
        raise FledgeError(f"'{kind}' is no kind of stage", where="kind", hint=f"write one of {', '.join(FORMATS)}")
    recipe = recipe_of([str(file) for file in files], [("tokenizer.path", str(tokenizer))], kind)
    if len(recipe.stages) > 1:
        found = ", ".join(recipe.stages)
        raise FledgeError(f"the files hold rows of several kinds: {found}", hint="give those of one kind, or say which kind")
    ((name, stage),) = recipe.stages.items()
    clean = stage.data.clean.model_copy(update={"exact_duplicates": False, "decontaminate": False})
    data = stage.data.model_copy(update={"max_seq_len": max_seq_len, "clean": clean})
    recipe = recipe.model_copy(update={"stages": {name: stage.model_copy(update={"data": data})}})
    preparation = Preparation(without_drop_limit(recipe), lambda line: None)
    loaded = preparation.tokenizer()
    figures = dataset_figures(preparation.stage_data(name, loaded), loaded, sample=sample, seed=seed)
    return {key: figure for key, figure in figures.items() if key.removeprefix("data/") in OF_FILES}
