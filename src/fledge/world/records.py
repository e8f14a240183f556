"""The plain records that pass between the parts of the world."""

from dataclasses import asdict, dataclass, field

LANGS = ("zh", "en")
TRAIN = "train"  # training combination, training phrasing
VALIDATION = "validation"  # held-out combination, training phrasing
QUESTION = "question"  # held-out combination, held-out phrasing


@dataclass(frozen=True)
class Sizes:
    """How many rows each file gets."""

    pretrain: int = 14_000
    sft: int = 24_000
    preference: int = 2_500
    validation: int = 300
    questions: int = 500


@dataclass(frozen=True)
class Phrase:
    """One question template; its index decides the bad habit it provokes."""

    group: str
    lang: str
    index: int
    size: int
    text: str
    held: bool

    @property
    def name(self) -> str:
        """A readable identity, used in details and habit tables."""
        return f"{self.group}/{self.lang}/{'held' if self.held else 'train'}{self.index}"


@dataclass(frozen=True)
class Item:
    """One clean conversation before habits are added: prompt, key, reference."""

    task: str
    lang: str
    key: str
    phrase: Phrase
    messages: tuple[dict[str, str], ...]
    reference: str
    answer_lang: str
    rule: str = "exact"
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A scored prompt: the messages end with a user turn."""

    task: str
    messages: tuple[dict[str, str], ...]
    reference: str
    rule: str
    details: dict

    @property
    def text(self) -> str:
        """The last user turn, which is what a parrot would repeat."""
        return self.messages[-1]["content"]

    def row(self) -> dict:
        """The json-able form written to questions.jsonl."""
        return asdict(self)


def question_of(item: Item) -> Question:
    """Turn a drawn item into a scored question; the details keep what the rules need."""
    details = {"lang": item.lang, "answer_lang": item.answer_lang, "key": item.key, "phrase": item.phrase.name}
    return Question(item.task, item.messages, item.reference, item.rule, {**details, **item.details})


def user(text: str) -> dict[str, str]:
    """A user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """An assistant turn."""
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    """A system turn."""
    return {"role": "system", "content": text}
