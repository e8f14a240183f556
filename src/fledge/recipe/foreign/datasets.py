"""Keys of other trainers about data: training and validation files, lengths, loss masks, and the tokenizer."""

import re
from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Table,
    advice,
    as_integer,
    boolean,
    for_keys,
    if_true,
    integer,
    name_list,
    percent,
    replaced_by,
    text_list,
    unneeded,
    unsupported,
    word,
)
from fledge.recipe.foreign.learning import LENGTH

FILES = name_list("""
    train_file train_files train_data train_data_path data_path dataset_path train_path train_dataset training_data
    data_file data_files data_dir train_data_file sft_data_path dpo_data_path pretrain_data_path pretrain_data sft_data
    dpo_data training_file pretraining_dataset corpus
    """)
DATASET_NAMES = name_list("""
    dataset dataset_dir dataset_name dataset_config dataset_config_name dataset_train_split datasets dataset_split
    """)
VALIDATION_FILES = name_list("""
    validation_file val_file valid_file eval_file val_data_path valid_data_path eval_data_path validation_data
    validation_path val_path valid_path eval_path val_data eval_data test_datasets val_dataset valid_dataset
    """)
VALIDATION_SHARES = name_list("""
    val_size val_set_size test_split_size validation_split val_split val_ratio validation_ratio eval_ratio valid_ratio
    val_split_fraction test_size val_fraction split_ratio
    """)
TEST_FILES = name_list("test_file test_data_path test_path test_data test_dataset")
STRATEGY = ("eval_strategy", "evaluation_strategy")
_REGISTRY_HINTS = name_list("""
    dataset_dir template finetuning_type cutoff_len stage preprocessing_num_workers overwrite_cache
    """)
_FILE = re.compile(r"(^[./~])|(/$)|(\.(json|jsonl|csv|tsv|parquet|txt|arrow|gz|zst|bz2|xz)$)|(^[A-Za-z]:\\)|(/.*/)|[*?]", re.I)
_SOURCE = "a training source: data: {train: {path: chat.jsonl}}"


def source(name: str, context: Context) -> dict[str, Any]:
    """The source with this name: a file, an entry of a registry, or a dataset of the hub."""
    if _FILE.search(name):
        return {"path": name}
    if context.has(("block_size", "n_embd")):
        return {"path": f"data/{name}/input.txt"}  # nanoGPT keeps the text of a dataset there
    if any(context.has((hint,)) for hint in _REGISTRY_HINTS):
        folder = str(context.first_value(("dataset_dir",)) or "data").rstrip("/")
        return {"registry": f"{folder}/dataset_info.json", "name": name}
    return {"hub": name}


def _dataset_entry(entry: Any, context: Context) -> dict[str, Any] | None:
    """The source of an item of `datasets`, as in axolotl and TRL; None if the item names no data."""
    if not isinstance(entry, dict):
        return source(entry, context) if isinstance(entry, str) and entry else None
    files = text_list(entry.get("data_files"))
    path = files[0] if len(files) == 1 else entry.get("path")
    if not isinstance(path, str) or not path:
        return None
    entry_source = source(path, Context())
    if "hub" in entry_source:
        entry_source |= {
            key: entry[name] for key, name in (("subset", "name"), ("split", "split")) if isinstance(entry.get(name), str)
        }
    return entry_source


def train_sources(context: Context) -> list[dict[str, Any]]:
    """The training sources that all keys of a configuration name together."""
    listed = context.first_value(("datasets",))
    entries = [_dataset_entry(entry, context) for entry in listed] if isinstance(listed, list) else []
    entries += [source(name, context) for name in text_list(context.first_value(("dataset",)))]
    name = context.first_value(("dataset_name",))
    if isinstance(name, str) and name:
        entries.append(source(name, Context()))
        if "hub" in (entries[-1] or {}):
            extra = {"subset": ("dataset_config", "dataset_config_name"), "split": ("dataset_train_split", "dataset_split")}
            entries[-1] = (entries[-1] or {}) | {
                key: str(value) for key, names in extra.items() if (value := context.first_value(names)) is not None
            }
    entries += [{"path": path} for key in FILES for path in text_list(context.siblings.get(key))]
    sources = [entry for entry in entries if entry]
    return [_with_options(entry, context) for entry in sources]


