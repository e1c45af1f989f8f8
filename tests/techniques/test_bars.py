"""What takes long in each family of techniques has a bar that names it, with the right number."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from hf_ft_plugins import Peft, Transfer
from hf_ft_plugins import progress as progress_module
from hf_ft_plugins.feedback import load_feedback, load_good_answers
from hf_ft_plugins.host.manifest import damage, write_manifest
from hf_ft_plugins.memory.estimate import estimate_memory, refuse_over_budget
from hf_ft_plugins.models.label_columns import label_values
from hf_ft_plugins.techniques.layer_removal.curve import measure_curve
from hf_ft_plugins.techniques.layer_removal.score import choose_layers, score_layers
from hf_ft_plugins.techniques.multitask import with_labels
from hf_ft_plugins.techniques.multitask.data import multitask_dataset
from hf_ft_plugins.techniques.multitask.tasks import TaskSpec
from hf_ft_plugins.techniques.sequential.fisher import estimate_fisher
from hf_ft_plugins.techniques.sequential.kept_rows import keep_rows
from hf_ft_plugins.techniques.sequential.own_answers import with_own_answers
from hf_ft_plugins.techniques.task.not_finite import refuse_not_a_number
from hf_ft_plugins.techniques.text2text.batches import TokenBudgetBatchSampler
from hf_ft_plugins.techniques.text2text.lengths import measured
from hf_ft_plugins.techniques.transfer import fit_probe
from hf_ft_plugins.techniques.transfer.read_out import read_out
from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_llama
from hf_ft_plugins.testing.examples.layer_removal import RIGHT, VOCABULARY, built
from hf_ft_plugins.testing.examples.multitask import TASKS, tiny_moods, tiny_tagged
from tests.techniques.sequential.stage_runs import run_all
from tests.techniques.sequential.test_own_answers import TOKENIZER, token_rows
from tests.techniques.transfer.test_read_out import batches as read_out_batches
from tests.techniques.transfer.test_read_out import model_of as read_out_model
from tests.techniques.transfer.test_read_out import rows as read_out_rows

IDS = torch.randint(3, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))


class Bars(list):
    """Each bar as (what, how many there were, how many there were to be)."""

    def named(self, what):
        return [(count, total) for name, count, total in self if name == what]


@pytest.fixture
def bars(monkeypatch):
    """A fake of tqdm's bar, there from the first item on."""
    shown = Bars()

    class Bar:
        disable = False
        start_t = 0.0

        def __init__(self, items, *, desc, total, initial, **settings):
            self.items, self.what, self.total, self.count = items, desc, total, initial

        def refresh(self):
            pass

        def __iter__(self):
            try:
                for item in self.items:
                    yield item
                    self.count += 1
            finally:
                shown.append((self.what, self.count, self.total))

    monkeypatch.setattr(progress_module, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(progress_module, "_shows_bars", lambda: True)
    monkeypatch.setattr(progress_module, "_bar_class", lambda: Bar)
    return shown


def classified(count=8):
    rows = tiny_dataset(count)
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


# ---- behavioral ----


@pytest.fixture
def log(tmp_path):
    file = tmp_path / "log.jsonl"
    words = ("red", "blue", "green")
    rows = [{"prompt": f"Name a colour, not {word}.", "chosen": f"Not {word}.", "rejected": word} for word in words]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def test_converting_a_log(log, bars):
    load_feedback(log)
    assert bars.named("behavioral: reading log.jsonl") == [(3, 3)]
    assert bars.named("behavioral: what was preferred") == [(3, 3)]
    assert bars.named("behavioral: writing pairs") == [(3, 3)]
    assert bars.named("behavioral: rows as a table") == [(3, 3)]
    load_good_answers(log)
    assert bars.named("behavioral: writing good answers") == [(3, None)]


def test_a_log_that_is_one_list_has_no_number_of_lines(log, bars):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.with_name("list.json").write_text(json.dumps(rows))
    load_feedback(log.with_name("list.json"))
    assert bars.named("behavioral: reading list.json") == [(3, None)]


# ---- text2text ----


def test_counting_tokens(bars):
    rows = [{"input_ids": [1, 2, 3], "labels": [4, 5]}] * 7
    in_memory, _ = measured(rows, causal=False)
    in_arrow, _ = measured(Dataset.from_list(rows), causal=False)
    # Arrow's are counted thousands at once.
    assert bars.named("text2text: counting tokens") == [(7, 7), (1, 1)]
    assert in_memory.targets.tolist() == in_arrow.targets.tolist() == [2] * 7


def test_cutting_batches(bars):
    lengths = np.arange(1, 41)
    batches = TokenBudgetBatchSampler(lengths, lengths, pool=10, target_tokens=40, max_tokens=400)
    assert bars.named("text2text: cutting batches") == [(4, 4)]
    assert sorted(row for batch in batches for row in batch)[-1] == 39


# ---- layer-removal ----


def test_choosing_layers_and_the_curve(bars):
    model = built("llama", RIGHT["llama"])
    batches = [{"input_ids": IDS, "labels": IDS}] * 2
    points = measure_curve(model, batches, most=2)
    # Of six layers, the first and last protected: four trials, then three.
    assert bars.named("layer-removal: choosing layers") == [(7, 7)]
    assert bars.named("layer-removal: what each number of layers costs") == [(3, 3)]
    losses = score_layers(model, batches)["loss"]
    assert points[1]["layers"] == [min(range(1, 5), key=lambda layer: losses[layer])]
    assert bars.named("layer-removal: loss without each layer")[0] == (6, 6)
    assert bars.named("layer-removal: what each layer turns")[0] == (2, 2)
    choose_layers(model, batches, 1, method="taylor")
    assert bars.named("layer-removal: gradients of each layer") == [(2, 2)]


# ---- sequential ----


def test_fisher_information(bars):
    estimate_fisher(tiny_model(), [classified()], rows=8)
    assert bars.named("sequential: Fisher information") == [(8, 8)]


def test_own_answers_and_kept_rows(bars):
    rows = keep_rows(token_rows(), 3, seed=0)
    assert bars.named("sequential: rows to keep") == [(3, 3)]
    with_own_answers(rows, tiny_llama(), TOKENIZER, batch_size=2)
    assert bars.named("sequential: the model's own answers") == [(2, 2)]


def test_evaluating_the_sets_of_all_stages(tmp_path, bars):
    run_all(tmp_path, "replay=0")
    # Before the first stage one, after it one; and so on: each stage's model is measured on the sets so far.
    counts = bars.named("sequential: evaluating the stages' sets")
    assert [count for count, total in counts] == [total for count, total in counts]
    assert (3, 3) in counts


# ---- transfer ----


def test_features_and_the_head_on_them(bars):
    fit_probe(tiny_model(), [classified(), classified()], steps=50)
    assert bars.named("transfer: features of the frozen layers") == [(2, 2)]
    assert bars.named("transfer: the head on cached features") == [(50, 50)]


def test_the_read_out(bars):
    read_out(read_out_model("bert"), read_out_batches(read_out_rows(200)))
    seen = bars.named("transfer: what the read-out sees")
    assert set(seen) == {(5, 5)}
    assert len(seen) >= 2


# ---- peft ----


def test_merging_quantising_and_evas_directions(tmp_path, bars):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    from hf_ft_plugins.techniques.peft import quantize, verified_merge

    model = tiny_llama(hidden_size=64)
    quantize(model, "nf4")
    assert bars.named("peft: nf4") == [(14, 14)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    verified_merge(adapted, {"input_ids": IDS}, tmp_path / "merged")
    assert bars.named("peft: merging, comparing, saving, reading back") == [(4, 4)]
    assert bars.named("peft: dequantising") == [(14, 14)]
    ((count, total),) = bars.named("peft: comparing what was saved")
    assert count == total > 14

    # What EVA needs of the data is known when it has it.
    tiny_trainer(tmp_path, Peft(method="eva", r=2))
    assert {total for _, total in bars.named("peft: EVA's directions")} == {None}


# ---- task, multitask ----


def test_looking_at_every_row_of_a_classifiers_data(tmp_path, bars):
    data = Dataset.from_list([{"pixel_values": [0.5, 1.0], "label": 1}] * 2500)
    args = TrainingArguments(str(tmp_path), remove_unused_columns=False)
    refuse_not_a_number(data, tiny_model(), args)
    assert bars.named("task: looking for NaN and infinity") == [(3, 3)]
    made = data.with_transform(lambda rows: {"label": [2 * label for label in rows["label"]]})
    assert label_values(made, "label") == [2] * 2500
    assert bars.named("reading 'label' of every row") == [(157, 157)]
    # Control: what is stored is not read row by row.
    assert label_values(data, "label") == [1] * 2500
    assert len(bars) == 2


def test_checking_the_labels_of_several_tasks(bars):
    multitask_dataset({"trees": tiny_tagged(), "moods": tiny_moods()}, TASKS)
    assert bars.named("multitask: checking the labels of tag") == [(24, 24)]
    assert bars.named("multitask: checking the labels of mood") == [(12, 12)]
    with_labels({"mood": TaskSpec(kind="sequence")}, tiny_moods())
    assert bars.named("multitask: label names of mood") == [(12, 12)]


# ---- the host, memory ----


def test_digests_of_a_checkpoint(tmp_path, bars):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    for name in ("model.safetensors", "optimizer.pt"):
        (folder / name).write_text("numbers")
    write_manifest(folder)
    assert bars.named("checkpoint-3: digests") == [(2, 2)]
    assert damage(folder) is None
    assert bars.named("checkpoint-3: comparing digests") == [(2, 2)]


def test_estimating_memory(tmp_path, bars):
    config = tiny_llama(num_hidden_layers=6, architectures=["LlamaForCausalLM"]).config
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, use_cpu=True)
    estimate = estimate_memory(config, args, length=8)
    assert bars.named("memory: trial steps") == [(2, 2)]
    with pytest.raises(Exception, match="budget"):
        refuse_over_budget(estimate, 1, lambda args, technique: None, args)
    ((count, total),) = bars.named("memory: what would make it fit")
    assert (count > 3, total) == (True, None)


# ---- a whole run ----


def test_bars_change_no_weight(tmp_path, request):
    """Of a run in which all of them are shown, and of one in which none is."""
    runs = []
    for shows in (False, True):
        if shows:
            request.getfixturevalue("bars")
        trainer = tiny_trainer(tmp_path / str(shows), Transfer(cache_features="always", read_out="keep"))
        trainer.train()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert request.getfixturevalue("bars").named("transfer: features of the frozen layers") == [(3, 3)]
