"""Personal data is replaced by its kind, and what only looks like it is left."""

import pytest

from hf_ft_plugins.feedback.personal_data import Scrubber
from tests.feedback.written_logs import EMAIL


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (f"write to {EMAIL}.", ["EMAIL"]),
        ("call +49 30 1234567 or (212) 555-0123", ["PHONE", "PHONE"]),
        ("card 4111 1111 1111 1111", ["CARD"]),
        ("card 4111 1111 1111 1112", []),
        ("DE89 3704 0044 0532 0130 00", ["IBAN"]),
        ("GB82WEST12345698765432.", ["IBAN"]),
        ("from 192.168.17.4 and 2001:db8::8a2e:370:7334", ["IP", "IP"]),
        ("https://joe:secret@host.org/x", ["URL_WITH_PASSWORD"]),
        ("key sk-abcdefghijklmnopqrstuvwxyz012345", ["API_KEY"]),
        ("AKIAIOSFODNN7EXAMPLE", ["API_KEY"]),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", ["API_KEY"]),
        ("2024-01-15 10:30:00, 3.14159265, 1,000,000, version 1.2.3, in 1990 to 2005", []),
        ("task-list, right::left, a/b/c and 12:45", []),
    ],
)
def test_scrubbing(text, kinds):
    scrub = Scrubber()
    clean = scrub(text)
    assert sorted(scrub.found.elements()) == sorted(kinds)
    assert all(f"<{kind}>" in clean for kind in kinds)
    assert (clean == text) == (not kinds)


def test_scrubbing_reaches_into_tool_calls():
    calls = [{"function": {"name": "mail", "arguments": {"to": EMAIL, "card": 4111111111111111, "n": 3}}}]
    clean = Scrubber().everywhere(calls)[0]["function"]["arguments"]
    assert clean == {"to": "<EMAIL>", "card": "<CARD>", "n": 3}
