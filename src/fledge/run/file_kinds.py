"""What a file or a folder is that a user names where rows or a model are wanted, and what to do with it."""

from pathlib import Path
from typing import NamedTuple


class FileKind(NamedTuple):
    """What a file is, in words, and what to do with it where rows are wanted."""

    description: str
    way: str


SPREADSHEET = FileKind("a spreadsheet", "save it as CSV in UTF-8 in the program that opens it")
DOCUMENT = FileKind("a document of a word processor", "save it as plain text in UTF-8, with a name that ends in .txt")
PDF = FileKind("a PDF document", "extract its text into a file that ends in .txt")
ARCHIVE = FileKind("an archive", "extract it and name the file of rows inside")
PICTURE = FileKind("a picture, sound or film", "rows are text: name a file of text")
WEIGHTS = FileKind(
    "the weights of a model", "a model is named by its folder, in init_from or model.path; name a file of rows here"
)
PYTHON_OBJECT = FileKind("an object of Python or NumPy", "write its rows as JSON lines, one object a line, in a file .jsonl")
DATABASE = FileKind("a database", "export its rows as CSV or as JSON lines")
TEXT = FileKind("a text file with an ending that does not say how it holds rows", "copy it to a name that ends in .txt")
CONFIGURATION = FileKind("a configuration", "name a file of rows")

BY_EXTENSION: dict[str, FileKind] = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".et"), SPREADSHEET),
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".wps", ".pages", ".epub", ".mobi"), DOCUMENT),
    ".pdf": PDF,
    **dict.fromkeys((".zip", ".tar", ".tgz", ".rar", ".7z", ".bz2", ".xz", ".lz4"), ARCHIVE),
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".svg", ".mp3", ".wav", ".flac", ".mp4", ".avi"), PICTURE
    ),
    **dict.fromkeys((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5"), WEIGHTS),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".npz", ".joblib"), PYTHON_OBJECT),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb"), DATABASE),
    **dict.fromkeys((".md", ".markdown", ".rst", ".log", ".text", ".html", ".htm", ".xml", ".tex", ".srt", ".vtt"), TEXT),
    **dict.fromkeys((".py", ".c", ".cpp", ".h", ".java", ".js", ".ts", ".go", ".rs", ".sh", ".ipynb"), TEXT),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".ini", ".cfg"), CONFIGURATION),
}
BY_SIGNATURE: dict[bytes, FileKind] = {
    b"\x1f\x8b": FileKind("gzip data", "rename it to end in .gz"),
    b"\x28\xb5\x2f\xfd": FileKind("Zstandard data", "rename it to end in .zst"),
    b"PAR1\x15": FileKind("Parquet data", "rename it to end in .parquet"),
    b"PK\x03\x04": FileKind(
        "a ZIP archive (spreadsheets and word processors write such files too)",
        "extract it; or save a spreadsheet as CSV in UTF-8, a document as plain text",
    ),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": FileKind(
        "a file of an old office program", "save it there as CSV or plain text in UTF-8"
    ),
    b"%PDF-": PDF,
    b"{\\rtf": DOCUMENT,
    b"Rar!\x1a\x07": ARCHIVE,
    b"7z\xbc\xaf\x27\x1c": ARCHIVE,
    b"BZh": ARCHIVE,
    b"\xfd7zXZ\x00": ARCHIVE,
    b"\x89PNG\r\n": PICTURE,
    b"\xff\xd8\xff": PICTURE,
    b"GIF8": PICTURE,
    b"GGUF": WEIGHTS,
    b"\x93NUMPY": PYTHON_OBJECT,
    b"SQLite format 3\x00": DATABASE,
}  # how files of binary formats begin


def kind_of_name(file: Path) -> FileKind | None:
    """What a file is by the ending of its name; None for other endings."""
    endings = [ending.lower() for ending in file.suffixes[-2:]]
    return next((BY_EXTENSION[ending] for ending in reversed(endings) if ending in BY_EXTENSION), None)


def kind_of_content(head: bytes) -> FileKind | None:
    """What a file is by its first bytes; None where they show no binary format."""
    return next((kind for signature, kind in BY_SIGNATURE.items() if head.startswith(signature)), None)


FOLDERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a run", ("recipe.yaml", "environment.json")),
    ("a stage of a run", ("plan.json", "events.jsonl")),
    ("a checkpoint", ("model/config.json",)),
    ("a model", ("config.json", "*.safetensors")),
    ("a model", ("config.json", "pytorch_model*.bin")),
    ("a LoRA adapter", ("adapter_config.json",)),
)
"""What a folder is, and names that it holds then."""


def kind_of_folder(folder: Path) -> str | None:
    """What a folder is that holds no rows; None for all others."""
    return next((kind for kind, names in FOLDERS if all(any(folder.glob(name)) for name in names)), None)


PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def pickle_hint(file: Path) -> str:
    """How to convert pickled weights."""
    folder, target = file.parent, file.with_name("model.safetensors")
    if file.suffix == ".bin" and (folder / "config.json").exists():
        return (
            'convert them: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    return (
        f"convert them: python -c \"import torch, safetensors.torch as s; w = torch.load('{file}', weights_only=True); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, '{target}')\"; a model also needs a config.json, and the names "
        "of tensors that transformers has"
    )


def model_file_hint(file: Path) -> str:
    """What to do with a file where the folder of a model is wanted."""
    if file.suffix in PICKLES and not any(file.parent.glob("*.safetensors")):
        return f"pickled weights can run code and are not loaded; {pickle_hint(file)}"
    if kind_of_name(file) is not WEIGHTS:
        return "name a folder with config.json and model.safetensors, or a run"
    if not (file.parent / "config.json").exists():
        return "weights alone are no model: name a folder that also has config.json and the tokenizer"
    return f"name its folder: {file.parent}"
