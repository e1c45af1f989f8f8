"""The limits of `behavioral`'s parts: what exactly fits, which tokens are scored, how pairs are packed."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral import Fitter  # noqa: E402
from hf_ft_plugins.techniques.behavioral.collator import _score_assistant  # noqa: E402
from hf_ft_plugins.techniques.behavioral.fit_to_length import (  # noqa: E402
    CUT,
    DROPPED,
    TRIMMED,
    WHOLE,
    common_length,
    shorter_prompts,
)
from hf_ft_plugins.techniques.behavioral.logged_counts import CountsCallback  # noqa: E402
from hf_ft_plugins.techniques.behavioral.prefix_sharing import packed_pairs  # noqa: E402
from hf_ft_plugins.techniques.behavioral.reference_model import refuse_reference  # noqa: E402
from hf_ft_plugins.techniques.behavioral.trl_trainers import refuse_unfit, settings_of  # noqa: E402
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_setting, tiny_tokenizer  # noqa: E402
from tests.techniques.behavioral.trainers import assistant, user  # noqa: E402


def fitted(row, max_length, contract="dpo"):
    return Fitter(tiny_tokenizer(), contract, max_length)(row)["behavior_fitted"]


def length_of(messages, **settings):
    return len(Fitter(tiny_tokenizer(), "dpo", None)._tokens(messages, {}, **settings))


# ---- what fits ----


def test_a_pair_exactly_as_long_as_max_length_is_whole():
    prompt = [user("a" * 20), assistant("b"), user("c")]
    row = {"prompt": prompt, "chosen": [assistant("yes!")], "rejected": [assistant("no")]}
    longest = length_of(prompt + row["chosen"])
    assert fitted(row, longest) == WHOLE
    assert fitted(row, longest - 1) == TRIMMED


def test_a_pair_is_dropped_where_max_length_ends_with_the_common_beginning():
    prompt = [user("hello")]
    row = {"prompt": prompt, "chosen": [assistant("x" * 9)], "rejected": [assistant("y" * 9)]}
    begins = length_of(prompt, add_generation_prompt=True)
    assert fitted(row, begins) == DROPPED + "the last turn of the prompt fills max_length"
    assert fitted(row, begins + 1) == CUT


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_stay_when_turns_go(role):
    head = {"role": role, "content": "be brief"}
    prompt = [head, user("one"), assistant("two"), user("three")]
    assert list(shorter_prompts(prompt)) == [prompt, [head, user("three")]]


def test_common_length_ends_where_either_sequence_does():
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0


def test_turns_of_others_are_not_scored_up_to_the_end_of_the_row():
    scored = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    row = {"prompt_ids": [7, 7], "completion_ids": [1, 2, 3, 4], "completion_assistant_mask": [1, 1, 1, 1, 0, 0]}
    # Longer than the batch: what max_length cuts off has no place in it.
    cut = {
        "prompt_ids": [7, 7],
        "completion_ids": [1] * 9,
        "completion_assistant_mask": [1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1],
    }
    _score_assistant(scored, [(row, row, "completion"), (cut, cut, "completion")])
    assert scored.tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]


# ---- shared prefixes ----


def test_the_longest_pairs_are_packed_first():
    lengths = [(2, 1), (2, 2), (3, 3), (4, 3), (5, 5)]
    ids = torch.zeros(10, 5, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for pair, (chosen, rejected) in enumerate(lengths):
        ids[pair], ids[5 + pair] = 3, 4
        mask[pair, :chosen], mask[5 + pair, :rejected] = 1, 1
    # 10, 7 + 3 and 6 + 4; the shortest first would need a fourth row.
    assert packed_pairs(ids, mask).pair.shape == (3, 10)


@pytest.mark.parametrize("training", [True, False])
def test_the_test_pair_leaves_the_models_mode(training, tmp_path):
    setting = tiny_setting("dpo", eval_strategy="no")
    setting["model"].train(training)
    stock = tiny_trainer(tmp_path / "a", **copy.deepcopy(setting)).model.training
    assert tiny_trainer(tmp_path / "b", "behavioral:share_prefixes=on", **setting).model.training == stock


# ---- references and what depends on them ----


def reference_warnings(model, reference, caplog):
    trainer = SimpleNamespace(
        model=model, ref_model=reference, accelerator=SimpleNamespace(unwrap_model=lambda module: module)
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hf_ft_plugins"):
        refuse_reference(trainer, trained_adapter="refuse")
    return caplog.text


def test_a_reference_of_other_weights_is_warned_of(caplog):
    model = tiny_llama()
    assert reference_warnings(model, copy.deepcopy(model), caplog) == ""
    assert "are not those of its reference" in reference_warnings(model, tiny_llama(seed=1), caplog)


def test_an_adapter_is_trained_if_its_own_second_matrix_is_and_not_if_the_references_is():
    peft = pytest.importorskip("peft")
    from hf_ft_plugins.techniques.behavioral.reference_model import _is_own_trained_reference

    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(tiny_llama(), config)
    assert not _is_own_trained_reference(model)
    model.add_adapter("ref", config)
    assert not _is_own_trained_reference(model)
    weights = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
    with torch.no_grad():
        next(weight for name, weight in weights.items() if ".ref." in name).fill_(1.0)
        assert not _is_own_trained_reference(model)
        next(weight for name, weight in weights.items() if ".ref." not in name).fill_(1.0)
    assert _is_own_trained_reference(model)


def test_cached_log_probabilities_depend_on_every_setting_that_changes_them():
    args = SimpleNamespace(max_length=8, truncation_mode="keep_end", ld_alpha=None, pad_to_multiple_of=None)
    vars(args).update(disable_dropout=True, bf16=False, fp16=False)
    stock = settings_of(args, {"fit": True})
    for name, value in vars(args).items():
        changed = SimpleNamespace(**(vars(args) | {name: not value if isinstance(value, bool) else 3}))
        assert settings_of(changed, {"fit": True}) != stock, name
    assert settings_of(args, {"fit": False}) != stock


@pytest.mark.parametrize(("packing", "padding_free"), [(False, False), (True, False), (False, True)])
def test_weights_are_refused_where_sft_joins_rows(packing, padding_free):
    trainer = object.__new__(trl.SFTTrainer)
    trainer.args, trainer.loss_type = SimpleNamespace(packing=packing), "nll"
    trainer.padding_free = padding_free
    trainer.train_dataset = Dataset.from_list([{"input_ids": [1], "behavior_weight": 0.5}])
    refuse_unfit(trainer, weights=False, noise="auto")
    if packing or padding_free:
        with pytest.raises(PluginError, match="joins rows"):
            refuse_unfit(trainer, weights=True, noise="auto")
    else:
        refuse_unfit(trainer, weights=True, noise="auto")


# ---- what a checkpoint remembers ----


def test_metrics_of_a_checkpoint_replace_those_of_the_run():
    def trainer(tokens, **metrics):
        return SimpleNamespace(_total_train_tokens=tokens, _metrics={"train": metrics})

    saved, loaded = CountsCallback(), CountsCallback()
    saved._trainer, loaded._trainer = trainer(40, loss=[1.0, 2.0]), trainer(3, loss=[9.0], other=[5.0])
    loaded.load_state_dict(saved.state_dict())
    assert loaded._trainer._total_train_tokens == 40
    assert loaded._trainer._metrics["train"] == {"loss": [1.0, 2.0]}