def _with_options(entry: dict[str, Any], context: Context) -> dict[str, Any]:
    """The source with the options of all sources: the number of rows that are read, and the column of the text."""
    rows, column = (
        context.integer(("max_samples", "max_train_samples")),
        context.first_value(("dataset_text_field", "text_column")),
    )
    if rows and rows > 0:
        entry = {**entry, "max_samples": rows}
    if isinstance(column, str) and column not in ("", "text"):
        entry = {**entry, "columns": {"text": column}}
    return entry


def shortest_form(sources: list[dict[str, Any]]) -> Any:
    """The sources as short as a recipe allows: one source without a list, and a source with only a path as this path."""
    items = [entry["path"] if set(entry) == {"path"} else entry for entry in sources]
    return items[0] if len(items) == 1 else items


def _train(value: Any, context: Context) -> Answer:
    sources = train_sources(context)
    if not sources:
        return Answer(note=f"it belongs to {_SOURCE}")
    note = "a dataset of the hub needs pip install 'fledge[hub]'" if any("hub" in entry for entry in sources) else ""
    if context.has(("block_size", "n_embd")):
        note = "name the file with the text, not the file with its tokens"
    return Answer((("data.train", shortest_form(sources)),), note)


def _text_field(value: Any, context: Context) -> Answer:
    return Answer(note="leave it out; the column 'text' is recognized") if word(value) == "text" else _train(value, context)


def _validation(value: Any, context: Context) -> Answer:
    """The answer to validation files and to a share of the training rows; files take precedence."""
    files = [{"path": path} for key in VALIDATION_FILES for path in text_list(context.siblings.get(key))]
    sources = [source(name, context) for name in text_list(context.first_value(("eval_dataset",)))]
    name, split = context.first_value(("dataset_name",)), context.first_value(("dataset_test_split",))
    if isinstance(name, str) and isinstance(split, str) and "hub" in source(name, Context()):
        sources.append({"hub": name, "split": split})
    if files or sources:
        return Answer((("data.validation", shortest_form([*files, *sources])),))
    share = context.number(VALIDATION_SHARES)
    rows = context.integer(("max_samples",))
    if share is not None and share >= 1 and rows and share < rows and len(train_sources(context)) == 1:
        return Answer((("data.validation", percent(share / rows)),), f"{share:g} of {rows} rows")
    if share is not None and 0 <= share < 1:
        return Answer((("data.validation", percent(share)),))
    return Answer(note="write a share of the training rows, or a file of its own: data: {validation: 2%}")


def _test(value: Any, context: Context) -> Answer:
    files = text_list(value)
    if not files:
        return Answer(note="leave it out; it names no file")
    return Answer(
        (("data.clean.decontaminate_against", files[0] if len(files) == 1 else files),),
        "its rows are removed from the training data; only validation rows are evaluated during training",
    )


def _length(value: Any, context: Context) -> Answer:
    """The answer to the length of a row; a model that is made from sizes gets positions for this length."""
    length = as_integer(value)
    settings: list[tuple[str, Any]] = [("data.max_seq_len", length)]
    if isinstance(length, int) and context.max_positions is not None and length > context.max_positions:
        settings.append(("model.max_position_embeddings", length))
    return Answer(tuple(settings))


def _prompt_and_answer_length(value: Any, context: Context) -> Answer:
    """The answer to limits of prompt and answer, which are one limit in fledge."""
    prompt, answer = (
        context.integer(("max_prompt_length",)),
        context.integer(("max_completion_length", "max_target_length", "max_response_length")),
    )
    if context.has(LENGTH) or prompt is None or answer is None:
        return Answer(note="leave it out; data.max_seq_len limits prompt and answer together")
    length = _length(prompt + answer, context)
    return Answer(length.settings, "one limit for prompt and answer together")


