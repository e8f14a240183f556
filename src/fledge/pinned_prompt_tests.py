"""The prompt tests of a run: a stage that has begun goes on with the cases that it began with."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fledge.errors import FledgeError
from fledge.evaluate.prompt_tests import Case, load_cases, parse_cases, read_cases_text
from fledge.recipe import Recipe
from fledge.run import RunDirectory, write_text


class PinnedPromptTests:
    """The prompt tests of the stages, each with a copy of its file in the directory of the stage. `cases`: by stage."""

    def __init__(self, recipe: Recipe, directory: RunDirectory, log: Callable[[str], None]) -> None:
        self.recipe, self.directory, self.log = recipe, directory, log
        self.cases: dict[str, list[Case]] = {}
        self._to_pin: dict[Path, str] = {}

    def load(self, names: Iterable[str]) -> None:
        """Load the cases of these stages: the copy of a stage that has begun, else the file that the recipe names. Raises
        FledgeError for a file that is missing or wrong."""
        for name in names:
            config, copy = self.recipe.stages[name].prompt_tests, self.directory.stage(name).prompt_test_cases
            if config is None:
                continue
            file = Path(config.prompts)
            if copy.exists() and self.directory.stage(name).has_begun():
                text = read_cases_text(copy)
                self._tell_change(name, file, text)
                self.cases[name] = parse_cases(text, copy)
                continue
            text = read_cases_text(file)
            self.cases[name], self._to_pin[copy] = parse_cases(text, file), text

    def _tell_change(self, name: str, file: Path, pinned: str) -> None:
        try:
            if read_cases_text(file) == pinned:
                return
            state = "changed since"
        except FledgeError as error:
            state = f"now: {error.what}"
        self.log(f"note: {name} has begun and goes on with the prompt tests that it began with; {state}: {file}")

    def pin(self) -> None:
        """Write the copies of the files that were read for stages that have not begun."""
        for copy, text in self._to_pin.items():
            write_text(copy, text)

    def load_pinned(self, names: Iterable[str]) -> None:
        """Load the cases of these stages from their copies, as the main process has written them."""
        tested = [name for name in names if self.recipe.stages[name].prompt_tests is not None]
        self.cases = {name: load_cases(self.directory.stage(name).prompt_test_cases) for name in tested}
