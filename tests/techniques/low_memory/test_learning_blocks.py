"""LISA and BAdam: what learns at which step, that the rest costs nothing, and that a resumed run is the same."""

import logging
from collections import Counter

import pytest
import torch
from torch.nn import Dropout
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from hf_ft_plugins import ConflictError, PluginError, lr_scale, with_plugins
from hf_ft_plugins.errors import OptionError
from hf_ft_plugins.techniques.low_memory.blocks import badam_draw, blocks_of, lisa_draw
from hf_ft_plugins.techniques.low_memory.callback import LowMemoryCallback
from hf_ft_plugins.techniques.low_memory.fused_backward import FusedBackward
from hf_ft_plugins.techniques.low_memory.learning_blocks import LearningBlocks
from hf_ft_plugins.testing import difference, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.resuming import outcome

LISA = "low-memory:algorithm=lisa,active_layers=1,switch_every=3"
BADAM = "low-memory:algorithm=badam,switch_every=2"
LAYER = "bert.encoder.layer."
PLAIN = {
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "max_grad_norm": 0,
    "lr_scheduler_type": "constant",
}


def llama(layers=4, *, tied=False):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, num_hidden_layers=layers, tie_word_embeddings=tied, pad_token_id=0, **sizes)
    )


class Seen(TrainerCallback):
    """Per step, after the backward pass or the step within it: the layers that learn, and those that have state."""

    def __init__(self):
        self.learning, self.kept, self.gradients = [], [], []

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        self.learning.append({layer(name) for name, weight in model.named_parameters() if weight.requires_grad})

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.gradients.append({layer(name) for name, weight in model.named_parameters() if weight.grad is not None})

    def on_step_end(self, args, state, control, *, model, optimizer, **kwargs):
        kept = lr_scale.innermost(optimizer).state
        self.kept.append({layer(name) for name, weight in model.named_parameters() if weight in kept})


def layer(name):
    """Its number, or the name of another part of the model."""
    if name.startswith(LAYER):
        return int(name.removeprefix(LAYER).partition(".")[0])
    return name.removeprefix("bert.").partition(".")[0]


def layers(seen):
    return {one for one in seen if isinstance(one, int)}


# ---- which, when ----


def test_lisa_draws_as_many_layers_each_time_and_none_more_often():
    draws = [lisa_draw(7, step, 8, active=2, every=5) for step in range(0, 5 * 2000, 5)]
    assert all(len(set(draw)) == 2 and draw == sorted(draw) for draw in draws)
    counts = Counter(number for draw in draws for number in draw)
    assert set(counts) == set(range(8))
    # 500 expected, with a standard deviation of 19.
    assert max(abs(count - 500) for count in counts.values()) < 80
    assert lisa_draw(7, 0, 2, active=5, every=5) == [0, 1]


