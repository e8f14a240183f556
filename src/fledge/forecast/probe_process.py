"""The process of a probe: `python -m fledge.forecast.probe_process RECIPE MICRO_STEPS`."""

import json
import sys
from collections.abc import Sequence

from fledge.errors import FledgeError
from fledge.escaping import escaped
from fledge.localization import localized
from fledge.run.code_cache import set_code_cache


def main(arguments: Sequence[str]) -> int:
    """Train the recipe in a file. MICRO_STEPS: JSON, the micro-batches of each stage of the real run, on which it depends
    whether compiling pays. Returns the exit code: 2 for an error that is printed."""
    set_code_cache()
    from fledge.pipeline import Pipeline  # it loads torch, which reads where the cache is
    from fledge.recipe import load_recipe
    from fledge.run import Console

    try:
        Pipeline(load_recipe([arguments[0]]), Console(quiet=True), micro_steps=json.loads(arguments[1])).run()
    except FledgeError as error:
        print(escaped(error.text(localized)), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
