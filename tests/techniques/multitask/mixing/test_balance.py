"""Multi-task: the rules that weigh tasks against each other, each against the formula of its paper."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask.mixing.balance import FAMO, dwa_weights, gradnorm_update, uncertainty_loss
from hf_ft_plugins.techniques.multitask.mixing.balancer import Balancer
from hf_ft_plugins.techniques.multitask.mixing.gradient_surgery import _cagrad, surgery_weights
from hf_ft_plugins.testing.examples.multitask import tiny_multitask_model, tiny_tagged, tiny_tokenizer


def gradients(tasks, size=7, seed=0):
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uncertainty_is_the_papers_and_the_models_loss_is_the_same():
    losses, s = torch.tensor([2.0, 0.5]), torch.tensor([0.3, -0.7])
    sigma = torch.exp(s / 2)
    expected = losses[0] / sigma[0] ** 2 + torch.log(sigma[0]) + losses[1] / (2 * sigma[1] ** 2) + torch.log(sigma[1])
    assert uncertainty_loss(losses, s, [False, True]) == pytest.approx(float(expected), rel=1e-5)
    assert uncertainty_loss(losses, s, [True, False]) != pytest.approx(float(expected), rel=1e-2)

    from hf_ft_plugins.techniques.multitask import MultiTaskCollator

    model = tiny_multitask_model().eval()
    model.learn_balance()
    batch = MultiTaskCollator(tiny_tokenizer(), model)(tiny_tagged(4))
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.4, -0.2, 0.0]))
        out = model(**batch)
    means = torch.stack([out.task_sums[task] / out.task_items[task] for task in ("tag", "parse")])
    expected = uncertainty_loss(means, torch.tensor([0.4, -0.2]), [False, False])
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


def test_dwa_is_the_papers():
    last, before = [1.0, 0.2, 3.0], [2.0, 0.25, 2.0]
    ratios = np.array(last) / np.array(before) / 2.0
    expected = 3 * np.exp(ratios) / np.exp(ratios).sum()
    assert dwa_weights(last, before) == pytest.approx(expected.tolist(), abs=1e-9)
    assert dwa_weights(last, before, temperature=1.0) != pytest.approx(expected.tolist(), abs=1e-2)
    for unmeasured in ((math.nan, 1.0), (1.0, math.inf), (1.0, 0.0), (1.0, 5e-324)):
        assert dwa_weights([1.0, unmeasured[0]], [1.0, unmeasured[1]]) == [1.0, 1.0]


def test_gradnorm_takes_the_step_of_autograd():
    weights = torch.tensor([1.2, 0.5, 1.3], dtype=torch.float64)
    grads = gradients(3)
    losses, first = torch.tensor([0.9, 0.3, 0.5]).double(), torch.tensor([1.0, 1.1, 0.6]).double()
    learned = weights.clone().requires_grad_()
    norms = torch.stack([(learned[task] * grads[task]).norm() for task in range(3)])
    rates = (losses / first) / (losses / first).mean()
    target = (norms.mean() * rates**1.5).detach()
    (norms - target).abs().sum().backward()
    stepped = weights - 0.025 * learned.grad
    expected = stepped * 3 / stepped.sum()
    found = gradnorm_update(weights, grads.norm(dim=1), losses, first)
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(gradnorm_update(weights, grads.norm(dim=1), losses, first, alpha=-1.5), expected)


@pytest.mark.parametrize(
    "bad", [(math.inf, 0.9, 1.0), (math.nan, 0.9, 1.0), (2.0, math.nan, 1.0), (2.0, 0.9, math.nan), (2.0, 0.9, 0.0)]
)
def test_gradnorm_leaves_out_a_task_without_numbers_and_moves_the_others_as_without_it(bad):
    columns = torch.tensor([[1.2, *bad], [0.5, 1.0, 0.3, 1.1], [1.3, 3.0, 0.5, 0.6]], dtype=torch.float64)
    found = gradnorm_update(*columns.T)
    assert found[0] == 1.2
    assert torch.equal(found[1:], gradnorm_update(*columns[1:].T))
    assert not torch.equal(found[1:], columns[1:, 0]), "the others did not move"


def test_famo_is_the_papers_and_goes_on_from_its_state():
    """Algorithm 1 by autograd on the softmax, the next step's losses standing for those after the step."""
    rows = np.exp(np.random.default_rng(0).normal(size=(6, 3))).tolist()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=1e-3)
    famo = FAMO(3)
    for step, losses in enumerate(rows):
        if step:
            before, now = torch.tensor(rows[step - 1]).double(), torch.tensor(losses).double()
            adam.zero_grad()
            (torch.softmax(logits, 0) * (before.log() - now.log())).sum().backward()
            adam.step()
        famo.observe(losses)
        shares = torch.softmax(logits.detach(), 0) / torch.tensor(losses)
        assert famo.weights(losses) == pytest.approx((shares / shares.sum()).tolist(), abs=1e-6)
        if step == 3:
            again = FAMO(3)
            again.load_state_dict(json.loads(json.dumps(famo.state_dict())))
    assert again.state_dict() != famo.state_dict()
    for losses in rows[4:]:
        again.observe(losses)
    assert again.state_dict() == famo.state_dict()
    again.load_state_dict(FAMO(3).state_dict())
    assert again.state_dict() == FAMO(3).state_dict(), "moments of the run before are left"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_famo_takes_a_loss_that_is_no_number_as_unchanged(bad):
    """Were it taken as 0, its task would draw nearly all the weight of the next step."""
    famo, same = FAMO(2), FAMO(2)
    for losses, instead in (([2.0, 1.0], [2.0, 1.0]), ([bad, 0.9], [2.0, 0.9]), ([1.8, bad], [1.8, 0.9])):
        famo.observe(losses)
        same.observe(instead)
        assert famo.weights(losses) == same.weights(instead)
    assert famo.state_dict() == same.state_dict()
    assert FAMO(2).weights([0.0, 1.0])[0] > 0.999


