"""The direction of metrics: by the names that people use, without the evaluation set's, and by the arguments."""

import pytest

from hf_ft_plugins.metrics import direction, greater_is_better, without_set_name
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.training_log import Training

LOWER_NAMES = """
eval_loss train_loss valloss mlm_loss hamming_loss dice_loss cross_entropy cross-entropy crossEntropy logloss log_loss
nll ppl perplexity bpb bpc bits_per_byte bits_per_character neg_log_likelihood negative_log_likelihood
wer cer ter hter per der eval_PER word_error_rate token_error_rate wer_normalized wer@clean mcd
mae MAE mse RMSE nrmse mape smape mase rmsle mean_absolute_percentage_error median_absolute_error mean_gamma_deviance
brier brier_score brier_score_loss ece eer fpr fnr fpr95 fpr@95 fpr_at_95_tpr false_positive_rate errorRate minDCF
fid fid_score kl kl_divergence tv total_variation hinge hamming hamming_distance jaccard_distance edit_distance
loss_per_token error_per_word accuracy_gap 1-accuracy one_minus_f1 mean_rank l1 eval_runtime davies_bouldin_score
"""
GREATER_NAMES = """
accuracy eval_accuracy acc5 top5_accuracy f1 f1_macro macrof1 F1Score f0.5 mcc matthews_correlation kappa auc
roc_auc_ovr map mAP map50 map_50 mAP@0.5 iou mean_iou intersection_over_union mrr mean_reciprocal_rank ndcg ndcg@10
hits@10 recall@5 recall_at_5 precision_at_recall_0.9 tpr_at_fpr_0.01 p@1 pass@1 exact_match precision sensitivity
specificity bleu bleu-4 sacrebleu chrf rouge rouge1 rougeL rougeLsum meteor bertscore jaccard hamming_score
mean_token_accuracy pearson spearmanr eval_sts-dev_spearman_cosine cosine_ndcg@10 r2 R2 explained_variance
log_likelihood psnr ssim pesq stoi si-sdr rewards/accuracies eval_rewards/margins score multitask_score
eval_samples_per_second neg_log_loss neg_mean_squared_error negative_mse neg_negative_likelihood_ratio neg_f1 1-wer
d2_log_loss_score brier_skill_score error_detection_f1 mae_f1 PER_f1 f1_PER wer_reduction eval_closset_accuracy
"""
UNKNOWN_NAMES = """
thing eval_thing x quality entropy accuracy_std acc_stderr cosine_accuracy_threshold rewards/rejected logps/chosen
completions/mean_length num_tokens neg_loss epoch
"""


@pytest.mark.parametrize(("names", "greater"), [(LOWER_NAMES, False), (GREATER_NAMES, True), (UNKNOWN_NAMES, None)])
def test_names_say_their_direction_or_nothing(names, greater):
    names = names.split()
    assert {name: greater_is_better(name) for name in names} == dict.fromkeys(names, greater)


def test_all_of_scikit_learns_scorers_are_better_when_greater_and_all_its_errors_when_lower():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    scorers = sklearn_metrics.get_scorer_names()
    assert {name: greater_is_better(name) for name in scorers} == dict.fromkeys(scorers, True)
    # "Functions ending with _error, _loss or _deviance return a value to minimise, with _score one to maximise."
    named = sklearn_metrics.__all__
    errors = [name for name in named if name.endswith(("_error", "_loss", "_deviance"))]
    scores = [name for name in named if name.endswith("_score") and name != "davies_bouldin_score"]
    assert {name: greater_is_better(name) for name in errors} == dict.fromkeys(errors, False)
    assert {name: greater_is_better(name) for name in scores} == dict.fromkeys(scores, True)


@pytest.mark.parametrize(
    ("metric", "sets", "bare"),
    [
        ("eval_error_accuracy", ["clean", "error"], "eval_accuracy"),
        ("error_accuracy", ["clean", "error"], "accuracy"),
        ("eval_error_hard_f1", ["error", "error_hard"], "eval_f1"),
        ("eval_log_loss", ["log"], "eval_loss"),
        ("eval_log_loss", [], "eval_log_loss"),
        ("eval_error", ["error"], "eval_error"),
        ("eval_sts-dev_pearson", ["sts-dev"], "eval_pearson"),
    ],
)
def test_the_name_of_an_evaluation_set_is_no_part_of_the_metric(metric, sets, bare):
    assert without_set_name(metric, sets) == bare


def test_a_set_named_like_a_metric_turns_nothing_around():
    assert greater_is_better("eval_accuracy_thing") is True
    assert greater_is_better(without_set_name("eval_accuracy_thing", ["accuracy"])) is None


@pytest.mark.parametrize(
    ("metric", "arguments", "sets", "greater"),
    [
        ("f1", {}, (), True),
        ("thing", {}, (), None),
        # Trainer's word on its own metric: the script's, or the default where the name says nothing.
        ("eval_thing", {"metric_for_best_model": "thing"}, (), True),
        ("thing", {"metric_for_best_model": "thing", "greater_is_better": False}, (), False),
        ("accuracy", {"metric_for_best_model": "accuracy", "greater_is_better": False}, (), False),
        ("loss", {"metric_for_best_model": "loss", "greater_is_better": True}, (), True),
        # Its default is blind for a name that it does not know.
        ("mape", {"metric_for_best_model": "mape"}, (), False),
        ("neg_log_loss", {"metric_for_best_model": "neg_log_loss"}, (), True),
        # It says nothing of another metric.
        ("f1", {"metric_for_best_model": "loss", "greater_is_better": False}, (), True),
        ("eval_loss_thing", {"metric_for_best_model": "loss_thing"}, ("loss",), True),
    ],
)
def test_the_arguments_own_word_holds_and_their_default_yields_to_a_known_name(
    metric, arguments, sets, greater, tmp_path
):
    assert direction(metric, tiny_trainer(tmp_path, **arguments).args, sets) is greater


def test_a_comparison_finds_the_sets_in_the_log_and_calls_nothing_best_without_a_direction():
    history = [
        {"eval_error_accuracy": value, "eval_error_thing": value, "eval_error_runtime": 1.0, "step": step}
        for step, value in enumerate([0.1, 0.9, 0.5])
    ]
    training = Training(history, steps=3)
    assert training.final_metrics() == {
        "eval_error_accuracy": 0.5,
        "eval_error_thing": 0.5,
        "best eval_error_accuracy": 0.9,
    }


NAMES_OF_CLASSES = {
    False: "ContinuousRankedProbabilityScore LearnedPerceptualImagePatchSimilarity WordInfoLost TranslationEditRate "
    "SpectralDistortionIndex PerceptualPathLength RetrievalFallOut LogCoshError KLDivergence inaccuracy imprecision",
    True: "DistanceIntersectionOverUnion NegativePredictiveValue WordInfoPreserved PeakSignalNoiseRatio CLIPScore "
    "ScaleInvariantSignalDistortionRatio PanopticQuality ShortTimeObjectiveIntelligibility BLEUScore",
    # Turned round, or said of what is not there.
    None: "wer_inv spearman_p_value error_free_rate non_hallucination_rate",
}


@pytest.mark.parametrize("greater", NAMES_OF_CLASSES)
def test_names_of_torchmetrics_classes_and_names_that_deny(greater):
    names = NAMES_OF_CLASSES[greater].split()
    assert {name: greater_is_better(name) for name in names} == dict.fromkeys(names, greater)
    # Control: what is denied is no class's name.
    assert greater_is_better("no_answer_f1") is True
    assert greater_is_better("hallucination_rate") is False
