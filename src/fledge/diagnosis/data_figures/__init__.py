"""Figures of training data: what is supervised, what repeats, in which order it is read. Nothing here needs a model.

A stage that starts has all that `first_figures` needs; the other functions serve the doctor, which also opens finished runs.
"""

from fledge.diagnosis.data_figures.conversation_shape import ConversationShape
from fledge.diagnosis.data_figures.first import first_figures
from fledge.diagnosis.data_figures.reading import ReadSequences, batch_figures, read_sequences

__all__ = ["ConversationShape", "ReadSequences", "batch_figures", "first_figures", "read_sequences"]