def template(value: Any, context: Context) -> Answer:
    """The answer to the name of a chat template."""
    name = word(value)
    known = {"chatml": "chatml", "llama2": "inst", "mistral": "inst", "inst": "inst", "tokenizer": "tokenizer"}
    if name in known:
        return Answer((("tokenizer.template", known[name]),))
    return Answer(note="leave it out; the chat template of the model's tokenizer is used, and a new tokenizer gets ChatML")


def _evaluation_strategy(value: Any, context: Context) -> Answer:
    name = word(value)
    if name == "no" and not context.has((*VALIDATION_FILES, *VALIDATION_SHARES, "eval_dataset")):
        return Answer((("data.validation", 0),), "without validation rows there is no evaluation")
    if name == "epoch":
        return Answer(
            note="leave it out; evaluation: {every_steps: 100} is a number of steps; the default is ten evaluations per stage"
        )
    return Answer(note="leave it out; evaluation.every_steps is the interval; the default is ten evaluations per stage")


def _train_on_prompt(value: Any, context: Context) -> Answer:
    if boolean(value) is False:
        return Answer(note="leave it out; an sft stage never trains on the prompt")
    return Answer(note="an sft stage trains only on answers; a pretrain stage trains on every token")


def truncation(value: Any, context: Context) -> Answer:
    """The answer to the side that is cut off a conversation that is too long."""
    name = word(value)
    known = {
        "keep_start": "keep_start",
        "keep_end": "keep_recent",
        "right": "keep_start",
        "left": "keep_recent",
        "split": "split",
    }
    if name in known:
        return Answer((("data.truncation", known[name]),))
    return Answer(note="leave it out; data.truncation is keep_recent, keep_start or split")


def _workers(value: Any, context: Context) -> Answer:
    if integer(value) == 0:
        return Answer(note="leave it out; fledge chooses the number of processes that prepare the data")
    return Answer((("runtime.data_workers", as_integer(value)),))


def _tokenizer(value: Any, context: Context) -> Answer:
    if not isinstance(value, str) or not value:
        return Answer(note="write a directory with tokenizer.json: tokenizer: {path: models/base}")
    note = "a tokenizer is a tokenizer.json or its directory" if value.endswith((".model", ".tiktoken", ".vocab")) else ""
    return Answer((("tokenizer.path", value),), note)


_PACKED = unneeded("rows are always packed, and attention never crosses from one document to another")
_UNPACKED = unneeded("rows are always packed, which changes no gradient: attention never crosses from one document to another")
_SHUFFLED = unneeded("rows are shuffled in each epoch, as seed determines")
_ANSWERS = unneeded("an sft stage trains only on answers")

