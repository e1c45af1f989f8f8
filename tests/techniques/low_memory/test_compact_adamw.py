"""Compact AdamW: its numbers in fewer bits, its steps against AdamW's, its bytes, and exact resume."""

import copy
import logging

import pytest
import torch

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory.bytes_used import bytes_per_parameter
from hf_ft_plugins.techniques.low_memory.fused_backward import FusedBackward
from hf_ft_plugins.techniques.low_memory.optimizers import compact_adamw, companding
from hf_ft_plugins.techniques.low_memory.optimizers.compact_adamw import CHUNK, CompactAdamW
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_model, tiny_trainer

SHAPES = [(100, 70), (7, 3), (), (0, 4), (8, 4, 16, 16)]


def numbers(*shape, seed=0, spread=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))


# ---- weights ----


def taken_apart(weights, turn=None):
    kept, rest = torch.empty_like(weights, dtype=torch.bfloat16), torch.empty_like(weights, dtype=torch.int8)
    companding.split(weights, kept, rest, turn)
    return kept, rest


def test_a_weight_in_24_bits_is_within_their_precision_and_its_half_is_rounded_to_nearest():
    weights = numbers(100_000, spread=10)
    kept, rest = taken_apart(weights)
    # Of the 24 bits: one in 512 weights lies so near the middle that they are a tie.
    assert (kept != weights.bfloat16()).float().mean() < 1 / 400
    error = (companding.join(kept, rest) - weights).abs() / weights.abs()
    assert error.max() <= 2**-16
    # bf16 alone is 256 times coarser.
    assert ((kept.float() - weights).abs() / weights.abs()).max() > 2**-9


def test_a_weight_does_not_drift_when_it_is_taken_apart_and_joined_again():
    first = companding.join(*taken_apart(numbers(100_000, spread=10)))
    assert torch.equal(companding.join(*taken_apart(first)), first)
    for turn in range(5):
        assert torch.equal(companding.join(*taken_apart(first, turn)), first)


def test_weights_that_are_no_numbers_stay_so():
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 3.4028235e38])
    all_ones = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    joined = companding.join(*taken_apart(torch.cat([special, all_ones])))
    assert difference(joined[[0, 1, 3, 4]], special[[0, 1, 3, 4]]) is None
    assert joined[[2, 6, 7]].isnan().all()


# ---- moments ----


def written(values, turn, write, dtype):
    codes = torch.empty(len(values), dtype=dtype)
    scales = torch.empty(companding.scales_of(len(values)))
    write(values.clone(), codes, scales, turn)
    return codes, scales


def read_signed(values, turn=0):
    return companding.read_signed(*written(values, turn, companding.write_signed, torch.int8))


def read_unsigned(values, turn=0):
    return companding.read_unsigned(*written(values, turn, companding.write_unsigned, torch.uint8))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_moments_in_8_bits_are_near_what_was_written(size):
    values = numbers(size)
    largest = torch.cat([part.abs().max().repeat(len(part)) for part in values.split(companding.BLOCK)])
    # Between two neighbours of the codes c |c| / 127**2 and c**2 / 255**2, and no further.
    for read, exact, units in ((read_signed, values, 127), (read_unsigned, values.abs(), 255)):
        allowed = 2.1 / units * (values.abs() * largest).sqrt() + largest / units**2
        assert ((read(exact) - exact).abs() <= allowed).all()


def test_what_has_no_gradient_stays_zero_and_what_has_one_never_divides_by_zero():
    values = torch.zeros(512)
    values[:256] = 1e-9
    values[0] = 1.0
    assert (read_signed(values)[256:] == 0).all()
    assert (read_unsigned(values)[256:] == 0).all()
    assert (read_unsigned(values)[:256] > 0).all()


def test_the_mean_error_over_many_turns_is_zero_where_rounding_to_nearest_would_stay():
    values = numbers(2560).abs()
    turns = 200
    mean = sum(read_unsigned(values, turn).sqrt() for turn in range(turns)) / turns
    nearest = read_unsigned(values, 0).sqrt()
    assert (mean - values.sqrt()).abs().mean() < 0.1 * (nearest - values.sqrt()).abs().mean()


def test_a_moment_fades_as_its_formula_has_it():
    # A value among larger ones that are kept up, as of a weight whose gradient has become zero.
    values = torch.ones(256)
    for turn in range(1000):
        values = read_unsigned(torch.cat([torch.ones(128), values[128:] * 0.999]), turn)
    assert torch.allclose(values[128:].mean(), torch.tensor(0.999**1000), rtol=0.05)


