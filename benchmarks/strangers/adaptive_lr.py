"""adaptive-lr: optimizers, metrics, evaluations and logs as strangers bring them.

References: weights after a few real steps by hand, with the plain rate and with a tenth of it; a metric's
direction as its authors define it; decisions by hand on a series of values; the log of stock Trainer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.optimization import Adafactor
from transformers.training_args import OptimizerNames

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import lr_scale
from hf_ft_plugins.metrics import greater_is_better
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_dataset, tiny_trainer

CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,stop=false"
SETS = {"clean": tiny_dataset(8, seed=2), "error": tiny_dataset(8, seed=3), "loss": tiny_dataset(8, seed=4)}
RISING = (0.1, 0.2, 0.3, 0.4, 0.5)
MEND = r"relative_step=False|[Uu]se another optimizer|without layerwise|line_search_fn"


def situations() -> list[Situation]:
    return [
        *_optimizers(),
        *_directions(),
        *_evaluations(),
        *_logs(),
    ]


def expect(found: Any, wanted: Any, what: str) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {found!r}, by the reference {wanted!r}")


# ---- optimizers ----


class Captured(torch.optim.SGD):
    """Keeps the rate that it was made with."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.rate = lr

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.add_(weight.grad, alpha=-self.rate)


class ForEach(torch.optim.Optimizer):
    """One optimizer a weight behind a common face."""

    def __init__(self, params: Any, lr: float, shared: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.each = [torch.optim.AdamW([weight], lr=lr) for weight in params]
        if shared:
            self.param_groups = [group for one in self.each for group in one.param_groups]

    def step(self, closure: Any = None) -> None:
        for one in self.each:
            one.step()


def _weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 48).reshape(6, 8)) for _ in range(2)]


def _trained(make: Callable[[list[Any]], Any], factor: float, contribute: bool = False) -> torch.Tensor:
    """The weights after six real steps; `factor` from the third on, by the arbiter or by hand."""
    weights = _weights()
    optimizer = make(weights)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(6):
        for place, weight in enumerate(weights):
            gradient = torch.cos(torch.arange(48.0).reshape(6, 8) * 0.7 + step + place)
            weight.grad = gradient.to_sparse(1) if type(optimizer).__name__ == "SparseAdam" else gradient
        if step >= 2 and contribute:
            lr_scale.set_scale(optimizer, "adaptive-lr", factor)
        elif step >= 2:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate if rate is None else rate * factor
        optimizer.step(lambda: 0.0) if type(optimizer).__name__ == "LBFGS" else optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights])


def follows(make: Callable[[list[Any]], Any]) -> None:
    """A factor gives the weights of a rate that was changed by hand, and is refused where that changes nothing."""
    plain, by_hand = _trained(make, 1.0), _trained(make, 0.1)
    acts = not torch.equal(plain, by_hand)
    ours = _trained(make, 0.1, contribute=True)
    expect(torch.equal(ours, by_hand), True, "the weights with a factor are those of the changed rate")
    expect(acts, True, "a factor that reaches no weight was taken")


def named_optimizer(name: str) -> None:
    trainer = tiny_trainer(Path.cwd(), CUTTING, max_steps=2, optim=name)
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except (ImportError, ValueError):
        # The library or the device is not here; stock says so too.
        return
    settings.pop("params", None)
    follows(lambda weights: kind(weights, **settings))


def _optimizers() -> Iterator[Situation]:
    for name in (one.value for one in OptimizerNames):
        yield Situation("optimizers by transformers' name", name, partial(named_optimizer, name), MEND, quick=False)
    for name in dir(torch.optim):
        kind = getattr(torch.optim, name)
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            run = partial(follows, partial(kind, lr=0.01))
            yield Situation("optimizers of torch", name, run, MEND)
    own: dict[str, Callable[[list[Any]], Any]] = {
        "Adafactor, relative step": Adafactor,
        "Adafactor, relative, warm-up": partial(Adafactor, warmup_init=True),
        "Adafactor, relative, unscaled": partial(Adafactor, scale_parameter=False),
        "Adafactor, absolute": partial(Adafactor, relative_step=False, lr=0.01),
        "Adafactor, absolute, unscaled": partial(Adafactor, relative_step=False, scale_parameter=False, lr=0.01),
        "L-BFGS with a line search": partial(torch.optim.LBFGS, line_search_fn="strong_wolfe"),
        "rate kept at construction": partial(Captured, lr=0.01),
        "one optimizer a weight": partial(ForEach, lr=0.01, shared=True),
        "one optimizer a weight, rates copied": partial(ForEach, lr=0.01, shared=False),
        "rate in a tensor": lambda weights: torch.optim.AdamW(weights, lr=torch.tensor(0.01), foreach=False),
        "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
        "differentiable settings": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
    }
    for name, make in own.items():
        yield Situation("optimizers of scripts", name, partial(follows, make), MEND)


