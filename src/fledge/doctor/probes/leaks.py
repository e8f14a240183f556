"""Probes of what a position can see: two passes, later tokens, other documents of a packed row, padding."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fledge.data import Batch
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.doctor.probes.rows import hidden_states
from fledge.model.protocol import LanguageModel

ROWS = 8  # that are looked at
STRIDE = 7919  # by which token ids are moved to get others


def scores(model: LanguageModel, hidden: Tensor) -> Tensor:
    """Logits of hidden states [..., D], or rewards of a reward model."""
    return model.rewards(hidden)[..., None] if model.score_weight is not None else model.logits(hidden)


def largest_change(model: LanguageModel, before: Tensor, after: Tensor, where: Tensor) -> float:
    """The largest change of logits between two tensors of hidden states [B, T, D] at the places where `where` [B, T] is
    true."""
    if not bool(where.any()):
        return 0.0
    return float((scores(model, before[where]) - scores(model, after[where])).abs().max())


def other_tokens(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Other tokens in their place. The token that parts source and answer of an encoder–decoder stays, and nothing becomes
    it."""
    size = model.vocab_size
    moved = (tokens + 1 + STRIDE % (size - 1)) % size
    start = model.decoder_start
    if start is None:
        return moved
    moved = torch.where(moved == start, (moved + 1) % size, moved)
    return torch.where(tokens == start, tokens, moved)


def _sequences(context: ProbeContext) -> list[np.ndarray]:
    """Some training rows that have a place before their last token."""
    start = context.any_model.decoder_start
    rows = [row.tokens for row in context.train_rows if len(row.tokens) > 2 and (start is None or start in row.tokens[:-1])]
    if not rows:
        raise left_out("no row of the sample has two tokens to compare")
    return rows[:ROWS]


@torch.no_grad()
def two_passes(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest difference between two passes over the same rows in evaluation mode."""
    model, rows, pad = context.any_model.eval(), _sequences(context), context.material.tokenizer.pad
    (first, _), (second, _) = (hidden_states(model, rows, pad) for _ in range(2))
    inside = torch.ones(first.shape[:2], dtype=torch.bool)
    return {"probe/two_passes": figure(largest_change(model, first, second, inside), f"{len(rows)} rows")}


@torch.no_grad()
def future_leak(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest change of logits before the last token of rows when that token is another one."""
    model, rows, pad = context.any_model.eval(), _sequences(context), context.material.tokenizer.pad
    changed = [np.concatenate((row[:-1], other_tokens(model, torch.from_numpy(row[-1:])).numpy())) for row in rows]
    (before, tokens), (after, _) = (hidden_states(model, each, pad) for each in (rows, changed))
    ends = torch.tensor([len(row) - 1 for row in rows])
    earlier = torch.arange(tokens.shape[1])[None] < ends[:, None]
    return {"probe/future_leak": figure(largest_change(model, before, after, earlier), f"{len(rows)} rows")}


# -- packed rows of the trainer ---------------------------------------------------------------------------------------------


def _changed(model: LanguageModel, batch: Batch, where: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of a batch as it is, and with other tokens at the places where `where` [B, T] is true."""
    tokens = torch.where(where, other_tokens(model, batch.input_ids), batch.input_ids)
    other = replace(batch, input_ids=tokens)
    return model(*batch.model_inputs), model(*other.model_inputs)


def _batch(context: ProbeContext, rows: int) -> Batch:
    """Packed rows as the trainer's loader gives them."""
    parts = context.trainer
    return parts.step_batch(rows, rows).batches[0]


@torch.no_grad()
def document_leak(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest change of logits of the later examples of packed rows when the first example of the row has other tokens."""
    if not context.trainer.train.packs:
        raise left_out("this stage does not pack several examples into a row")
    model, batch = context.any_model.eval(), _batch(context, context.trainer.rows)
    is_data = batch.sequence_ids < batch.num_sequences
    example = torch.where(is_data, batch.sequence_ids // batch.sequences_per_example, -1)
    first = is_data & (example == example[:, :1])
    others = is_data & ~first
    if not bool(others.any()):
        raise left_out("no packed row of the sample holds two examples")
    before, after = _changed(model, batch, first)
    count = int(others.any(dim=1).sum())
    return {"probe/document_leak": figure(largest_change(model, before, after, others), f"{count} packed rows")}


@torch.no_grad()
def padding_leak(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest change of logits of the examples of packed rows when their padding has other tokens."""
    model, batch = context.any_model.eval(), _batch(context, context.trainer.rows)
    padding = batch.sequence_ids >= batch.num_sequences
    if not bool(padding.any()):
        raise left_out("no packed row of the sample has padding")
    before, after = _changed(model, batch, padding)
    return {"probe/padding_leak": figure(largest_change(model, before, after, ~padding), _share(padding))}


def _share(padding: Tensor) -> str:
    return f"{float(padding.float().mean()):.0%} of {padding.shape[0]} packed rows"
