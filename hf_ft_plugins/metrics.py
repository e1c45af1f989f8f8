"""What a metric's name tells about it: whether it is better when greater, or when lower.

A name is read as the words between `_`, `-`, `/`, ...: the last known one is its head (`error_detection_f1` is an F1),
and what follows "at", "per", "of", ... does not count (`fpr_at_95_tpr` is an FPR). Two conventions stand behind the
table: scikit-learn's (`..._score` is better when greater, `..._error`, `..._loss`, `..._deviance` when lower, and
`neg_` turns those around), and Trainer's, for which a name that ends in "loss" is better when lower.

A name that nothing here knows has no direction: whoever needs one asks the user. An evaluation set's own name is no
part of the metric; `without_set_name` takes it away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_LOWER = """
error errors err loss losses mistakes inaccuracy imprecision incorrect misclassification misclassifications mismatch
residual residuals deviance deviation risk regret cost penalty violation violations mae mse rmse mape smape wape wmape
mdape mdae mase medae rmsle msle nrmse mad rmsse mrae crps abs_rel sq_rel silog rmspe pinball quantile
ranked_probability rps hinge huber brier ece mce ace calibration hamming zero_one_loss max_error coverage_error
misclassified mistake_rate error_count

perplexity perplexities ppl nll xent bce crossentropy cross_entropy logloss log_loss surprisal bpb bpc bpd bpw
bits_per_byte bits_per_char bits_per_character bits_per_dim bits_per_token bits_per_word aic bic negative_log_likelihood
neg_log_likelihood negative_loglikelihood neg_loglikelihood negative_log_prob neg_log_prob negative_logprob neg_logprob
negative_elbo neg_elbo log_perplexity log_ppl

wer cer ter hter information_lost info_lost edit_rate wil wder cpwer tercom charcut eed metricx edits edit_distance
levenshtein mcd lsd

eer fpr fnr far frr fdr acer apcer bpcer dcf mindcf actdcf false_positive_rate false_negative_rate false_alarm_rate
false_positives false_negatives false_alarms false_positive false_negative miss_rate fallout fall_out
false_discovery_rate false_omission_rate false_acceptance_rate false_rejection_rate negative_likelihood_ratio

distance distances perceptual_image_patch_similarity path_length distortion_index spectral_angle dissimilarity
disagreement divergence discrepancy kl kld kl_div kldiv js_div jsd mmd emd wasserstein hausdorff hd95 chamfer fid kid
fid50k mifid fad fvd lpips dists niqe brisque ergas rmsd mpjpe assd epe nme minade minfde davies_bouldin inertia
total_variation

aepe ade fde absrel winkler

mean_rank median_rank average_rank gap disparity drop degradation difference diff toxicity hallucination hallucinations
repetition latency runtime seconds memory
"""
_GREATER = """
accuracy accuracies acc f1 f2 f0_5 f05 fbeta fscore fmeasure f_measure f_score precision recall sensitivity specificity
auc auroc aucroc rocauc prauc auprc aupr aucpr roc_auc pr_auc average_precision mcc matthews matthews_corrcoef kappa qwk
jaccard iou giou miou diou ciou panoptic_quality dice tpr tnr ppv npv true_positives
true_negatives true_positive_rate true_negative_rate true_positive true_negative predictive_value informedness
markedness phi_coefficient dunn youden gini lift likelihood_ratio critical_success_index csi skill hamming_score
intersection_over_union lrap top1 top5 top_1 top_5 top_k pck oks nds rank_ic

r2 r_2 r_squared rsquared explained_variance pearson pearsonr spearman spearmanr kendall kendalltau correlation
correlations corr corrcoef ccc pcc plcc srcc krcc agreement krippendorff similarity overlap

ari ami nmi rand_score mutual_info homogeneity completeness v_measure fowlkes_mallows silhouette calinski_harabasz

ndcg dcg mrr reciprocal_rank recip_rank bpref hits hit_rate hitrate

