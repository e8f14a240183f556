"""Keys of other trainers about adapters (LoRA and its relatives), which go to the section `adapter` of a stage.

Where such a key is absent, the defaults of that trainer hold in it, not fledge's: they are written into the recipe, and told.
"""

from collections.abc import Mapping
from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Rule,
    Table,
    as_integer,
    as_number,
    boolean,
    for_keys,
    name_list,
    text_list,
    unsupported,
    word,
)
from fledge.recipe.foreign.dialects import detect_trainer
from fledge.recipe.sections.adapter import ALL_LINEAR, AdapterConfig

SWITCHES = name_list("finetuning_type adapter use_peft use_lora peft_type tuner train_method tuning_type sft_type")
RANKS = ("lora_rank", "lora_r", "lora_dim", "r")
ALPHAS, DROPOUTS = ("lora_alpha",), ("lora_dropout",)
TARGETS = ("lora_target", "lora_target_modules", "target_modules")
WHOLE = ("additional_target", "lora_modules_to_save", "modules_to_save")
SECTIONS = ("peft_config", "lora_config", "lora", "peft")
ADAPTERS = (*SWITCHES, *SECTIONS, *RANKS, *ALPHAS, *DROPOUTS, *TARGETS, *WHOLE, "qlora")
LORA = ("lora", "qlora", "dora", "qdora", "rslora", "yes", "true")  # words that switch an adapter on
OFF = ("", "none", "full", "full_finetuning", "full_finetune", "fft", "no", "false")
PARTS = {  # of LitGPT: whether a layer is adapted -> the names of the layers
    "lora_query": ["q_proj"],
    "lora_key": ["k_proj"],
    "lora_value": ["v_proj"],
    "lora_projection": ["o_proj"],
    "lora_mlp": ["gate_proj", "up_proj", "down_proj"],
}
OTHER_ADAPTERS = f"an adapter is LoRA, rsLoRA, DoRA or a prefix; its keys are {', '.join(AdapterConfig.model_fields)}"
NO_ADAPTER = Answer(note="leave it out; no adapter is trained")
PEFT = "PEFT"
QUERY_VALUE = ["q_proj", "v_proj"]  # what PEFT and LitGPT adapt of a Llama unless it is named
DEFAULTS: dict[str, dict[str, Any]] = {  # of a trainer, where they differ from those of fledge
    "LLaMA-Factory": {"r": 8, "lora_alpha": 16},
    "TRL": {"lora_dropout": 0.05, "target_modules": QUERY_VALUE},
    "LitGPT": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": QUERY_VALUE},
    PEFT: {"r": 8, "lora_alpha": 8, "target_modules": QUERY_VALUE},
}
LORA_BY_DEFAULT = {
    name: DEFAULTS[name] for name in ("LLaMA-Factory",)
}  # trainers that train LoRA unless they are told otherwise
GIVEN = {"r": RANKS, "lora_alpha": ALPHAS, "lora_dropout": DROPOUTS, "target_modules": (*TARGETS, "lora_target_linear", *PARTS)}


def is_off(context: Context) -> bool:
    """Whether a configuration says that the whole model is trained: by a switch, or by an empty `adapter` of axolotl."""
    switch = context.first_value(SWITCHES)
    if switch is None:
        return "adapter" in context.siblings
    return word(switch) in OFF


def trains_adapter(context: Context) -> bool:
    """Whether a configuration trains an adapter that fledge has."""
    switch = context.first_value(SWITCHES)
    return not is_off(context) and (word(switch) in LORA or (switch is None and context.has(ADAPTERS)))


def trainer_of(context: Context) -> str:
    """The trainer whose defaults hold."""
    found = detect_trainer(list(context.siblings))
    if found in DEFAULTS or found == "axolotl":
        return found
    if context.has(("lora_rank", "lora_target", "finetuning_type")):
        return "LLaMA-Factory"
    return "TRL" if context.has(("use_peft", "lora_target_modules")) else PEFT


def _defaults(context: Context) -> tuple[tuple[tuple[str, Any], ...], str]:
    """What the trainer takes for keys that are absent, if fledge takes something else; and a remark that says so."""
    trainer = trainer_of(context)
    missing = {key: value for key, value in DEFAULTS.get(trainer, {}).items() if not context.has(GIVEN[key])}
    rank = context.integer(RANKS)
    if trainer == "LLaMA-Factory" and rank and "lora_alpha" in missing:
        missing["lora_alpha"] = 2 * rank
    return _written(missing, trainer)


def _written(missing: Mapping[str, Any], trainer: str) -> tuple[tuple[tuple[str, Any], ...], str]:
    settings = tuple((f"adapter.{key}", value) for key, value in missing.items())
    return settings, f"{' and '.join(missing)}: {trainer}'s default{'s' * (len(missing) > 1)}" if missing else ""


def _owner(context: Context) -> str | None:
    """The key whose answer has the defaults of the trainer."""
    return next((name for name in ADAPTERS if context.siblings.get(name) is not None), None)


def _rule(name: str, convert: Rule) -> Rule:
    """The rule for a key of an adapter: its own settings, and the trainer's defaults with the first of these keys."""

    def rule(value: Any, context: Context) -> Answer:
        if is_off(context):
            return NO_ADAPTER if name not in SWITCHES else convert(value, context)
        if name not in SWITCHES and not trains_adapter(context):
            return Answer(note=OTHER_ADAPTERS)
        own = convert(value, context)
        if name != _owner(context) or name in SECTIONS or not trains_adapter(context):
            return own
        settings, note = _defaults(context)
        written = dict(own.settings)
        added = tuple(pair for pair in settings if pair[0] not in written)
        return Answer((*own.settings, *added), "; ".join(text for text in (own.note, note) if text))

    return rule


