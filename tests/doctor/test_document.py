"""A document of a person about a run of another trainer: log lines, settings, guesses."""

from pathlib import Path

import pytest

from fledge.doctor.examination import Examination
from fledge.doctor.examine import examine
from fledge.doctor.known_trainers import WITHOUT_EFFECT
from fledge.doctor.lines import rendered
from fledge.doctor.options import DoctorOptions
from fledge.doctor.schemes import schemes
from fledge.doctor.text import text_of
from fledge.doctor.usual_guesses import usual_guesses
from tests.doctor.made_up import FAULTY, examination

DOCUMENT = """# Why does it not learn?

```
epoch:4, step:500-1666, loss: 4.5-5.2
epoch:4, avg_loss: 4.771
epoch:4, cur_bleu4: 0.0494
```

Our settings, with 80000条 / (24 * 2 * 4) ≈ 417 steps an epoch:

```python
learn_rate: float = 1e-5
div_factor: int = 50
warmup_steps: int = 100
batch_size_per_gpu: int = 24
gradient_accumulation_steps: int = 4
epochs: int = 5
max_seq_len: int = 256
finetune_from_ckp_file = PROJECT_ROOT + '/model_save/chat_small_t5.best.bin'
```

```bash
accelerate launch --multi_gpu --num_processes 2 ./train.py train --is_finetune=True
```
"""


GIVEN = {"hidden_size": "768", "kind": "sft", "initial": "trained"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("document") / "notes.md"
    file.write_text(DOCUMENT, encoding="utf-8")
    return file


def check(found: list[Examination]) -> None:
    """What is true of such a run, whoever wrote about it."""
    (one,) = found
    settings = one.case.settings
    assert (settings.learning_rate, settings.epochs, settings.batch_rows, settings.warmup_steps) == (1e-5, 5, 192, 100)
    assert one.case.log.series["train/loss"].steps[-1] == pytest.approx(1666, abs=2)  # updates, and not micro-batches
    assert one.trainer is not None and one.trainer.name == "ChatLM-mini-Chinese"
    assert settings.vocab_size == 29298
    first = one.diagnoses.found[0]
    assert first.cause == WITHOUT_EFFECT and first.sign.finding.confidence == "likely" and not one.is_healthy
    verdicts = {guess.change: guess.verdict for guess in usual_guesses(one)}
    assert verdicts == {
        "a higher learning rate": "refuted",
        "a longer warm-up": "refuted",
        "a smaller batch": "not supported",
        "more epochs": "cannot tell",
    }
    text = " ".join(" ".join(rendered(text_of(found), 100)).split())
    assert "4.77 nats/token, is a perplexity of 118" in text and "ln(29,298) = 10.29" in text
    assert "data/unigram_entropy would decide" in text
    assert "learn_rate × div_factor = 0.0005 as the peak, and 1e-05 is where it begins" in text
    assert "BLEU" in text and "decides nothing here" in text
    assert "192 rows are 417 updates an epoch" in text
    assert [scheme.letter for scheme in schemes(one)] == ["A", "B", "C"]


def test_a_document_about_a_run_is_read_and_its_guesses_judged(document: Path) -> None:
    check(examine(document, DoctorOptions(depth="curves")))


def test_another_trainer_of_the_same_settings_is_not_taken_for_the_known_one(tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text(DOCUMENT.replace("chat_small_t5", "my_model"), encoding="utf-8")
    (unsure,) = examine(file, DoctorOptions(depth="curves", given=GIVEN))
    assert {guess.change: guess.verdict for guess in usual_guesses(unsure)}["a higher learning rate"] == "cannot tell"
    (one,) = examine(file, DoctorOptions(depth="curves", given={**GIVEN, "method": "full"}))
    assert one.trainer is None and one.case.settings.vocab_size is None
    verdicts = {guess.change: guess.verdict for guess in usual_guesses(one)}
    assert verdicts["a higher learning rate"] == "supported" and verdicts["a longer warm-up"] == "not supported"


@pytest.mark.parametrize(
    ("z", "error", "verdict", "said"),
    [
        (-0.2, 0.09, "not supported", "its noise hides a fall of less than 0.18 nats"),
        (-0.2, 0.01, "refuted", "more of the same changes nothing"),
        (9.0, 0.09, "refuted", "the loss rises"),
        (-9.0, 0.09, "supported", "the loss still falls"),
    ],
)
def test_more_epochs_are_refuted_only_where_the_log_would_show_a_fall(z: float, error: float, verdict: str, said: str) -> None:
    one = examination(FAULTY)
    figures = {"late_z": z, "late_fall": -0.01 * z, "last_loss": 7.3, "level_error": error}
    one.case.add("curves", {f"curve/{name}": value for name, value in figures.items()})
    (guess,) = [guess for guess in usual_guesses(one) if guess.change == "more epochs"]
    assert guess.verdict == verdict and said in guess.reason


def test_the_first_seed(shared_data: Path) -> None:
    seeds = sorted((shared_data.parent / "seeds").glob("001*.txt"))
    if not seeds:
        pytest.skip("the document is not beside the data")
    check(examine(seeds[0], DoctorOptions(depth="curves")))
