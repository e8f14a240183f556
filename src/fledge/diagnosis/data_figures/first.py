"""The figures that a stage can afford before its first update."""

from collections.abc import Sequence

from fledge.data import Batch, PackedDataset
from fledge.data.formats import FORMATS, DataStage
from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import ConversationShape
from fledge.diagnosis.data_figures.reading import batch_figures, read_sequences
from fledge.diagnosis.data_figures.repeats import duplicate_figures
from fledge.diagnosis.data_figures.roles import AnswerRules, role_figures
from fledge.tokenizer import Tokenizer

MOST_HASHED = 20_000  # examples
MOST_POSITIONS = 200_000  # of the batches that are looked at


def first_figures(
    stage: DataStage,
    train: PackedDataset,
    batches: Sequence[Batch],
    tokenizer: Tokenizer,
    validation: PackedDataset | None = None,
) -> dict[str, Figure]:
    """The figures of the loader's own batches, of what they supervise, and of copies among the training examples.

    `batches`: the micro-batches of the first updates, made of rows of `train`; of a stage whose model draws its answers, those
    that `train.batch` makes. Takes some tenths of a second at most, changes nothing, draws no random numbers.
    """
    example_format, chosen, positions = FORMATS[stage.kind], list[Batch](), 0
    for batch in batches:
        if positions < MOST_POSITIONS:
            chosen.append(batch)
            positions += batch.num_tokens
    read = read_sequences(chosen, train.examples, splits=example_format.splits_documents)
    figures = batch_figures(chosen, read)
    if example_format.is_dialogue:
        figures |= role_figures(read, ConversationShape.of(tokenizer), AnswerRules.of(stage))
    held_out = None if validation is None else validation.examples
    return figures | duplicate_figures(train.examples, held_out, MOST_HASHED)
