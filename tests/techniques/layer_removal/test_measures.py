"""The numbers that layers are chosen and models judged by, against what they are by hand."""

import math

import pytest
import torch

from hf_ft_plugins.techniques.layer_removal import choose_layers
from hf_ft_plugins.techniques.layer_removal.choice import Choice
from hf_ft_plugins.techniques.layer_removal.curve import measure_choices
from hf_ft_plugins.techniques.layer_removal.gate import Limits, judge
from hf_ft_plugins.techniques.layer_removal.quality import Quality, measure_quality
from hf_ft_plugins.techniques.layer_removal.score import mean_loss, removal_order
from hf_ft_plugins.techniques.layer_removal.surgery import PROMPT, Surgery, prompts_of
from hf_ft_plugins.testing.examples.behavioral import tiny_llama

DRAW = torch.Generator().manual_seed(2)


def batch_of(rows, length):
    ids = torch.randint(3, 380, (rows, length), generator=DRAW)
    return {"input_ids": ids, "labels": ids.clone()}


def llama(layers=4):
    return tiny_llama(num_hidden_layers=layers).eval()


def test_the_mean_loss_is_over_predicted_tokens_whatever_the_batches():
    model, batches = llama(), [batch_of(1, 20), batch_of(3, 2)]
    total, count = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            scores = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
        tokens = scores.gather(-1, batch["input_ids"][:, 1:, None])
        total, count = total - float(tokens.sum()), count + tokens.numel()
    assert count == 19 + 3
    with torch.no_grad():
        found = mean_loss(model, batches)
        each = [mean_loss(model, [batch]) for batch in batches]
    assert found == pytest.approx(total / count, rel=1e-6)
    # Control: labels that predict nothing, the first of each row, do not count.
    assert found != pytest.approx((20 * each[0] + 6 * each[1]) / 26, rel=1e-6)


def test_taylor_leaves_gradients_that_were_there():
    model = llama()
    before = {}
    for name, weight in model.named_parameters():
        weight.grad = torch.randn(weight.shape, generator=DRAW)
        before[name] = weight.grad.clone()
    choose_layers(model, [batch_of(2, 8)], 1, method="taylor")
    for name, weight in model.named_parameters():
        assert torch.equal(weight.grad, before[name]), name


def test_perplexity_takes_the_layer_whose_loss_is_lowest_each_time():
    model, batches = llama(5), [batch_of(2, 12)]
    for layer, scale in enumerate((1.0, 6.0, 0.0, 3.0, 1.0)):
        with torch.no_grad():
            model.model.layers[layer].mlp.down_proj.weight.mul_(scale)
            model.model.layers[layer].self_attn.o_proj.weight.mul_(scale)
    losses = [point["loss"] for point in measure_choices(model, [[1], [2], [3]], batches)[1:]]
    best = 1 + min(range(3), key=losses.__getitem__)
    order = removal_order(model, batches, 2, "perplexity")
    assert order[0] == best
    pairs = [[best, layer] for layer in (1, 2, 3) if layer != best]
    points = measure_choices(model, [sorted(pair) for pair in pairs], batches)[1:]
    assert order == min(zip(points, pairs, strict=True), key=lambda one: one[0]["loss"])[1]


def test_agreement_ends_at_the_first_token_that_differs():
    def wrote(*tokens):
        return Quality(1.0, 0.0, torch.tensor([tokens]))

    original = wrote(1, 2, 3, 4)
    assert wrote(1, 9, 3, 4).match(original) == 0.25
    assert wrote(9, 2, 3, 4).match(original) == 0.0
    assert wrote(1, 2, 3, 4).match(original) == 1.0


def test_a_curve_compares_with_what_the_whole_model_writes():
    model, prompts = llama(), torch.randint(3, 380, (4, 6), generator=DRAW)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(100)
    whole = measure_quality(model, [], prompts)
    points = measure_choices(model, [[1, 2]], [batch_of(2, 8)], prompts=prompts)
    del model.model.layers[1:3]
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = 2
    model.config.layer_types = model.config.layer_types[:2] if getattr(model.config, "layer_types", None) else None
    cut = measure_quality(model, [], prompts)
    assert points[0]["match"] == 1.0
    assert points[1]["match"] == cut.match(whole) < 1.0


@pytest.mark.parametrize(
    ("perplexity", "fails"),
    [(2.4, False), (2.41, True), (math.nan, True), (math.inf, True)],
)
def test_a_gate_lets_a_model_pass_up_to_its_limit_and_none_without_a_number(perplexity, fails):
    none = torch.empty(0, 0, dtype=torch.long)
    surgery = Surgery((1,), 4, "", "named", whole=Quality(2.0, 0.0, none), cut=Quality(3.0, 0.0, none))
    report = judge(surgery, Quality(perplexity, 0.0, none), Limits(0.2001, None))
    assert bool(report["failed"]) == fails


def test_a_row_of_exactly_a_prompts_length_is_a_prompt():
    model = llama(2)
    long, short = batch_of(2, PROMPT), batch_of(2, PROMPT - 1)
    assert torch.equal(prompts_of(model, [short, long]), long["input_ids"])
    assert prompts_of(model, [short]) is None


def test_at_least_one_layer_goes_and_a_fifth_where_nothing_is_asked_for():
    assert Choice().count(10) == 2
    assert Choice(fraction=0.01).count(6) == 1
    assert Choice(fraction=0.5).count(6) == 3
    assert Choice(layers=(1, 1, 3)).count(6) == 2
