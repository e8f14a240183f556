"""Encoder–decoder models of transformers, such as T5 (Raffel et al. 2020), behind `LanguageModel`.

A document is one sequence of tokens: the source, the token with which the decoder starts, and the answer. The chat template
`seq2seq` writes it so. Because documents are sequences, packing, objectives, validation and checkpoints are those of all
models. The model takes the sources of a packed row out for its encoder and the rest for its decoder, and keeps documents apart
by masks. That is exact for models that know only the distances between positions; `huggingface_loading.check_forward` tries it
out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.model.hf_config import read_config_json
from fledge.model.huggingface import TransformersModel, count_parameters, required_sizes
from fledge.model.huggingface_loading import Bridge, check_runtime, from_pretrained, new_model
from fledge.model.huggingface_prefix import no_prefix
from fledge.model.prefix import Prefix
from fledge.model.segments import SegmentStarts
from fledge.recipe.schema import ModelConfig, RuntimeConfig
from fledge.tokenizer.settings import read_decoder_start

NOT_COMPILED = "the lengths of sources and answers differ in each batch"
POSITIONS = 512  # of source and of answer each, where the configuration does not say: relative positions have no limit


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """The packed rows [B, T] of documents, divided into sources and answers.

    `source` [B, S] and `target` [B, U] are the tokens of all sources, and of all answers, of a row one after another; U counts
    the start token of the decoder. The masks are True where a query may attend: `source_mask` [B, 1, S, S], `target_mask`
    [B, 1, U, U], `cross_mask` [B, 1, U, S]. `places` [B, U]: where in the row each token of `target` stands. `is_target`
    [B, U]: false for padding.
    """

    source: Tensor
    target: Tensor
    source_mask: Tensor
    target_mask: Tensor
    cross_mask: Tensor
    places: Tensor
    is_target: Tensor

    @classmethod
    def of(cls, tokens: Tensor, documents: Tensor | None, start: int) -> "SplitRows":
        """Divide rows of tokens [B, T]. A document's answer begins with its first `start` token. `documents` as in
        `LanguageModel.forward`."""
        documents = torch.ones_like(tokens) if documents is None else documents
        in_answer = _answers(tokens, documents, start)
        places, is_target = _positions(in_answer & (documents > 0))
        source_places, is_source = _positions(~in_answer & (documents > 0))
        target_documents = documents.gather(1, places).where(is_target, 0)
        source_documents = documents.gather(1, source_places).where(is_source, 0)
        order = torch.arange(places.shape[1], device=tokens.device)
        return cls(
            source=tokens.gather(1, source_places),
            target=tokens.gather(1, places),
            source_mask=_same(source_documents, source_documents),
            target_mask=_same(target_documents, target_documents) & (order <= order[:, None]),
            cross_mask=_same(target_documents, source_documents),
            places=places,
            is_target=is_target,
        )


def _answers(tokens: Tensor, documents: Tensor, start: int) -> Tensor:
    """Where answers stand, their start token included: bool [B, T]."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    document_start = index.where(begins, 0).cummax(dim=1).values
    last_start = index.where(tokens == start, -1).cummax(dim=1).values
    return last_start >= document_start


