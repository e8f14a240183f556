"""The models of a stage: the one that it starts from, with new weights or those of a directory, and those that it has saved."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.model.adapter_files import with_score
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.new import new_model
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import Recipe, Stage
from fledge.tokenizer import Tokenizer
from fledge.training.start_adapter import merge_start_adapter, start_adapter


def initial_model(recipe: Recipe, tokenizer: Tokenizer, log: Callable[[str], None]) -> LanguageModel:
    """A model with the recipe's sizes, or of the architecture that `model.config` describes; weights from the recipe's seed."""
    if recipe.model.config is not None:
        return new_model(Path(recipe.model.config), tokenizer, recipe.seed, recipe.model.implementation, log)
    model = Decoder(recipe.model, tokenizer.vocab_size)
    model.init_weights(recipe.seed)
    return model


@dataclass(frozen=True, kw_only=True)
class StageModels:
    """The models of a stage. `start`: the model directory that it starts from; None: new weights."""

    recipe: Recipe
    stage: Stage
    tokenizer: Tokenizer
    start: Path | None
    log: Callable[[str], None]

    def initial(self) -> LanguageModel:
        """The model with its initial weights, and with the adapter of the stage; for a reward model, with its head. Raises
        FledgeError if the directory does not hold what the stage needs."""
        if self.start is None:
            model = initial_model(self.recipe, self.tokenizer, self.log)
            self._give_head(model)
            return model
        rows = self.tokenizer.vocab_size if self.stage.adapter is None else 0  # a frozen model cannot get rows
        model = load_model(
            self.start,
            self.recipe.model.implementation,
            purpose="any" if self.stage.trains_reward_model else "language",
            min_vocab_size=rows,
            quantization=self.stage.quantization,
        )
        for note in model.notes:
            self.log(f"note: {note}")
        if self.stage.adapter is None:
            merge_start_adapter(model, folder=self.start, vocab_size=self.tokenizer.vocab_size, log=self.log)
            self._give_head(model)
            return model
        self._give_head(model)
        start_adapter(
            model,
            self.stage.adapter,
            folder=self.start,
            vocab_size=self.tokenizer.vocab_size,
            max_seq_len=self.stage.data.max_seq_len,
            seed=self.recipe.seed,
            log=self.log,
        )
        return model

    def _give_head(self, model: LanguageModel) -> None:
        """Make a reward model of a language model, where the stage trains one. An adapter stays, and has the head too."""
        if self.stage.trains_reward_model and model.score_weight is None:
            model.become_reward_model(self.recipe.seed)
            if model.adapter is not None:
                model.adapter = replace(model.adapter, config=with_score(model.adapter.config))
            self.log("the head for tokens is replaced by a new one that gives a reward")

    def saved(self, folder: Path) -> LanguageModel:
        """A model that the stage has saved."""
        return load_model(
            folder, self.recipe.model.implementation, purpose="any", finite=False, quantization=self.stage.quantization
        )