def _switch(value: Any, context: Context) -> Answer:
    """The answer to the kind of training: full, lora, qlora, freeze."""
    kind = word(value)
    if kind in OFF:
        return Answer(note="leave it out; the whole model is trained")
    if kind not in LORA:
        return Answer(note=f"{OTHER_ADAPTERS}; without one the whole model is trained")
    kinds = {"dora": "use_dora", "qdora": "use_dora", "rslora": "use_rslora"}
    settings = ((f"adapter.{kinds[kind]}", True),) if kind in kinds else ()
    if not settings and not context.has((*RANKS, *ALPHAS, *TARGETS)):
        settings = (("adapter.r", DEFAULTS.get(trainer_of(context), {}).get("r", AdapterConfig().r)),)
    if kind.startswith("q") and boolean(context.siblings.get("load_in_4bit")) is not False:
        settings = (*settings, ("quantization.quant_type", "nf4"))
    return Answer(settings, "it becomes the section adapter of the stage")


def _target_names(value: Any) -> list[str] | str:
    if word(value) in ("all", ALL_LINEAR, "all_linear"):
        return ALL_LINEAR
    names = text_list(value)
    return names[0] if isinstance(value, str) and any(sign in value for sign in "\\*^$(|[") else names


def _targets(value: Any, context: Context) -> Answer:
    return Answer((("adapter.target_modules", _target_names(value)),))


def _all_linear(value: Any, context: Context) -> Answer:
    return Answer((("adapter.target_modules", ALL_LINEAR),)) if boolean(value) else Answer(note="leave it out; it is off")


def _parts(value: Any, context: Context) -> Answer:
    """The answer to one of the keys in which LitGPT says which layers have an adapter."""
    on = {
        "lora_query": True,
        "lora_value": True,
        **{name: context.siblings[name] for name in PARTS if name in context.siblings},
    }
    names = [layer for name, layers in PARTS.items() if boolean(on.get(name, False)) for layer in layers]
    return Answer((("adapter.target_modules", names),)) if names else Answer(note="leave it out; no layer has an adapter")


def _flag(key: str) -> Rule:
    return lambda value, context: (
        Answer(((f"adapter.{key}", True),)) if boolean(value) else Answer(note="leave it out; it is off")
    )


def _section(value: Any, context: Context) -> Answer:
    """The answer to the settings of PEFT's LoraConfig as one mapping."""
    if not isinstance(value, Mapping):
        return _switch(value, context)
    kind = word(value.get("peft_type", value.get("type", "lora")))
    if kind not in LORA:
        return Answer(note=OTHER_ADAPTERS)
    inner = {str(name).lower(): item for name, item in value.items()}
    settings: dict[str, Any] = {}
    for name, item in inner.items():
        if name not in SECTIONS and item is not None and name in ADAPTER_KEYS:
            settings |= dict(ADAPTER_KEYS[name](item, Context(inner)).settings)
    missing = {key: default for key, default in DEFAULTS[PEFT].items() if not set(GIVEN[key]) & set(inner)}
    defaults, note = _written(missing, PEFT)
    left = [name for name in inner if name not in ADAPTER_KEYS and name not in ("peft_type", "task_type", "type", "bias")]
    if left:
        note = "; ".join(text for text in (note, f"without {', '.join(left)}: {OTHER_ADAPTERS}") if text)
    return Answer((*settings.items(), *defaults), note)


def _number(key: str) -> Rule:
    return lambda value, context: Answer(((f"adapter.{key}", as_number(value)),))


ADAPTER_KEYS: Table = {
    **{name: _rule(name, _switch) for name in SWITCHES},
    **{name: _rule(name, lambda value, context: Answer((("adapter.r", as_integer(value)),))) for name in RANKS},
    **{name: _rule(name, _number("lora_alpha")) for name in ALPHAS},
    **{name: _rule(name, _number("lora_dropout")) for name in DROPOUTS},
    **{name: _rule(name, _targets) for name in TARGETS},
    **{name: _rule(name, lambda value, context: Answer((("adapter.modules_to_save", text_list(value)),))) for name in WHOLE},
    **{name: _rule(name, _parts) for name in PARTS},
    "lora_target_linear": _rule("lora_target_linear", _all_linear),
    **{name: _rule(name, _flag("use_rslora")) for name in ("use_rslora", "peft_use_rslora")},
    **{name: _rule(name, _flag("use_dora")) for name in ("use_dora", "peft_use_dora")},
    **{name: _rule(name, _section) for name in SECTIONS},
    "qlora": _rule("qlora", lambda value, context: _switch("qlora" if boolean(value) is not False else "none", context)),
    **for_keys("use_qlora", lambda value, context: _switch("qlora" if boolean(value) else "none", context)),
    **for_keys(
        """
        adapter_name_or_path create_new_adapter module_dropout pissa_init use_llama_pro adapter_folder train_bias lora_head
        lora_model_dir lora_bias lora_fan_in_fan_out
        """,
        unsupported(OTHER_ADAPTERS),
    ),
    **for_keys("merge_lora merge_adapter lora_merge", lambda value, context: Answer(note="leave it out; fledge export merges")),
    **for_keys("task_type lora_task_type", lambda value, context: Answer(note="leave it out; models are causal")),
}
ADAPTER_PREFIXES: tuple[tuple[str, Rule], ...] = tuple(
    (prefix, unsupported(OTHER_ADAPTERS)) for prefix in ("lora_", "loraplus_", "pissa_", "oft_", "peft_")
)