def _positions(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The places that are chosen in each row, in order, then others up to the length of the longest row, at least one: int64
    [B, n], and which of them are chosen."""
    count = chosen.sum(dim=1)
    longest = max(1, int(count.max()))
    places = torch.argsort((~chosen).to(torch.uint8), dim=1, stable=True)[:, :longest]
    return places, torch.arange(longest, device=chosen.device) < count[:, None]


def _same(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a query's document [B, Q] is a key's [B, K], `usable`: [B, 1, Q, K]."""
    return usable(queries[:, :, None] == keys[:, None, :])[:, None]


def usable(mask: Tensor) -> Tensor:
    """A mask [..., Q, K] with all keys for a query that has none: what it gives is not used, but must be a number."""
    return mask | ~mask.any(dim=-1, keepdim=True)


class EncoderDecoderModel(TransformersModel):
    """An encoder–decoder model of transformers as a `LanguageModel`. Hidden states at the places of sources are zero: no token
    is predicted there."""

    implementation = "encoder-decoder"
    auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, library_model: Any) -> None:
        super().__init__(library_model)
        config = library_model.config
        start = getattr(config, "decoder_start_token_id", None)
        start = config.pad_token_id if start is None else start
        if not isinstance(start, int):
            raise FledgeError(f"the configuration of {type(config).__name__} does not say decoder_start_token_id")
        self.decoder_start = self._start = config.decoder_start_token_id = start
        scales = config.tie_word_embeddings if config.model_type == "umt5" else getattr(config, "scale_decoder_outputs", False)
        self._scale = config.hidden_size**-0.5 if scales else 1.0

    def _sizes(self) -> ModelConfig:
        return decoder_sizes(self.causal_lm.config).model_copy(update={"tie_word_embeddings": self._is_tied()})

    def _is_tied(self) -> bool:
        return self.causal_lm.get_output_embeddings().weight is self.causal_lm.get_input_embeddings().weight

    def _find_layer_lists(self) -> list[str]:
        return [self._layers_of(self.causal_lm.get_encoder()), self._layers_of(self.causal_lm.get_decoder())]

    def _layers_of(self, stack: nn.Module) -> str:
        path = next(name for name, module in self.named_modules() if module is stack)
        inner = next((name for name, module in stack.named_modules() if isinstance(module, nn.ModuleList)), None)
        if inner is None:
            raise FledgeError(f"not supported: {type(stack).__name__} has no list of its layers")
        return f"{path}.{inner}"

    def set_prefix(self, prefix: Prefix) -> None:
        """FledgeError: a prefix belongs to models with a decoder only."""
        raise no_prefix("it is an encoder–decoder")

    @property
    def not_compiled_because(self) -> str | None:
        """Its lengths."""
        return NOT_COMPILED

    # -- computing ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] of the decoder, zero at the places of sources; see `LanguageModel.forward`. Only distances
        between positions count, so that `positions` are not used."""
        self._set_recomputed_blocks()
        rows = SplitRows.of(tokens, documents, self._start)
        source = self.encode(rows.source, rows.source_mask)
        states = self.decode_target(rows.target, source, rows.target_mask, rows.cross_mask).last_hidden_state
        states = self.scaled(states) * rows.is_target[..., None]
        hidden = states.new_zeros(*tokens.shape, states.shape[-1])
        return hidden.scatter(1, rows.places[..., None].expand_as(states), states)

    def encode(self, source: Tensor, mask: Tensor) -> Tensor:
        """The encoder's states [B, S, D] of sources [B, S]; `mask` [B, 1, S, S] is True where a token may attend."""
        with self._autocast():
            return self.causal_lm.get_encoder()(input_ids=source, attention_mask=mask).last_hidden_state

    def decode_target(self, target: Tensor, source: Tensor, mask: Tensor, cross_mask: Tensor, **options: Any) -> Any:
        """The library's output for tokens of answers [B, U], given the encoder's states [B, S, D]; masks as in `SplitRows`."""
        options = {"use_cache": False, **options}
        with self._autocast():
            return self.causal_lm.get_decoder()(
                input_ids=target,
                attention_mask=mask,
                encoder_hidden_states=source,
                encoder_attention_mask=cross_mask,
                **options,
            )

    def scaled(self, states: Tensor) -> Tensor:
        """The decoder's states as the head's matrix expects them, in `compute_dtype`: T5 with a tied head multiplies them by
        D^-½."""
        return (states * self._scale).to(self.compute_dtype)

    def library_logits(self, tokens: Tensor) -> Tensor:
        """The logits [1, T, V] of the library for one document [1, T]; zero at the places of the source."""
        start = int((tokens[0] == self.decoder_start).nonzero()[0])
        source, target = tokens[:, :start], tokens[:, start:]
        logits = self.causal_lm(input_ids=source, decoder_input_ids=target, use_cache=False).logits.float()
        return torch.cat((logits.new_zeros(1, start, logits.shape[-1]), logits), dim=1)

    def probe_document(self, length: int, generator: torch.Generator) -> Tensor:
        """A source of random tokens, the start token, and an answer of random tokens [1, length]."""
        tokens = super().probe_document(length, generator)
        tokens[tokens == self._start] = (self._start + 1) % self.vocab_size
        tokens[0, length // 2] = self._start
        return tokens

    # -- parameters and directories -------------------------------------------------------------------------------------

    @property
    def cost(self) -> ModelCost:
        """The exact number of parameters; a token passes through the encoder or the decoder, so that half of the matrices count
        as multiplied. Memory is estimated as for a native decoder of the decoder's sizes."""
        counts = count_parameters(self)
        head = self.lm_head_weight.numel()
        return ModelCost(self.config, self.vocab_size, replace(counts, matmul=head + (counts.matmul - head) // 2))

    def _special_tokens(self) -> dict[str, int]:
        self.causal_lm.config.tie_word_embeddings = self._is_tied()
        return {"decoder_start_token_id": self._start}

    def _new_library_model(self) -> Any:
        copy = super()._new_library_model()
        if not self._is_tied():
            untie(copy)
        return copy


def decoder_sizes(config: Any) -> ModelConfig:
    """The sizes of the decoder in the recipe's names: every token passes through one of the two stacks of layers. Source and
    answer together have `max_position_embeddings` positions. Raises FledgeError if a size is missing."""
    sizes = required_sizes(config, config, ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    positions = getattr(config, "n_positions", None) or POSITIONS
    return ModelConfig.model_construct(
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=max(sizes["num_hidden_layers"], getattr(config, "num_decoder_layers", None) or 0),
        num_attention_heads=sizes["num_attention_heads"],
        num_key_value_heads=sizes["num_attention_heads"],
        head_dim=getattr(config, "d_kv", None),
        intermediate_size=getattr(config, "d_ff", None) or 4 * config.hidden_size,
        max_position_embeddings=2 * positions,
    )


def untie(library_model: Any) -> None:
    """Give a model's head a matrix of its own, with the values of the embedding."""
    head = library_model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())


# -- directories ----------------------------------------------------------------------------------------------------------

SEQ2SEQ = Bridge(EncoderDecoderModel.auto_class, EncoderDecoderModel, decoder_sizes)


def load_encoder_decoder(folder: Path, finite: bool) -> EncoderDecoderModel:
    """A model directory as `EncoderDecoderModel`. FledgeError as `huggingface_loading.from_pretrained`."""
    model = from_pretrained(folder, finite, SEQ2SEQ)
    assert isinstance(model, EncoderDecoderModel)
    return model


def describe_encoder_decoder(folder: Path) -> ModelCost:
    """Sizes and parameters of a model directory, from its configuration alone."""
    with torch.device("meta"):
        return new_encoder_decoder(folder).cost


def new_encoder_decoder(folder: Path, changes: Mapping[str, Any] = MappingProxyType({})) -> EncoderDecoderModel:
    """A model with new weights (`huggingface_loading.new_model`). The library ties every head of T5; with tie_word_embeddings:
    false in config.json the head is a matrix of its own."""
    library_model = new_model(folder, SEQ2SEQ, changes).causal_lm
    if read_config_json(folder).get("tie_word_embeddings") is False:
        untie(library_model)
    return EncoderDecoderModel(library_model)


def check_encoder_decoder_runtime(runtime: RuntimeConfig) -> None:
    """FledgeError for settings of the recipe's `runtime` that an encoder–decoder cannot follow."""
    check_runtime(runtime)
    if runtime.compile is True:
        raise FledgeError(
            f"an encoder–decoder model is not compiled: {NOT_COMPILED}",
            where="runtime.compile",
            hint="set runtime.compile to auto or false",
        )
    if runtime.parallelism == "fsdp":
        raise FledgeError(
            "the weights of an encoder–decoder model are not sharded",
            where="runtime.parallelism",
            hint="set it to ddp: each process holds the whole model",
        )


def is_encoder_decoder(folder: Path) -> bool:
    """Whether a model directory's config.json describes an encoder–decoder."""
    return read_decoder_start(folder) is not None
