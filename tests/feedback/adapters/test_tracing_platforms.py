"""LangSmith and Langfuse: scales of scores, corrections, prompts, tools and calls."""

import pytest

from tests.feedback.format_samples import BAD, RUNS, TURNS
from tests.feedback.written_logs import contents, found, lines


def test_scores_are_read_on_the_scale_of_their_name(tmp_path):
    runs = [{"id": f"r{n}", "inputs": {"input": f"q{n}"}, "outputs": {"output": f"answer {n}"}} for n in range(4)]
    stars = [{"id": f"s{n}", "run_id": f"r{n}", "key": "stars", "score": n + 1} for n in range(4)]
    _, labels, _ = found(lines(tmp_path / "a.jsonl", runs + stars))
    # One star of four or five is bad, although 1 is "up" elsewhere.
    assert {row["completion"][0]["content"]: row["label"] for row in labels} == {
        "answer 0": False,
        "answer 1": False,
        "answer 3": True,
    }
    judged = [{"id": "j", "run_id": "r0", "key": "k", "score": 1, "feedback_source": {"type": "model"}}]
    assert sum(found(lines(tmp_path / "b.jsonl", runs + judged))[2]["lines"]["left_out"].values()) == 1


def test_a_correction_of_langsmith_is_an_edit(tmp_path):
    feedback = {"id": "1", "run_id": "r2", "key": "fix", "correction": {"output": "I do not know any colour."}}
    pairs, _, _ = found(lines(tmp_path / "log.jsonl", [*RUNS, feedback]))
    assert [(contents(row), row["signal"]) for row in pairs] == [(("I do not know any colour.", BAD), "edit")]


@pytest.mark.parametrize("platform", ["langsmith", "langfuse"])
def test_system_prompt_tools_and_calls_of_a_run_arrive(platform, tmp_path):
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    given = {"system": "Be short.", "messages": [TURNS[0]], "tools": tools}
    answer = {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "look", "args": {"of": "sea"}, "id": "1"}]}}
    records = {
        "langsmith": [
            {"id": "r", "inputs": given, "outputs": {"messages": [answer]}},
            {"id": "f", "run_id": "r", "key": "up", "score": 1},
        ],
        "langfuse": [
            {"id": "r", "input": given, "output": {"messages": [answer]}},
            {"id": "f", "traceId": "r", "name": "up", "value": 1},
        ],
    }
    _, (label,), _ = found(lines(tmp_path / "log.jsonl", records[platform]))
    assert label["prompt"] == [{"role": "system", "content": "Be short."}, TURNS[0]]
    function = {"name": "look", "arguments": {"of": "sea"}}
    assert label["completion"][0]["tool_calls"] == [{"id": "1", "type": "function", "function": function}]
    assert label["tools"] == tools
