"""Steps within the backward pass on two ranks that each hold the whole model: equal to stock DDP's, without buckets."""

import hashlib

import pytest
import torch

from tests.two_processes import RANKS, build, resumes_on_two_ranks

RUN = {"gradient_accumulation_steps": 1, "max_steps": 8, "eval_strategy": "no", "save_strategy": "no"}


def weights(trainer):
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def digest(trainer):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights(trainer).values())).hexdigest()


def largest_difference(first, second):
    others = weights(second)
    return max((one.double() - others[name].double()).abs().max().item() for name, one in weights(first).items())


def bytes_of_buckets(trainer):
    return sum(map(int, trainer.model_wrapped._get_ddp_logging_data()["bucket_sizes"].split(", ")))


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


# ---- the same as stock ----


def stock_and_ours(rank, folder, technique, changes):
    from transformers import Trainer

    from hf_ft_plugins.testing import difference, tiny_model

    # Ranks begin with weights of their own, and have to agree on one.
    stock = build(folder / "stock", trainer_class=Trainer, model=tiny_model(seed=rank), **RUN | changes)
    stock.train()
    ours = build(folder / "ours", technique, model=tiny_model(seed=rank), **RUN | changes)
    ours.train()
    return {
        "difference": difference(weights(stock), weights(ours)),
        "largest": largest_difference(stock, ours),
        "weights": digest(ours),
        "norms": [norms(stock), norms(ours)],
        "buckets": [bytes_of_buckets(stock), bytes_of_buckets(ours)],
        "left behind": [name for name in vars(ours.model) if "ddp" in name]
        + [name for name, one in ours.model.named_parameters() if hasattr(one, "_ddp_ignored")],
    }


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_weights_are_those_of_stock_ddp_bit_for_bit_without_its_buckets(on_both_ranks, optim):
    first, second = on_both_ranks(stock_and_ours, "low-memory", {"optim": optim, "max_grad_norm": 0.0})
    assert first["weights"] == second["weights"]
    assert first["difference"] is None
    assert second["difference"] is None
    stock, ours = first["buckets"]
    assert ours <= 0.01 * stock, "a copy of the gradients is held"
    assert first["left behind"] == []


def test_clipping_by_two_passes_is_that_of_stock_ddp(on_both_ranks):
    changes = {"max_grad_norm": 0.1, "learning_rate": 1e-3}
    first, second = on_both_ranks(stock_and_ours, "low-memory:clip=two_pass", changes)
    assert first["weights"] == second["weights"]
    assert first["largest"] < 1e-6
    stock, ours = first["norms"]
    assert min(stock) > 0.1, "nothing was clipped"
    assert ours == pytest.approx(stock, rel=1e-5)


def test_gradients_that_are_accumulated_are_reduced_by_ddp(on_both_ranks):
    changes = {"gradient_accumulation_steps": 2, "ddp_find_unused_parameters": True}
    first, second = on_both_ranks(stock_and_ours, "low-memory", changes)
    assert first["weights"] == second["weights"]
    assert first["difference"] is None
    stock, ours = first["buckets"]
    assert ours == stock


def ours_without_means(rank, folder):
    from hf_ft_plugins.techniques.low_memory import building

    building.are_replicas = lambda trainer: False
    trainer = build(folder / "run", "low-memory", **RUN)
    trainer.train()
    return digest(trainer)


def test_ranks_part_where_each_steps_with_its_own_gradients(on_both_ranks):
    first, second = on_both_ranks(ours_without_means)
    assert first != second


# ---- resume ----


def resumed_run(rank, folder):
    from transformers import TrainerCallback

    from hf_ft_plugins.testing import Interruption, difference, outcome

    class StopAt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise Interruption

    changes = RUN | {"save_strategy": "steps", "save_steps": 4, "max_grad_norm": 0.1}
    straight = build(folder / "straight", "low-memory", **changes)
    straight.train()
    cut = build(folder / "cut", "low-memory", callbacks=[StopAt()], **changes)
    with pytest.raises(Interruption):
        cut.train()
    again = build(folder / "cut", "low-memory", **changes)
    again.train(resume_from_checkpoint=True)
    unclipped = build(folder / "unclipped", "low-memory:clip=none", **changes)
    unclipped.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(weights(straight), weights(unclipped)),
        "weights": digest(again),
    }