# ---- steps ----


def stepped(make, steps=20, shape=(100, 70), dtype=torch.float32, **options):
    parameter = torch.nn.Parameter(numbers(*shape).to(dtype))
    optimizer = make([parameter], lr=1e-2, weight_decay=0.1, **options)
    for step in range(steps):
        parameter.grad = (numbers(*shape, seed=step + 1) * 0.1 + numbers(*shape, seed=99)).to(dtype)
        optimizer.step()
    return optimizer, parameter


@pytest.mark.parametrize("shape", [(7, 3), (), (0, 4)])
def test_small_float32_tensors_are_stepped_as_by_adamw(shape):
    _, ours = stepped(CompactAdamW, shape=shape)
    _, reference = stepped(torch.optim.AdamW, shape=shape)
    assert torch.allclose(ours, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(100, 70), (8, 4, 16, 16), (CHUNK + 300,)])
def test_large_tensors_are_stepped_nearly_as_by_adamw(shape):
    start = numbers(*shape)
    _, ours = stepped(CompactAdamW, shape=shape)
    _, reference = stepped(torch.optim.AdamW, shape=shape)
    assert (ours - reference).norm() < 0.02 * (reference - start).norm()


def test_how_many_values_are_taken_at_a_time_changes_nothing(monkeypatch):
    _, at_once = stepped(CompactAdamW, dtype=torch.bfloat16)
    monkeypatch.setattr(compact_adamw, "CHUNK", 2 * companding.BLOCK)
    _, in_parts = stepped(CompactAdamW, dtype=torch.bfloat16)
    assert torch.equal(at_once, in_parts)


@pytest.mark.parametrize("rate", [1e-5, 1e-6])
def test_steps_below_the_precision_of_24_bits_add_up(rate):
    def trained(make):
        weight = torch.nn.Parameter(torch.full((32, 128), 1.0, dtype=torch.bfloat16))
        optimizer = make([weight], lr=rate, weight_decay=0.0)
        for _ in range(500):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return optimizer, weight

    optimizer, weight = trained(CompactAdamW)
    assert 1 - optimizer.full_weight(weight).mean().item() == pytest.approx(500 * rate, rel=0.02)
    assert trained(torch.optim.AdamW)[1].float().mean() == 1


def test_a_tensor_that_is_not_in_one_piece_is_stepped_alike():
    results = []
    for transposed in (False, True):
        data = numbers(80, 70)
        parameter = torch.nn.Parameter(data.t().contiguous().t() if transposed else data)
        optimizer = CompactAdamW([parameter], lr=1e-2)
        optimizer.halve_weights()
        for step in range(3):
            parameter.grad = numbers(80, 70, seed=step).bfloat16()
            optimizer.step()
        results.append(parameter.detach().contiguous())
    assert torch.equal(*results)


def test_halved_weights_lose_24_bits_precision_at_most_and_frozen_ones_nothing():
    model = tiny_model()
    model.bert.embeddings.requires_grad_(False)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    optimizer = CompactAdamW([one for one in model.parameters() if one.requires_grad])
    optimizer.halve_weights()
    for name, one in model.named_parameters():
        assert one.dtype is (torch.bfloat16 if one.requires_grad else torch.float32)
        full = optimizer.full_weight(one)
        assert torch.allclose(full, before[name], rtol=2**-16, atol=0)
        assert one.requires_grad or torch.equal(one, before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_optimizer_goes_on_bit_for_bit(dtype, tmp_path):
    optimizer, parameter = stepped(CompactAdamW, steps=5, dtype=dtype)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = torch.nn.Parameter(parameter.detach().clone())
    loaded = CompactAdamW([other])
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert difference(loaded.state_dict(), optimizer.state_dict()) is None
    for _ in range(3):
        for one, weight in ((optimizer, parameter), (loaded, other)):
            weight.grad = numbers(100, 70, seed=50).to(dtype)
            one.step()
    assert torch.equal(parameter, other)
    # What torch's own method makes of it is not that.
    cast = CompactAdamW([other])
    torch.optim.Optimizer.load_state_dict(cast, copy.deepcopy(optimizer.state_dict()))
    assert difference(cast.state_dict(), optimizer.state_dict()) is not None


# ---- bytes ----


def test_five_bytes_a_parameter_fused_and_seven_with_gradients():
    def made(fused):
        model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256))
        optimizer = CompactAdamW(model.parameters(), lr=1e-3)
        optimizer.halve_weights()
        outer = FusedBackward(optimizer) if fused else optimizer
        model(torch.ones(2, 256, dtype=torch.bfloat16)).float().sum().backward()
        outer.step()
        return bytes_per_parameter(outer)

    assert made(True) == pytest.approx(5, abs=0.1)
    assert made(False) == pytest.approx(7, abs=0.1)
    optimizer, _ = stepped(torch.optim.AdamW, steps=1)
    assert bytes_per_parameter(optimizer) == pytest.approx(16, abs=0.01)


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr=-1"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps=0"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    with pytest.raises(PluginError, match=words):
        CompactAdamW([torch.nn.Parameter(torch.ones(3))], **options)