def pcgrad_of_the_paper(grads, seed):
    combined = torch.zeros_like(grads[0])
    torch.manual_seed(seed)
    for task in range(len(grads)):
        projected = grads[task].clone()
        for other in torch.randperm(len(grads)):
            if other != task and (inner := projected @ grads[other]) < 0:
                projected -= inner / (grads[other] @ grads[other]) * grads[other]
        combined += projected
    return combined


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_the_papers_in_the_same_order(seed, monkeypatch):
    pytest.importorskip("torchjd")
    # What torch.manual_seed would do to GPUs, also where there is none.
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    grads = gradients(4, seed=seed)
    state = torch.random.get_rng_state()
    weights = surgery_weights("pcgrad", grads @ grads.T, seed)
    assert torch.equal(state, torch.random.get_rng_state()), "the global random state moved"
    assert not reseeded, "the random states of the GPUs moved"
    assert torch.allclose(weights @ grads, pcgrad_of_the_paper(grads, seed), atol=1e-5)


def test_pcgrad_leaves_alone_what_does_not_conflict():
    pytest.importorskip("torchjd")
    agreeing = gradients(3).abs()
    assert surgery_weights("pcgrad", agreeing @ agreeing.T, 0).tolist() == [1.0, 1.0, 1.0]
    conflicting = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    assert surgery_weights("pcgrad", conflicting @ conflicting.T, 0).tolist() != [1.0, 1.0]


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_cagrad_is_the_best_on_a_grid(tasks, seed):
    """The paper's: of all d within c |g0| of the mean gradient g0, the one whose worst <g_i, d> is greatest."""
    grads = gradients(tasks, size=tasks, seed=seed)
    found = _cagrad(grads @ grads.T) / tasks
    direction = found @ grads
    mean = grads.mean(0)
    radius = 0.5 * mean.norm()
    assert (direction - mean).norm() <= radius * (1 + 1e-5)
    worst = float((grads @ direction).min())
    angles = np.linspace(0, 2 * np.pi, 721)
    if tasks == 2:
        around = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))
    else:
        pairs = np.array(list(itertools.product(angles[::4], np.linspace(-1, 1, 181))))
        flat = np.sqrt(1 - pairs[:, 1] ** 2)
        around = torch.tensor(np.stack([flat * np.cos(pairs[:, 0]), flat * np.sin(pairs[:, 0]), pairs[:, 1]], 1))
    best = float((grads @ (mean + radius * around).T).min(0).values.max())
    # A grid never beats the optimum, and comes near it.
    assert best <= worst + 1e-5 * float(mean.norm()) ** 2
    assert worst - best < 0.02 * float(grads.norm()) ** 2
    assert worst >= float((grads @ mean).min()) - 1e-9, "no better than the mean gradient"


