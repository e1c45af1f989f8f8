"""A tied embedding's gradient: the bits of autograd's, without two more tensors of its size."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from hf_ft_plugins.techniques.low_memory import FusedBackward
from hf_ft_plugins.techniques.low_memory.optimizers.lomo import LOMO
from hf_ft_plugins.techniques.low_memory.tied_embeddings import can_be_taken, tied_embeddings
from hf_ft_plugins.testing import difference
from tests.techniques.low_memory.models import language_model, texts, trained, weights_of


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForMaskedLM(BertConfig(vocab_size=64, pad_token_id=5, **sizes))


def t5():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **sizes))


MODELS = {"llama": language_model, "bert": bert, "t5": t5}


class Makers(TorchDispatchMode):
    """Which operations make tensors of a shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.names = shape, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(one.shape == self.shape for one in tree_leaves(result) if torch.is_tensor(one)):
            self.names.add(str(function))
        return result


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_the_weights_are_those_of_a_stock_run(tmp_path, name, optim):
    stock = trained(tmp_path / "stock", model=MODELS[name](), optim=optim)
    ours = trained(tmp_path / "ours", "low-memory", model=MODELS[name](), optim=optim)
    assert difference(weights_of(stock), weights_of(ours)) is None


@pytest.mark.parametrize("name", MODELS)
def test_the_embeddings_own_gradient_is_never_as_large_as_the_weight(name):
    model = MODELS[name]()
    batch = {key: column.unsqueeze(0) for key, column in texts(1)[0].items()}
    makers = {}
    for taken in (False, True):
        fused = FusedBackward(LOMO(model.parameters(), lr=0.0))
        if taken:
            fused.take_tied_embeddings(model)
        loss = model(**batch).loss
        with Makers(model.get_input_embeddings().weight.shape) as makers[taken]:
            loss.backward()
        fused.step()
        fused.detach()
    large = {"aten.embedding_dense_backward.default", "aten.add.Tensor"}
    assert large <= makers[False].names
    assert not large & makers[True].names


def test_layers_are_as_they_were_when_it_ends():
    model = language_model()
    fused = FusedBackward(LOMO(model.parameters(), lr=0.0))
    fused.take_tied_embeddings(model)
    assert "forward" in vars(model.get_input_embeddings())
    fused.detach()
    assert "forward" not in vars(model.get_input_embeddings())


def test_without_the_head_the_rows_are_the_gradient():
    model = language_model()
    expected = language_model()
    ids = texts(1)[0]["input_ids"].unsqueeze(0)
    fused = FusedBackward(torch.optim.SGD(model.parameters(), lr=0.1))
    fused.take_tied_embeddings(model)
    model.model(ids).last_hidden_state.square().sum().backward()
    fused.step()
    expected.model(ids).last_hidden_state.square().sum().backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    assert torch.equal(model.model.embed_tokens.weight, expected.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "settings", [{}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=lambda one: str([*one])
)
def test_only_plain_embeddings_are_taken(settings):
    assert can_be_taken(torch.nn.Embedding(4, 2, **settings)) == (not settings)


def test_untied_ones_and_those_that_may_not_are_left():
    model = language_model(tied=False)
    everything = {id(weight) for weight in model.parameters()}
    assert tied_embeddings(model, everything) == []
    assert tied_embeddings(language_model(), ()) == []
