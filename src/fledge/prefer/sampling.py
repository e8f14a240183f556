"""`fledge prefer sample`: several answers of a model to each prompt, at several temperatures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from fledge.data.parsing.left_out import Counts
from fledge.data.reading.records import is_among
from fledge.errors import FledgeError
from fledge.generation import SamplingParams, SwitchableEngine, find_adapters, load_engine
from fledge.model.adapter_files import WEIGHTS, is_adapter
from fledge.model.loading import base_directory
from fledge.model.locate import locate_model
from fledge.model.weight_files import weights_hash
from fledge.prefer.answers import ANSWERS, Draw, PromptAnswers, answer_of, as_line, merged
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.prompts import FoundPrompt, read_prompts
from fledge.run import Console, Log
from fledge.run.file_hash import hash_files
from fledge.tokenizer.message import TemplateError

CHUNK_ANSWERS = 256  # answers that are drawn and written together: what a kill can lose
TEMPERATURES = (0.3, 0.7, 1.0)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """How answers are drawn: `n` for each prompt; the one at place i with temperature i modulo their number; the rest as in
    `SamplingParams`. Raises FledgeError for values that give no different answers, or are out of bounds."""

    n: int = 4
    temperatures: tuple[float, ...] = TEMPERATURES
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise FledgeError(f"must be 1 or more, not {self.n}", where="n")
        if not self.temperatures:
            raise FledgeError("name at least one", where="temperatures")
        for place in range(len(self.temperatures)):
            try:
                self.params("", place)
            except FledgeError as error:
                raise FledgeError(error.what, where="temperatures" if error.where == "temperature" else error.where) from None
        used = [self.temperature(place) for place in range(self.n)]
        if used.count(0.0) > 1:
            raise FledgeError(
                f"{used.count(0.0)} of {self.n} answers would be drawn at temperature 0, which gives one and the same answer",
                where="temperatures",
                hint="write at most one 0 among as many temperatures as answers, such as 0,0.7,1.0,1.2",
            )

    def temperature(self, place: int) -> float:
        """The temperature of the answer at a place."""
        return self.temperatures[place % len(self.temperatures)]

    def params(self, prompt: str, place: int) -> SamplingParams:
        """How the answer at a place is drawn. `prompt`: an id; the draws depend on it and on no other prompt."""
        return SamplingParams(
            temperature=self.temperature(place),
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            max_new_tokens=self.max_new_tokens,
            seed=xxhash.xxh3_64_intdigest(f"{self.seed}/{prompt}".encode()) % 2**63,
        )

    def as_dict(self) -> Line:
        """The settings as JSON values."""
        return {**asdict(self), "temperatures": list(self.temperatures)}


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt and its tokens."""

    found: FoundPrompt
    tokens: list[int]


