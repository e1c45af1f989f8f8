"""accumulation=fold: the first moment is exact, the second as documented, and what goes wrong in a micro-batch."""

import pytest
import torch
from accelerate.state import GradientState

from hf_ft_plugins.errors import OptionError
from hf_ft_plugins.techniques.low_memory.folding import AdamFolding, folding_of
from hf_ft_plugins.techniques.low_memory.fused_backward import FusedBackward
from hf_ft_plugins.techniques.low_memory.optimizers.compact_adamw import CompactAdamW
from hf_ft_plugins.techniques.low_memory.optimizers.lomo import LOMO
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer

COUNT, BETAS, RATE, DECAY = 3, (0.9, 0.99), 1e-2, 0.1


@pytest.fixture
def micro_batch():
    """Runs one backward pass as one of several, and tells `accelerate` whether it is the last."""
    state = GradientState()

    def run(loss, *, last):
        state._set_sync_gradients(last)
        loss.backward()

    yield run
    state._set_sync_gradients(True)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(80, 70), torch.nn.Tanh(), torch.nn.Linear(70, 5)).to(dtype)


def losses(model, step, dtype=torch.float32, count=COUNT):
    generator = torch.Generator().manual_seed(step)
    for _ in range(count):
        inputs = torch.randn(4, 80, generator=generator).to(dtype)
        yield model(inputs).float().square().mean() / count


def folded(optimizer, **options):
    return FusedBackward(optimizer, folding=folding_of(optimizer), micro_batches=lambda: COUNT, **options)


def adamw(model, kind=torch.optim.AdamW):
    return kind(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)


def by_hand(model, steps):
    """AdamA from its formulas, in float64: weights, first and second moments."""
    weights = [one.detach().double() for one in model.parameters()]
    means, squares = ([torch.zeros_like(one) for one in weights] for _ in range(2))
    twin = model_of(torch.float64)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for one, weight in zip(twin.parameters(), weights, strict=True):
                one.copy_(weight)
        gradients = [torch.autograd.grad(loss, list(twin.parameters())) for loss in losses(twin, step, torch.float64)]
        for place, parts in enumerate(zip(*gradients, strict=True)):
            means[place] = BETAS[0] * means[place] + (1 - BETAS[0]) * sum(parts)
            squares[place] = BETAS[1] * squares[place] + (1 - BETAS[1]) * COUNT * sum(part**2 for part in parts)
            mean, square = means[place] / (1 - BETAS[0] ** step), squares[place] / (1 - BETAS[1] ** step)
            weights[place] = weights[place] * (1 - RATE * DECAY) - RATE * mean / (square.sqrt() + 1e-8)
    return weights, means, squares


def test_it_is_the_formula(micro_batch):
    model = model_of()
    expected = by_hand(model, 3)
    inner = adamw(model)
    optimizer = folded(inner)
    for step in range(1, 4):
        for index, loss in enumerate(losses(model, step)):
            micro_batch(loss, last=index == COUNT - 1)
            # No gradient outlives its micro-batch.
            assert all(one.grad is None for one in model.parameters())
        optimizer.step()
    for place, one in enumerate(model.parameters()):
        state = inner.state[one]
        for ours, exact in zip((one, state["exp_avg"], state["exp_avg_sq"]), expected, strict=True):
            assert torch.allclose(ours.double(), exact[place], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, CompactAdamW])
def test_the_first_moment_is_that_of_the_sum_and_the_second_not_less(kind, micro_batch):
    plain, other = model_of(), model_of()
    reference, inner = adamw(plain, kind), adamw(other, kind)
    optimizer = folded(inner)
    for loss in losses(plain, 1):
        loss.backward()
    reference.step()
    for index, loss in enumerate(losses(other, 1)):
        micro_batch(loss, last=index == COUNT - 1)
    optimizer.step()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        if kind is torch.optim.AdamW:
            first, second = reference.state[one], inner.state[two]
            assert torch.allclose(
                first["exp_avg"], second["exp_avg"], rtol=1e-5, atol=1e-6 * first["exp_avg"].abs().max()
            )
            assert (second["exp_avg_sq"] >= first["exp_avg_sq"] * (1 - 1e-5)).all()
            assert (second["exp_avg_sq"] > first["exp_avg_sq"] * 1.01).any()
        elif "mean_scale" not in inner.state[two]:
            largest = reference.state[one]["mean"].abs().max()
            assert torch.allclose(reference.state[one]["mean"], inner.state[two]["mean"], atol=1e-6 * largest)


