"""The real preferences that the benchmark of `behavioral` trains on, as conversations."""

from __future__ import annotations

from typing import Any

from benchmarks.data import DATA, lines_of

OASST = DATA / "oasst_feedback" / "ranked_pairs.jsonl.gz"
HH = DATA / "hh_rlhf_harmless" / "harmless-base-test.jsonl.gz"
MODEL = DATA / "ckpt_books_lm"
SMALLER = DATA / "ckpt_stories260K" / "hf"
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def available() -> bool:
    """Whether the logs and the pretrained model are there."""
    return OASST.is_file() and HH.is_file() and (MODEL / "model.safetensors").is_file()


def oasst_pairs() -> list[dict[str, Any]]:
    """Pairs of ranked replies of OpenAssistant's trees: `prompt`, `chosen`, `rejected`, `conversation`, `distance`."""
    roles = {"prompter": "user", "assistant": "assistant"}
    return [
        {
            "prompt": [{"role": roles[turn["role"]], "content": turn["text"]} for turn in row["history"]],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "conversation": row["tree_id"],
            "distance": row["rank_rejected"] - row["rank_chosen"],
        }
        for row in lines_of(OASST)
    ]


def hh_pairs() -> list[dict[str, Any]]:
    """Pairs of Anthropic's harmlessness transcripts whose conversations differ in the last reply alone."""
    rows = []
    for number, row in enumerate(lines_of(HH)):
        chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
        if chosen[:-1] == rejected[:-1] and chosen[-1]["content"] and rejected[-1]["content"]:
            rows.append(
                {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:], "conversation": str(number)}
            )
    return rows


def _turns(transcript: str) -> list[dict[str, str]]:
    turns = []
    for part in transcript.split(HUMAN)[1:]:
        question, *replies = part.split(ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": reply.strip()} for reply in replies]
    return turns


def single_turn(row: dict[str, Any]) -> bool:
    return len(row["prompt"]) == 1
