"""The default controller where the weights are in pieces on two ranks (FSDP2)."""

from tests.two_processes import build, shard_on_cpus, sharded_by


def trained_in_shards(rank, folder):
    shard_on_cpus()
    changes = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, **sharded_by("BertLayer")}
    trainer = build(folder / "run", "adaptive-lr:patience=1,min_delta=1e9,max_cuts=1,stop=false", **changes)
    trainer.train()
    told = [entry["adaptive_lr/action"] for entry in trainer.state.log_history if "adaptive_lr/action" in entry]
    return told, trainer.state.global_step


def test_where_weights_cannot_be_put_back_the_rate_is_cut_and_they_stay(on_both_ranks):
    # The first value is the best; a controller that goes back would say so, and would have raised before.
    assert on_both_ranks(trained_in_shards) == [[["cut"], 6]] * 2
