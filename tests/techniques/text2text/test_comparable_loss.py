"""`hf-ft compare` judges a loss beside `text2text` exactly where stock would compute the same of equal weights."""

import datasets
import pytest
from transformers import DataCollatorForSeq2Seq

from hf_ft_plugins.cli.record import evaluation_setting, fills_batches
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5
from tests.techniques.text2text.small_models import TOKENIZER, bart, trainer_of
from tests.techniques.text2text.test_generation import prompted, tiny_llama

FULL, HALF_FULL = 16, 12


def evaluated(folder, new_model, rows, *techniques, **args):
    """The evaluation loss of a trainer, and what `hf-ft compare` records of how it is computed."""
    model = new_model()
    pairs = [{**pair, "attention_mask": [1] * len(pair["input_ids"])} for pair in tiny_pairs(rows)]
    data = datasets.Dataset.from_list(prompted(rows) if new_model is tiny_llama else pairs)
    trainer = trainer_of(
        folder,
        model,
        data,
        *techniques,
        collator=DataCollatorForSeq2Seq(TOKENIZER, None if new_model is tiny_llama else model),
        eval_dataset=data,
        per_device_eval_batch_size=8,
        generation_max_length=24,
        **args,
    )
    # Without metrics Seq2SeqTrainer takes another way than where it generates.
    trainer.compute_metrics = lambda prediction: {}
    loss = trainer.evaluate()["eval_loss"]
    setting = evaluation_setting(trainer.args, trainer.model)
    return loss, setting | {"fills_batches": fills_batches(trainer.args, trainer.callback_handler.eval_dataloader)}


CASES = {
    "T5": (tiny_t5, FULL, {}),
    "T5 with a last batch half full": (tiny_t5, HALF_FULL, {}),
    "T5, smoothed": (tiny_t5, FULL, {"label_smoothing_factor": 0.1}),
    "T5 generates": (tiny_t5, FULL, {"predict_with_generate": True}),
    "T5 generates, smoothed": (tiny_t5, FULL, {"predict_with_generate": True, "label_smoothing_factor": 0.1}),
    "BART": (bart, FULL, {}),
    "causal": (tiny_llama, FULL, {}),
    "causal, smoothed": (tiny_llama, FULL, {"label_smoothing_factor": 0.1}),
    "causal, generates": (tiny_llama, FULL, {"predict_with_generate": True}),
}
OTHERWISE = {
    "grouped by length": (tiny_t5, FULL, {"train_sampling_strategy": "group_by_length"}),
    "T5 generates, with a last batch half full": (tiny_t5, HALF_FULL, {"predict_with_generate": True}),
    "causal, generates, smoothed": (
        tiny_llama,
        FULL,
        {"predict_with_generate": True, "label_smoothing_factor": 0.1},
    ),
}


@pytest.mark.parametrize("case", [*CASES, *OTHERWISE])
def test_a_loss_is_compared_where_stock_computes_the_same(case, tmp_path):
    new_model, rows, args = (CASES | OTHERWISE)[case]
    technique = resolve("text2text")
    stock, setting = evaluated(tmp_path, new_model, rows, **args)
    ours, setting_of_ours = evaluated(tmp_path, new_model, rows, technique, **args)
    assert setting == setting_of_ours
    assert technique.keeps_objective()
    same = ours == pytest.approx(stock, rel=1e-6)
    assert same == (case in CASES)
    assert (technique.loss_differs(setting) is None) == same


@pytest.mark.parametrize("option", ["packing=pairs", "target_tokens=20", "pool=8", "pad_to_multiple_of=8"])
def test_options_of_the_training_batches_leave_the_evaluation_loss(option, tmp_path):
    technique = resolve(f"text2text:{option}")
    stock, ours = (evaluated(tmp_path, tiny_t5, FULL, *chosen)[0] for chosen in ((), (technique,)))
    assert technique.keeps_objective()
    assert ours == pytest.approx(stock, rel=1e-6)


@pytest.mark.parametrize("option", ["max_target_length=3", "max_source_length=3"])
def test_limits_change_it(option, tmp_path):
    technique = resolve(f"text2text:{option}")
    stock, ours = (evaluated(tmp_path, tiny_t5, FULL, *chosen)[0] for chosen in ((), (technique,)))
    assert not technique.keeps_objective()
    assert ours != pytest.approx(stock, rel=1e-3)


def test_half_precision_is_no_float32(tmp_path):
    technique = resolve("text2text")
    setting = evaluated(tmp_path, lambda: tiny_t5().bfloat16(), FULL)[1]
    assert "half precision" in technique.loss_differs(setting)
