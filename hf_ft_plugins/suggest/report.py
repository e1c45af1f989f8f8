"""Every installed technique asked, and what of their answers goes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConflictError, MissingPackageError, PluginError
from ..host.hooks import manager
from ..option_text import parse_spec
from ..registry import Offer, offers, refuse_missing_packages
from ..technique import Technique
from .facts import RunFacts, techniques_of
from .suggestion import Suggestion


@dataclass(frozen=True)
class Advice:
    """A technique's suggestion.

    Attributes:
        technique: with the options that it suggests.
        install: what has to be installed before, as an error says it; empty where nothing has.
        left_out: why the command of all has it not; empty where it has.
    """

    technique: Technique
    suggestion: Suggestion
    install: str = ""
    left_out: str = ""

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self.suggestion)
        spec = plain.pop("spec")
        own = {"technique": self.technique.name, "with": spec}
        return own | plain | {"install": self.install, "left_out": self.left_out}


@dataclass(frozen=True)
class Report:
    """What there is to say of a run.

    Attributes:
        advice: the weightiest first.
        notes: sentences that no technique answers for.
    """

    facts: RunFacts
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]

    @property
    def together(self) -> list[str]:
        """What one command can have of it, as `--with` takes it."""
        return [one.suggestion.spec for one in self.advice if not one.left_out]


def report_on(facts: RunFacts) -> Report:
    """Ask every technique that the script has not already.

    Raises:
        PluginError: a technique's suggestion failed, or is none.
    """
    advice, notes = [], []
    for offer in offers():
        if offer.name in facts.techniques:
            continue
        try:
            technique = offer.load()
        except PluginError as error:
            notes.append(f"{offer.name} was not asked: {error}")
            continue
        suggestion = _asked(technique, offer, facts)
        if suggestion is not None:
            advice.append(_with_packages(technique, offer, suggestion))
    advice.sort(key=lambda one: -one.suggestion.weight)
    return Report(facts, tuple(_sorted_out(advice, facts.trainer)), (*notes, *_notes(facts)))


def _asked(technique: type[Technique], offer: Offer, facts: RunFacts) -> Suggestion | None:
    try:
        suggestion = technique.suggestion(facts)
    except Exception as error:
        raise _failed(offer, f"its suggestion failed ({type(error).__name__}: {error})") from error
    if suggestion is not None and not isinstance(suggestion, Suggestion):
        raise _failed(offer, f"its suggestion is a {type(suggestion).__name__}, and must be a Suggestion, or None")
    return suggestion


def _failed(offer: Offer, how: str) -> PluginError:
    error = PluginError(
        f"{offer.name}: {how}. Repair {offer.distribution} {offer.version}, or leave the technique out: "
        f"HF_FT_PLUGINS_DISABLE={offer.name}.",
        code="plugin-broken",
    )
    error.add_note(f"in the suggestion of technique {offer.name} ({offer.distribution} {offer.version})")
    return error


def _with_packages(technique: type[Technique], offer: Offer, suggestion: Suggestion) -> Advice:
    try:
        name, options = parse_spec(suggestion.spec)
        if name != technique.name:
            raise PluginError(f"it names {name}", code="plugin-broken")
        made = technique.from_options(options)
    except PluginError as error:
        raise _failed(offer, f"its suggestion {suggestion.spec!r} cannot be used ({error})") from error
    try:
        refuse_missing_packages(made)
    except MissingPackageError as error:
        return Advice(made, suggestion, install=str(error))
    return Advice(made, suggestion)


def _sorted_out(advice: Sequence[Advice], trainer: Any) -> list[Advice]:
    """With the reason of each that cannot be in one command with those before it."""
    listed = list(techniques_of(trainer))
    met: dict[str, str] = {}
    found = []
    for one in advice:
        left_out = _why_left_out(one, listed, met, type(trainer))
        if not left_out:
            listed.append(one.technique)
            met |= {one.suggestion.need: one.technique.name} if one.suggestion.need else {}
        found.append(Advice(one.technique, one.suggestion, one.install, left_out))
    return found


def _why_left_out(one: Advice, listed: Sequence[Technique], met: dict[str, str], trainer_class: type) -> str:
    if one.install:
        return "a package is missing"
    if one.suggestion.first:
        return "the script has to be changed first"
    if one.suggestion.need in met:
        return f"it is another answer to what {met[one.suggestion.need]} is for"
    try:
        manager([*listed, one.technique], trainer_class)
    except ConflictError as error:
        return str(error)
    return ""


def _notes(facts: RunFacts) -> list[str]:
    notes = []
    if facts.wrong_labels:
        notes.append(facts.wrong_labels)
    if facts.memory.advice:
        notes.append(facts.memory.advice)
    return notes
