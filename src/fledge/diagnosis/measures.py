"""The figures of data and of probes: what each one is, and what a run must have so that it can be measured."""

from dataclasses import dataclass

from fledge.diagnosis.case import Depth


@dataclass(frozen=True)
class Measure:
    """One figure that the doctor can measure. `meaning`: what it is, with its unit. `needs`: what must be at hand for it."""

    depth: Depth
    meaning: str
    needs: str


DATA = "the training data: a run of fledge, or --data with --tokenizer"
SAMPLED_ANSWERS = 16  # at most: different prompts to which probes sample an answer
CHECKPOINT = "a checkpoint: a run of fledge, or a model directory"
BOTH = "a checkpoint and the data"
RECIPE = "a checkpoint and the recipe of a run of fledge"


def _data(meaning: str, needs: str = DATA) -> Measure:
    return Measure("data", meaning, needs)


def _probe(meaning: str, needs: str = BOTH) -> Measure:
    return Measure("probe", meaning, needs)


MEASURES = {
    "data/examples": _data("training examples"),
    "data/target_share": _data("targets with weight ÷ positions that hold data"),
    "data/prompt_supervised_share": _data("share of the tokens of prompts that carry loss weight"),
    "data/answer_supervised_share": _data("share of the tokens of answers that carry loss weight"),
    "data/first_answer_token_supervised": _data("share of answers whose first token carries weight"),
    "data/last_prompt_token_supervised": _data("share of answers whose last token before the answer carries weight"),
    "data/answers_without_weight": _data("share of answers without any weight beside others of their conversation with some"),
    "data/ends_present": _data("share of answers that are followed by an end token"),
    "data/ends_supervised": _data("share of answers whose end token carries weight"),
    "data/duplicate_share": _data("share of examples that are copies of earlier ones"),
    "data/repeated_ngrams": _data("share of 13-grams of the targets that stood in another example before"),
    "data/largest_answer_share": _data("share of examples with the commonest answer"),
    "data/frequent_other_answers": _data("share of the examples with another answer whose answer is frequent too"),
    "data/largest_source_share": _data("share of the examples that come from the largest source, of several"),
    "data/largest_source_rows": _data("share of the rows that are of this source, before sources are weighted"),
    "data/identity_share": _data("share of answers that say who the model is"),
    "data/order_correlation": _data("correlation of neighbours in training order, of length or source"),
    "data/order_z": _data("the same in standard deviations of shuffled orders"),
    "data/validation_overlap": _data("share of validation examples that are training examples too"),
    "data/unigram_entropy": _data("entropy of the targets by their frequencies, nats/token"),
    "data/bigram_entropy": _data("entropy of a target given the token before, estimated on held-out halves, nats/token"),
    "data/file_order_correlation": _data("rank correlation of the order of training with the order in the files"),
    "data/batch_shift": _data("offset of targets against inputs in the loader's batches: 1"),
    "data/batch_targets_fit": _data("share of targets of the batches that are the next input: 1"),
    "data/batch_differs": _data("share of positions of the batches whose weight or token is not the stored one: 0"),
    "data/built_differs": _data("share of rows, read and encoded again, of which something else was built: 0"),
    "data/max_token_id": _data("largest token id"),
    "data/vocab_size": _data("tokens of the tokenizer"),
    "data/mean_length": _data("mean tokens of an example"),
    "data/truncated_share": _data("share of examples that were cut"),
    "data/control_tokens_split": _data("names of control tokens of the template that were not built as one token"),
    "data/prompt_tokens_differ": _data("share of the tokens of prompts, encoded again, for which others were built: 0"),
    "data/answer_tokens_differ": _data("share of the tokens of answers, encoded again, for which others were built: 0"),
    "data/text_differs": _data("share of sequences, encoded again, that hold another text as built: 0"),
    "data/answer_tokens": _data("mean tokens of an answer, its end included"),
    "data/answer_fit": _data("share of the tokens of answers, rare ones first, in own prompts − in those of others"),
    "data/answer_fit_z": _data("the same in standard errors"),
    "data/answers_misplaced": _data("share of the answers that plainly belong to one question, and stand with another one"),
    "data/template_differs": _data("share of sampled conversations whose prompt is rendered otherwise for answering"),
    "data/equal_pairs": _data("share of pairs whose chosen and rejected answers are equal"),
    "data/chosen_longer": _data("share of pairs whose chosen answer is the longer one"),
    "data/chosen_longer_text": _data("the same by the characters of the texts, of pairs that are read again"),
    "data/pairs_contradicting": _data("share of prompts whose pairs contradict each other"),
    "data/wrong_side": _data("share of pairs whose rejected answer is the answer that the sft data gives to the prompt"),
    "probe/loss_at_offsets": _probe("cross-entropy of the tokens 0, 1, 2 places on, nats/token: once trained, least at 1"),
    "probe/base_loss_at_offsets": _probe("the same of the model that the stage started from"),
    "probe/prompt_loss": _probe("loss of the tokens of prompts, nats/token"),
    "probe/answer_loss": _probe("loss of the tokens of answers, nats/token"),
    "probe/base_prompt_loss": _probe("loss of prompts under the start model, nats/token"),
    "probe/base_answer_loss": _probe("loss of answers under the start model, nats/token"),
    "probe/answer_gain": _probe("loss of answers behind another example's prompt − behind their own, nats/token"),
    "probe/base_answer_gain": _probe("the same under the start model, nats/token"),
    "probe/answers_helped": _probe("share of answers that are likelier behind their own prompt than behind another's"),
    "probe/training_loss": _probe("loss on training rows, nats/token"),
    "probe/validation_loss": _probe("loss on validation rows, nats/token"),
    "probe/logged_loss": _probe("loss of the newest evaluation by the doctor's own code − the logged one"),
    "probe/end_probability": _probe("mean probability of the end token where answers end"),
    "probe/accumulation_ratio": _probe("norm of the gradient in B micro-batches of 1 row ÷ in 1 of B rows", RECIPE),
    "probe/accumulation_cosine": _probe("cosine of these two gradients", RECIPE),
    "probe/shift_gradient": _probe("offset (0, 1, 2) where the trainer's own loss is the doctor's; -1: none", RECIPE),
    "probe/unchanged_tensors": _probe("names of tensors to be trained that no update changes", RECIPE),
    "probe/changed_frozen": _probe("names of tensors to be left as they are that an update changes", RECIPE),
    "probe/missing_from_optimizer": _probe("names of tensors to be trained that are in no optimizer", RECIPE),
    "probe/restored_state": _probe("share of the optimizers' saved tensors that restoring a checkpoint brings back", RECIPE),
    "probe/unmoved_tensors": _probe("names of tensors to be trained that are in the checkpoint as at the start", RECIPE),
    "probe/update_ratios": _probe("by kind of matrix: RMS of one update ÷ RMS of the weights", RECIPE),
    "probe/adapter_b_norm": _probe("norm of all B matrices of an adapter", CHECKPOINT),
    "probe/head_tied": _probe("whether head and embedding are one tensor, where the configuration says so", CHECKPOINT),
    "probe/two_passes": _probe("largest difference of logits of two passes in evaluation mode"),
    "probe/evaluation_dropout": _probe("largest difference of two evaluations of the trainer's own validation", RECIPE),
    "probe/future_leak": _probe("largest change of earlier logits when a later token changes"),
    "probe/document_leak": _probe("largest change of logits of a packed document when the document before it changes", RECIPE),
    "probe/padding_leak": _probe("largest change of logits when padding changes", RECIPE),
    "probe/reference_loss": _probe("preference loss of the policy against itself: ln 2 of a sigmoid loss", RECIPE),
    "probe/reference_loss_expected": _probe("what that loss has to be, by its type and beta", RECIPE),
    "probe/reference_margin": _probe("largest margin of the policy against itself: 0", RECIPE),
    "probe/reference_moved": _probe("largest difference of reference and start model in log-probability, nats/token", RECIPE),
    "probe/preference_loss_slope": _probe("preference loss: change per nat that chosen answers gain on rejected ones", RECIPE),
    "probe/beta_effect": _probe("preference loss: change when margins double, from about 1 to 2 nats", RECIPE),
    "probe/advantage_alignment": _probe("grpo: correlation of advantages with reward − mean reward of the prompt: 1", RECIPE),
    "probe/ended": _probe("share of sampled answers that end themselves"),
    "probe/base_ended": _probe("the same of the start model"),
    "probe/repetition": _probe("repeated 4-grams in sampled answers"),
    "probe/base_repetition": _probe("the same of the start model"),
    "probe/prompt_copy": _probe("share of sampled answers that repeat the prompt"),
    "probe/base_prompt_copy": _probe("the same of the start model"),
    "probe/equal_answers": _probe("share of sampled answers that are the commonest one"),
    "probe/identity_answers": _probe("share of answers to unrelated prompts that say who the model is"),
    "probe/greedy_repetition": _probe("repeated 4-grams in greedy answers; with temperature and penalty: probe/repetition"),
    "probe/expert_load": _probe("largest load of an expert ÷ the even load, by layer (the largest)", CHECKPOINT),
    "probe/dead_experts": _probe("share of experts that no token of the sample reaches", CHECKPOINT),
    "probe/embedding_rows_unused": _probe("share of rows of the embedding without a token of the tokenizer", CHECKPOINT),
    "probe/base_text_loss": _probe("loss on the text of an earlier stage, nats/token"),
    "probe/base_text_loss_before": _probe("the same under the start model, nats/token"),
    "probe/files_damaged": _probe("sentences on checkpoints whose files are not those of their manifests", CHECKPOINT),
}
