"""Rows that are equal, the other way round, or similar."""

import pytest

from tests.feedback.written_logs import contents, conversation, found


def test_equal_rows_are_one_with_all_events_and_users(log):
    messages = [m for n in range(3) for m in conversation("Blue.", name=f"c{n}", prompt="Colour?")]
    acts = [{"type": "copy", "message_id": f"c{n}.0", "user": f"u{n}"} for n in range(3)]
    _, (row,), report = found(log(messages, acts), pii=False)
    assert row["source_event_ids"] == ["e0", "e1", "e2"]
    assert row["user"] == "u0+u1+u2"
    assert row["behavior_eps"] < 0.25
    assert report["rows"]["labels"]["dropped"] == {"equal to another row, votes and events kept there": 2}
    # Somebody saying the same thrice is one opinion.
    _, (row,), _ = found(log(messages, [{**act, "user": "u"} for act in acts], "one"))
    assert row["behavior_eps"] == 0.25


def test_equal_pairs_the_other_way_round_are_votes_against(log):
    messages = [m for n in range(4) for m in conversation("Blue.", "Red.", name=f"c{n}", prompt="Colour?")]
    chosen = (0, 0, 1, 0)
    acts = [
        {"type": "choice", "value": f"c{n}.{one}", "candidates": [f"c{n}.0", f"c{n}.1"], "user": f"u{n}"}
        for n, one in enumerate(chosen)
    ]
    (row,), _, _ = found(log(messages, acts))
    assert contents(row) == ("Blue.", "Red.")
    assert row["behavior_eps"] == pytest.approx((2 * 0.1 + 1) / 5)
    assert not found(log(messages, acts[1:3], "even"))[0]
    turned = [{**act, "value": f"c{n}.{1 - one}"} for n, (act, one) in enumerate(zip(acts, chosen, strict=True))]
    assert contents(found(log(messages, turned, "turned"))[0][0]) == ("Red.", "Blue.")


def test_similar_rows_are_kept_once(log):
    long = " ".join(f"word{n}" for n in range(200))
    messages = conversation(long, name="a") + conversation(long.replace("word77", "other"), name="b")
    acts = [{"type": "copy", "message_id": f"{name}.0", "user": name} for name in "ab"]
    _, labels, report = found(log(messages, acts))
    assert len(labels) == 1
    assert report["rows"]["labels"]["dropped"] == {"similar to another row": 1}
