"""Personal data: ours against presidio, scrubadub and phonenumbers, on planted values and on decoys."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from benchmarks.feedback_libraries.side_by_side import QUICK_ROUNDS, counted, installed, replies, timed
from benchmarks.report import Result
from hf_ft_plugins.feedback.personal_data import Scrubber

Replace = Callable[[str], str]


PLANTED: dict[str, tuple[str, ...]] = {
    "EMAIL": (
        "jane.doe@example.org",
        "j_d+shop@mail.example.co.uk",
        "info@m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller.de",
    ),
    "PHONE": (
        *("+49 30 1234567", "+1 212 555 0123", "+44 20 7946 0958", "+33 1 42 68 53 00", "(212) 555-0123"),
        *("212-555-0123", "030 1234 5678", "0049 30 1234567", "+4915123456789", "020 7946 0958"),
    ),
    "CARD": ("4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "6011111111111117"),
    "IBAN": ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "FR1420041010050500013M02606"),
    "IP": ("192.168.17.4", "8.8.4.4", "2001:db8::8a2e:370:7334"),
    "API_KEY": (
        *("sk-abcdefghijklmnopqrstuvwxyz012345", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9),
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    ),
    "URL_WITH_PASSWORD": ("https://joe:secret@host.example.org/x", "postgres://admin:hunter2@db.example.org:5432/app"),
}


DECOYS = (
    *("on 2024-01-15 at 10:30:00", "version 1.2.3 of it", "3.14159265 or so", "1,000,000 of them", "from 1990 to 2005"),
    *(
        "order 4111 1111 1111 1112",
        "ISBN 978-3-16-148410-0",
        "chapter 12, section 3.4.1.2",
        "at 12:45",
        "std::vector",
    ),
    *("room 0123", "it cost 1 299.00", "commit 4f2a9c1d8e", "10-20-30 and 5/6", "@property", "the years 1914-1918"),
)


def personal_data_results(rounds: int) -> Iterator[Result]:
    draw = random.Random(0)
    texts = [answer for _, answer in replies() if not re.search(r"\d|@|://", answer)][:2000]
    planted = [
        (kind, value, f"{text[:60]} {value}, {text[60:120]}")
        for kind, values in PLANTED.items()
        for value in values
        for text in draw.sample(texts, 5)
    ]
    decoys = [f"{text[:60]} {value}, {text[60:120]}" for value in DECOYS for text in draw.sample(texts, 5)]
    work = [answer for _, answer in replies()][:1500]

    def quality(replaced: Replace, mark: str = "<") -> tuple[dict[str, float], float]:
        """The share of the planted values that cannot be read any more, by kind; and of decoys that got a mark."""
        hidden: dict[str, list[bool]] = {}
        for kind, value, text in planted:
            hidden.setdefault(kind, []).append(value not in replaced(text))
        touched = sum(mark in replaced(text) for text in decoys) / len(decoys)
        return {kind: sum(found) / len(found) for kind, found in hidden.items()}, touched

    scrub = Scrubber()
    for name, make in (("presidio_analyzer", presidio), ("scrubadub", scrubadub), ("phonenumbers", phonenumbers)):
        if not installed(name):
            continue
        replaced = make()
        theirs, theirs_touched = quality(replaced, "{" if name == "scrubadub" else "<")
        only_phones = name == "phonenumbers"
        found, touched = quality(scrub, "<PHONE>" if only_phones else "<")
        kinds = ("PHONE",) if only_phones else tuple(PLANTED)
        mine, others = (sum(one[kind] for kind in kinds) / len(kinds) for one in (found, theirs))
        of = {
            "texts": len(work),
            "found": {kind: round(found[kind], 3) for kind in kinds},
            "theirs_found": {kind: round(theirs[kind], 3) for kind in kinds},
        }
        yield from timed(
            f"personal data, {name}",
            lambda: [scrub(text) for text in work],
            lambda replaced=replaced: [replaced(text) for text in work],  # type: ignore[misc]
            min(rounds, QUICK_ROUNDS),
            0.5,
            texts=len(work),
        )
        yield counted(f"personal data, planted found, {name}", mine, others, "not fewer", mine >= others, **of)
        yield counted(
            f"personal data, decoys touched, {name}", touched, theirs_touched, "not more", touched <= theirs_touched
        )
    if installed("phonenumbers"):
        yield from foreign_phones(scrub)


def foreign_phones(scrub: Replace) -> Iterator[Result]:
    """Numbers of all countries as phonenumbers writes them, from whose tables and not from our forms they come."""
    import phonenumbers as library

    matched = phonenumbers()
    forms = library.PhoneNumberFormat
    for name, form, most_fewer in (("+49 30 123456", forms.INTERNATIONAL, 0.05), ("+4930123456", forms.E164, 0.05)):
        examples = [library.example_number(region) for region in sorted(library.SUPPORTED_REGIONS)]
        written = [library.format_number(one, form) for one in examples if one is not None]
        ours, theirs = (
            sum(number not in replaced(f"Call {number} today.") for number in written) / len(written)
            for replaced in (scrub, matched)
        )
        gate = f"at most {most_fewer} fewer"
        metric = f"personal data, numbers of all countries as {name}"
        yield counted(metric, ours, theirs, gate, ours >= theirs - most_fewer, numbers=len(written))


def presidio() -> Replace:
    """Presidio's recognisers of what has a form, at the score from which its anonymiser acts."""
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    # Else the list of public suffixes is fetched from the network.
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=()).extract_str
    recognisers = [
        known.EmailRecognizer(),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.IpRecognizer(),
        known.PhoneRecognizer(),
        known.UrlRecognizer(),
    ]

    def replaced(text: str) -> str:
        spans = [
            (found.start, found.end)
            for one in recognisers
            for found in one.analyze(text, one.supported_entities, None) or ()
            if found.score >= 0.4
        ]
        return without(text, spans)

    return replaced


def scrubadub() -> Replace:
    import scrubadub as library

    return library.Scrubber().clean


def phonenumbers() -> Replace:
    import phonenumbers as library

    def replaced(text: str) -> str:
        spans = [(one.start, one.end) for region in REGIONS for one in library.PhoneNumberMatcher(text, region)]
        return without(text, spans)

    return replaced


# Numbers without a country code are read as of one of these.
REGIONS = ("US", "DE", "GB")


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}<X>{text[end:]}"
    return text
