"""Personal data out of what people wrote, before any of it is written down again; ids that name nobody.

Regular expressions find what has a form: addresses, numbers, keys. They do not find names, and a number without a
separator or a country code stays a number. Checksums (Luhn's of cards, ISO 13616's of IBANs) and `ipaddress` keep
order numbers, dates and version numbers from being taken for more than they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

CREDENTIALS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://[^\s/@:\"'<>]*:[^\s/@\"'<>]+@[^\s\"'<>]+")
EMAIL = re.compile(r"[\w.+%-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}")
API_KEY = re.compile(
    r"\b(?:sk-(?:ant-|proj-)?[\w-]{20,}|(?:ghp|gho|ghu|ghs|ghr)_\w{30,}|github_pat_\w{30,}|hf_[A-Za-z]{30,}"
    r"|glpat-[\w-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|[sr]k_(?:live|test)_\w{16,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)",
    re.DOTALL,
)
# What every key has one of; each is looked for only where its first column is. A hundredth of the expression's price.
KEY_MARKS = {
    "-": ("sk-", "glpat-", "xox", "-----BEGIN"),
    "_": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "hf_", "k_live_", "k_test_"),
    "A": ("AKIA", "ASIA", "AIza"),
    "J": ("eyJ",),
}
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]\d|\d)")
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
PHONE = re.compile(
    # With a country code; or 3-3-4 digits with separators; or a 0 and two blocks or more.
    r"(?<![\w+.-])(?:(?:\+|00)[1-9]\d{0,2}[ ./-]?(?:\(0?\d{1,4}\)[ ./-]?)?\d{1,5}(?:[ ./-]?\d{2,5}){1,4}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}"
    r"|\(?0\d{2,4}\)?[ /-]\d{3,4}(?:[ -]?\d{2,4}){1,2})(?![\w-])"
)
DIGITS = re.compile(r"\d[\d .:()/-]{4}|[0-9A-Fa-f]:[0-9A-Fa-f:]|[A-Z]{2}\d")


class Scrubber:
    """Replaces personal data in texts by its kind, and counts it.

    Attributes:
        found: how often each kind (EMAIL, PHONE, CARD, IBAN, IP, URL_WITH_PASSWORD, API_KEY) was replaced.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def __call__(self, text: str) -> str:
        """The text with `<EMAIL>`, `<PHONE>`, ... in the place of personal data."""
        if "@" in text:
            if "://" in text:
                text = self._replaced(CREDENTIALS, "URL_WITH_PASSWORD", text)
            text = self._replaced(EMAIL, "EMAIL", text)
        for sign, marks in KEY_MARKS.items():
            if sign in text and any(mark in text for mark in marks):
                text = self._replaced(API_KEY, "API_KEY", text)
                break
        if has_digit(text) and DIGITS.search(text):
            text = self._replaced(IBAN, "IBAN", text, is_iban)
            text = self._replaced(CARD, "CARD", text, is_card)
            if ":" in text:
                text = self._replaced(IPV6, "IP", text, is_address)
            text = self._replaced(IPV4, "IP", text, is_address)
            text = self._replaced(PHONE, "PHONE", text, is_phone)
        return text

    def everywhere(self, value: Any) -> Any:
        """The same for all texts in lists and dicts of JSON; a number that is a card's or a phone's becomes text."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self.everywhere(one) for one in value]
        if isinstance(value, dict):
            return {self(str(key)): self.everywhere(one) for key, one in value.items()}
        if isinstance(value, int) and not isinstance(value, bool):
            text = self(str(value))
            return value if text == str(value) else text
        return value

    def _replaced(
        self, pattern: re.Pattern[str], kind: str, text: str, holds: Callable[[str], bool] | None = None
    ) -> str:
        def replacement(match: re.Match[str]) -> str:
            if holds is not None and not holds(match[0]):
                return match[0]
            self.found[kind] += 1
            return f"<{kind}>"

        return pattern.sub(replacement, text)


def has_digit(text: str) -> bool:
    """Ten searches for a sign are ten times as fast as one for a class of signs."""
    for digit in "0123456789":
        if digit in text:
            return True
    return not text.isascii() and any(map(str.isdecimal, text))


def is_card(text: str) -> bool:
    """Whether the digits have Luhn's checksum (ISO/IEC 7812) and are not all the same."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the checksum of ISO 13616 holds."""
    signs = text.replace(" ", "")
    rearranged = signs[4:] + signs[:4]
    return 15 <= len(signs) <= 34 and int("".join(str(int(sign, 36)) for sign in rearranged)) % 97 == 1


def is_address(text: str) -> bool:
    """Whether it is an address of IPv4 or IPv6 that names a machine: neither 0.0.0.0 nor the machine itself."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def is_phone(text: str) -> bool:
    """Whether it has 8 to 15 digits (E.164)."""
    return 8 <= sum(sign.isdigit() for sign in text) <= 15


def hashed(identity: str, salt: bytes) -> str:
    """An id that cannot be led back without the log: 16 hexadecimal digits, keyed BLAKE2b (RFC 7693)."""
    return blake2b(identity.encode("utf-8", "surrogatepass"), key=salt, digest_size=8).hexdigest()