def test_parameters_of_other_types_are_refused():
    with pytest.raises(PluginError, match=r"torch\.float16"):
        CompactAdamW([torch.nn.Parameter(torch.ones(3, dtype=torch.float16))])


def test_the_state_of_another_optimizer_is_refused():
    other, _ = stepped(torch.optim.AdamW, steps=1)
    optimizer, _ = stepped(CompactAdamW, steps=0)
    with pytest.raises(PluginError, match="exp_avg"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("saved", "current"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_state_of_weights_of_another_dtype_is_refused(saved, current):
    first, _ = stepped(CompactAdamW, steps=1, dtype=getattr(torch, saved))
    second, _ = stepped(CompactAdamW, steps=0, dtype=getattr(torch, current))
    with pytest.raises(PluginError, match=f"torch.{current}, and was {saved}"):
        second.load_state_dict(first.state_dict())


# ---- in a trainer ----

COMPACT = "low-memory:algorithm=compact-adamw"
SETTING = {"gradient_accumulation_steps": 1}


@pytest.mark.parametrize("accumulation", ["buffer", "fold"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path, accumulation):
    technique = f"{COMPACT},accumulation={accumulation}"
    whole = tiny_trainer(tmp_path / "whole", technique)
    whole.train()
    assert {one.dtype for one in whole.model.parameters()} == {torch.bfloat16}
    again = resumed(tmp_path / "cut", technique)
    assert difference(outcome(again), outcome(whole)) is None


def test_within_the_backward_pass_is_after_it(tmp_path):
    results = []
    for fused in ("true", "false"):
        technique = f"{COMPACT},fused={fused}"
        trainer = tiny_trainer(tmp_path / fused, technique, max_grad_norm=0.0, **SETTING)
        trainer.train()
        results.append(outcome(trainer))
    assert difference(results[0]["weights"], results[1]["weights"]) is None
    assert difference(results[0]["optimizer"], results[1]["optimizer"]) is None


def test_the_change_of_weights_is_in_the_log_and_what_is_saved_is_what_was_trained(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, COMPACT, max_steps=2, **SETTING)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "from float32 to bfloat16" in caplog.text
    trainer.save_model(tmp_path / "saved")
    loaded = type(trainer.model).from_pretrained(tmp_path / "saved", dtype="auto")
    assert difference(dict(loaded.state_dict()), dict(trainer.model.state_dict())) is None


def test_layers_of_two_kinds_need_autocast(tmp_path):
    def trainer(**changes):
        model = tiny_model()
        model.bert.embeddings.requires_grad_(False)
        return tiny_trainer(tmp_path, COMPACT, model=model, max_steps=2, **SETTING, **changes)

    refused = trainer()
    with pytest.raises(PluginError, match="bf16=True"):
        refused.train()
    assert {one.dtype for one in refused.model.parameters()} == {torch.float32}
    with_autocast = trainer(bf16=True)
    with_autocast.train()
    trained = [one for one in with_autocast.model.parameters() if one.requires_grad]
    assert {(one.dim() > 1, one.dtype) for one in trained} == {(True, torch.bfloat16), (False, torch.float32)}


def test_it_follows_the_factors_on_its_rate():
    def moved(factor):
        weight = torch.nn.Parameter(torch.ones(8))
        optimizer = CompactAdamW([weight], lr=0.1, weight_decay=0.0)
        lr_scale.set_scale(optimizer, "test", factor)
        weight.grad = torch.ones(8)
        optimizer.step()
        return (1 - weight).mean().item()

    assert moved(0.5) == pytest.approx(0.5 * moved(1.0))