def sample(
    model: str,
    prompts: str,
    out: str,
    settings: SampleSettings,
    *,
    adapter: str | None = None,
    system: str | None = None,
    limit: int | None = None,
    console: Console,
) -> list[str]:
    """Draw the answers of a model to the prompts of a file or folder and write them to `out`; an interrupted call goes on, and
    ends with equal bytes. Returns a summary in lines.

    `limit`: most prompts. Raises FledgeError for a model without a chat template, prompts of which none can be asked, and an
    `out` that was made with other settings."""
    if is_among(Path(out).expanduser(), prompts):
        raise FledgeError(f"'{out}' would be read as prompts, for it is among '{prompts}'", where="--out",
                          hint="write the answers somewhere else")  # fmt: skip
    folder = locate_model(model, console.log)
    adapters = find_adapters([] if adapter is None else [adapter])
    found = read_prompts(prompts, system, limit, console.log)
    loaded = load_engine(folder, console.log, adapters=adapters)
    require_template(loaded, model)
    asked = _encoded(loaded, found, settings, console.log, prompts)
    name = model if adapter is None else f"{model} with {adapter}"
    header = {
        "about": {"model": name, "prompts": prompts},
        "model": {"weights": model_weights(folder, list(adapters.values())), "tokenizer": loaded.tokenizer.fingerprint()},
        "sampling": settings.as_dict(),
        "prompts": {"count": len(asked), "hash": _hash_of(asked)},
    }
    with JournalWriter.open(Path(out).expanduser(), ANSWERS, header, console.log) as writer:
        size = max(1, CHUNK_ANSWERS // settings.n)
        if done := writer.keep_chunks(size, len(asked)):
            console.log(f"{out}: goes on behind {done:,} of {len(asked):,} prompts")
        with console.progress("prompts answered", len(asked), done) as progress:
            for start in range(done, len(asked), size):
                writer.append([as_line(one) for one in _answered(loaded, asked[start : start + size], settings, name, header)])
                progress.update(len(writer.lines))
        return _summary(out, writer.lines, settings)


def require_template(loaded: SwitchableEngine, model: str) -> None:
    """FledgeError for a model that continues texts and answers nothing."""
    if loaded.tokenizer.template.name == "none":
        raise FledgeError(
            "this model has no chat template: it continues texts", where=model,
            hint="fine-tune it on conversations first, or name a model that answers",
        )  # fmt: skip


def model_weights(folder: Path, adapters: Sequence[Path]) -> str:
    """A hash of all weights that answer: those of the base and of an adapter."""
    if is_adapter(folder):
        adapters, folder = [*adapters[:1], *([] if adapters else [folder])], base_directory(folder)
    return "-".join([weights_hash(folder), *(hash_files(one / WEIGHTS) for one in adapters)])


def _hash_of(asked: Sequence[AskedPrompt]) -> str:
    """A hash of the prompts, their order and their references."""
    digest = xxhash.xxh3_64()
    for one in asked:
        digest.update(f"{one.found.id} {one.found.prompt.reference!r}\n".encode())
    return digest.hexdigest()


def _encoded(
    loaded: SwitchableEngine, found: Sequence[FoundPrompt], settings: SampleSettings, log: Log, path: str
) -> list[AskedPrompt]:
    """The prompts that leave room for an answer; the others are told."""
    room, left_out, asked, short = loaded.engine.max_positions, Counts(), list[AskedPrompt](), Counts()
    for one in found:
        try:
            tokens = loaded.tokenizer.encode_prompt(one.prompt.turns, one.prompt.tools)
        except TemplateError as error:
            left_out.add(error.reason, one.where, error.what)
            continue
        if len(tokens) >= room:
            left_out.add(f"too long: the model has {room:,} positions", one.where, f"{len(tokens):,} tokens")
            continue
        if len(tokens) + settings.max_new_tokens > room:
            short.add("leaves less room for an answer than max_new_tokens", one.where, f"{room - len(tokens):,} tokens")
        asked.append(AskedPrompt(one, tokens))
    if not asked:
        raise FledgeError(f"no prompt can be asked: {'; '.join(left_out.lines())}", where=path)
    for problem in left_out.lines():
        log(f"not asked: {problem}")
    for problem in short.lines():
        log(f"note: {problem}")
    return asked


def _answered(
    loaded: SwitchableEngine, asked: Sequence[AskedPrompt], settings: SampleSettings, name: str, header: Line
) -> list[PromptAnswers]:
    """The answers to some prompts, which are drawn together."""
    places = range(settings.n)
    completions = loaded.engine.generate(
        [one.tokens for one in asked for _ in places],
        [settings.params(one.found.id, place) for one in asked for place in places],
        sample_indices=[place for _ in asked for place in places],
        where=[one.found.where for one in asked for _ in places],
    )
    answered = []
    for number, one in enumerate(asked):
        own = completions[number * settings.n : (number + 1) * settings.n]
        draws = [Draw(name, header["model"]["weights"], place, settings.temperature(place)) for place in places]
        answered.append(
            PromptAnswers(
                id=one.found.id,
                prompt=one.found.prompt,
                rendered=loaded.tokenizer.decode(one.tokens, skip_special=True),
                where=one.found.where,
                answers=merged(answer_of(each, draw, loaded.tokenizer) for each, draw in zip(own, draws, strict=True)),
            )
        )
    return answered


def _summary(out: str, lines: Sequence[Line], settings: SampleSettings) -> list[str]:
    prompts, answers = len(lines), [answer for line in lines for answer in line[ANSWERS]]
    total = prompts * settings.n
    alone = sum(len(line[ANSWERS]) == 1 for line in lines)
    cut = sum(len(answer["draws"]) for answer in answers if answer["finish_reason"] != "stop")
    empty = sum(len(answer["draws"]) for answer in answers if not answer["text"])
    reference = sum("reference" in line for line in lines)
    summary = [
        f"{out}: {prompts:,} prompts × {settings.n} answers, {len(answers) / prompts:.2f} different ones a prompt",
        f"{alone:,} prompts ({alone / prompts:.1%}) whose answers are all equal: there is nothing to rank",
        f"{cut:,} answers ({cut / total:.1%}) are cut before their end, {empty:,} are empty",
        f"{reference:,} prompts have a reference answer",
    ]
    right = Counter[float]()
    drawn = Counter[float]()
    for line in lines:
        for answer in line[ANSWERS]:
            for draw in answer["draws"] if "reference" in line else ():
                drawn[draw["temperature"]] += 1
                right[draw["temperature"]] += answer["text"] == line["reference"].strip() != ""
    if drawn:
        shares = ", ".join(f"{right[one] / drawn[one]:.1%} at {one:g}" for one in sorted(drawn))
        summary.append(f"answers with the text of the reference, by temperature, of prompts that have one: {shares}")
    return summary