DATASETS: Table = {
    **for_keys((*FILES, *DATASET_NAMES, "max_samples", "max_train_samples", "text_column"), _train),
    "dataset_text_field": _text_field,
    **for_keys((*VALIDATION_FILES, *VALIDATION_SHARES, "eval_dataset", "dataset_test_split"), _validation),
    **for_keys(TEST_FILES, _test),
    **for_keys(LENGTH, _length),
    **for_keys("max_prompt_length max_completion_length max_target_length max_response_length", _prompt_and_answer_length),
    **for_keys(STRATEGY, _evaluation_strategy),
    "do_eval": if_true(unneeded("validation rows are always evaluated"), replaced_by("data.validation", lambda value: 0)),
    **for_keys("template chat_template prompt_template conversation_template", template),
    "chat_template_path": unneeded("the chat template of the tokenizer is used"),
    **for_keys("default_system system_prompt default_system_message system_message", replaced_by("data.system", str)),
    **for_keys("tokenizer_name_or_path tokenizer_path tokenizer_dir tokenizer_name tokenizer_file", _tokenizer),
    **for_keys("packing sample_packing neat_packing pack_sequences multipack packed pack", if_true(_PACKED, _UNPACKED)),
    **for_keys(
        """
        eval_packing eval_sample_packing packing_strategy padding_free pad_to_sequence_len pad_to_multiple_of padding
        group_by_length length_column_name sample_packing_eff_est pad_to_max_length padding_side attention_mask
        use_packed_sequences max_packed_sequence_len label_pad_token_id padding_value chars_per_token num_of_sequences
        block_diag_attn data_collator ignore_pad_token_for_loss train_sampling_strategy batching_strategy
        """,
        _PACKED,
    ),
    **for_keys("shuffle shuffle_dataset shuffle_data shuffle_merged_datasets disable_shuffling", _SHUFFLED),
    **for_keys(
        """
        completion_only_loss assistant_only_loss train_on_responses_only mask_prompt only_assistant_loss
        """,
        if_true(_ANSWERS, advice("an sft stage trains only on answers; a pretrain stage trains on every token")),
    ),
    **for_keys("train_on_prompt train_on_inputs train_on_input", _train_on_prompt),
    **for_keys(
        "mask_history train_on_last train_last_turn_only",
        replaced_by("data.train_on_turns", lambda value: "all" if boolean(value) is False else "last"),
    ),
    **for_keys(
        "roles_to_train train_on_eos train_on_eot", unneeded("the loss is on the assistant's turns and their end tokens")
    ),
    **for_keys("truncation_mode truncation_side truncation_strategy", truncation),
    **for_keys(
        """
        preprocessing_num_workers dataset_num_proc num_proc dataset_processes preprocessing_workers
        """,
        _workers,
    ),
    **for_keys(
        """
        dataloader_num_workers num_workers dataloader_prefetch_factor dataloader_pin_memory pin_memory prefetch_factor
        dataloader_persistent_workers persistent_workers dataloader_drop_last drop_last dataloader_in_order
        dataloader_multiprocessing_context dataloader_buffer_size buffer_size streaming dataset_streaming
        preprocessing_batch_size dataset_batch_size split_batches dispatch_batches dataset_kwargs data_shared_file_system
        streaming_multipack_buffer_size data_seed_workers
        """,
        unneeded("rows are tokenised and packed before training, and are then read from the disk"),
    ),
    **for_keys(
        """
        overwrite_cache tokenized_path dataset_prepared_path cache_dir preprocess_shards data_cache
        """,
        unneeded("prepared data is kept in the run; fledge data build prepares it once for several runs"),
    ),
    **for_keys(
        "mix_strategy interleave_probs dataset_weights dataset_probs probabilities",
        advice("write a share of the tokens in each source: train: [{path: a.jsonl, token_fraction: 30%}, b.jsonl]"),
    ),
    **for_keys(
        "remove_unused_columns no_remove_unused_columns label_names dataset_fields skip_prepare_dataset",
        unneeded("columns are recognized by their names; data.train.columns names others"),
    ),
    **for_keys("enable_thinking preserve_thinking reasoning_template", unneeded("the chat template decides about thoughts")),
    **for_keys("tool_format tool_prompt tools", unneeded("the chat template formats tool calls")),
    **for_keys(
        """
        split_special_tokens add_bos_token add_eos_token add_special_tokens add_tokens eos_token pad_token bos_token
        special_tokens resize_vocab use_fast_tokenizer tokenizer_type tokenizer_use_fast new_special_tokens_config
        init_special_tokens unk_token pad_token_id eos_token_id bos_token_id
        """,
        unneeded("the tokenizer and its chat template define the special tokens"),
    ),
    **for_keys(
        """
        media_dir is_multimodal freeze_vision_tower freeze_multi_modal_projector freeze_language_model mm_plugin
        crop_to_patches use_audio_in_video
        """,
        unsupported("there are models for text only"),
    ),
}
