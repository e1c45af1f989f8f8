"""MeZO: its step is the paper's, takes no graph, and is the same on ranks, over micro-batches and after a resume."""

import logging

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins import PluginError, lr_scale, with_plugins
from hf_ft_plugins.techniques.low_memory.keyed_random import generator
from hf_ft_plugins.techniques.low_memory.optimizers.mezo import MeZO
from hf_ft_plugins.testing import difference, resumed, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.resuming import outcome
from tests.two_processes import build, can_resume_on_two_ranks, trained

MEZO = "low-memory:algorithm=mezo"


def weights(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = ((), (5,), (0,), (3, 4), (2, 3, 2, 2))
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def directions(parameters, seed, step):
    """As numpy arrays in float64, from the key that `keyed_random` documents."""
    return [
        torch.randn(one.shape, generator=generator("cpu", "mezo", seed, step, place), dtype=one.dtype).double().numpy()
        for place, one in enumerate(parameters, start=1)
    ]


def curved(parameters):
    return sum((one**2).sum() + torch.sin(one).sum() for one in parameters)


def curved_by_numpy(arrays):
    return sum((one**2).sum() + np.sin(one).sum() for one in arrays)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_is_the_papers(decay):
    parameters = weights(torch.float64)
    optimizer = MeZO([{"params": parameters[:2], "weight_decay": 0.0}, {"params": parameters[2:]}], weight_decay=decay)
    arrays = [one.detach().numpy().copy() for one in parameters]
    for step in range(5):
        rate = optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01 / (step + 1)
        z = directions(parameters, 3, step)
        above, below = (curved_by_numpy([w + s * 1e-3 * d for w, d in zip(arrays, z, strict=True)]) for s in (1, -1))
        slope = (above - below) / 2e-3
        arrays = [
            w - rate * (slope * d + (decay if place >= 2 else 0.0) * w)
            for place, (w, d) in enumerate(zip(arrays, z, strict=True))
        ]
        mean = optimizer.estimate(lambda: curved(parameters), seed=3)
        assert float(optimizer.norm_of_step()) == pytest.approx(abs(slope), rel=1e-4)
        assert float(mean) == pytest.approx((above + below) / 2)
        optimizer.step()
    found = [one.detach().numpy() for one in parameters]
    assert all(np.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(found, arrays, strict=True))
    wrong = [w + 1e-3 for w in arrays]
    assert not all(np.allclose(one, other, rtol=0, atol=1e-6) for one, other in zip(found, wrong, strict=True))


def test_the_slope_is_that_of_the_gradient_along_the_direction():
    parameters = weights(torch.float64)
    gradients = torch.autograd.grad(curved(parameters), parameters)
    optimizer = MeZO(parameters, perturbation=1e-4)
    optimizer.estimate(lambda: curved(parameters), seed=1)
    z = directions(parameters, 1, 0)
    expected = sum((gradient.numpy() * one).sum() for gradient, one in zip(gradients, z, strict=True))
    assert float(optimizer.slope.value) == pytest.approx(expected, rel=1e-3)


def test_micro_batches_go_along_one_direction_and_are_summed():
    one, two = weights(torch.float64), weights(torch.float64)
    together, apart = MeZO(one, lr=0.01), MeZO(two, lr=0.01)
    for _ in range(3):
        together.estimate(lambda: curved(one) + one[1].prod())
        apart.estimate(lambda: curved(two))
        apart.estimate(lambda: two[1].prod())
        together.step()
        apart.step()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, two, strict=True))


def test_no_graph_is_built_and_no_gradient_is_left():
    parameters = weights()
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        optimizer = MeZO(parameters)
        mean = optimizer.estimate(lambda: curved(parameters))
        optimizer.step()
        assert not packed
        curved(parameters)
        assert packed  # So it would have been noticed.
    assert not mean.requires_grad
    assert all(one.grad is None for one in parameters)
    assert not optimizer.state


def test_weights_drift_no_more_than_by_their_last_bits():
    steps = 300
    parameters = weights()
    before = [one.detach().clone() for one in parameters]
    optimizer = MeZO(parameters, lr=0.0)
    for _ in range(steps):
        optimizer.step(lambda: curved(parameters))
    drift = max(
        float((one.detach() - other).abs().max()) for one, other in zip(parameters, before, strict=True) if one.numel()
    )
    assert drift < 1e-7 * steps**0.5 * 3


