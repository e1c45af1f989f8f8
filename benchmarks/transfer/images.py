"""Digits and flowers: models and examples, and tests out of distribution."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from benchmarks.data import DATA

OTHER_SEED = 1000


Examples = tuple[dict[str, torch.Tensor], torch.Tensor]


def inverted(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.max() + pixels.min() - pixels


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    by = max(1, pixels.shape[-1] // 6)
    moved = torch.full_like(pixels, pixels.min().item())
    moved[..., by:, by:] = pixels[..., :-by, :-by]
    return moved


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    reach = 1 if pixels.shape[-1] < 32 else 2
    edges = torch.nn.functional.pad(pixels, (reach,) * 4, mode="replicate")
    return torch.nn.functional.avg_pool2d(edges, 2 * reach + 1, 1)


SHIFTS = {"inverted": inverted, "shifted": shifted, "blurred": blurred}


def images(pixels: torch.Tensor, labels: torch.Tensor) -> Examples:
    return {"pixel_values": pixels}, labels


def with_shifts(parts: dict[str, Examples]) -> dict[str, Examples]:
    inputs, labels = parts["test"]
    return parts | {name: images(change(inputs["pixel_values"]), labels) for name, change in SHIFTS.items()}


@cache
def scans(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    small = torch.tensor(pixels[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    # The network halves the sides four times.
    return torch.nn.functional.interpolate(small, scale_factor=4), torch.tensor(labels[order])


def digits(seed: int) -> dict[str, Examples]:
    pixels, labels = scans(seed)
    parts = {"train": slice(900, 980), "dev": slice(980, 1180), "test": slice(1180, None)}
    return with_shifts({name: images(pixels[part], labels[part]) for name, part in parts.items()})


def small_resnet() -> Any:
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10
        )
    )


@cache
def pretrained_resnet(seed: int) -> Any:
    set_seed(seed + 2 * OTHER_SEED)  # Else the new head would begin as the head that these features grew up with.
    model, (pixels, labels) = small_resnet(), scans(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(900, (64,))
        shown = pixels[rows]
        kinds = torch.randint(2 * len(SHIFTS), (len(rows), 1, 1, 1))
        for kind, change in enumerate(SHIFTS.values()):
            shown = torch.where(kinds == kind, change(pixels[rows]), shown)
        model(pixel_values=shown, labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def digits_model(seed: int, scratch: bool) -> Any:
    pretrained = pretrained_resnet(seed % OTHER_SEED)
    set_seed(seed)
    model = small_resnet()
    if not scratch:
        model.resnet.load_state_dict(pretrained.resnet.state_dict())
    return model


def mobilenet(seed: int, scratch: bool) -> Any:
    folder = DATA / "ckpt_mobilenet_v1_025_128" / "hf"
    config = AutoConfig.from_pretrained(folder, id2label={index: str(index) for index in range(5)})
    config.classifier_dropout_prob = 0.001
    set_seed(seed)
    if scratch:
        return AutoModelForImageClassification.from_config(config)
    return AutoModelForImageClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)


@cache
def photographs() -> dict[str, Examples]:
    found: dict[str, list[tuple[np.ndarray, str]]] = {"train": [], "validation": [], "test": []}
    with tarfile.open(DATA / "flowers5_128px" / "flowers5_128px.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".jpg"):
                split, flower = member.name.split("/")[-3:-1]
                content = archive.extractfile(member)
                assert content is not None
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                found[split].append((np.asarray(image).transpose(2, 0, 1), flower))
    names = sorted({flower for _, flower in found["test"]})
    return {
        split: images(
            torch.from_numpy(np.stack([pixels for pixels, _ in rows])).float() / 127.5 - 1,
            torch.tensor([names.index(flower) for _, flower in rows]),
        )
        for split, rows in found.items()
    }


def flowers(seed: int, each: int = 40) -> dict[str, Examples]:
    parts = photographs()
    inputs, labels = parts["train"]
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.permutation(np.flatnonzero(labels.numpy() == flower))[:each] for flower in range(5)])
    train = images(inputs["pixel_values"][rows], labels[rows])
    return with_shifts({"train": train, "dev": parts["validation"], "test": parts["test"]})