def cagrad_gap(grads, weights, c=0.5):
    """How far the worst <g_i, d> is below the dual of Liu et al. 2021, equation 4, over |g0|^2; 0 is optimal.

    The dual at any point of the simplex bounds it from above; the point is the one from which the weights were made.
    """
    mean = grads.mean(0)
    point = weights - 1 / len(grads)
    combined = (point / point.sum()) @ grads
    dual = combined @ mean + c * mean.norm() * combined.norm()
    return float((dual - (grads @ (weights @ grads)).min()) / mean.norm() ** 2)


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("spread", [0, 3])
def test_cagrad_meets_its_dual_whatever_the_sizes_of_the_gradients(tasks, spread):
    for seed in range(10):
        sizes = 10 ** (spread * (2 * torch.rand(tasks, 1, generator=torch.Generator().manual_seed(seed)) - 1))
        grads = gradients(tasks, size=50, seed=seed) * sizes.double()
        assert -1e-9 < cagrad_gap(grads, _cagrad(grads @ grads.T) / tasks) < 1e-5
        # A control, as near to the mean gradient, and in its direction.
        assert cagrad_gap(grads, torch.full((tasks,), 1.5 / tasks, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-3])
def test_cagrad_stays_near_the_mean_where_gradients_cancel(apart):
    """Two against each other and a third across: weights that are divided by their sum's length would explode."""
    for seed in range(5):
        one, across, noise = torch.randn(3, 5000, generator=torch.Generator().manual_seed(seed))
        across = across - (across @ one) / (one @ one) * one
        grads = torch.stack([one, -one + apart * noise, 3 * across])
        gramian = (grads.double() @ grads.double().T).float()
        direction = surgery_weights("cagrad", gramian, 0) / 3 @ grads
        mean = grads.mean(0)
        assert (direction - mean).norm() <= 0.501 * mean.norm()


@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
def test_what_surgery_cannot_weigh(method):
    pytest.importorskip("torchjd")
    grads = gradients(3)
    for bad in (math.nan, math.inf):
        gramian = grads @ grads.T
        gramian[0] = gramian[:, 0] = bad
        assert surgery_weights(method, gramian, 0).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(PluginError, match=r"multitask: there is no gradient surgery 'upgrad'. Use pcgrad or cagrad."):
        surgery_weights("upgrad", grads @ grads.T, 0)


@pytest.mark.parametrize(("method", "module"), [("pcgrad", "torchjd.aggregation"), ("cagrad", "scipy.optimize")])
def test_what_is_not_installed_is_named(method, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PluginError, match=rf"{module.split('.')[0]}.*pip install torchjd scipy"):
        surgery_weights(method, torch.eye(2), 0)


@pytest.mark.parametrize("method", ["pcgrad", "cagrad"])
def test_a_task_without_a_gradient_and_a_task_alone_weigh_one(method):
    pytest.importorskip("torchjd")
    grads = gradients(3)
    grads[1] = 0.0
    weights = surgery_weights(method, grads @ grads.T, 0)
    assert weights[1] == 1.0
    assert torch.isfinite(weights).all()
    assert surgery_weights(method, torch.ones(1, 1), 0).tolist() == [1.0]


def test_weights_of_famo_sum_to_the_number_of_tasks():
    """So that the learning rate means what it does under a plain sum."""
    balancer = Balancer("famo", 3)
    for step in range(3):
        balancer.after_step([4.0 - step, 6.0, 1.0], [2, 3, 1], step)
        assert sum(balancer.weights) == pytest.approx(3.0)
    assert balancer.weights != [1.0] * 3
