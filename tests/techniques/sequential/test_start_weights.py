"""The weights that a stage starts from: what is kept of a model, and whose file is taken."""

import pytest
import torch

from hf_ft_plugins.errors import CheckpointError
from hf_ft_plugins.techniques.sequential.start_weights import (
    START_FILE,
    moving_parameters,
    plain_name,
    read_start,
    write_start,
)
from hf_ft_plugins.testing import difference, tiny_model


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(6, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.output = torch.nn.Linear(4, 6, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("constant", torch.ones(3), persistent=False)


def test_what_learns_is_read_as_it_was_written_and_frozen_weights_are_not_kept(tmp_path):
    model = tiny_model()
    model.bert.embeddings.requires_grad_(False)
    digest = write_start(model, tmp_path)
    learned = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}
    assert difference(read_start(tmp_path, digest), learned) is None
    assert not any("embeddings" in name for name in learned)


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    write_start(model, tmp_path)
    assert difference(read_start(tmp_path), {name: one.detach() for name, one in model.named_parameters()}) is None


def test_tied_weights_are_kept_once_and_of_buffers_those_that_a_checkpoint_holds(tmp_path):
    write_start(Tied(), tmp_path)
    expected = {"embedding.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    assert set(read_start(tmp_path)) == expected


def test_frozen_parameters_that_the_optimizer_holds_are_kept_since_they_may_learn_later():
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.bert.requires_grad_(False)
    assert list(moving_parameters(model, optimizer)) == [name for name, _ in model.named_parameters()]
    assert list(moving_parameters(model)) == ["classifier.weight", "classifier.bias"]


def test_of_an_adapter_the_adapter_is_kept(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    write_start(model, tmp_path)
    kept = read_start(tmp_path)
    assert sum(".lora_A.default" in name for name in kept) == 3
    assert all(".lora_" in name or ".modules_to_save." in name for name in kept)


def test_names_are_those_without_wrappers():
    assert plain_name("_orig_mod.layer._checkpoint_wrapped_module.weight") == "layer.weight"


def test_another_runs_file_a_damaged_one_and_none_are_refused_with_the_mend(tmp_path):
    digest = write_start(tiny_model(), tmp_path)
    other = write_start(tiny_model(seed=1), tmp_path)
    with pytest.raises(CheckpointError, match=r"sequential: .*another run has begun.*output_dir of its own"):
        read_start(tmp_path, digest)
    read_start(tmp_path, other)
    (tmp_path / START_FILE).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"sequential: .*cannot be read"):
        read_start(tmp_path)
    with pytest.raises(CheckpointError, match=r"sequential: .*is not there.*Copy the folder"):
        read_start(tmp_path / "elsewhere")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    digest = write_start(tiny_model(), tmp_path)

    def full_disk(tensors, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_start(tiny_model(seed=1), tmp_path)
    read_start(tmp_path, digest)
