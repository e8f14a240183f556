"""Names of figures: those of fledge's events, and what other trainers and people call them, in English and Chinese."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

STEP, MICRO_STEP, EPOCH = "axis/step", "axis/micro_step", "axis/epoch"
TOTAL_STEPS, TOTAL_EPOCHS = "axis/total_steps", "axis/total_epochs"
EPOCH_STEP, EPOCH_STEPS = "axis/epoch_step", "axis/epoch_steps"
BAR_STEP, BAR_TOTAL = "axis/bar_step", "axis/bar_total"


@dataclass(frozen=True)
class FigureName:
    """A figure of fledge. `name`: without what is before it; `home`: `train`, `eval`, `system`, `router` or `axis`, which the
    name gets where a log does not say it. `synonyms`: what others call it, in plain form, the most telling first. `measures`:
    the unit: `seconds`, `bytes`, `share`, `of_100`, or nothing."""

    name: str
    home: str
    synonyms: tuple[str, ...]
    measures: str = ""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _figure(name: str, home: str, synonyms: str, measures: str = "") -> FigureName:
    return FigureName(name, home, (name, *synonyms.split()), measures)


FIGURES: tuple[FigureName, ...] = (
    FigureName("step", "axis", _words("""global_step trainer/global_step train/global_step current_steps current_step step
        update updates num_updates optimizer_step optim_step 步数 步 全局步数 全局步 训练步数 训练步 步骤 steps
        training_iteration _step""")),
    _figure("micro_step", "axis", """iter iteration iterations it iter_num batch batch_idx batch_id micro_batch
        迭代 迭代次数 批次"""),
    _figure("epoch", "axis", """train/epoch epochs ep cur_epoch current_epoch epoch_num epoch_id 轮次 轮 轮数
        训练轮次 训练轮数 周期"""),
    _figure("total_steps", "axis", "max_steps num_steps total_step 总步数"),
    _figure("total_epochs", "axis", "num_epochs max_epochs num_train_epochs total_epoch 总轮数 总轮次"),
    _figure("epoch_step", "axis", "step_in_epoch"),
    _figure("epoch_steps", "axis", "steps_per_epoch iters_per_epoch iter_per_epoch"),
    _figure("bar_step", "axis", ""),
    _figure("bar_total", "axis", ""),
    _figure("loss", "train", """lm_loss total_loss cur_loss current_loss step_loss batch_loss loss_step running_loss smooth_loss
        cross_entropy_loss cross_entropy ce_loss language_loss nll_loss loss_ce nll ce 损失 损失值 总损失 损失函数 loss值
        avg_loss average_loss mean_loss loss_avg 平均损失 global_avg_loss"""),
    _figure("epoch_loss", "train", "loss_epoch avg_loss average_loss mean_loss avg_epoch_loss 平均损失 轮平均损失"),
    _figure("lr", "train", """learning_rate learn_rate cur_lr current_lr last_lr lr0 lr_0 lr_adamw lr_adam
        lr_adam_w lr_adam_w/pg1 lr_adamw/pg1 lr_sgd 学习率 当前学习率 学习速率"""),
    _figure("grad_norm", "train", """gradient_norm global_grad_norm total_norm gnorm grad_norm_total grad_l2_norm grad_norm/all
        norm grad_2.0_norm_total grad_2_0_norm_total 梯度范数 梯度 梯度的范数"""),
    _figure("perplexity", "train", "ppl 困惑度"),
    _figure("token_accuracy", "train", """mean_token_accuracy accuracy acc token_acc sparse_categorical_accuracy 准确率 正确率
        词元准确率""", "share"),
    _figure("tokens", "train", """num_tokens num_input_tokens_seen total_tokens tokens_seen consumed_tokens n_tokens ntokens
        tokens_processed total_tokens_seen 词元数 令牌数"""),
    _figure("target_tokens", "train", "supervised_tokens num_target_tokens"),
    _figure("clip_fraction", "train", "clip_frac clipped_fraction", "share"),
    _figure("loss_scale", "train", "scale grad_scale scaler_scale amp_scale 损失缩放"),
    _figure("skipped_steps", "train", "number_of_skipped_iterations skipped_iterations skipped_iters num_skipped"),
    _figure("nan_steps", "train", "number_of_nan_iterations nan_iterations"),
    _figure("consumed_samples", "train", "samples_seen num_samples_seen"),
    _figure("reward", "train", """mean_reward reward_mean rewards/mean avg_reward critic/rewards/mean critic/score/mean
        奖励 平均奖励"""),
    _figure("reward_std", "train", "std_reward rewards/std 奖励标准差"),
    _figure("frac_reward_zero_std", "train", "equal_groups zero_std_ratio", "share"),
    _figure("kl", "train", "objective/kl mean_kl approx_kl kl_mean kl_loss actor/kl_loss kl_div kl散度"),
    _figure("entropy", "train", "policy/entropy mean_entropy actor/entropy actor/entropy_loss policy/entropy_avg 熵"),
    _figure("completions/mean_length", "train", """completion_length mean_completion_length response_length/mean response_length
        mean_response_length completions_mean_length 回答长度"""),
    _figure("completions/clipped_ratio", "train", "response_length/clip_ratio", "share"),
    _figure("rewards/chosen", "train", "reward_chosen chosen_reward chosen_rewards rewards_train/chosen"),
    _figure("rewards/rejected", "train", "reward_rejected rejected_reward rejected_rewards rewards_train/rejected"),
    _figure("rewards/margins", "train", "reward_margin reward_margins rewards/margin margin margins rewards_train/margins"),
    _figure("rewards/accuracies", "train", """reward_accuracy reward_accuracies reward_acc rewards/accuracy preference_accuracy
        rewards_train/accuracies""", "share"),
    _figure("logps/chosen", "train", "chosen_logps policy_chosen_logps logps_train/chosen chosen_logp"),
    _figure("logps/rejected", "train", "rejected_logps policy_rejected_logps logps_train/rejected rejected_logp"),
    _figure("log_odds", "train", "log_odds_chosen"),
    _figure("sft_loss", "train", ""),
    _figure("router_aux_loss", "train", "aux_loss load_balancing_loss moe_aux_loss 辅助损失"),
    _figure("router_z_loss", "train", "z_loss"),
    _figure("max_load", "router", "max_expert_load"),
    _figure("min_load", "router", "min_expert_load"),
    _figure("bits_per_byte", "eval", "bpb"),
    _figure("bleu", "eval", "bleu4 bleu_4 bleu_score cur_bleu4 cur_bleu predict_bleu_4", "of_100"),
    _figure("rouge_l", "eval", "rouge_l predict_rouge_l rougel"),
    _figure("exact_match", "eval", "em 完全匹配", "share"),
    _figure("step_seconds", "system", """step_time iter_time dt iteration_time time_per_step time_per_iteration step_duration
        elapsed_time_per_iteration sec_per_step seconds_per_step time_per_iter batch_time duration_of_step 每步耗时 每步时间
        步耗时""", "seconds"),
    _figure("tokens_per_second", "system", """tokens_per_sec tok_per_sec tok/sec tok/s tokens/s tokens/sec tps tokens_per_s wps
        train_tokens_per_second tokens_per_second_per_gpu throughput token_per_second tgs 吞吐量 每秒词元"""),
    _figure("memory_bytes", "system", """memory mem gpu_memory gpu_mem memory_used peak_memory max_memory peak_memory_active
        max_mem cuda_memory 显存 内存""", "bytes"),
    _figure("mfu", "system", "", "share"),
    _figure("seconds", "system", "elapsed elapsed_time total_time wall_time train_time 已用时间 耗时", "seconds"),
    _figure("eta_seconds", "system", "eta remaining remaining_time epoch_time 剩余时间", "seconds"),
    _figure("phases/data", "system", "data_time data_loading_time time_data data_wait", "seconds"),
)  # fmt: skip
"""The figures that are known. Where several columns of a log are one figure, the first of the synonyms is it."""

TRAIN_WORDS = ("training", "train", "trn", "训练")
NOT_READ = ("v_num",)
"""Numbers of progress bars that are no figures."""
SPEEDS = (
    "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "total_flos", "train/train_loss",
)  # fmt: skip
"""Ends of names of figures of a whole evaluation or run, which are none over steps."""
EVAL_WORDS = ("evaluation", "validation", "eval", "valid", "val", "dev", "test", "验证集", "验证", "评估", "测试集", "测试")
OF_TRAINING = ("rewards/", "logps/", "logits/", "completions/", "clip_ratio/", "sampling/", "drift/", "lengths/", "objective/")
"""Groups of figures of other trainers that stand behind `train/` or `eval/` in fledge."""
KNOWN_HOMES = ("train/", "eval/", "system/", "router/", "update_ratio/", "grad_noise/", "prompt_tests/", "sets/")
NO_FIGURE = frozenset(
    ("best", "min", "minimum", "max", "maximum", "lowest", "highest", "target", "previous", "final", "warmup", "num", "number",
     "total", "init", "initial")
)  # fmt: skip
"""Words that make another thing of a name behind them: the best validation loss is no validation loss of this step."""
UNIT_SUFFIXES: dict[str, tuple[str, float]] = {
    "ms": ("seconds", 1e-3), "sec": ("seconds", 1.0), "s": ("seconds", 1.0), "min": ("seconds", 60.0), "gb": ("bytes", 1e9),
    "gib": ("bytes", 2.0**30), "mb": ("bytes", 1e6), "mib": ("bytes", 2.0**20), "pct": ("share", 0.01),
    "percent": ("share", 0.01),
}  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """What a name of a log means. `name`: in fledge. `rank`: the lower, the more telling. `factor`: of its unit in the name.
    `measures`: its unit. `is_given`: whether the user says that the column is this figure."""

    name: str
    rank: int
    factor: float = 1.0
    measures: str = ""
    is_given: bool = False

    @property
    def is_axis(self) -> bool:
        """Whether this counts steps or epochs, and is no figure."""
        return self.name.startswith("axis/")


@cache
def _by_synonym() -> dict[str, list[tuple[FigureName, int]]]:
    table: dict[str, list[tuple[FigureName, int]]] = {}
    for figure in FIGURES:
        for rank, synonym in enumerate(figure.synonyms):
            table.setdefault(synonym, []).append((figure, rank))
    return table


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[\s\-.:@]+")
_BRACKETED = re.compile(r"\s*[(（\[]([^)）\]]*)[)）\]]\s*$")


def plain_name(raw: str) -> str:
    """A name in plain form: lower case, words joined by `_`, without quotes; a unit in brackets is its last word."""
    text = raw.strip().strip("'\"`*").strip()
    if bracket := _BRACKETED.search(text):
        unit = bracket[1].strip().lower()
        text = text[: bracket.start()] + (f"_{unit}" if unit in UNIT_SUFFIXES else "")
    if not text.isupper():
        text = _CAMEL.sub("_", text)
    text = _SEPARATORS.sub("_", text.lower())
    return re.sub(r"_*/_*", "/", re.sub(r"__+", "_", text)).strip("/").rstrip("_")


@cache
def resolve(raw: str) -> Resolved | None:
    """What a name means; None for a name that is not known."""
    return _resolve_plain(plain_name(raw))


def _resolve_plain(plain: str) -> Resolved | None:
    if plain.startswith("axis/"):
        return Resolved(plain, 0)
    if found := _lookup(plain, None):
        return found
    words = re.split(r"[/_]", plain)
    if words[0] in NO_FIGURE:
        return None
    for split, names in (("train", TRAIN_WORDS), ("eval", EVAL_WORDS)):
        for word in names:
            for rest in _without(plain, word):
                if found := _lookup(rest, split):
                    return found
                if rest.startswith(OF_TRAINING):
                    return Resolved(f"{split}/{rest}", 50)
    if plain.startswith(OF_TRAINING):
        return Resolved(f"train/{plain}", 50)
    return _with_unit_suffix(plain)


def _without(plain: str, word: str) -> list[str]:
    """The name without a word of the data that it is measured on, at its beginning or end."""
    rests = []
    if plain.startswith(word) and len(plain) > len(word):
        rests.append(plain[len(word) :].lstrip("/_"))
    if plain.endswith((f"_{word}", f"/{word}")):
        rests.append(plain[: -len(word)].rstrip("/_"))
    return rests


def _with_unit_suffix(plain: str) -> Resolved | None:
    head, _, suffix = plain.rpartition("_")
    if head and suffix in UNIT_SUFFIXES and (found := _resolve_plain(head)):
        measures, factor = UNIT_SUFFIXES[suffix]
        if found.measures == measures:
            return Resolved(found.name, found.rank, factor, measures)
    return None


def _lookup(plain: str, split: str | None) -> Resolved | None:
    """The figure with this synonym; `split`: the data that the name says, None where it says none."""
    for figure, rank in _by_synonym().get(plain, ()):
        if split is None:
            return Resolved(f"{figure.home}/{figure.name}", rank, measures=figure.measures)
        if figure.home in ("train", "eval"):
            name = "loss" if split == "eval" and figure.name == "epoch_loss" else figure.name
            return Resolved(f"{split}/{name}", rank, measures=figure.measures)
        if split == "train" and figure.home != "router":
            return Resolved(f"{figure.home}/{figure.name}", rank, measures=figure.measures)
    return None


@cache
def second_meaning(raw: str) -> Resolved | None:
    """What a name means where its first meaning is another column: `avg_loss` beside `loss` is the mean of an epoch."""
    found = _by_synonym().get(plain_name(raw), [])
    if len(found) < 2:
        return None
    figure, rank = found[1]
    return Resolved(f"{figure.home}/{figure.name}", rank, measures=figure.measures)


def _most_telling(
    names: Iterable[str], given: Collection[str], meaning: Callable[[str], Resolved | None], points: Callable[[str], int]
) -> dict[str, Resolved]:
    """The most telling column for each meaning that is not given yet; of equal ones that with the most points."""
    best: dict[str, tuple[tuple[int, int, int], str, Resolved]] = {}
    for order, name in enumerate(names):
        found = meaning(name)
        if found is None and meaning is resolve and name.startswith(KNOWN_HOMES):
            found = Resolved(name, 0)
        if found is None or found.name in given:
            continue
        key = (found.rank, -points(name), order)
        if found.name not in best or key < best[found.name][0]:
            best[found.name] = (key, name, found)
    return {raw: found for _, raw, found in best.values()}


def own_name(raw: str) -> str:
    """The name that a figure keeps that is not known: as written, without quotes and blanks at its ends."""
    return re.sub(r"\s+", "_", raw.strip().strip("'\"`").strip()) or "unnamed"


def assign(names: Iterable[str], chosen: Mapping[str, str], points: Callable[[str], int]) -> dict[str, Resolved]:
    """The meaning of each column of a log. `chosen`: name of fledge → column, as the user says. `points`: how many points a
    column has. Each meaning is given to one column, the most telling one; the others, and those not known, are left out."""
    taken = set(chosen.values())
    left = [name for name in names if name not in taken]
    assigned = _most_telling(left, chosen, resolve, points)
    given = {found.name for found in assigned.values()} | set(chosen)
    assigned.update(_most_telling([name for name in left if name not in assigned], given, second_meaning, points))
    for name, raw in chosen.items():
        known = resolve(raw)
        assigned[raw] = Resolved(name, 0, known.factor if known else 1.0, known.measures if known else "", is_given=True)
    return assigned