def test_weights_are_put_back_where_a_pass_raises():
    for call in (1, 2):
        parameters = weights()
        before = [one.detach().clone() for one in parameters]
        calls = []

        def loss(call=call, calls=calls):
            calls.append(1)
            if len(calls) == call:
                raise RuntimeError("out of memory")
            return torch.zeros(())

        optimizer = MeZO(parameters, lr=0.01)
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.estimate(loss)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(parameters, before, strict=True))
        with pytest.raises(PluginError, match="has nothing to go by"):
            optimizer.step()


def test_both_passes_see_the_same_random_numbers_which_go_on_as_after_one():
    drawn = []

    def loss():
        drawn.append((float(torch.rand(())), float(np.random.rand())))
        return torch.zeros(())

    optimizer = MeZO(weights())
    torch.manual_seed(5)
    np.random.seed(5)
    optimizer.estimate(loss)
    after = float(torch.rand(())), float(np.random.rand())
    torch.manual_seed(5)
    np.random.seed(5)
    assert drawn[0] == drawn[1] == (float(torch.rand(())), float(np.random.rand()))
    assert after == (float(torch.rand(())), float(np.random.rand()))


def test_frozen_parameters_are_not_touched_and_leave_the_others_as_they_were():
    one, two = weights(), weights()
    two[3].requires_grad_(False)
    first, second = MeZO(one, lr=0.01), MeZO(two, lr=0.01)
    first.step(lambda: curved(one[:2]))
    second.step(lambda: curved(two[:2]))
    assert torch.equal(two[3], weights()[3])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[3], two[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_goes_on_exactly(dtype):
    straight = weights(dtype)
    optimizer = MeZO(straight, lr=0.01)
    for _ in range(4):
        optimizer.step(lambda: curved(straight))
    kept = {"weights": [one.detach().clone() for one in straight], "optimizer": optimizer.state_dict()}
    again = [torch.nn.Parameter(one) for one in kept["weights"]]
    other = MeZO(again, lr=0.01)
    other.load_state_dict(kept["optimizer"])
    for _ in range(3):
        optimizer.step(lambda: curved(straight))
        other.step(lambda: curved(again))
    assert difference(list(straight), list(again)) is None
    assert other.param_groups[0]["steps"] == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_refused(dtype):
    with pytest.raises(PluginError, match="Load the model in float32"):
        MeZO([torch.nn.Parameter(torch.zeros(3, dtype=dtype))])


@pytest.mark.parametrize("argument", [{"lr": -1.0}, {"perturbation": 0.0}, {"weight_decay": -0.1}])
def test_arguments_out_of_range_are_refused(argument):
    ((name, value),) = argument.items()
    with pytest.raises(PluginError, match=rf"MeZO\({name}={value}\) is not allowed"):
        MeZO(weights(), **argument)


def test_a_loss_that_is_not_finite_moves_nothing(caplog):
    parameters = weights()
    before = [one.detach().clone() for one in parameters]
    optimizer = MeZO(parameters, lr=0.01)
    with caplog.at_level(logging.WARNING):
        optimizer.step(lambda: torch.tensor(float("inf")))
    assert "the step was dropped" in caplog.text
    assert optimizer.skipped_steps == 1
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(parameters, before, strict=True))


# ---- in a trainer ----


class Sees(TrainerCallback):
    def __init__(self):
        self.gradients = set()

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.gradients |= {one.grad for one in model.parameters()}


def test_a_trainer_steps_as_a_loop_does(tmp_path):
    rows = tiny_dataset(28)
    changes = {"train_dataset": rows, "train_sampling_strategy": "sequential", "gradient_accumulation_steps": 1}
    changes |= {"weight_decay": 0.0, "lr_scheduler_type": "constant", "eval_strategy": "no", "save_strategy": "no"}
    sees = Sees()
    trainer = tiny_trainer(tmp_path, MEZO, callbacks=[sees], learning_rate=1e-3, **changes)
    rng = []
    training_step = trainer.training_step

    def remembering(*args, **kwargs):
        rng.append(torch.get_rng_state())
        return training_step(*args, **kwargs)

    trainer.training_step = remembering
    trainer.train()
    assert sees.gradients == {None}
    model = tiny_model().train()
    order = [one for group in trainer.optimizer.param_groups for one in group["params"]]
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    named = dict(model.named_parameters())
    optimizer = MeZO([named[names[id(one)]] for one in order], lr=1e-3)
    slopes = []
    for step in range(14):
        pair = rows[2 * step : 2 * step + 2]
        batch = {key: torch.stack([torch.as_tensor(row[key]) for row in pair]) for key in pair[0]}
        torch.set_rng_state(rng[step])
        optimizer.estimate(lambda batch=batch: model(**batch).loss, seed=7)
        slopes.append(float(optimizer.norm_of_step()))
        optimizer.step()
    assert difference(dict(trainer.model.named_parameters()), dict(model.named_parameters())) is None
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert logged == slopes


