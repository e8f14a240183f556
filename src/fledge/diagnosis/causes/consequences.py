"""What follows from several causes alike: names of symptoms and of other causes, for `Cause.explains`."""

LEARNS_LITTLE = frozenset({"high level", "slow learning", "plateau", "not learning", "trained too short"})
"""Of a loss that falls less than it could."""
STANDS_STILL = LEARNS_LITTLE | {
    "learning rate too low",
    "loss constant",
    "loss at ln 2",
    "margins flat",
    "reward flat",
    "vanishing gradient",
}
"""Of a model, or a part of it, that does not learn."""
BY_HEART = frozenset(
    {
        "loss near zero",
        "repeated data learned by heart",
        "sawtooth",
        "too many epochs",
        "train-validation gap",
        "validation rises",
    }
)
"""Of rows that are read so often that they are known by heart."""
BREAKS = frozenset({"divergence", "exploding gradient", "loss spikes", "oscillation"})
"""Of updates that are too large, or of another direction than they should be."""
FAULTY_ANSWERS = frozenset(
    {"answers never end", "answers repeat the prompt", "answers repeat themselves", "same answer to everything"}
)
"""Of a model that was not taught to answer."""
NO_ENDS = frozenset({"answers cut", "answers never end", "answers repeat themselves", "completions truncated"})
"""Of answers whose end is not taught."""
