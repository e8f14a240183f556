"""Answers of a quickstart model to prompts in natural words: those that were kept apart, and those that development has seen.

    python benchmarks/natural_prompts.py runs/quickstart [--errors]

Prints one JSON object a set: the share of acceptable answers with its 95 % interval, overall and by group.
"""

import argparse
import json

from fledge.generation.loading import load_model_and_tokenizer
from fledge.quickstart.natural_grading import grade_natural_prompts, load_natural_prompts
from fledge.run import resolve_model_path

SETS = {"kept": "prompts.jsonl", "development": "development_prompts.jsonl"}


def main() -> None:
    """Grade the model of a run on both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run, stage, checkpoint or model directory of a quickstart")
    parser.add_argument("--errors", action="store_true", help="print the answers that are not acceptable too")
    options = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(resolve_model_path(options.run))
    for name, file in SETS.items():
        grades = grade_natural_prompts(model, tokenizer, load_natural_prompts(file))
        errors = grades.pop("errors")
        print(json.dumps({"set": name, **grades}, ensure_ascii=False))
        for error in errors if options.errors else ():
            print(json.dumps(error, ensure_ascii=False))


if __name__ == "__main__":
    main()
