"""Events and messages that refer to what is missing, repeated, or goes round in circles."""

from tests.feedback.written_logs import conversation, found, why


def test_events_about_what_is_not_there(log):
    messages = [
        *conversation("a", "b"),
        {"id": "lost", "parent_id": "never", "role": "user", "content": "?"},
        {"id": "lost.0", "parent_id": "lost", "role": "assistant", "content": "x"},
        {"id": "first", "parent_id": None, "role": "assistant", "content": "Hello, who are you?"},
    ]
    acts = [{"type": "copy", "message_id": one} for one in ("nowhere", "c.p", "lost.0", "first", "c.0")]
    acts += [{"type": "choice", "value": "c.0", "candidates": ["c.0", "nowhere"]}, {**acts[-1], "id": "e4"}]
    _, labels, report = found(log(messages, acts))
    assert [row["source_event_ids"] for row in labels] == [["e4"]]
    assert why(report, "copy") == {
        "about a message that does not exist": 1,
        "about a message that is not the assistant's": 1,
        "in a conversation of which an earlier message is missing": 1,
        "about an answer to no prompt": 1,
        "an event of this id was there before": 1,
    }
    assert why(report, "choice") == {"about a message that does not exist": 1}
    assert any("2 events are about messages" in warning for warning in report["warnings"])


def test_circles_of_parents_are_found_and_named(log):
    circle = [
        {"id": "a", "parent_id": "c", "role": "user", "content": "1"},
        {"id": "b", "parent_id": "a", "role": "assistant", "content": "2"},
        {"id": "c", "parent_id": "b", "role": "user", "content": "3"},
        {"id": "d", "parent_id": "c", "role": "assistant", "content": "behind it"},
        {"id": "self", "parent_id": "self", "role": "assistant", "content": "alone"},
    ]
    acts = [{"type": "copy", "message_id": one} for one in ("b", "d", "self", "c.0")]
    circle[2] |= {"id": "c"}
    _, labels, report = found(log([*circle, *conversation("fine")], acts))
    assert len(labels) == 1
    assert why(report, "copy") == {"in a conversation whose parents go round in a circle": 3}
    assert report["messages"]["circles of parents"] == 2
    assert "self" in report["messages"]["circles"]
    assert any("go round in a circle" in warning for warning in report["warnings"])


def test_messages_with_the_id_of_another(log):
    again = conversation("first", "other")
    other = {**again[1], "content": "second"}
    _, labels, report = found(log([*again, again[1], other], [{"type": "copy", "message_id": "c.0"}]))
    assert labels[0]["completion"][0]["content"] == "first"
    assert report["messages"]["messages told again"] == 1
    assert report["messages"]["messages with the id of another, dropped"] == 1
