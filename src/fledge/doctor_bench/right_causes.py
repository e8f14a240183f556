"""Which causes of the doctor name a fault rightly.

Several are right where they are one thing under two names, such as a chosen end token that is hidden by padding, or where the
fault is done by settings that have two readings. A consequence of a fault, however true, is not its name.
"""

RIGHT_CAUSES: dict[str, tuple[str, ...]] = {
    # learning rate, batch, duration
    "learning rate zero": ("learning rate zero",),
    "learning rate far too high": ("learning rate too high",),
    "learning rate too high": ("learning rate too high",),
    "learning rate far too low": ("learning rate too low",),
    "learning rate too low": ("learning rate too low",),
    "adapter at the rate of full tuning": ("learning rate too low",),
    "rate is not the planned one": ("learning rate not as planned",),
    "schedule ends early": ("schedule ends too early", "learning rate not as planned"),
    "schedule never decays": ("schedule cut before it decays", "learning rate not as planned"),
    "warm-up too long": ("warm-up too long",),
    "no warm-up": ("no warm-up", "learning rate too high"),
    "batch tiny": ("batch too small",),
    "batch huge": ("batch too large", "too few updates"),
    "under-trained": ("trained too short", "too few updates"),
    "overfit": ("too many epochs", "repeated data learned by heart", "too little data for the model"),
    "weight decay far too strong": ("weight decay too strong",),
    "clipping strangles": ("clipping threshold too small",),
    "dropout far too strong": ("dropout too strong",),
    "label smoothing far too strong": ("label smoothing too strong",),
    # targets, template
    "target not shifted": ("targets not shifted",),
    "target shifted twice": ("targets shifted twice",),
    "prompt not masked": ("prompt not masked",),
    "mask off by one": ("mask off by one",),
    "everything masked": ("everything masked", "answers partly supervised"),
    "part of answers supervised": ("answers partly supervised",),
    "end token never supervised": ("end token never supervised", "pad token hides the end token"),
    "end token missing": ("end token missing",),
    "pad is end": ("pad token hides the end token", "end token never supervised"),
    "control tokens split": ("control tokens are split",),
    "tokenizer is not the model's": ("tokenizer does not fit the model",),
    "noisy labels": ("noisy answers",),
    "accumulation is a mean of means": ("accumulation normalised wrongly",),
    "accumulation is not divided": ("accumulation normalised wrongly",),
    "logged loss is summed": ("logged loss summed over accumulation",),
    "answers paired with wrong prompts": ("answers paired with wrong prompts",),
    "template of serving differs": ("template differs in serving",),
    # data
    "not shuffled": ("data not shuffled",),
    "duplicate rows": ("duplicated data",),
    "repeated text": ("duplicated data",),
    "one source swamps the rest": ("one source swamps the rest", "duplicated data"),
    "identity rows dominate": ("identity rows dominate", "duplicated data"),
    "answers equal": ("answers all equal",),
    "validation rows in training": ("validation rows in training data",),
    "validation is training data": ("validation rows in training data", "validation on training data"),
    "context cuts most answers": ("context cuts answers",),
    "forgetting": ("forgetting", "learning rate too high"),
    # model, precision, evaluation
    "parameters not in the optimizer": ("tensors that do not learn",),
    "parameters frozen": ("tensors that do not learn",),
    "frozen weights change": ("frozen tensors change",),
    "attention sees the future": ("model sees the future",),
    "packed documents see each other": ("packed documents see each other",),
    "head not tied": ("tied head broken",),
    "adapter never updates": ("adapter never updates", "tensors that do not learn"),
    "experts collapsed": ("experts collapsed",),
    "experts dead": ("experts collapsed",),
    "dropout in evaluation": ("dropout active in evaluation",),
    "loss scale dies": ("fp16 overflow",),
    "loss not finite": ("no finite numbers", "bad numbers in single rows"),
    "checkpoint truncated": ("checkpoint damaged",),
    # preferences, rewards
    "cross-entropy instead of preferences": ("cross-entropy instead of preferences",),
    "no reference": ("wrong reference",),
    "reference moves with the policy": ("reference moves with the policy",),
    "reference of other weights": ("wrong reference",),
    "beta far too small": ("beta too small", "beta is zero"),
    "beta far too large": ("beta too large",),
    "pairs swapped": ("chosen and rejected swapped",),
    "longer answer always chosen": ("length bias in preferences",),
    "pairs contradict each other": ("pairs equal or contradicting",),
    "likelihood displaced": ("likelihood displacement", "learning rate too high", "beta too small"),
    "rewards constant": ("reward constant", "groups without variance"),
    "groups wrongly formed": ("groups wrongly formed",),
    "advantages with the wrong sign": ("groups wrongly formed",),
    "answers cut": ("completions truncated",),
    "policy runs away": ("learning rate too high", "KL blow-up", "entropy collapse"),
    # machine, processes
    "optimizer state lost at resume": ("resumed without optimizer state",),
    "loader slow": ("waiting for data",),
    "steps slow down": ("updates become slower",),
    "memory grows": ("memory grows",),
    "same rows in every process": ("same data on every process",),
    "processes drift apart": ("processes drift apart",),
}
"""Name of a fault → names of the causes, the best one first."""


def is_right(fault: str, cause: str) -> bool:
    """Whether a cause names a fault rightly."""
    return cause in RIGHT_CAUSES[fault]
