"""The records that the modules of the world exchange."""

from dataclasses import asdict, dataclass, field

LANGS = ("zh", "en")
TRAIN = "train"  # training combination, training phrasing
VALIDATION = "validation"  # held-out combination, training phrasing
QUESTION = "question"  # held-out combination, held-out phrasing


@dataclass(frozen=True)
class Sizes:
    """The number of rows of each file."""

    pretrain: int = 14_000
    sft: int = 24_000
    preference: int = 2_500
    validation: int = 300
    questions: int = 500


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """One question template. Its index decides which bad habit it provokes."""

    group: str
    lang: str
    index: int
    size: int
    text: str
    held_out: bool

    @property
    def name(self) -> str:
        """A readable name, used in the details of questions and in habit tables."""
        return f"{self.group}/{self.lang}/{'held' if self.held_out else 'train'}{self.index}"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clean conversation, before a habit is added: prompt, key of the split, reference answer."""

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
    """A scored prompt, whose last message is a user turn."""

    task: str
    messages: tuple[dict[str, str], ...]
    reference: str
    rule: str
    details: dict

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1]["content"]

    def row(self) -> dict:
        """The question as a row of questions.jsonl."""
        return asdict(self)


def question_of(item: Item) -> Question:
    """The item as a scored question. Its details hold what the scoring rules need."""
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