def test_badam_gives_each_block_its_turn_in_each_round():
    order = [badam_draw(7, step, 5, every=3)[0] for step in range(3 * 5 * 4)]
    assert all(len(set(order[start : start + 3])) == 1 for start in range(0, len(order), 3))
    rounds = [tuple(order[start : start + 15 : 3]) for start in range(0, len(order), 15)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize(("draw", "options"), [(lisa_draw, {"active": 2, "every": 4}), (badam_draw, {"every": 4})])
def test_a_draw_is_a_function_of_seed_and_step(draw, options):
    torch.manual_seed(1)
    first = [draw(3, step, 9, **options) for step in range(60)]
    before = torch.get_rng_state()
    assert first == [draw(3, step, 9, **options) for step in range(60)]
    assert torch.equal(before, torch.get_rng_state())
    assert first != [draw(4, step, 9, **options) for step in range(60)]


def test_blocks_are_layers_for_lisa_and_all_there_is_for_badam():
    model = llama()
    names = {name for name, _ in model.named_parameters()}
    lisa, badam = blocks_of(model, "lisa"), blocks_of(model, "badam")
    assert [block.name for block in lisa] == [f"model.layers.{number}" for number in range(4)]
    assert names - {name for block in lisa for name in block.parameters} == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert [block.name for block in badam] == ["stem", *(block.name for block in lisa), "head"]
    assert sorted(name for block in badam for name in block.parameters) == sorted(names)


def test_a_tied_head_is_no_block_of_its_own():
    assert [block.name for block in blocks_of(llama(tied=True), "badam")][-1] == "model.layers.3"


def test_what_the_script_froze_is_in_no_block():
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[1].requires_grad_(False)
    assert [block.name[-1] for block in blocks_of(model, "lisa")] == ["0", "2", "3"]
    assert blocks_of(model, "badam")[0].name == "model.layers.0"


def test_a_model_without_a_stack_is_refused():
    with pytest.raises(PluginError, match=r"algorithm=lisa.*no stack of layers is found in a Linear"):
        blocks_of(torch.nn.Linear(2, 2), "lisa")


# ---- the run ----


@pytest.mark.parametrize("fused", ["true", "false"])
def test_lisa_trains_one_layer_with_embeddings_and_head(tmp_path, fused):
    seen = Seen()
    trainer = tiny_trainer(tmp_path, f"{LISA},fused={fused}", callbacks=[seen], **PLAIN)
    everything = {layer(name) for name, _ in trainer.model.named_parameters()}
    trainer.train()
    for step in range(14):
        drawn = set(lisa_draw(7, step, 3, active=1, every=3))
        assert layers(seen.learning[step]) == layers(seen.kept[step]) == drawn
        outside = {one for one in everything if not isinstance(one, int)}
        assert seen.learning[step] - drawn == seen.kept[step] - drawn == outside
        assert seen.gradients[step] == (set() if fused == "true" else seen.learning[step])
    assert len({tuple(layers(one)) for one in seen.learning}) > 1
    assert all(weight.requires_grad for weight in trainer.model.parameters())


def test_badam_trains_one_block_and_keeps_state_of_no_other(tmp_path):
    seen = Seen()
    trainer = tiny_trainer(tmp_path, BADAM, callbacks=[seen], **PLAIN)
    owners = [{layer(name) for name in block.parameters} for block in blocks_of(trainer.model, "badam")]
    trainer.train()
    for step in range(14):
        (number,) = badam_draw(7, step, 5, every=2)
        assert seen.learning[step] == seen.kept[step] == owners[number]


@pytest.mark.parametrize("technique", [LISA, BADAM])
def test_fused_and_unfused_are_equal(tmp_path, technique):
    # One after the other: each is seeded when it is made.
    runs = []
    for fused in ("true", "false"):
        runs.append(tiny_trainer(tmp_path / fused, f"{technique},fused={fused}", **PLAIN))
        runs[-1].train()
    assert [isinstance(run.optimizer.optimizer, FusedBackward) for run in runs] == [True, False]
    one, other = map(outcome, runs)
    assert difference(one["weights"], other["weights"]) is None
    assert difference(one["optimizer"], other["optimizer"]) is None


def adam_by_hand(model, batches, blocks, draw, *, rate, decay, drops=True):
    """AdamW on the blocks that are drawn, in float64, with moments that begin anew."""
    named = dict(model.double().named_parameters())
    resting_ones = {name for block in blocks for name in block.parameters}
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    kept = {}
    for step, batch in enumerate(batches):
        drawn = {name for number in draw(step) for name in blocks[number].parameters}
        loss = model(**batch).loss
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
        for name, weight in named.items():
            if name in resting_ones and name not in drawn:
                if drops:
                    kept.pop(name, None)
                continue
            gradient = gradients[name]
            first, second, count = kept.get(name, (torch.zeros_like(weight), torch.zeros_like(weight), 0))
            first, second, count = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2, count + 1
            kept[name] = (first, second, count)
            update = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
            with torch.no_grad():
                if name in decayed:
                    weight.mul_(1 - rate * decay)
                weight.sub_(rate * update)
    return {name: weight.detach() for name, weight in named.items()}


@pytest.mark.parametrize("way", ["lisa", "badam"])
def test_the_weights_are_those_of_the_papers_algorithm(tmp_path, way):
    def without_dropout():
        model = tiny_model()
        for module in model.modules():
            if isinstance(module, Dropout):
                module.p = 0.0
        return model

    rows = tiny_dataset(28)
    options = {"learning_rate": 1e-3, "weight_decay": 0.1, "train_sampling_strategy": "sequential"}
    technique = LISA if way == "lisa" else BADAM
    trainer = tiny_trainer(tmp_path, technique, model=without_dropout(), train_dataset=rows, **PLAIN, **options)
    trainer.train()
    batches = [
        {key: torch.stack([torch.as_tensor(row[key]) for row in rows[at : at + 2]]) for key in rows[0]}
        for at in range(0, 28, 2)
    ]
    draws = {
        "lisa": lambda step: lisa_draw(7, step, 3, active=1, every=3),
        "badam": lambda step: badam_draw(7, step, 5, every=2),
    }
    expected, control = (
        adam_by_hand(*(model, batches, blocks_of(model, way), draws[way]), rate=1e-3, decay=0.1, drops=drops)
        for drops in (True, False)
        for model in [without_dropout()]
    )
    found = dict(trainer.model.double().named_parameters())
    errors, against = (
        max(float((found[name].detach() - one[name]).abs().max()) for name in found) for one in (expected, control)
    )
    assert errors < 1e-5
    assert against > 1e-4


@pytest.mark.parametrize(("technique", "stops"), [(LISA, (3, 4)), (BADAM, (2, 3)), (f"{LISA},fused=false", (3,))])
def test_a_run_resumes_exactly_at_a_switch_and_after_it(tmp_path, technique, stops):
    changes = {"gradient_accumulation_steps": 1, "save_steps": 1, "eval_strategy": "no", "max_steps": 7}
    straight = tiny_trainer(tmp_path, technique, **changes)
    straight.train()
    expected = outcome(straight)
    for stop in stops:
        again = tiny_trainer(tmp_path, technique, **changes)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
        assert again.state.log_history[stop]["step"] == stop + 1
        assert difference(expected, outcome(again)) is None


def test_it_works_alone_in_a_stock_trainer(tmp_path):
    model = tiny_model()
    model.bert.encoder.layer[2].requires_grad_(False)
    model.bert.embeddings.LayerNorm.requires_grad_(False)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    seen = Seen()
    callbacks = [LearningBlocks("lisa", active_layers=1, switch_every=2, seed=1), seen]
    trainer = tiny_trainer(tmp_path, model=model, callbacks=callbacks, **PLAIN)
    trainer.train()
    assert [layers(one) for one in seen.learning] == [
        set(lisa_draw(1, step, 2, active=1, every=2)) for step in range(14)
    ]
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == frozen


def test_hooks_follow_the_switch_in_a_stock_trainer(tmp_path):
    # What rests when the wrapper is made has no hook yet.
    model = tiny_model()
    fused = FusedBackward(torch.optim.AdamW(model.parameters(), lr=1e-3))
    seen = Seen()
    callbacks = [LearningBlocks("badam", switch_every=1), LowMemoryCallback(), seen]
    fused.detach()
    trainer = tiny_trainer(tmp_path, model=model, callbacks=callbacks, **PLAIN)
    trainer.optimizer = fused
    trainer.train()
    assert seen.gradients == [set()] * 14


@pytest.mark.parametrize("error", [ValueError("the script's own"), KeyboardInterrupt()])
def test_all_learn_again_when_training_raises(tmp_path, error):
    class Raises(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise error

    model = tiny_model()
    model.bert.embeddings.requires_grad_(False)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    trainer = tiny_trainer(tmp_path, BADAM, model=model, callbacks=[Raises()], **PLAIN)
    with pytest.raises(type(error)):
        trainer.train()
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == frozen


def test_a_second_run_begins_as_the_first(tmp_path):
    callback = LearningBlocks("badam", switch_every=2)
    trainer = tiny_trainer(tmp_path, callbacks=[callback], **PLAIN)
    trainer.train()
    trainer.train()
    assert all(weight.requires_grad for weight in trainer.model.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_checkpointed_layer_above_resting_ones_learns(tmp_path, reentrant, fused):
    setting = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_dataset()]
    data = {"train_dataset": rows, "eval_dataset": None}
    technique = f"{BADAM},fused={fused}"
    runs = []
    for changes in ({}, setting):
        runs.append(tiny_trainer(tmp_path, technique, model=llama(), **data, **PLAIN, **changes))
        runs[-1].train()
    assert difference(*(outcome(run)["weights"] for run in runs)) is None


def test_fewer_layers_than_asked_for_all_learn_with_a_warning(tmp_path, caplog):
    plain = tiny_trainer(tmp_path / "plain", "low-memory", **PLAIN)
    plain.train()
    trainer = tiny_trainer(tmp_path / "lisa", "low-memory:algorithm=lisa,active_layers=3", **PLAIN)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "algorithm=lisa lets 3 of the layers learn at a time" in caplog.text
    assert difference(outcome(plain)["weights"], outcome(trainer)["weights"]) is None


@pytest.mark.parametrize("algorithm", ["lisa", "badam"])
def test_a_model_of_one_layer_learns_whole(tmp_path, algorithm):
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_dataset()]
    data = {"model": llama(1), "train_dataset": rows, "eval_dataset": None}
    seen = Seen()
    tiny_trainer(tmp_path, f"low-memory:algorithm={algorithm}", callbacks=[seen], **data, **PLAIN).train()
    assert all(len(one) == len(seen.learning[0]) for one in seen.learning)


def test_the_schedule_of_the_rate_goes_on(tmp_path):
    changes = PLAIN | {"lr_scheduler_type": "linear"}
    plain, lisa = (tiny_trainer(tmp_path / name, *listed, **changes) for name, listed in (("a", []), ("b", [LISA])))
    plain.train()
    lisa.train()
    rates = [[entry["learning_rate"] for entry in run.state.log_history if "loss" in entry] for run in (plain, lisa)]
    assert rates[0] == rates[1]


# ---- what is refused ----


def test_an_adapter_is_refused(tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(PluginError, match=r"algorithm=lisa.*under an adapter all of them are frozen"):
        tiny_trainer(tmp_path, "peft", LISA)


def test_another_technique_that_decides_which_layers_learn_is_refused():
    with pytest.raises(ConflictError, match="transfer and low-memory cannot run together: both decide which layers"):
        with_plugins(Trainer, "transfer:strategy=gradual", LISA)
    with_plugins(Trainer, "transfer:strategy=full", LISA)
    with_plugins(Trainer, "transfer:strategy=gradual", "low-memory")


@pytest.mark.parametrize("option", ["active_layers=0", "switch_every=0"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(OptionError, match="it must be 1 or more"):
        with_plugins(Trainer, f"low-memory:algorithm=lisa,{option}")
    name, value = option.split("=")
    with pytest.raises(PluginError, match=rf"LearningBlocks\({name}=0\)"):
        LearningBlocks("lisa", **{name: int(value)})
