"""What happens when a stage begins and ends: all is measured and kept, and the run itself notices nothing of it."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration, TrainerCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential import StageCallback
from hf_ft_plugins.techniques.sequential.evaluating import measured
from hf_ft_plugins.techniques.sequential.stage_data import kept_evaluations
from hf_ft_plugins.techniques.sequential.stage_records import StageRecords
from hf_ft_plugins.testing import difference, outcome, tiny_dataset, tiny_trainer
from tests.techniques.sequential.stage_runs import model_from

EVALUATED = {"max_steps": 6, "eval_steps": 2, "save_strategy": "no", "gradient_accumulation_steps": 1}


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def trained(folder, stage, *others, options="replay=0", **changes):
    host = f"sequential:folder={folder / 'stages'},stage={stage},{options}"
    trainer = tiny_trainer(folder / stage, host, *others, **EVALUATED | changes)
    trainer.train()
    return trainer


def finished(folder):
    return {stage.name: stage for stage in StageRecords(folder / "stages").finished()}


# ---- the run itself ----


class ReadsLoss(TrainerCallback):
    """As scripts write them: it knows of no evaluation but the trainer's own."""

    def __init__(self):
        self.losses = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        assert control.should_evaluate is False
        self.losses.append((state.global_step, metrics["eval_loss"]))


def test_a_run_is_bit_equal_to_one_without_the_technique(tmp_path):
    trained(tmp_path, "a")
    reads = [ReadsLoss(), ReadsLoss()]
    with_it = trained(tmp_path, "b", callbacks=[reads[0]], model=model_from(tmp_path / "stages" / "a" / "model"))
    after = random.random(), float(np.random.rand()), float(torch.rand(()))
    plain = tiny_trainer(
        tmp_path / "plain", callbacks=[reads[1]], **EVALUATED, model=model_from(tmp_path / "stages" / "a" / "model")
    )
    plain.train()
    assert difference(outcome(plain), outcome(with_it)) is None
    assert reads[0].losses == reads[1].losses
    assert [step for step, _ in reads[0].losses] == [2, 4, 6]
    assert after == (random.random(), float(np.random.rand()), float(torch.rand(())))


def test_a_plateau_is_watched_on_the_runs_own_evaluations_alone(tmp_path):
    trained(tmp_path, "a")
    cutting = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"
    with_it = trained(tmp_path, "b", cutting)
    plain = tiny_trainer(tmp_path / "plain", cutting, **EVALUATED)
    plain.train()
    assert difference(outcome(plain), outcome(with_it)) is None


def test_measuring_leaves_log_control_callbacks_and_random_numbers(tmp_path):
    reads = ReadsLoss()
    trainer = tiny_trainer(tmp_path, callbacks=[reads], **EVALUATED)
    callbacks = trainer.callback_handler.callbacks
    control = dict(vars(trainer.control))
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = measured(trainer, {"one": tiny_dataset(6, seed=3), "two": tiny_dataset(6, seed=4)})
    assert set(found) == {"one", "two"}
    assert set(found["one"]) == {"loss"}
    assert found["one"] != found["two"]
    assert trainer.state.log_history == []
    assert trainer.callback_handler.callbacks is callbacks
    assert reads.losses == []
    assert vars(trainer.control) == control
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_measuring_that_fails_leaves_the_trainers_callbacks(tmp_path):
    trainer = tiny_trainer(tmp_path, **EVALUATED)
    callbacks = trainer.callback_handler.callbacks
    with pytest.raises(ValueError, match="batch received was empty"):
        measured(trainer, {"one": [{"nothing": 1}]})
    assert trainer.callback_handler.callbacks is callbacks


def test_workers_that_stay_read_each_set_and_then_the_trainers_own(tmp_path):
    changes = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = tiny_trainer(tmp_path, **EVALUATED | changes)
    own = trainer.evaluate()["eval_loss"]
    sets = {"one": tiny_dataset(6, seed=3), "two": tiny_dataset(6, seed=4)}
    found = measured(trainer, sets)
    assert found["one"] != found["two"]
    assert found == measured(tiny_trainer(tmp_path, **EVALUATED), sets)
    assert trainer.evaluate()["eval_loss"] == own


# ---- what is measured and kept ----


def test_a_stage_keeps_its_model_rows_and_what_was_measured(tmp_path):
    trainer = trained(tmp_path, "a", options="keep_rows=5,evaluation_rows=7", compute_metrics=accuracy)
    records = StageRecords(tmp_path / "stages")
    (stage,) = records.finished()
    assert stage.steps == 6
    assert set(stage.after["a"]) == set(stage.before["a"]) == {"loss", "accuracy"}
    loaded = model_from(records.model_of("a"))
    assert difference(dict(loaded.state_dict()), dict(trainer.model.state_dict())) is None
    assert len(Dataset.load_from_disk(str(records.of("a") / "replay"))) == 5
    rows = kept_evaluations(records, ["a"])["a"]
    assert len(rows) == 7
    again = tiny_trainer(tmp_path / "again", model=loaded, eval_dataset=rows.with_format("torch"), **EVALUATED)
    assert again.evaluate()["eval_loss"] == pytest.approx(stage.after["a"]["loss"], abs=1e-6)