def test_equal_micro_batches_are_one_step_of_adamw(micro_batch):
    plain, other = model_of(), model_of()
    reference, optimizer = adamw(plain), folded(adamw(other))
    inputs = torch.randn(4, 80, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        plain(inputs).square().mean().backward()
        reference.step()
        reference.zero_grad()
        for index in range(COUNT):
            micro_batch(other(inputs).square().mean() / COUNT, last=index == COUNT - 1)
        optimizer.step()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, CompactAdamW])
def test_a_parameter_without_gradient_in_the_last_micro_batch_is_stepped_all_the_same(kind, micro_batch):
    model = model_of()
    optimizer = folded(adamw(model, kind))
    before = [one.detach().clone() for one in model.parameters()]
    inputs = torch.ones(4, 80)
    micro_batch(model(inputs).square().mean() / 2, last=False)
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))
    micro_batch(model[2](torch.ones(4, 70)).square().mean() / 2, last=True)
    optimizer.step()
    assert not any(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, CompactAdamW])
def test_a_gradient_that_is_not_finite_leaves_the_weights_as_they_were(kind, micro_batch):
    model = model_of()
    optimizer = folded(adamw(model, kind))
    before = [one.detach().clone() for one in model.parameters()]
    inputs = torch.ones(4, 80)
    micro_batch(model(inputs).square().mean() * float("nan"), last=False)
    micro_batch(model(inputs).square().mean(), last=True)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))
    micro_batch(model(inputs).square().mean(), last=True)
    optimizer.step()
    assert all(one.isfinite().all() for one in model.parameters())
    assert not any(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))


def test_the_norm_that_is_logged_is_not_below_that_of_the_sum(micro_batch):
    plain, other = model_of(), model_of()
    optimizer = folded(adamw(other))
    parts = []
    for index, loss in enumerate(losses(plain, 1)):
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        parts.append(torch.cat([one.flatten() for one in gradients]))
        micro_batch(list(losses(other, 1))[index], last=index == COUNT - 1)
    expected = (COUNT * sum(part.square().sum() for part in parts)).sqrt()
    assert optimizer.norm_of_step().item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected > sum(parts).norm()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda weights: torch.optim.SGD(weights, lr=0.1), "SGD"),
        (lambda weights: LOMO(weights), "LOMO"),
        (lambda weights: torch.optim.AdamW(weights, amsgrad=True), "amsgrad"),
        (lambda weights: torch.optim.Adam(weights, weight_decay=0.1), "weight_decay=0.1"),
    ],
)
def test_what_cannot_fold_is_refused_with_what_can(make, words):
    with pytest.raises(OptionError, match=words) as refused:
        folding_of(make([torch.nn.Parameter(torch.ones(3))]))
    assert "compact-adamw" in str(refused.value)


def test_adam_without_weight_decay_folds():
    assert isinstance(folding_of(torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])), AdamFolding)


FOLD = "low-memory:accumulation=fold"


@pytest.mark.parametrize("options", [{}, {"optim": "adamw_torch"}])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, options):
    # 25 examples in batches of 2: the last step of an epoch has one micro-batch.
    from hf_ft_plugins.testing import tiny_dataset

    options = options | {"train_dataset": tiny_dataset(25)}
    whole = tiny_trainer(tmp_path / "whole", FOLD, **options)
    whole.train()
    again = resumed(tmp_path / "cut", FOLD, **options)
    assert difference(outcome(again), outcome(whole)) is None


def test_fold_is_near_buffer_in_a_trainer_and_is_not_it(tmp_path):
    ends = {}
    for accumulation in ("buffer", "fold"):
        trainer = tiny_trainer(tmp_path / accumulation, f"low-memory:accumulation={accumulation}", max_grad_norm=0.0)
        trainer.train()
        ends[accumulation] = torch.cat([one.detach().flatten() for one in trainer.model.parameters()])
    start = torch.cat([one.detach().flatten() for one in tiny_trainer(tmp_path).model.parameters()])
    apart = (ends["fold"] - ends["buffer"]).norm() / (ends["buffer"] - start).norm()
    assert 1e-3 < apart < 1


def test_clip_two_pass_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, f"{FOLD},clip=two_pass")
    with pytest.raises(OptionError, match="clip=lagged"):
        trainer.train()