bleu sacrebleu gleu google_bleu chrf rouge meteor nist cider spice bertscore bartscore moverscore bleurt comet xcomet
mauve sari smatch info_preserved information_preserved uas las clas mlas wip exact_match exact em match matches
pass_rate solve_rate success success_rate win_rate winrate elo correct distinct faithfulness groundedness fluency
coherence relevance relevancy helpfulness

log_likelihood loglikelihood elbo reward rewards margin margins return returns

psnr signal_noise_ratio signal_to_noise_ratio signal_distortion_ratio signal_to_distortion_ratio ssim msssim vif uqi qnr
intelligibility speech_quality clipscore pesq stoi estoi sdr sisdr snr sisnr dnsmos nisqa mos lddt gdt tm_score

improvement gain reduction throughput speed speedup samples_per_second steps_per_second tokens_per_second
"""
# These stand for something else in many names (an entity type PER, a mapping), so that any word above goes before.
_SHORT_LOWER = "per der mer ce tv l1 l2 sam fp fn mr smd w1 rank"
_SHORT_GREATER = "map mar ap p pass maj gmean hr tp tn rho tau prec rec"
# Of no direction, whatever they are of; or of none that all agree on.
_UNDECIDED = """
std stderr variance var threshold count counts support length lengths rejected entropy logps logits p_value p_val pvalue
inv inverse inverted negated complement free
"""

LOWER, GREATER, UNDECIDED = (frozenset(words.split()) for words in (_LOWER, _GREATER, _UNDECIDED))
SHORT = dict.fromkeys(_SHORT_LOWER.split(), False) | dict.fromkeys(_SHORT_GREATER.split(), True)
LOWER_ENDINGS = ("loss", "error", "errorrate", "crossentropy", "perplexity", "mse", "mae", "mape", "divergence")
GREATER_ENDINGS = ("accuracy", "acc", "precision", "recall", "f1", "auc", "auroc", "iou", "bleu", "correlation")
GREATER_BEGINNINGS = ("rouge", "chrf", "ndcg", "bertscore")
LONGEST = 4  # words of one entry

PREPOSITIONS = re.compile(r"_(?:at|of|for|on|per|by|with|without|in|over|under|vs|given)(?=_)")
TURNED = re.compile(r"(?:neg|negative|negated|minus|one_minus|1|inverse|inverted|inv)_(?=.)")
# The loss, or the error, of the negative examples is as likely as one with its sign changed.
UNSURE_WHEN_TURNED = frozenset(("loss", "losses", "error", "errors", "score", "scores"))
# Before what is better when lower. Before the rest they belong to the name of a class (`no_answer_f1`).
DENIALS = re.compile(r"(?:^|_)(?:non|no|not|anti|un)_$")
SPLITS = re.compile(r"^(?:best )?(?:(?:eval|test|train|predict|val|valid|validation|dev)_)*")


def greater_is_better(metric: str) -> bool | None:
    """Whether a metric is better when it is greater, by its name; None where the name does not say.

    `eval_loss`, `wer`, `perplexity`, `neg_log_likelihood` are better when lower; `eval_f1_macro`, `rouge1`,
    `neg_mean_squared_error`, `recall@5` when greater; `eval_thing` and `entropy` are None.
    """
    for name in (metric.lower(), re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", metric).lower()):
        found = _of_name(SPLITS.sub("", name.replace("1 - ", "1-")))
        if found is not None:
            return found
    return None


def without_set_name(metric: str, sets: Iterable[str]) -> str:
    """The metric without the name of the evaluation set that it was measured on, if that is among `sets`.

    Of several evaluation sets Trainer calls a metric `eval_SET_METRIC`; `metric_for_best_model` may lack the `eval_`.
    """
    prefix, rest = ("eval_", metric[5:]) if metric.startswith("eval_") else ("", metric)
    for name in sorted(map(str, sets), key=len, reverse=True):
        if rest.startswith(f"{name}_") and len(rest) > len(name) + 1:
            return prefix + rest[len(name) + 1 :]
    return metric


def set_names(eval_dataset: Any) -> tuple[str, ...]:
    """The names of a trainer's evaluation sets: those of a mapping, none where there is one set or no set."""
    return tuple(map(str, eval_dataset)) if isinstance(eval_dataset, Mapping) else ()