def test_what_a_stage_measures_is_of_its_own_and_all_earlier_sets(tmp_path):
    sets = {"owner/dev": tiny_dataset(4, seed=2), "hard": tiny_dataset(4, seed=3)}
    first = trained(tmp_path, "a", eval_dataset=sets, compute_metrics=accuracy)
    trained(tmp_path, "evaluation", model=first.model, compute_metrics=accuracy)
    trained(tmp_path, "c", model=first.model, compute_metrics=accuracy, eval_dataset=None, eval_strategy="no")
    stages = finished(tmp_path)
    assert set(stages["a"].after) == {"a:owner/dev", "a:hard"}
    assert set(stages["evaluation"].after) == {"a:owner/dev", "a:hard", "evaluation"}
    assert set(stages["evaluation"].before) == {"evaluation"}
    # The last one has none of its own.
    assert set(stages["c"].after) == {"a:owner/dev", "a:hard", "evaluation"}
    assert stages["c"].before == {}


def test_without_any_evaluation_data_stages_are_kept_and_there_is_no_matrix(tmp_path):
    none = {"eval_dataset": None, "eval_strategy": "no"}
    first = trained(tmp_path, "a", options="replay=0.2", **none)
    trained(tmp_path, "b", options="replay=0.2", model=first.model, **none)
    assert [stage.after for stage in finished(tmp_path).values()] == [{}, {}]
    assert not list((tmp_path / "stages").glob("hf_ft_forgetting*"))


def test_a_resumed_stage_has_what_was_measured_when_it_began(tmp_path):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    changes = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(Interruption):
        trained(tmp_path, "a", callbacks=[InterruptAt(3)], **changes)
    host = f"sequential:folder={tmp_path / 'stages'},stage=a,replay=0"
    again = tiny_trainer(tmp_path / "a", host, **EVALUATED | changes)
    again.train(resume_from_checkpoint=True)
    straight = trained(tmp_path / "straight", "a", **changes)
    assert difference(outcome(straight), outcome(again)) is None
    one, other = finished(tmp_path)["a"], finished(tmp_path / "straight")["a"]
    assert (one.before, one.after) == (other.before, other.after)
    assert one.before["a"]["loss"] != one.after["a"]["loss"]


def test_in_a_stock_trainer_a_stage_is_measured_and_kept_too(tmp_path):
    records = StageRecords(tmp_path / "stages")
    trainer = tiny_trainer(tmp_path / "run", **EVALUATED)
    trainer.add_callback(callback := StageCallback(records, "a", replay_rows=4))
    callback.set_trainer(trainer)
    trainer.train()
    plain = tiny_trainer(tmp_path / "plain", **EVALUATED)
    plain.train()
    assert difference(outcome(plain), outcome(trainer)) is None
    (stage,) = records.finished()
    assert stage.after["a"]["loss"] == pytest.approx(trainer.evaluate()["eval_loss"], abs=1e-6)
    assert len(Dataset.load_from_disk(str(records.of("a") / "replay"))) == 4


def test_a_run_that_is_told_to_end_is_no_finished_stage(tmp_path):
    class Raises(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ValueError("a bad batch")

    with pytest.raises(ValueError, match="a bad batch"):
        trained(tmp_path, "a", callbacks=[Raises()])
    assert finished(tmp_path) == {}
    assert not (tmp_path / "stages" / "a").exists()


# ---- other trainers ----


def test_generated_answers_are_measured(tmp_path):
    torch.manual_seed(0)
    config = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**config, decoder_start_token_id=0))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:4]} for row in tiny_dataset(8)]

    def lengths(predicted):
        return {"gen_len": float((predicted.predictions != 0).sum(-1).mean())}

    settings = {"args_class": Seq2SeqTrainingArguments, "trainer_class": Seq2SeqTrainer, "predict_with_generate": True}
    data = {"train_dataset": rows, "eval_dataset": rows[:4], "compute_metrics": lengths}
    trained(tmp_path, "a", model=model, generation_max_length=6, **settings, **data)
    after = finished(tmp_path)["a"].after["a"]
    assert 0 < after["gen_len"] <= 6
    assert after["loss"] > 0


def test_metrics_of_trls_trainer_are_measured_and_its_own_log_is_the_same(tmp_path):
    trl = pytest.importorskip("trl")
    from tests.techniques.sequential.test_token_weights import llama, tiny_tokenizer

    rows = [{"prompt": f"say {word}:", "completion": f" it is {word}"} for word in ("red", "blue", "green", "brown")]

    def make(folder, *hosts):
        data = {name: Dataset.from_list(rows) for name in ("train_dataset", "eval_dataset")}
        settings = {"args_class": trl.SFTConfig, "trainer_class": trl.SFTTrainer, "bf16": False}
        settings |= {"processing_class": tiny_tokenizer(), "max_length": 48, "gradient_checkpointing": False}
        return tiny_trainer(folder, *hosts, model=llama(), **EVALUATED, **data, **settings)

    with_it = make(tmp_path / "a", f"sequential:folder={tmp_path / 'stages'},stage=a,replay=0")
    with_it.train()
    plain = make(tmp_path / "plain")
    plain.train()
    assert difference(outcome(plain), outcome(with_it)) is None
    after = finished(tmp_path)["a"].after["a"]
    assert {"loss", "mean_token_accuracy", "entropy"} <= set(after)
    assert "num_tokens" not in after


def test_training_a_finished_stage_again_is_refused_and_what_it_kept_stays(tmp_path):
    trainer = tiny_trainer(tmp_path / "out", f"sequential:folder={tmp_path / 'stages'},stage=general")
    trainer.train()
    kept = {file: file.read_bytes() for file in (tmp_path / "stages").rglob("*") if file.is_file()}
    with pytest.raises(PluginError, match="stage=general is finished"):
        trainer.train()
    assert {file: file.read_bytes() for file in (tmp_path / "stages").rglob("*") if file.is_file()} == kept