@pytest.mark.parametrize("scaled", [True, False])
def test_accumulation_gives_what_a_larger_batch_does(tmp_path, scaled):
    def run(name, batch, parts):
        model = tiny_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = tiny_trainer(
            *(tmp_path / name, MEZO),
            model=model,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            learning_rate=1e-4,
            max_steps=4,
        )
        trainer.model_accepts_loss_kwargs = False
        if scaled:
            trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: (
                torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch
            )
        trainer.train()
        return trainer

    whole, parts = run("whole", 4, 1), run("parts", 2, 2)
    first, second = ([entry for entry in one.state.log_history if "loss" in entry] for one in (whole, parts))
    assert [one["loss"] for one in first] == pytest.approx([one["loss"] for one in second], abs=1e-5)
    # Differences of nearly equal losses: their last bits are multiplied by 1 / 2e.
    assert [one["grad_norm"] for one in first] == pytest.approx([one["grad_norm"] for one in second], abs=2e-3)


def test_it_resumes_exactly(tmp_path):
    straight = tiny_trainer(tmp_path / "straight", MEZO)
    straight.train()
    again = resumed(tmp_path / "resumed", MEZO)
    assert difference(outcome(straight), outcome(again)) is None


def test_a_factor_on_the_rate_acts(tmp_path):
    class Slows(TrainerCallback):
        def on_train_begin(self, args, state, control, *, optimizer, **kwargs):
            lr_scale.set_scale(optimizer, "test", 0.0)

    trainer = tiny_trainer(tmp_path, MEZO, callbacks=[Slows()], max_steps=2)
    trainer.train()
    before = dict(tiny_model().named_parameters())
    assert all(torch.allclose(one, before[name], atol=1e-6) for name, one in trainer.model.named_parameters())


def test_gradients_are_an_owned_matter_of_mezo_alone():
    with_plugins(Trainer, "low-memory")
    technique = with_plugins(Trainer, "low-memory")._ft_techniques[0]
    assert not technique.answers("ft_training_step")
    assert with_plugins(Trainer, MEZO)._ft_techniques[0].answers("ft_training_step")


def test_it_goes_downhill():
    parameters = weights()
    optimizer = MeZO(parameters, lr=0.005)
    losses = [float(optimizer.step(lambda: curved(parameters))) for _ in range(300)]
    assert losses[-1] < losses[0] / 2


def test_a_training_step_of_the_scripts_own_is_refused(tmp_path):
    class Own(Trainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    with pytest.raises(PluginError, match=r"algorithm=mezo replaces the training step, and Own\.training_step"):
        tiny_trainer(tmp_path, MEZO, trainer_class=Own)


def test_options_without_effect_are_named():
    technique = with_plugins(Trainer, f"{MEZO},clip=none,switch_every=3,fused=false")._ft_techniques[0]
    assert set(technique.idle_options()) == {"clip", "switch_every", "fused"}


# ---- two ranks ----


def on_ranks(rank, folder):
    changes = {"train_sampling_strategy": "sequential", "max_steps": 4, "learning_rate": 1e-4, "save_steps": 2}
    results = []
    for start in (None, str(folder / "run/checkpoint-2")) if can_resume_on_two_ranks() else (None,):
        trainer = build(folder / "run", MEZO, eval_strategy="no", **changes)
        trainer.train(resume_from_checkpoint=start)
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        results.append(trained(trainer) | {"norms": norms})
    return results


def test_ranks_take_one_step_by_the_mean_of_their_slopes_and_resume_exactly(on_both_ranks):
    first, second = on_both_ranks(on_ranks)
    assert first == second
    assert len(set(first[0]["norms"])) == 4
    assert all(one == first[0] for one in first)
