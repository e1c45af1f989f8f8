"""The technique `peft` in Trainer and in TRL's trainers."""

from pathlib import Path

import datasets
import pytest
import torch
import transformers
from transformers import Trainer

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import PeftModel, get_peft_model  # noqa: E402

from hf_ft_plugins import with_plugins  # noqa: E402
from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.host.adapter import with_adapter  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    AdaLoraCallback,
    Peft,
    merge_exactly,
)
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_model, tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_setting, tiny_tokenizer  # noqa: E402
from tests.techniques.peft.small_models import arguments, small_llama, texts  # noqa: E402

# ---- the run ----


RESUMED = {
    "lora": {"r": 4},
    "dropout": {"r": 4, "dropout": 0.1},
    "adalora": {"method": "adalora", "r": 4},
    "nf4": {"r": 4, "quant": "nf4"},
    "int8": {"r": 4, "quant": "int8"},
    "pissa": {"method": "pissa", "r": 4},
    "eva": {"method": "eva", "r": 4},
    "loraplus": {"method": "loraplus", "r": 4},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop_at", [2, 9])
def test_resumed_run_equals_uninterrupted_run(name, stop_at, tmp_path):
    technique = Peft(**RESUMED[name])
    straight = tiny_trainer(tmp_path / "straight", technique)
    straight.train()
    again = resumed(tmp_path / "resumed", technique, stop_at=stop_at)
    assert difference(outcome(straight), outcome(again)) is None


def test_adalora_resumes_otherwise_without_its_scores(tmp_path, monkeypatch):
    technique = Peft(method="adalora", r=4)
    straight = tiny_trainer(tmp_path / "straight", technique)
    straight.train()
    monkeypatch.setattr(AdaLoraCallback, "load_state_dict", lambda self, state: None)
    again = resumed(tmp_path / "resumed", technique, stop_at=4)
    assert difference(outcome(straight)["weights"], outcome(again)["weights"]) is not None


def test_model_init_gives_a_new_adapter_for_each_run(tmp_path):
    trainer = tiny_trainer(tmp_path, Peft(r=4, quant="nf4"), model_init=lambda: tiny_model())
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert isinstance(trainer.model, PeftModel)
    assert trainer.model_wrapped is trainer.model
    assert trainer.callback_handler.model is trainer.model
    weights = outcome(trainer)["weights"]
    trainer.train()
    assert difference(weights, outcome(trainer)["weights"]) is None


def test_what_trainer_read_from_the_model_is_what_it_would_have_read(tmp_path):
    hosted = tiny_trainer(tmp_path, Peft(r=4))
    stock = Trainer(
        model=with_adapter(tiny_model(), hosted.model.peft_config["default"], 0, ""), args=arguments(tmp_path)
    )
    for one in (hosted, stock):
        one._set_signature_columns_if_needed()
    for name in ("label_names", "can_return_loss", "model_accepts_loss_kwargs", "_signature_columns"):
        assert getattr(hosted, name) == getattr(stock, name)


def test_a_script_with_adapters_of_its_own_is_refused(tmp_path):
    model = get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(PluginError, match="has adapters already"):
        tiny_trainer(tmp_path, Peft(), model=model)


def test_an_optimizer_made_before_the_adapter_is_refused(tmp_path):
    model = tiny_model()
    before = (torch.optim.AdamW(model.parameters(), lr=1e-3), None)
    # Control: without the technique they are taken.
    with_plugins(Trainer)(model, arguments(tmp_path), optimizers=before)
    with pytest.raises(PluginError, match=r"optimizers=\(AdamW.*none of the adapter's"):
        with_plugins(Trainer, Peft())(model, arguments(tmp_path), optimizers=before)


@pytest.mark.parametrize("options", [{"method": "eva"}, {"export": "merged"}])
def test_a_stream_that_does_not_know_its_columns(options, tmp_path):
    rows = [{"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()} for row in texts()]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None
    setting = {"model": small_llama(), "train_dataset": stream, "eval_strategy": "no", "max_steps": 4}
    trainer = tiny_trainer(tmp_path, Peft(r=4, **options), **setting)
    trainer.train()
    assert trainer.state.global_step == 4


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = []
    for on in (False, True):
        setting = {
            "model": small_llama(),
            "train_dataset": texts(),
            "eval_strategy": "no",
            "gradient_checkpointing": on,
        }
        trainer = tiny_trainer(tmp_path / str(on), Peft(r=4, quant="nf4"), **setting)
        trainer.train()
        runs.append(outcome(trainer)["weights"])
    assert difference(*runs) is None


# ---- TRL ----


def preferences(folder, *techniques, **changes):
    return tiny_trainer(folder, *techniques, **tiny_setting("dpo", eval_strategy="no", save_strategy="no", **changes))


def test_dpo_takes_the_model_under_the_adapter_for_its_reference(tmp_path):
    pytest.importorskip("trl")
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ours = preferences(tmp_path / "ours", Peft(r=4), model=model, ref_model=None)
    assert ours.ref_model is None
    ours.train()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapter = with_adapter(model, Peft(r=4).ft_adapter(model, ours.args), ours.args.seed, "")
    explicit = preferences(
        tmp_path / "explicit",
        model=adapter,
        ref_model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
    )
    explicit.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, explicit)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    with pytest.raises(PluginError, match="method=pissa changes the weights under the adapter"):
        preferences(tmp_path / "pissa", Peft(method="pissa", r=4), model=small_llama(), ref_model=None)


def test_sft_trains_the_same_adapter_as_with_peft_config(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [{"text": f"say {word}, then {word} again"} for word in ("red", "blue", "sun")] * 8
    )

    def train(name, *techniques, **changes):
        setting = {
            "trainer_class": trl.SFTTrainer,
            "args_class": trl.SFTConfig,
            "model": small_llama(),
            "train_dataset": rows,
            "eval_dataset": None,
            "eval_strategy": "no",
            "processing_class": tiny_tokenizer(),
            "max_length": 32,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        trainer = tiny_trainer(tmp_path / name, *techniques, **(setting | changes))
        trainer.train()
        return trainer

    ours = train("ours", Peft(r=4, export="merged"))
    model = small_llama()
    theirs = train("theirs", model=with_adapter(model, Peft(r=4).ft_adapter(model, ours.args), ours.args.seed, ""))
    assert difference(outcome(ours)["weights"], outcome(theirs)["weights"]) is None
    merged = transformers.AutoModelForCausalLM.from_pretrained(Path(ours.args.output_dir) / "merged")
    expected = merge_exactly(ours.model)
    assert difference(dict(merged.state_dict()), dict(expected.state_dict())) is None
