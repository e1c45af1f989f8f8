"""sentence-transformers' trainer, which makes its own batches and loads its own checkpoints: it trains and resumes."""

import contextlib

import pytest

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.testing import InterruptAt, Interruption
from hf_ft_plugins.testing.examples.text2text import setting

sentence_transformers = pytest.importorskip("sentence_transformers")

CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"
RUNS = {
    "none": [],
    "three": [CUTTING, "transfer:strategy=gradual,layer_decay=0.5", "low-memory:algorithm=adalomo"],
    "climb": ["adaptive-lr"],
    "penalty": ["sequential:l2sp=0.01"],
}
REFUSED = {
    "task": "makes its own batches",
    "task:imbalance=sampler": "makes its own batches",
    "layer-removal:number=1,protect_first=0,protect_last=0": "makes its own batches",
    "peft:r=4": r"peft: .*model\.add_adapter",
    "multitask": "multitask: a SentenceTransformer has one task",
    "behavioral": "behavioral: SentenceTransformerTrainer is none of",
    "text2text": "text2text: there is no column",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT with a tokenizer, as a folder."""
    from transformers import BertConfig, BertModel, set_seed

    folder = tmp_path_factory.mktemp("sentences") / "model"
    tokenizer = setting()["processing_class"]
    set_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(folder, checkpoint, *techniques, **changes):
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import set_seed

    set_seed(0)
    model = sentence_transformers.SentenceTransformer(checkpoint, device="cpu")
    words = ("dogs", "cats", "war", "love", "rain", "money", "cars", "trains")
    rows = Dataset.from_list([{"anchor": f"films on {word}", "positive": f"movies with {word}"} for word in words] * 3)
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }
    return with_plugins(sentence_transformers.SentenceTransformerTrainer, *techniques)(
        model=model,
        args=sentence_transformers.SentenceTransformerTrainingArguments(str(folder), **settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        loss=MultipleNegativesRankingLoss(model),
        **changes,
    )


def weights(model):
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def equal(first, second):
    return all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("name", RUNS)
def test_it_trains_and_resumes_exactly_and_reloads(name, checkpoint, tmp_path):
    straight = build(tmp_path / "straight", checkpoint, *RUNS[name])
    start = weights(straight.model)
    straight.train()
    with contextlib.suppress(Interruption):
        build(tmp_path / "cut", checkpoint, *RUNS[name], callbacks=[InterruptAt(5)]).train()
    again = build(tmp_path / "cut", checkpoint, *RUNS[name])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert equal(weights(straight.model), weights(again.model))
    assert not equal(start, weights(straight.model))
    again.save_model(str(tmp_path / "saved"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert equal(weights(again.model), weights(loaded))


@pytest.mark.parametrize("spec", REFUSED)
def test_what_needs_batches_or_another_trainer_is_refused(spec, checkpoint, tmp_path):
    with pytest.raises(PluginError, match=REFUSED[spec]) as refusal:
        build(tmp_path, checkpoint, spec)
    said = [str(refusal.value), *getattr(refusal.value, "__notes__", ())]
    assert spec.partition(":")[0] in " ".join(said)
