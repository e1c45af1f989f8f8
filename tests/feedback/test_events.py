"""What is a message and what is an event."""

import pytest

from hf_ft_plugins.feedback.events import Event, MalformedError, Message, timestamp


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message("", None, "user", "x"),
        lambda: Message("a", None, "robot", "x"),
        lambda: Message("a", None, "user", 3),
        lambda: Event("e", 0.0, None, "m", "smile"),
        lambda: Event("e", 0.0, None, "m", "thumbs", 2),
        lambda: Event("e", 0.0, None, "m", "rating", 7),
        lambda: Event("e", 0.0, None, None, "copy"),
        lambda: Event("e", 0.0, None, "m", "choice", "m", candidates=("m",)),
        lambda: Event("e", 0.0, None, "m", "edit"),
        lambda: Event("e", 0.0, None, "m", "copy", propensity=0.0),
        lambda: timestamp("yesterday"),
    ],
)
def test_what_is_no_message_and_no_event(make):
    with pytest.raises(MalformedError):
        make()


def test_times():
    assert timestamp("2026-01-01T00:00:00Z") == timestamp(1767225600) == timestamp(1767225600_000)
    assert timestamp(None) == 0