# ---- directions ----

BETTER_WHEN_LOWER = """
loss hamming_loss log_loss logloss cross_entropy nll perplexity ppl bpb bpc bits_per_byte wer cer ter hter per der eer
mae mse rmse mape smape mase rmsle mean_squared_error mean_poisson_deviance max_error brier brier_score ece mcd fid kl
tv hinge fpr fnr error_rate edit_distance hausdorff lpips crps false_positive_rate token_error_rate mean_rank
ContinuousRankedProbabilityScore LearnedPerceptualImagePatchSimilarity WordInfoLost inaccuracy
"""
BETTER_WHEN_GREATER = """
accuracy balanced_accuracy f1 f1_macro precision recall sensitivity specificity auc roc_auc average_precision mcc kappa
iou mean_iou dice jaccard map mAP50 mrr ndcg@10 recall@5 hits@10 pass@1 exact_match bleu sacrebleu chrf rouge1 rougeLsum
meteor bertscore comet spearman pearsonr r2 explained_variance neg_log_loss neg_mean_squared_error psnr ssim pesq stoi
si_sdr rewards/accuracies rewards/margins mean_token_accuracy win_rate uas f1_PER error_detection_f1 log_likelihood
DistanceIntersectionOverUnion PeakSignalNoiseRatio WordInfoPreserved no_answer_f1 CLIPScore
"""


