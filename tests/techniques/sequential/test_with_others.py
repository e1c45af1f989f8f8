"""Two stages with replay beside every other technique, in its own setting: in either order of listing, and resumed."""

import pytest
from transformers import AutoModelForSequenceClassification

from hf_ft_plugins.errors import ConflictError
from hf_ft_plugins.testing import difference, outcome
from hf_ft_plugins.testing.examples.multitask import MultiTaskCollator, tiny_setting
from tests.techniques.sequential.stage_pairs import (
    Pair,
    answering,
    classifying,
    continuing,
    model_of,
    of_texts,
    preferring,
    recorded,
    replayed_share,
    stage_trainer,
    trained,
    translating,
    with_class_names,
)

pytest.importorskip("datasets")


def of_several_tasks(stage):
    setting = tiny_setting()
    return {**setting, "data_collator": MultiTaskCollator(setting["processing_class"], setting["model"])}


PAIRS = {
    "compact-adamw": Pair("low-memory:algorithm=compact-adamw", classifying),
    "fused": Pair("low-memory:algorithm=lomo", classifying, changes={"gradient_accumulation_steps": 1}),
    "adalomo, not fused": Pair("low-memory:algorithm=adalomo,fused=false", classifying),
    "peft, wise": Pair("peft:r=4,loraplus_ratio=2", classifying, {"wise": 0.5}),
    "peft, olora, ewc": Pair("peft:r=4", classifying, {"olora": 0.5, "ewc": 1.0}),
    "plateau": Pair("adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false", classifying),
    "guard": Pair("adaptive-lr:guard=true", classifying),
    "lpft": Pair("transfer:strategy=lpft,unfrozen_at=0.5", classifying),
    "layer-removal": Pair(
        "layer-removal:number=1,protect_first=0,protect_last=0,max_degradation=none,max_repetition=none", classifying
    ),
    "task, lwf, wise": Pair(
        "task:imbalance=weights,early_stopping_patience=none", with_class_names, {"lwf": 0.5, "wise": 0.5}
    ),
    "text2text, lwf": Pair("text2text:target_tokens=24", translating, {"lwf": 0.5}),
    "text2text, causal": Pair("text2text:target_tokens=24", continuing),
    "text2text, texts, ewc": Pair(
        "text2text:target_tokens=24", of_texts, {"ewc": 1.0}, {"remove_unused_columns": False}
    ),
    "multitask": Pair("multitask:mix=uniform", of_several_tasks, {"replay": 0}),
    "behavioral": Pair("behavioral:share_prefixes=on", preferring),
    "behavioral, SFT": Pair("behavioral", answering, {"own_answers": True}),
    "SFT alone": Pair(None, answering, {"own_answers": True, "token_weights": "entropy", "ewc": 1.0}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_stages_are_the_same_in_either_order_of_listing_and_resumed(name, tmp_path, caplog):
    pair = PAIRS[name]
    straight = trained(pair, tmp_path / "straight")
    resumed = trained(pair, tmp_path / "resumed", swapped=True, cut_off=True)
    assert difference(outcome(straight)["weights"], outcome(resumed)["weights"]) is None
    stages = recorded(tmp_path / "straight")
    again = recorded(tmp_path / "resumed")
    assert difference([stage["after"] for stage in stages], [stage["after"] for stage in again]) is None
    assert list(stages[1]["after"]) == ["first", "second"]
    if pair.options.get("replay", 1):
        assert replayed_share(straight) == pytest.approx(0.3, abs=0.02)
    type(pair.setting(0)["model"]).from_pretrained(model_of(tmp_path / "straight", 1))
    assert "does not start from the weights" not in caplog.text


def test_after_a_stage_with_lora_a_plain_script_loads_the_sum_and_the_adapter_lies_beside(tmp_path):
    trainer = trained(PAIRS["peft, wise"], tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(model_of(tmp_path, 1)).eval()
    assert (model_of(tmp_path, 1).parent / "adapter" / "adapter_config.json").is_file()
    batch = next(iter(trainer.get_eval_dataloader()))
    difference = (plain(**batch).logits - trainer.model.eval()(**batch).logits).abs().max()
    assert difference < 1e-5


REFUSED = {
    "task's own order": (
        Pair("task:imbalance=sampler,early_stopping_patience=none", with_class_names),
        r"sequential and task.*replay=0.3.*Set replay=0",
    ),
    "multitask's shares": (Pair("multitask", of_several_tasks), r"sequential and multitask.*Set replay=0"),
    "no gradients": (Pair("low-memory", classifying, {"l2sp": 0.1}), r"sequential and low-memory.*say fused=false"),
    "token weights of a classifier": (
        Pair("task", with_class_names, {"token_weights": "entropy"}),
        r"sequential and task.*Set token_weights=none",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_together_is_refused_by_name_in_either_order_of_listing(name, tmp_path):
    pair, words = REFUSED[name]
    one, other = words.split(".*")[0].split(" and ")
    with pytest.raises(ConflictError, match=words):
        stage_trainer(pair, tmp_path, 0)
    with pytest.raises(ConflictError, match=words.replace(f"{one} and {other}", f"{other} and {one}")):
        stage_trainer(pair, tmp_path, 0, swapped=True)


def test_replay_is_refused_beside_the_order_that_behavioral_gives_kto_alone(tmp_path):
    pytest.importorskip("trl")
    from hf_ft_plugins.testing.examples.behavioral import tiny_setting

    with pytest.raises(ConflictError, match="sequential and behavioral both answer ft_sampler"):
        stage_trainer(Pair("behavioral", lambda stage: tiny_setting("kto")), tmp_path, 0)
    stage_trainer(Pair("behavioral", lambda stage: tiny_setting("kto"), {"replay": 0}), tmp_path, 0)
