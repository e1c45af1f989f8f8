"""Which models are encoders of several tasks; what is saved is loaded as it was."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from benchmarks.architectures import small
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.multitask import MultiTaskCollator, MultiTaskModel, TaskSpec, multitask_dataset
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.multitask import tiny_moods, tiny_tagged, tiny_tokenizer

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TASKS = {
    "tag": TaskSpec(kind="token", labels=("ADJ", "ADV", "DET", "NAME", "NOUN", "VERB")),
    "mood": TaskSpec(kind="sequence", labels=("glad", "sad")),
}
T5_SIZE = {"vocab_size": 99, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 8}
ENCODERS = {
    "without a pooler": lambda: BertModel(BertConfig(vocab_size=99, **SIZE), add_pooling_layer=False),
    "with a pooler": lambda: BertModel(BertConfig(vocab_size=99, **SIZE)),
    "of an encoder-decoder": lambda: T5EncoderModel(T5Config(**T5_SIZE)),
    "without sdpa": lambda: MPNetModel(MPNetConfig(vocab_size=99, **SIZE)),
}


@pytest.mark.parametrize("which", ENCODERS)
def test_what_is_saved_is_loaded_as_it_was(which, tmp_path):
    encoder = ENCODERS[which]()
    model = MultiTaskModel.from_encoder(encoder, TASKS).eval()
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path).eval()
    assert type(again.encoder) is type(encoder)
    assert again.state_dict().keys() == model.state_dict().keys()
    batch = MultiTaskCollator(tiny_tokenizer(), TASKS)([{"tokens": ["the", "cat"]}])
    for task, found in model(**batch).predictions.items():
        torch.testing.assert_close(again(**batch).predictions[task], found)


REFUSED = {
    "pictures": (lambda: ViTModel(ViTConfig(**SIZE, image_size=8, patch_size=4)), r"ViTModel takes pixel_values"),
    "a head": (lambda: BertForSequenceClassification(BertConfig(vocab_size=99, **SIZE)), r"model\.base_model"),
    "T5": (lambda: small("t5"), r"T5EncoderModel\.from_pretrained"),
    "BART": (lambda: small("bart"), r"no class of its encoder alone"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_is_no_encoder_of_tokens_is_refused_by_name(which):
    make, message = REFUSED[which]
    with pytest.raises(PluginError, match=message):
        MultiTaskModel.from_encoder(make(), TASKS)


@pytest.mark.parametrize("kind", ["dpr", "bros"])
def test_an_encoder_that_does_not_run_on_a_row_is_refused_when_the_trainer_is_built(kind, tmp_path):
    model = MultiTaskModel.from_encoder(small(kind, padding=0), {"tag": TASKS["tag"]})
    setting = {"train_dataset": tiny_tagged(4), "eval_dataset": None, "processing_class": tiny_tokenizer()}
    with pytest.raises(PluginError, match="does not run on a row of tokens"):
        tiny_trainer(tmp_path, "multitask", model=model, **setting, eval_strategy="no")


def test_asking_leaves_the_model_and_the_random_state_as_they_were(tmp_path):
    model = MultiTaskModel.from_encoder(ENCODERS["with a pooler"](), TASKS).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = {"trees": tiny_tagged(4), "moods": tiny_moods(4)}
    assert multitask_dataset(data, TASKS).taught() == ("tag", "mood")
    state = torch.get_rng_state()
    tiny_trainer(
        tmp_path, "multitask", model=model, train_dataset=data, eval_dataset=None, processing_class=tiny_tokenizer(),
        eval_strategy="no",
    )  # fmt: skip
    from transformers import set_seed

    after = torch.get_rng_state()
    set_seed(7)
    assert torch.equal(after, torch.get_rng_state()) or torch.equal(after, state)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
