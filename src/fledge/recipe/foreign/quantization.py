"""Keys of other trainers about frozen weights in 4 bits (QLoRA), which go to the section `quantization` of a stage."""

from collections.abc import Mapping
from typing import Any

from fledge.recipe.foreign.adapters import ADAPTERS, LORA_BY_DEFAULT, PEFT, trainer_of, trains_adapter
from fledge.recipe.foreign.answer import Answer, Context, Rule, Table, boolean, for_keys, integer, unsupported, word

NO_OTHER = (
    "frozen weights are kept in 4 bits by bitsandbytes (quantization: {quant_type: nf4}) or in the precision of the products"
)
NO_ADAPTER = "weights in 4 bits cannot be trained: they need an adapter beside them"
OFF = Answer(note="leave it out; it is off")
DEFAULTS = {  # of a trainer: the levels, and whether the scales are quantized too
    "LLaMA-Factory": ("nf4", True),
    "axolotl": ("nf4", True),
    "TRL": ("nf4", False),
    PEFT: ("fp4", False),  # BitsAndBytesConfig of transformers
}
TYPES = ("bnb_4bit_quant_type", "quantization_type")
DOUBLE = ("bnb_4bit_use_double_quant", "double_quantization", "use_bnb_nested_quant")
PRECISIONS = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32"}
LITGPT = {"bnb.nf4": ("nf4", False), "bnb.nf4-dq": ("nf4", True), "bnb.fp4": ("fp4", False), "bnb.fp4-dq": ("fp4", True)}


def _asks_for_4_bits(context: Context) -> bool:
    return boolean(context.siblings.get("load_in_4bit")) is True or context.integer(("quantization_bit",)) == 4


def _settings(quant_type: Any, double: Any) -> tuple[tuple[str, Any], ...]:
    return (("quantization.quant_type", quant_type), ("quantization.use_double_quant", double))


def _in_4_bits(context: Context) -> Answer:
    """The settings of a configuration that asks for 4 bits; what it does not say is its trainer's default."""
    trainer = trainer_of(context)
    if not trains_adapter(context) and (trainer not in LORA_BY_DEFAULT or context.has(ADAPTERS)):
        return Answer(note=NO_ADAPTER)
    quant_type, double = DEFAULTS.get(trainer, DEFAULTS[PEFT])
    missing = [name for name, keys in (("quant_type", TYPES), ("use_double_quant", DOUBLE)) if not context.has(keys)]
    note = f"{' and '.join(missing)}: {trainer}'s default{'s' * (len(missing) > 1)}" if missing else ""
    said_type, said_double = context.first_value(TYPES), boolean(context.first_value(DOUBLE))
    return Answer(_settings(word(said_type or quant_type), double if said_double is None else said_double), note)


def _switch(value: Any, context: Context) -> Answer:
    return _in_4_bits(context) if boolean(value) else OFF


def _bits(value: Any, context: Context) -> Answer:
    return _in_4_bits(context) if integer(value) == 4 else Answer(note=NO_OTHER)


def _method(value: Any, context: Context) -> Answer:
    if word(value) in ("bnb", "bitsandbytes"):
        return Answer(note="leave it out; it is bitsandbytes")
    return Answer(note=NO_OTHER)


def _litgpt(value: Any, context: Context) -> Answer:
    if word(value) in ("", "none", "no"):
        return OFF
    if word(value) not in LITGPT:
        return Answer(note=NO_OTHER)
    return Answer(_settings(*LITGPT[word(value)])) if trains_adapter(context) else Answer(note=NO_ADAPTER)


def _section(value: Any, context: Context) -> Answer:
    """The answer to the settings of BitsAndBytesConfig as one mapping."""
    if not isinstance(value, Mapping):
        return Answer(note=NO_OTHER)
    inner = {str(name).lower(): item for name, item in value.items()}
    if not boolean(inner.get("load_in_4bit")):
        return Answer(note=NO_OTHER)
    asked = _in_4_bits(Context({**context.siblings, **inner}))
    computed = [_compute(inner[key], context) for key in COMPUTE if key in inner]
    left = [name for name in inner if name not in ("load_in_4bit", "quant_method", *TYPES, *DOUBLE, *COMPUTE)]
    notes = (asked.note, *(one.note for one in computed), f"without {', '.join(left)}" if left else "")
    settings = (*asked.settings, *(pair for one in computed for pair in one.settings))
    return Answer(settings, "; ".join(text for text in notes if text))


def _detail(value: Any, context: Context) -> Answer:
    """The answer to a setting that the answer to the switch already holds."""
    if _asks_for_4_bits(context):
        return Answer(note="it is part of the section quantization")
    return Answer(note="leave it out; weights are in 4 bits where load_in_4bit or quantization_bit asks for it")


def _compute(value: Any, context: Context) -> Answer:
    """The answer to the dtype of the products, which is that of the whole run."""
    precision = PRECISIONS.get(word(value).removeprefix("torch."))
    if precision is None or context.has(("bf16", "fp16")):
        return Answer(note="leave it out; products are computed in runtime.precision")
    return Answer((("runtime.precision", precision),))


COMPUTE = ("bnb_4bit_compute_dtype",)
QUANTIZATION_KEYS: Table = {
    "load_in_4bit": _switch,
    "quantization_bit": _bits,
    "quantization_method": _method,
    "quantize": _litgpt,
    "quantization_config": _section,
    **{name: _detail for name in (*TYPES, *DOUBLE)},
    **{name: _compute for name in COMPUTE},
    **for_keys("load_in_8bit quantization gptq fp8 bnb_4bit_quant_storage", unsupported(NO_OTHER)),
}
QUANTIZATION_PREFIXES: tuple[tuple[str, Rule], ...] = tuple(
    (prefix, unsupported(NO_OTHER)) for prefix in ("bnb_4bit_", "quantization_", "fp8_")
)