def evaluation_key(metric: str) -> str:
    """How Trainer calls a metric in what an evaluation gives."""
    return metric if metric.startswith("eval_") else f"eval_{metric}"


def direction(metric: str, args: Any, sets: Iterable[str] = ()) -> bool | None:
    """Whether `metric` is better when greater: what the arguments say of it, else its name; None where neither does.

    The arguments speak of `metric_for_best_model` alone. Their `greater_is_better` is a script's own word where it is
    not Trainer's default (true unless the name ends in "loss"); where it is, it holds for a name that says nothing. A
    known name goes before that default, so the answer may differ from `args.greater_is_better`.

    Args:
        metric: with or without `eval_`.
        args: the `TrainingArguments`.
        sets: the names of the evaluation sets where there are several (`set_names`).
    """
    by_name = greater_is_better(without_set_name(metric, sets))
    best, declared = args.metric_for_best_model, args.greater_is_better
    if best is None or declared is None or evaluation_key(best) != evaluation_key(metric):
        return by_name
    is_default = declared is not best.endswith("loss")
    return declared if by_name is None or not is_default else by_name


def _of_name(name: str) -> bool | None:
    # What comes after "@" is a place or another metric's value.
    words = re.sub(r"[^a-z0-9]+", "_", name.partition("@")[0]).strip("_").replace("intersection_over_union", "iou")
    if _looked_up(words) is None and (turned := TURNED.match(words)):
        rest = words[turned.end() :]
        found = None if rest in UNSURE_WHEN_TURNED else _of_words(rest)
        # Of what is better when greater, `neg_` is the negative class: `neg_f1`.
        certain = turned[0].startswith(("neg_", "negative_"))
        return found if found is None or (certain and found) else not found
    return _of_words(words)


def _of_words(words: str) -> bool | None:
    head = PREPOSITIONS.split(words, maxsplit=1)[0]
    found = _of_head(head)
    return _of_head(words) if found is None and head != words and not _is_undecided(head) else found


def _is_undecided(words: str) -> bool:
    return any(phrase in UNDECIDED for phrase in _phrases(words.split("_")))


def _of_head(words: str) -> bool | None:
    parts = words.split("_")
    known = [(phrase, found) for phrase in _phrases(parts) if (found := _looked_up(phrase)) is not None]
    if (parts[0] == "d2" and parts[-1] == "score") or "skill" in parts:
        # Another metric's, relative to a baseline's.
        return True
    if not known and not _is_undecided(words):
        return _of_short(parts)
    if not known or _ends_undecided(parts, known[0][0]):
        return None
    head, found = known[0]
    return None if not found and DENIALS.search(words[: words.rindex(head)]) else found


def _of_short(parts: list[str]) -> bool | None:
    found = [SHORT[form] for part in parts for form in (part, _without_digits(part)) if form in SHORT]
    return found[-1] if found else True if parts[-1] in ("score", "scores") else None


def _ends_undecided(parts: list[str], head: str) -> bool:
    """Whether a word of no direction comes after the head: `accuracy_std`, `rewards_rejected`."""
    last = len(parts) - 1 - parts[::-1].index(head.split("_")[-1])
    return _is_undecided("_".join(parts[last + 1 :]))


def _phrases(parts: list[str]) -> Iterator[str]:
    """All runs of up to `LONGEST` words, those that end last first, the longest of these first."""
    for end in range(len(parts), 0, -1):
        for length in range(min(LONGEST, end), 0, -1):
            yield "_".join(parts[end - length : end])


def _looked_up(phrase: str) -> bool | None:
    for form in (phrase, _without_digits(phrase), phrase.removesuffix("score")):
        if form in LOWER:
            return False
        if form in GREATER:
            return True
    if "_" in phrase:
        return None
    if phrase.endswith(LOWER_ENDINGS):
        return False
    return True if phrase.startswith(GREATER_BEGINNINGS) or phrase.endswith(GREATER_ENDINGS) else None


def _without_digits(word: str) -> str:
    return word.rstrip("0123456789")