def decides(metric: str, values: tuple[float, ...], wanted: list[str], spec: str = "", **changes: Any) -> None:
    """The decisions of a run whose evaluations give `values` of `metric`, one a round."""
    calls: list[Any] = []
    sets = changes.get("eval_dataset") or {"": None}

    def compute(prediction: Any) -> dict[str, float]:
        calls.append(prediction)
        return {metric: values[(len(calls) - 1) // len(sets)]}

    spec = f"adaptive-lr:controller=plateau,patience=1,max_cuts=9{spec}"
    trainer = tiny_trainer(Path.cwd(), spec, compute_metrics=compute, save_strategy="no", **changes)
    trainer.train()
    expect(_actions(trainer), wanted, f"decisions on {metric}")


def _actions(trainer: Any) -> list[str]:
    told = [entry["adaptive_lr/action"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
    return [action for some in told for action in some.split(", ")]


def direction(metric: str, greater: bool | None) -> None:
    for name in (metric, f"eval_{metric}"):
        expect(greater_is_better(name), greater, f"direction of {name}")


def _directions() -> Iterator[Situation]:
    for names, greater in ((BETTER_WHEN_LOWER, False), (BETTER_WHEN_GREATER, True)):
        for name in names.split():
            yield Situation("names of metrics", name, partial(direction, name, greater))
    for name in ("thing", "quality", "entropy", "accuracy_std", "rewards/rejected", "length", "wer_inv"):
        run = partial(decides, name, RISING, [], f",metric={name}")
        yield Situation("names that say nothing", name, run, r"greater_is_better=true")
    for name, values in (("accuracy", RISING), ("mape", RISING[::-1]), ("ter", RISING[::-1])):
        worse = ["cut"] * 4
        for kind, series, wanted in (("improves", values, []), ("gets worse", values[::-1], worse)):
            run = partial(decides, name, series, wanted, f",metric={name}")
            yield Situation("runs by a metric", f"{name} {kind}", run, quick=False)
            best = partial(decides, name, series, wanted, metric_for_best_model=name)
            yield Situation("runs by metric_for_best_model", f"{name} {kind}", best, quick=False)


# ---- evaluations ----


class NoLoss(Trainer):
    """As a question-answering script: an evaluation of its own."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {"eval_exact_match": 1.0}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def named(metric: str, **changes: Any) -> None:
    settings = {"max_steps": 4, "eval_dataset": SETS, "save_strategy": "no", **changes}
    tiny_trainer(Path.cwd(), f"adaptive-lr{metric}", **settings).train()


def own_evaluation(spec: str = "adaptive-lr") -> None:
    trainer = tiny_trainer(Path.cwd(), spec, trainer_class=NoLoss, save_strategy="no")
    trainer.train()
    expect(trainer.state.global_step, 14, "steps")


class ByHand(TrainerCallback):
    """Evaluates other data in the middle of the run, under the names of the trainer's own metrics."""

    trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (4, 7):
            self.trainer.evaluate(tiny_dataset(6, seed=9))


def by_hand() -> None:
    told = []
    for callbacks in ([], [ByHand()]):
        trainer = tiny_trainer(Path.cwd(), CUTTING, callbacks=callbacks, save_strategy="no")
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train()
        history = trainer.state.log_history
        told.append([entry["adaptive_lr/step"] for entry in history if "adaptive_lr/step" in entry])
    expect(told[1], told[0], "steps of the decisions beside evaluations by hand")


def _evaluations() -> Iterator[Situation]:
    of_sets = "sets of evaluations"
    yield Situation(of_sets, "nothing named", partial(named, ""), r"metric=eval_clean_loss or eval_error_loss")
    one = {"eval_dataset": {"only": SETS["clean"]}}
    yield Situation(of_sets, "one in a dict, nothing named", partial(named, "", **one), r"metric=eval_only_loss")
    yield Situation(of_sets, "nothing evaluated", partial(named, "", eval_strategy="no"))
    for name in SETS:
        for metric, values in (("accuracy", RISING), ("mape", RISING[::-1])):
            key = f"eval_{name}_{metric}"
            run = partial(decides, metric, values, [], f",metric={key}", eval_dataset=SETS)
            yield Situation(of_sets, f"{key} improves", run, quick=False)
            run = partial(decides, metric, values[::-1], ["cut"] * 4, f",metric={key}", eval_dataset=SETS)
            yield Situation(of_sets, f"{key} gets worse", run, quick=False)
    yield Situation("evaluations of scripts", "no eval_loss, nothing named", own_evaluation)
    yield Situation("evaluations of scripts", "of other data, by hand", by_hand)
    absent = partial(own_evaluation, "adaptive-lr:metric=f1")
    yield Situation("evaluations of scripts", "a named metric that is absent", absent, r"Name one of these")


# ---- logs ----


class OwnLog(Trainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.seen.append(dict(logs))
        super().log(logs, *args, **kwargs)


def same_history(logging_steps: int, spec: str) -> None:
    """The entries are stock's, in their order, and the script's own `log()` has seen every decision."""
    shapes = []
    for folder, techniques in (("ours", (spec,)), ("stock", ())):
        trainer = tiny_trainer(Path(folder), *techniques, trainer_class=OwnLog, logging_steps=logging_steps)
        trainer.train()
        shapes.append([sorted(key for key in entry if "/" not in key) for entry in trainer.state.log_history])
        if techniques:
            expect("cut" in _actions(trainer) or "rollback" in _actions(trainer), True, "something was decided")
            seen = [entry for entry in trainer.seen if "adaptive_lr/action" in entry]
            told = [entry for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
            expect(len(seen) >= len(told), True, "the script's log() saw the decisions")
    expect(shapes[0], shapes[1], "keys of the history's entries")


def resumes(logging_steps: int) -> None:
    settings = {"logging_steps": logging_steps, "save_steps": 3}
    straight = tiny_trainer(Path("straight"), CUTTING, **settings)
    straight.train()
    again = resumed(Path("resumed"), CUTTING, stop_at=7, **settings)
    first, second = outcome(straight), outcome(again)
    if logging_steps > 1:
        # Trainer forgets the losses since its last log.
        for entry in first["log"] + second["log"]:
            entry.pop("loss", None)
    expect(difference(first, second), None, "the resumed run")


def _logs() -> Iterator[Situation]:
    rollback = CUTTING.replace("adaptive-lr:", "adaptive-lr:controller=rollback,")
    for steps in (1, 5, 100):
        run = partial(same_history, steps, CUTTING)
        yield Situation("indexes into the log", f"logged every {steps}", run, quick=False)
        yield Situation("resumed with notes waiting", f"logged every {steps}", partial(resumes, steps), quick=False)
    run = partial(same_history, 5, rollback)
    yield Situation("indexes into the log", "rollback, whose last word comes after the summary", run, quick=False)
