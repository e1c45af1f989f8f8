"""What is done after training, on models that are not trained: when a temperature is fitted and where it goes."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_ft_plugins.techniques.task import Task
from hf_ft_plugins.techniques.task.finish import finish
from hf_ft_plugins.testing import LENGTH, VOCABULARY
from tests.techniques.task.runs_of_kinds import rows_of, tiny_trainer


class Offset(BertForSequenceClassification):
    """Its logits are not those of its last linear layer."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask=attention_mask, labels=labels)
        output.logits = output.logits + torch.tensor([3.0, 0.0, 0.0])
        return output


def too_sure(cls):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = cls(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=3, **sizes))
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    return model


def finished(folder, model, rows=48):
    trainer = tiny_trainer(folder, Task(), model=model, eval_dataset=rows_of("single_label", rows, seed=1))
    before = model.classifier.weight.detach().clone()
    finish(trainer, "single_label")
    return model.config, before


def test_a_temperature_that_does_not_divide_the_logits_stays_out_of_the_weights(tmp_path, caplog):
    model = too_sure(Offset)
    config, before = finished(tmp_path / "offset", model)
    assert config.hf_ft_task["temperature"] > 1.5
    assert not config.hf_ft_task["temperature_in_weights"]
    assert torch.equal(model.classifier.weight, before)
    assert "dividing the head did not divide the logits, so it was undone" in caplog.text
    # The control: one whose logits are its last layer's.
    model = too_sure(BertForSequenceClassification)
    config, before = finished(tmp_path / "plain", model)
    assert config.hf_ft_task["temperature_in_weights"]
    torch.testing.assert_close(model.classifier.weight, before / config.hf_ft_task["temperature"])


@pytest.mark.parametrize(("rows", "calibrated"), [(40, True), (39, False)])
def test_twenty_rows_a_half_are_enough(rows, calibrated, tmp_path):
    config, _ = finished(tmp_path, too_sure(BertForSequenceClassification), rows)
    assert hasattr(config, "hf_ft_task") is calibrated
