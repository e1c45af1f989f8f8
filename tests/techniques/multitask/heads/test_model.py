"""One encoder with several heads: losses, saving, export, adapters."""

import copy

import pytest
import torch
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask import (
    MultiTask,
    MultiTaskCollator,
    MultiTaskModel,
    TaskSpec,
)
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.multitask import (
    EXAMPLE,
    TASKS,
    tiny_multitask_model,
    tiny_setting,
    tiny_tagged,
    tiny_tokenizer,
)
from tests.techniques.multitask.small_runs import quiet


def test_joint_heads_give_the_losses_that_each_task_has_alone():
    model = quiet(tiny_multitask_model())
    rows = tiny_tagged(6)
    collator = MultiTaskCollator(tiny_tokenizer(), model)
    joint = model(**collator(rows))
    for task in ("tag", "parse"):
        batch = collator(rows)
        batch["labels"] = {task: batch["labels"][task]}
        assert torch.equal(model(**batch).task_sums[task], joint.task_sums[task])


def test_a_saved_model_is_the_same_model_and_keeps_its_labels(tmp_path):
    model = tiny_multitask_model().eval()
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.specs == model.specs
    batch = MultiTaskCollator(tiny_tokenizer(), model)(tiny_tagged(4))
    for task, predicted in model(**batch).predictions.items():
        assert torch.equal(predicted, again(**batch).predictions[task])
    assert isinstance(AutoModel.from_pretrained(tmp_path), MultiTaskModel)


def test_a_head_that_a_checkpoint_lacks_is_made_anew(tmp_path):
    model = tiny_multitask_model()
    model.save_pretrained(tmp_path)
    config = copy.deepcopy(model.config)
    config.tasks["topic"] = TaskSpec(kind="sequence", labels=("x", "y")).to_dict()
    again = MultiTaskModel.from_pretrained(tmp_path, config=config)
    assert 0 < again.heads["topic"].linear.weight.std() < 0.1
    assert torch.equal(again.heads["mood"].linear.weight, model.heads["mood"].linear.weight)


def test_a_model_that_reads_forward_reads_last_tokens_and_keeps_its_language_head(tmp_path):
    """Its sequences are read where everything before is seen; tied embeddings stay tied."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        tie_word_embeddings=True,
    )
    plain = LlamaForCausalLM(config).eval()
    tasks = {"text": TaskSpec(kind="causal_lm"), "mood": TaskSpec(kind="sequence", labels=("x", "y"))}
    model = MultiTaskModel.from_encoder(plain.model, tasks).eval()
    assert model.config.word_pooling == "last"
    ids = torch.arange(1, 7)[None]
    labels = {"text": ids, "mood": torch.tensor([1])}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    expected = plain(input_ids=ids, labels=ids)
    assert torch.equal(out.predictions["text"], expected.logits.argmax(-1))
    assert (out.task_sums["text"] / out.task_items["text"]).item() == pytest.approx(float(expected.loss), rel=1e-5)
    other = ids.clone()
    other[0, -1] = 9
    changed_end = model(input_ids=other, attention_mask=torch.ones_like(ids)).predictions["mood"]
    assert not torch.equal(changed_end, out.predictions["mood"])
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path).eval()
    assert again.heads["text"].linear.weight is again.get_input_embeddings().weight
    found = again(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    assert torch.equal(found.loss, out.loss)


def test_an_encoder_with_a_decoder_is_refused_with_the_mend():
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(PluginError, match="T5EncoderModel"):
        MultiTaskModel.from_encoder(T5Model(config), {"mood": TaskSpec(kind="sequence", labels=("x", "y"))})


@pytest.mark.parametrize(
    ("task", "made"), [("tag", "BertForTokenClassification"), ("mood", "BertForSequenceClassification")]
)
def test_an_exported_task_is_a_plain_model_with_the_same_outputs(task, made, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    model = tiny_multitask_model().eval()
    plain = model.export(task)
    assert type(plain).__name__ == made
    assert tuple(plain.config.id2label.values()) == TASKS[task].labels
    plain.save_pretrained(tmp_path)
    auto = AutoModelForTokenClassification if task == "tag" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(tmp_path)
    batch = MultiTaskCollator(tiny_tokenizer(), model)([{"tokens": ["the", "old", "Rome"]}])
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    ours = model(**batch)
    if task == "tag":
        assert torch.equal(logits[:, 1:4].argmax(-1), ours.predictions["tag"])
    else:
        assert torch.allclose(logits, ours.predictions["mood"], atol=1e-6)
    with pytest.raises(PluginError, match="transformers has no class"):
        model.export("parse")


def test_adapters_train_with_whole_heads_and_keep_them(tmp_path):
    peft = pytest.importorskip("peft")
    setting = tiny_setting()
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=list(TASKS))
    setting["model"] = peft.get_peft_model(setting["model"], config)
    trainer = tiny_trainer(tmp_path, MultiTask(mix="uniform"), **setting)
    trainer.train()
    assert EXAMPLE.acted(EXAMPLE.technique, trainer)
    trainer.model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(tiny_multitask_model(), tmp_path / "adapter")
    batch = MultiTaskCollator(tiny_tokenizer(), TASKS)(tiny_tagged(4))
    trained, loaded = trainer.model.eval()(**batch), again.eval()(**batch)
    assert torch.allclose(trained.loss, loaded.loss)
