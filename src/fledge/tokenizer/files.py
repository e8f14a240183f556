"""The files of a tokenizer: which one a path means, what other formats there are, and reading them safely."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from fledge.errors import FledgeError, first_line
from fledge.run.input_files import check_input_file, hub_name_error

MAX_BYTES = {"tokenizer.json": 2**30}  # of a tokenizer's other files: MAX_OTHER_BYTES
MAX_OTHER_BYTES = 2**26
BYTE_LEVEL_BPE = ("vocab.json", "merges.txt")
GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
IDS_PER_TOKEN, SPARE_IDS = 16, 100_000  # ids may have gaps, but not so many that tables of all ids would be absurd
PROBE = "The 7 quick foxes: (x != y)? 好 \U0001f600"


def read_bytes(path: Path) -> bytes:
    """The content of one file of a tokenizer. Raises FledgeError if it is not a regular file of a sensible size, if it may not
    be read, or if it is a Git LFS pointer."""
    check_input_file(path)
    try:
        size, limit = path.stat().st_size, MAX_BYTES.get(path.name, MAX_OTHER_BYTES)
        if size > limit:
            raise FledgeError(f"{size:,} bytes are too many for this file: at most {limit:,} are read", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise FledgeError(f"cannot be read: {error.strerror or first_line(error)}", where=str(path)) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file. Raises FledgeError for anything else."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise FledgeError(f"cannot be read as JSON: {first_line(error)}", where=str(path)) from None
    if not isinstance(value, dict):
        raise FledgeError(f"expected a JSON object, not {type(value).__name__}", where=str(path))
    return value


def read_core(path: Path, key: str) -> tuple[Core, Path]:
    """The tokenizer of the library in a folder or file, and the folder that it comes from.

    A folder has tokenizer.json, or vocab.json and merges.txt of GPT-2. `key`: recipe key that named the path, for hints.
    Raises FledgeError that says what the path holds instead and how to convert it.
    """
    try:
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            return _core_of_json(file), file.parent
        if path.is_dir() and all((path / name).is_file() for name in BYTE_LEVEL_BPE):
            return _core_of_gpt2(path), path
        raise _not_a_tokenizer(path, key)
    except PermissionError:
        raise FledgeError("permission denied: this user may not read it", where=str(path)) from None


def _core_of_json(file: Path) -> Core:
    content = read_bytes(file)
    if problem := _other_format(file, content):
        raise problem
    try:
        text = content.decode()
        core = Core.from_str(text)
    except UnicodeDecodeError as error:
        raise FledgeError(f"not a readable tokenizer.json: it is not UTF-8 text ({error.reason})", where=str(file)) from None
    except BaseException as error:
        raise FledgeError(f"not a readable tokenizer.json: {_problem(error)}", where=str(file)) from None
    _check_core(core, file)
    return core


def _problem(error: BaseException) -> str:
    """The message of an error of the library, which raises bare Exception, and panics that are no Exception. What interrupts
    the program is raised again."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error
    return first_line(error) if isinstance(error, Exception) else f"the library failed: {str(error)[:200]}"


def _check_core(core: Core, file: Path) -> None:
    """Raise FledgeError for ids that occur twice or leave large gaps, and for a tokenizer that cannot encode every text."""
    ids = core.get_vocab(with_added_tokens=True)
    largest = max(ids, key=ids.__getitem__, default=None)
    if largest is None:
        raise FledgeError("this tokenizer has no tokens", where=str(file))
    if ids[largest] > IDS_PER_TOKEN * len(ids) + SPARE_IDS:
        what = f"the token {largest[:40]!r} has the id {ids[largest]:,}, although there are only {len(ids):,} tokens"
        raise FledgeError(what, where=str(file))
    if len(set(ids.values())) < len(ids):
        raise FledgeError("several tokens have the same id", where=str(file))
    try:
        core.encode(PROBE)
    except BaseException as error:
        raise FledgeError(f"this tokenizer cannot encode every text: {_problem(error)}", where=str(file)) from None


# -- other formats --------------------------------------------------------------------------------------------------------


def _core_of_gpt2(folder: Path) -> Core:
    """GPT-2's vocab.json and merges.txt as the same tokenizer that transformers makes of them."""
    config = read_object(folder / "tokenizer_config.json")
    class_name = config.get("tokenizer_class", GPT2_CLASSES[0])
    if class_name not in GPT2_CLASSES:
        raise FledgeError(f"vocab.json and merges.txt of a {class_name}: how it splits words is not in these files",
                          where=str(folder), hint=_conversion(folder))  # fmt: skip
    for name in BYTE_LEVEL_BPE:
        read_bytes(folder / name)
    try:
        core = Core(models.BPE.from_file(*(str(folder / name) for name in BYTE_LEVEL_BPE)))
    except BaseException as error:
        raise FledgeError(f"not a readable vocab.json with merges.txt: {_problem(error)}", where=str(folder)) from None
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    added = read_object(folder / "added_tokens.json")
    core.add_tokens([AddedToken(text, normalized=False) for text in sorted(added, key=lambda text: str(added[text]))])
    if core.token_to_id("<|endoftext|>") is not None:
        core.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    _check_core(core, folder / BYTE_LEVEL_BPE[0])
    return core


def _conversion(folder: Path) -> str:
    return (
        f'convert it once (pip install transformers sentencepiece tiktoken protobuf): python -c "from transformers import '
        f"AutoTokenizer; AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _other_format(file: Path, content: bytes) -> FledgeError | None:
    """The error for a file that is no tokenizer.json; None if it may be one."""
    if file.suffix == ".model":
        return FledgeError("this is a SentencePiece model", where=str(file), hint=_conversion(file.parent))
    if file.suffix == ".tiktoken":
        return FledgeError("this is a vocabulary of tiktoken", where=str(file), hint=_conversion(file.parent))
    if file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf"):
        return FledgeError("these are weights, not a tokenizer", where=str(file), hint="name the folder that they are in")
    if content.lstrip()[:1] != b"{":
        return FledgeError("not a readable tokenizer.json: it does not begin like a JSON object", where=str(file))
    return None


def _not_a_tokenizer(path: Path, key: str) -> FledgeError:
    """The error for a path without a tokenizer: what is there instead, and the way on."""
    name, check = str(path), f"check {key}" if key else "check the path"
    if not path.exists():
        return hub_name_error(path, key or None) or FledgeError("there is no such file or folder", where=name, hint=check)
    found: dict[str, str] = {
        "tokenizer.model": "a SentencePiece model (tokenizer.model)",
        "spiece.model": "a SentencePiece model (spiece.model)",
        "sentencepiece.bpe.model": "a SentencePiece model (sentencepiece.bpe.model)",
        "vocab.txt": "a WordPiece vocabulary (vocab.txt), as BERT has",
    }
    kinds = [text for file, text in found.items() if (path / file).exists()]
    kinds += [f"a vocabulary of tiktoken ({file.name})" for file in sorted(path.glob("*.tiktoken"))]
    if kinds:
        return FledgeError(f"there is no tokenizer.json here, but {kinds[0]}", where=name, hint=_conversion(path))
    if (path / "tokenizer" / "tokenizer.json").exists():
        return FledgeError("there is no tokenizer.json here", where=name, hint=f"there is one in {path / 'tokenizer'}")
    if (path / "config.json").exists():
        hint = "set tokenizer.path to the folder of the tokenizer that this model was trained with"
        return FledgeError("this model has no tokenizer.json", where=name, hint=hint)
    return FledgeError("there is no tokenizer.json here", where=name, hint=check)
