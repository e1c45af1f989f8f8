"""Batches of unequal size, packed rows and streams on two ranks."""

import pytest

from tests.two_processes import build, can_resume_on_two_ranks, host_class, trained


def budgeted_batches(rank, folder):
    from hf_ft_plugins.testing import difference, outcome, resumed
    from hf_ft_plugins.testing.examples import text2text

    technique = text2text.EXAMPLE.technique
    trainer = build(folder / "run", technique, **text2text.setting())
    trainer.train()
    again = None
    if can_resume_on_two_ranks():
        again = difference(
            outcome(trainer),
            outcome(
                resumed(
                    folder / "resumed",
                    technique,
                    make_setting=text2text.setting,
                    trainer_class=host_class(),
                    ddp_backend="gloo",
                )
            ),
        )
    loader = trainer.get_train_dataloader()
    seen = [sorted(ids[ids > 1].tolist()) for batch in loader for ids in batch["input_ids"]]
    rows = [sorted(token for token in row["input_ids"] if token > 1) for row in trainer.train_dataset]
    return trained(trainer) | {"seen": seen, "rows": rows, "resumed": again, "batches": len(loader)}


def test_batches_of_unequal_size_are_dealt_out_complete_and_resume_exactly(on_both_ranks):
    first, second = on_both_ranks(budgeted_batches)
    assert sorted(first["seen"] + second["seen"]) == sorted(first["rows"])
    assert first["seen"] != second["seen"]
    assert first["batches"] == second["batches"]
    assert first["weights"] == second["weights"]
    assert (first["resumed"], second["resumed"]) == (None, None)


def packed_and_padded(rank, folder):
    import torch

    from hf_ft_plugins.techniques.text2text import Text2Text
    from hf_ft_plugins.testing.examples import text2text

    def trained_with(packing):
        setting = text2text.setting()
        for module in setting["model"].modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        trainer = build(folder / packing, Text2Text(target_tokens=24, packing=packing), **setting, save_strategy="no")
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trained(trainer) | {"losses": losses, "rows": len(next(iter(trainer.get_train_dataloader()))["labels"])}

    return {packing: trained_with(packing) for packing in ("pairs", "none")}


def test_packed_rows_train_both_ranks_as_padded_ones_do(on_both_ranks):
    first, second = on_both_ranks(packed_and_padded)
    assert first["pairs"]["weights"] == second["pairs"]["weights"]
    assert first["pairs"]["losses"] == pytest.approx(first["none"]["losses"], rel=1e-5)
    assert first["pairs"]["rows"] < first["none"]["rows"]


def stream_on_each_rank(rank, folder):
    import torch
    from transformers import Trainer

    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.techniques.text2text import Text2Text
    from hf_ft_plugins.testing.examples import text2text

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter({"input_ids": [3 + row] * (1 + row % 7), "labels": [9] * (1 + row % 5)} for row in range(50))

    seen = []

    class Watching(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if self.state.epoch < 1:
                seen.extend(inputs["input_ids"][:, 0].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    setting = {**text2text.setting(), "train_dataset": Stream()}
    technique = Text2Text(target_tokens=12, pool=20)
    trainer = build(folder / "run", technique, trainer_class=with_plugins(Watching), save_strategy="no", **setting)
    trainer.train()
    return trained(trainer) | {"seen": seen, "epoch": trainer.state.epoch}


def test_ranks_share_out_a_stream_and_pass_it_together(on_both_ranks):
    first, second = on_both_ranks(stream_on_each_rank)
    assert sorted(first.pop("seen") + second.pop("seen")) == list(range(3, 53))
    assert first == second
    assert first["epoch"] > 1


def in_parts_and_whole(rank, folder):
    import numpy as np
    import torch

    from hf_ft_plugins.techniques.text2text import Text2Text
    from hf_ft_plugins.testing.examples import text2text

    def trained_with(*, in_parts):
        setting = text2text.setting()
        random = np.random.default_rng(0)
        sides = ([random.integers(3, 12, length).tolist() for length in random.integers(1, 40, 64)] for _ in range(2))
        setting["train_dataset"] = [
            {"input_ids": ids, "labels": [*labels, 1]} for ids, labels in zip(*sides, strict=True)
        ]
        model, calls = setting["model"], []
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer = build(
            *(folder / str(in_parts), Text2Text()),
            **setting,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=1,
            save_strategy="no",
            eval_strategy="no",
        )
        if not in_parts:
            trainer._parts_of = lambda model, inputs, **_: [inputs]
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trained(trainer) | {"losses": losses, "calls": len(calls), "steps": trainer.state.global_step}

    return trained_with(in_parts=True), trained_with(in_parts=False)


def test_parts_train_both_ranks_as_whole_batches_do(on_both_ranks):
    (first, whole), (second, _) = on_both_ranks(in_parts_and_whole)
    assert first["weights"] == second["weights"]
    assert first["calls"] > 1.5 * first["steps"]
    assert whole["calls"] < first["calls"]
    assert first["losses"] == pytest.approx(whole["losses"], rel=1e-5)
