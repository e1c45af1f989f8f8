"""Two ranks (DDP, and FSDP2 on CPUs): a stage is kept whole, the next one starts from it, and resumes exactly."""

import hashlib
import json

import pytest
from safetensors.torch import load_file

from tests.two_processes import resumes_on_two_ranks, shard_on_cpus, sharded_by

SHARDED = sharded_by("BertLayer")


def sharded(kind):
    return {**SHARDED, "fsdp_config": {**SHARDED["fsdp_config"], "state_dict_type": kind}}


SETTINGS = {
    "ddp": {"ddp_backend": "gloo"},
    "full": sharded("FULL_STATE_DICT"),
    "shards": sharded("SHARDED_STATE_DICT"),
}


def two_stages(rank, folder, kind):
    """Two stages, whole, and again with the second cut off in its middle; what is left of both, as one rank sees it."""
    from hf_ft_plugins.testing import InterruptAt, Interruption
    from tests.techniques.sequential.stage_runs import build, run_all, stages

    if kind != "ddp":
        shard_on_cpus()
    given, changes = stages()[:2], SETTINGS[kind]
    starts = []

    def factory(run):
        trainer = build(run, **changes)
        starts.append(digest({name: one.detach() for name, one in trainer.model.named_parameters()}))
        return trainer

    ended = run_all(folder / "whole", "replay=0.25,wise=0.8", factory, given)

    def cut(run):
        return build(run, callbacks=[InterruptAt(5)] if run.stage.name == "medical" else None, **changes)

    try:
        run_all(folder / "cut", "replay=0.25,wise=0.8", cut, given)
    except Interruption:
        interrupted = True
    again = run_all(folder / "cut", "replay=0.25,wise=0.8", factory, given)
    return {
        "interrupted": interrupted,
        "starts": starts,
        "matrix": [ended.matrix.as_dict(), again.matrix.as_dict()],
    }


def digest(named):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in named.values())).hexdigest()


@pytest.mark.slow
@resumes_on_two_ranks
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_stages_are_kept_whole_and_resume_exactly(kind, on_both_ranks, tmp_path):
    from hf_ft_plugins.testing import difference, tiny_model
    from tests.techniques.sequential.stage_runs import left_in, model_from

    first, second = on_both_ranks(two_stages, kind)
    assert first["interrupted"]
    assert first == second
    names = ("general", "medical")
    left = [left_in(tmp_path / one, names) for one in ("whole", "cut")]
    assert difference(*left) is None
    weights = load_file(tmp_path / "whole" / "general" / "model" / "model.safetensors")
    begun = dict(tiny_model().named_parameters())
    assert {name: one.shape for name, one in weights.items()} == {name: one.shape for name, one in begun.items()}
    assert max((weights[name] - one).abs().max().item() for name, one in begun.items()) > 1e-3
    # The second stage has started from the first one's model.
    start = model_from(tmp_path / "whole" / "general" / "model")
    assert first["starts"][1] == digest({name: one.detach() for name, one in start.named_parameters()})
    stages = json.loads((tmp_path / "whole" / "hf_ft_stages.json").read_text())["stages"]
    assert [stage["steps"] for stage in stages] == [6, 6]


def failing(rank, folder):
    """The first rank's disk is full while the first stage is kept; then run again."""
    from hf_ft_plugins.techniques.sequential import stage_callback
    from tests.techniques.sequential.stage_runs import build, run_all, stages

    save = stage_callback.save_rows

    def full(*args):
        raise OSError(28, "No space left on device")

    stage_callback.save_rows = full

    def factory(run):
        return build(run, ddp_backend="gloo")

    try:
        run_all(folder / "stages", factory=factory, given=stages()[:1])
    except OSError as error:
        told = str(error)
    stage_callback.save_rows = save
    ended = run_all(folder / "stages", factory=factory, given=stages()[:1])
    return {"told": told, "finished": [stage.name for stage in ended.stages]}


@resumes_on_two_ranks
def test_a_full_disk_of_the_first_rank_ends_both_and_loses_nothing(on_both_ranks):
    for result in on_both_ranks(failing):
        assert "No space left" in result["told"]
        assert result["finished"] == ["general"]
