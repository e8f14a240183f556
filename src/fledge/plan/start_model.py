"""Whether the model that a stage starts from fits the recipe, the stage and the tokenizer."""

from pathlib import Path

from fledge.data import FORMATS
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.model.loading import ModelDescription
from fledge.recipe import Recipe
from fledge.tokenizer import Tokenizer

NATIVE = Decoder.implementation
OWN_KEYS = {"path", "revision", "config", "implementation"}  # of the recipe's model, which are no sizes


def check_start_model(
    recipe: Recipe, name: str, description: ModelDescription, path: Path, tokenizer: Tokenizer, *, has_weights: bool
) -> None:
    """Raise FledgeError if the model in `path` cannot be trained by the stage `name`. `has_weights`: it is not only a
    configuration, so that its vocabulary counts."""
    description.check_runtime(recipe.runtime)
    _check_sizes(recipe, description, path)
    _check_context(recipe, name, description, path)
    _check_use(recipe, name, description, path, tokenizer)
    unknown = tokenizer.tokens_from(description.cost.vocab_size) if has_weights else []
    if not all(is_added for _, is_added in unknown):
        raise FledgeError(
            f"the model knows {description.cost.vocab_size:,} tokens, the tokenizer has {tokenizer.vocab_size:,}: "
            "it is not the model's own",
            where=str(path),
            hint="set tokenizer.path to the tokenizer that the model was trained with",
        )


def _check_sizes(recipe: Recipe, description: ModelDescription, path: Path) -> None:
    model, config = recipe.model, description.cost.config
    sizes = sorted(model.model_fields_set - OWN_KEYS)
    defaults = type(model)()
    changed = [key for key in sizes if getattr(model, key) not in (getattr(config, key), getattr(defaults, key))]
    if changed:
        key = "model.config" if model.config and not model.path else "model.path"
        raise FledgeError(f"{path} has its own sizes; the recipe also sets {', '.join(changed)}", where="model",
                          hint=f"leave them out, or leave {key} out")  # fmt: skip


def _check_context(recipe: Recipe, name: str, description: ModelDescription, path: Path) -> None:
    context, positions = recipe.stages[name].data.max_seq_len, description.cost.config.max_position_embeddings
    if context > positions:
        raise FledgeError(
            f"max_seq_len {context:,} is longer than the {positions:,} positions (max_position_embeddings) of {path}",
            where=f"stages.{name}.data.max_seq_len",
            hint=f"set data.max_seq_len to at most {positions}",
        )


def _check_use(recipe: Recipe, name: str, description: ModelDescription, path: Path, tokenizer: Tokenizer) -> None:
    """FledgeError if an encoder–decoder would be trained without sources, or a model with the template of the other kind."""
    start = description.decoder_start
    if start is not None and not FORMATS[recipe.stages[name].kind].is_dialogue:
        raise FledgeError(
            f"{path} is an encoder–decoder: it learns answers to sources, and a pretrain stage has neither",
            where=f"stages.{name}.kind",
            hint="use an sft stage on prompts and responses; the span corruption of T5's pretraining is not supported",
        )
    if recipe.stages[name].trains_reward_model and description.implementation != NATIVE:
        raise FledgeError(
            f"transformers computes {path}, and a reward model needs fledge's own decoder",
            where=f"stages.{name}.kind",
            hint="start from a Llama- or Qwen-shaped model that it covers (model.implementation: native says what it lacks)",
        )
    if start is not None and recipe.stages[name].answers_per_example > 1:
        raise FledgeError(
            f"{path} is an encoder–decoder: answers that are drawn cannot be trained there yet",
            where=f"stages.{name}.kind",
            hint="start from a model that decodes only",
        )
    check_template(tokenizer, f"the model in {path}", is_encoder_decoder=start is not None)
    if start is not None and recipe.model.config is None and start != tokenizer.decoder_start:
        raise FledgeError(
            f"the model's decoder starts with token {start}, the chat template writes token {tokenizer.decoder_start} before "
            "answers: the tokenizer is not the model's own",
            where=str(path),
            hint="set tokenizer.path to the tokenizer that the model was trained with",
        )


def check_template(tokenizer: Tokenizer, model: str, *, is_encoder_decoder: bool) -> None:
    """Raise FledgeError for the chat template of the other kind of model. `model`: what it is called in the message."""
    if is_encoder_decoder != (tokenizer.decoder_start is not None):
        kind = "is an encoder–decoder" if is_encoder_decoder else "decodes only"
        raise FledgeError(
            f"{model} {kind}, and the chat template {tokenizer.template.name} is not for such a model",
            where="tokenizer.template",
            hint="set it to seq2seq or auto" if is_encoder_decoder else "set it to auto",
        )