@resumes_on_two_ranks
def test_resumed_run_equals_the_run_never_stopped(on_both_ranks):
    first, second = on_both_ranks(resumed_run)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["weights"] == second["weights"]
    assert first["control"] is not None, "nothing was clipped"


# ---- the order of gradients ----


class TwoBranches(torch.nn.Module):
    """A sum of two layers of one size, which the ranks of a run call in orders of their own from some step on."""

    def __init__(self, rank, differs_from):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 2)
        self.rank, self.differs_from, self.steps = rank, differs_from, 0

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        branches = [self.first, self.second]
        if self.steps >= self.differs_from and self.rank == 1:
            branches.reverse()
        self.steps += 1
        outputs = [branch(input_ids.float()) for branch in branches]
        logits = self.head(outputs[0] + outputs[1])
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def other_orders(rank, folder, differs_from):
    from hf_ft_plugins.errors import PluginError

    trainer = build(folder / "run", "low-memory", model=TwoBranches(rank, differs_from), **RUN)
    try:
        trainer.train()
    except PluginError as error:
        return {"error_of_ours": str(error), "steps": trainer.state.global_step}
    return {"error_of_ours": None, "steps": trainer.state.global_step}


@pytest.mark.parametrize("differs_from", [0, 5])
def test_gradients_that_come_in_another_order_on_one_rank_end_the_run_on_both(on_both_ranks, differs_from):
    results = on_both_ranks(other_orders, differs_from)
    assert [result["steps"] for result in results] == [differs_from] * RANKS
    for result in results:
        assert f"in step {differs_from + 1} gradients come in another order" in result["error_of_ours"]
        assert "fused=false" in result["error_of_ours"]


def test_the_same_order_on_both_ranks_ends_no_run(on_both_ranks):
    results = on_both_ranks(other_orders, 99)
    assert results == [{"error_of_ours": None, "steps": 8}] * RANKS


def other_models(rank, folder):
    from hf_ft_plugins.errors import PluginError
    from hf_ft_plugins.testing import tiny_model

    model = tiny_model()
    if rank == 1:
        model.classifier = torch.nn.Linear(16, 3)
    trainer = build(folder / "run", "low-memory", model=model, **RUN)
    try:
        trainer.train()
    except PluginError as error:
        return str(error)
    return None


def test_models_that_differ_between_ranks_are_refused_on_both(on_both_ranks):
    for error in on_both_ranks(other_models):
        assert "the models of the ranks differ" in error


# ---- what is left to DDP ----


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(30))
        self.embedding = torch.nn.Embedding(64, 32)
        self.output = torch.nn.Linear(32, 64)
        self.output.weight = self.embedding.weight


def test_the_smallest_parameters_are_left_to_ddp_and_all_names_of_the_others_ignored():
    from hf_ft_plugins.techniques.low_memory.replicas import IGNORED, MeanOverRanks, give_back

    model = Tied()
    mean = MeanOverRanks(model)
    assert [one is model.scale for one in mean.left] == [True]
    assert mean.ignored == {"embedding.weight", "output.weight", "output.bias"}
    assert getattr(model, IGNORED) == mean.ignored
    give_back(model)
    assert not hasattr(model, IGNORED)
    # A scale too large to be left: DDP looks for a parameter of the outermost module under two names.
    model.scale = torch.nn.Parameter(torch.ones(3000))
    assert {"scale", ".scale"} <= MeanOverRanks(model).ignored


def test_a_model_that_is_wrapped_otherwise_is_refused_before_the_first_step():
    from hf_ft_plugins.errors import PluginError
    from hf_ft_plugins.techniques.low_memory.replicas import MeanOverRanks

    model = Tied()
    with pytest.raises(PluginError, match=r"low-memory: the model was wrapped into Tied.*fused=false"):
        MeanOverRanks(model).begin(model, model)
