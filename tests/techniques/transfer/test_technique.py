"""Transfer: the order of layers, the new head, what learns when, and features that are computed once."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.models.heads import fit_head
from hf_ft_plugins.models.labels import Labels, labels_of
from hf_ft_plugins.techniques.transfer import (
    GradualUnfreezing,
    LayerGroup,
    Transfer,
    fit_probe,
    freeze,
    layer_groups,
    layerwise_lr,
)
from hf_ft_plugins.techniques.transfer.head_reading import NotCacheable
from hf_ft_plugins.techniques.transfer.thawing import thaw_steps
from hf_ft_plugins.testing import (
    VOCABULARY,
    check_technique,
    difference,
    outcome,
    resumed,
    tiny_dataset,
    tiny_model,
    tiny_trainer,
)
from hf_ft_plugins.testing.examples.transfer import EXAMPLE

datasets = pytest.importorskip("datasets")


# ---- layers ----

SHAPES = {
    "BertForSequenceClassification": {"num_hidden_layers": 3},
    "RobertaForSequenceClassification": {"num_hidden_layers": 3},
    "DistilBertForTokenClassification": {"n_layers": 3},
    "DebertaV2ForSequenceClassification": {"num_hidden_layers": 3},
    "ModernBertForSequenceClassification": {"num_hidden_layers": 3},
    "GPT2ForSequenceClassification": {"n_layer": 3},
    "LlamaForCausalLM": {"num_hidden_layers": 3, "tie_word_embeddings": False},
    "MixtralForCausalLM": {"num_hidden_layers": 3},
    "ViTForImageClassification": {"num_hidden_layers": 3},
    "CLIPForImageClassification": {},
    "ResNetForImageClassification": {},
    "ConvNextForImageClassification": {},
    "SwinForImageClassification": {},
    "MobileNetV1ForImageClassification": {},
    "EfficientNetForImageClassification": {},
    "BartForSequenceClassification": {"encoder_layers": 2, "decoder_layers": 2},
    "T5ForConditionalGeneration": {"num_layers": 2},
    "WhisperForConditionalGeneration": {"encoder_layers": 2, "decoder_layers": 2},
    "Wav2Vec2ForSequenceClassification": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("name", SHAPES)
def test_layers_of_any_architecture_are_ordered_and_hold_every_parameter_once(name):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**SHAPES[name]))
    texts = "vocab_size" in vars(model.config) and not name.startswith("Wav2Vec2")
    groups = layer_groups(model)
    held = [parameter for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())
    assert groups[0].name == "stem"
    first = {name for name, part in model.named_modules() if part is model.get_input_embeddings()} if texts else set()
    assert {f"{path}.weight" for path in first} & set(held) <= set(groups[0].parameters)
    blocks = [group.name.split(" ")[0] for group in groups[1:-1]]
    numbers = [(path.rpartition(".")[0], int(path.rpartition(".")[2])) for path in blocks]
    stacks = list(dict.fromkeys(stack for stack, _ in numbers))
    assert numbers == sorted(numbers, key=lambda number: (stacks.index(number[0]), number[1]))
    if name.endswith(("Classification", "CausalLM")):
        assert groups[-1].name == "head"
        outputs = model.config.vocab_size if name.endswith("CausalLM") else model.config.num_labels
        weights = dict(model.named_parameters())
        assert any(outputs in weights[parameter].shape for parameter in groups[-1].parameters)


def test_many_layers_are_joined_and_a_norm_after_a_stack_goes_with_its_last():
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=24))
    assert [group.name for group in layer_groups(model, at_most=12)][1:3] == [
        "bert.encoder.layer.0 to 1",
        "bert.encoder.layer.2 to 3",
    ]
    assert "bert.pooler.dense.weight" in layer_groups(model)[-2].parameters


def test_a_model_of_shared_layers_has_no_order():
    with torch.device("meta"):
        model = transformers.AlbertForSequenceClassification(transformers.AlbertConfig())
    with pytest.raises(PluginError, match="no stack of layers is found in a AlbertForSequenceClassification"):
        layer_groups(model)


def test_rates_fall_with_depth_and_the_schedule_multiplies_them():
    model = tiny_model()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    layerwise_lr(optimizer, model, 0.5)
    layers = {f"bert.encoder.layer.{layer}": 0.5 ** (3 - layer) for layer in range(3)}
    expected = {"head": 1.0, **layers, "stem": 0.5**4}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    for group in layer_groups(model):
        for name in group.parameters:
            moved = before[name] - dict(model.named_parameters())[name].detach()
            torch.testing.assert_close(moved, torch.full_like(moved, expected[group.name]))
    assert lr_scale.effective_lrs(optimizer) == [1.0, 0.5, 0.25, 0.125, 0.0625]


def test_a_pattern_that_fits_nothing_is_answered_with_what_is_near():
    model = tiny_model()
    assert freeze(model, "bert.embeddings", "*.layer.0.*.bias")
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert not model.bert.encoder.layer[0].output.dense.bias.requires_grad
    assert model.bert.encoder.layer[0].output.dense.weight.requires_grad
    with pytest.raises(PluginError, match=r"freeze=bert.embedings fits no parameter. Near it: bert.embeddings"):
        freeze(model, "bert.embedings")


# ---- the head ----


def labelled(values, feature, column="label"):
    return datasets.Dataset.from_dict({column: values}, features=datasets.Features({column: feature}))


def test_labels_follow_from_the_features():
    three = datasets.ClassLabel(names=["no", "maybe", "yes"])
    labels = labels_of(labelled([2, 0, 2], three), "t")
    assert (labels.kind, labels.names) == ("single_label", ("no", "maybe", "yes"))
    assert labels.counts().tolist() == [1, 0, 2]
    assert labels_of(labelled([0.5, 1.5], datasets.Value("float32")), "t").kind == "regression"
    assert labels_of(labelled([[1.0, 0.0]], datasets.List(datasets.Value("float32"))), "t").kind == "multi_label"
    assert labels_of(labelled([[1, 0, 2]], datasets.List(three)), "t").kind == "token"
    assert labels_of(labelled([1], datasets.Value("int64"), column="other"), "t") is None
    assert labels_of(tiny_dataset(), "t") is None


@pytest.mark.parametrize(
    ("values", "feature", "said"),
    [
        ([0, None], datasets.Value("int64"), "row 1 has no 'label'"),
        ([1, 3], datasets.Value("int64"), "the labels in column 'label' are 1, 3"),
        (["a", "b"], datasets.Value("string"), "holds texts, such as 'a'"),
        ([0, -1], datasets.ClassLabel(names=["a", "b"]), "row 1 has the label -1"),
    ],
)
def test_labels_that_cannot_be_learned_are_named(values, feature, said):
    with pytest.raises(PluginError, match=said):
        labels_of(labelled(values, feature), "t")


def test_a_new_head_replaces_the_output_layer_and_nothing_else():
    model = tiny_model()
    before = copy.deepcopy(model.bert.state_dict())
    random_state = torch.get_rng_state()
    report = fit_head(model, Labels("label", "single_label", ("a", "b", "c")), "t", seed=3)
    assert report.replaced == ("classifier.weight", "classifier.bias")
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.problem_type == "single_label_classification"
    assert difference(dict(before), dict(model.bert.state_dict())) is None
    assert torch.equal(random_state, torch.get_rng_state())
    loss = model(input_ids=torch.ones(2, 8, dtype=torch.long), labels=torch.tensor([0, 2])).loss
    assert loss.isfinite()
    kept = copy.deepcopy(model.classifier.weight)
    assert not fit_head(model, Labels("label", "single_label", ("a", "b", "c")), "t").replaced
    assert torch.equal(kept, model.classifier.weight)


def test_a_head_for_other_classes_of_the_same_number_is_replaced():
    model = tiny_model()
    assert not fit_head(model, Labels("label", "single_label", ("bad", "good")), "t").replaced
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert fit_head(model, Labels("label", "single_label", ("fact", "opinion")), "t").replaced


def test_a_model_without_a_head_to_replace_is_refused():
    model = transformers.BertModel(tiny_model().config)
    with pytest.raises(PluginError, match="a BertModel, 2 outputs, with no linear layer"):
        fit_head(model, Labels("label", "single_label", ("a", "b", "c")), "t")


# ---- what learns when ----


def test_thaw_steps():
    assert thaw_steps("full", 4, 100, 0.5) == [0, 0, 0, 0]
    assert thaw_steps("probe", 4, 100, 0.5) == [None, None, None, 0]
    assert thaw_steps("lpft", 4, 100, 0.2) == [20, 20, 20, 0]
    assert thaw_steps("gradual", 5, 100, 0.4) == [40, 30, 20, 10, 0]


class Watch(TrainerCallback):
    """Which weights each step changed."""

    def __init__(self):
        self.moved, self.held = [], None

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.held = {name: weight.detach().clone() for name, weight in model.state_dict().items()}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        state_dict = model.state_dict()
        self.moved.append({name for name, weight in self.held.items() if not torch.equal(weight, state_dict[name])})


@pytest.mark.parametrize("host", [True, False])
def test_gradual_unfreezing_moves_exactly_the_layers_of_the_step(tmp_path, host):
    watch, part = Watch(), GradualUnfreezing("gradual", unfrozen_at=0.5)
    techniques = [Transfer(strategy="gradual")] if host else []
    callbacks = [watch] if host else [watch, part]
    trainer = tiny_trainer(tmp_path, *techniques, callbacks=callbacks, weight_decay=0.1, eval_strategy="no")
    trainer.train()
    groups = layer_groups(trainer.model)
    thaw = thaw_steps("gradual", len(groups), 14, 0.5)
    for step, moved in enumerate(watch.moved):
        learning = {
            name for group, since in zip(groups, thaw, strict=True) if since <= step for name in group.parameters
        }
        still = {name for group in groups for name in group.parameters} - learning
        assert not moved & still, f"step {step} moved frozen weights"
        assert {name for name in learning if name.endswith("dense.weight")} <= moved, f"step {step} left some out"
    assert all(weight.requires_grad for weight in trainer.model.parameters())
    in_optimizer = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert in_optimizer == {id(weight) for weight in trainer.model.parameters()}


def test_statistics_of_a_frozen_batch_norm_stay(tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    images = [{"pixel_values": torch.randn(1, 16, 16) + 3, "labels": index % 2} for index in range(16)]
    setting = {"train_dataset": images, "eval_strategy": "no", "max_steps": 3, "gradient_accumulation_steps": 1}
    statistics = {}
    for technique in (Transfer(strategy="probe", cache_features="never"), Transfer(strategy="full")):
        model = ResNetForImageClassification(config)
        before = copy.deepcopy(dict(model.named_buffers()))
        tiny_trainer(tmp_path, technique, model=model, **setting).train()
        statistics[technique.strategy] = difference(before, dict(model.named_buffers()))
    assert statistics["probe"] is None
    assert statistics["full"] is not None, "the control, in which nothing is frozen, must move them"


@pytest.mark.parametrize(
    ("technique", "stop_at"),
    [
        (Transfer(cache_features="never", unfrozen_at=0.5), 3),
        (Transfer(cache_features="never", unfrozen_at=0.5), 7),
        (Transfer(cache_features="never", unfrozen_at=0.5), 8),
        (Transfer(strategy="gradual", unfrozen_at=0.7), 5),
        (Transfer(probe_steps=20), 2),
    ],
    ids=["in the probe", "at the switch", "after it", "while unfreezing", "after a cached probe"],
)
def test_a_run_resumes_exactly(tmp_path, technique, stop_at):
    straight = tiny_trainer(tmp_path / "straight", technique, save_steps=1)
    straight.train()
    again = resumed(tmp_path / "again", technique, stop_at=stop_at, save_steps=1)
    assert difference(outcome(straight), outcome(again)) is None
    other = resumed(tmp_path / "other", technique, stop_at=stop_at, save_steps=1, learning_rate=2e-2)
    assert difference(outcome(straight), outcome(other)) is not None


def test_it_keeps_the_contract_with_a_probe_in_the_runs_own_steps(tmp_path):
    technique = Transfer(cache_features="never", probe_learning_rate=2e-2)
    check_technique(replace(EXAMPLE, technique=technique), tmp_path)


# ---- features computed once ----


def batches(rows, size=8):
    return DataLoader(rows, batch_size=size, collate_fn=default_data_collator)


def test_a_probe_on_cached_features_is_a_probe_on_the_frozen_backbone():
    rows = tiny_dataset(24)
    cached = tiny_model()  # with dropout
    cached.dropout = torch.nn.Identity()  # of the head; the backbone's stays
    by_hand = copy.deepcopy(cached).eval()
    losses = fit_probe(cached, batches(rows), steps=50, learning_rate=1e-2, weight_decay=0.1)
    whole = default_data_collator(rows)
    for name, weight in by_hand.named_parameters():
        weight.requires_grad_(name.startswith("classifier"))
    optimizer = torch.optim.AdamW(by_hand.classifier.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for loss in losses:
        expected = by_hand(**whole).loss
        assert loss == pytest.approx(expected.item(), abs=1e-6)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(cached.classifier.weight, by_hand.classifier.weight, rtol=1e-4, atol=1e-6)
    assert difference(dict(cached.bert.state_dict()), dict(by_hand.bert.state_dict())) is None
    with_dropout = by_hand.train()(**whole).loss
    assert abs(with_dropout.item() - by_hand.eval()(**whole).loss.item()) > 1e-6, "the control sees no dropout"


def test_a_probe_leaves_the_random_state_and_the_mode_alone():
    model = tiny_model().train()
    state = torch.get_rng_state()
    fit_probe(model, batches(tiny_dataset()), steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


class Augmented(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return {**row, "input_ids": row["input_ids"].roll(int(torch.randint(1, 8, ())))}


def test_what_cannot_be_cached_is_said_and_trained_in_the_runs_own_steps(tmp_path, caplog):
    rows = Augmented(tiny_dataset())
    with pytest.raises(NotCacheable, match="input_ids differs from pass to pass"):
        fit_probe(tiny_model(), batches(rows))
    trainer = tiny_trainer(tmp_path, Transfer(), train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 14
    assert "the head is trained in the run's own steps: input_ids differs" in caplog.text
    with pytest.raises(PluginError, match="cache_features=always is not possible here: input_ids differs"):
        tiny_trainer(tmp_path, Transfer(cache_features="always"), train_dataset=rows).train()


def test_a_head_that_reads_the_inputs_is_not_cached():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=8, pad_token_id=0)
    with pytest.raises(NotCacheable, match="the head reads more than the backbone's output"):
        fit_probe(GPT2ForSequenceClassification(config), batches(tiny_dataset()))


def test_features_that_are_not_finite_are_named():
    model = tiny_model()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[31] = float("nan")
    row = next(index for index, row in enumerate(tiny_dataset()) if 31 in row["input_ids"])
    with pytest.raises(PluginError, match=f"the features of row {row} are not finite"):
        fit_probe(model, batches(tiny_dataset()))


def test_a_cached_probe_alone_ends_the_run_at_once(tmp_path):
    trainer = tiny_trainer(tmp_path, Transfer(strategy="probe", probe_steps=50))
    trainer.train()
    assert trainer.state.global_step == 0
    assert trainer.state.log_history[0]["transfer/probe_loss"] < 0.7


# ---- what is refused ----


def test_adapters_need_the_head_among_the_modules_to_save(tmp_path):
    peft = pytest.importorskip("peft")
    settings = {"target_modules": ["query"], "r": 2}
    with_head = peft.get_peft_model(tiny_model(), peft.LoraConfig(modules_to_save=["classifier"], **settings))
    trainer = tiny_trainer(tmp_path, Transfer(strategy="gradual"), model=with_head)
    trainer.train()
    without = peft.get_peft_model(tiny_model(), peft.LoraConfig(**settings))
    with pytest.raises(PluginError, match="begins with head, all of whose parameters are frozen"):
        tiny_trainer(tmp_path, Transfer(strategy="gradual"), model=without).train()


def test_a_model_without_a_head_of_its_own_can_be_unfrozen_but_not_probed(tmp_path):
    from hf_ft_plugins.testing.examples import text2text

    setting = text2text.setting()
    with pytest.raises(PluginError, match="a T5ForConditionalGeneration has none outside its backbone"):
        tiny_trainer(tmp_path, Transfer(), **setting).train()


def test_the_part_works_in_a_stock_trainer(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_class=Trainer, callbacks=[GradualUnfreezing("lpft", unfrozen_at=0.2)])
    trainer.train()
    assert trainer.state.global_step == 14


def test_a_group_says_its_name_and_size():
    assert str(LayerGroup("stem", ("a", "b"), ())) == "stem (2 tensors)"
