"""Which techniques are installed, where they come from, and how a name becomes a technique.

Techniques are offered through the entry-point group `hf_ft_plugins`: entry name = technique name, value = class.
Names are read from the installed distributions' metadata; only a technique that is named is imported, so a plugin
that cannot be imported matters only to the run that names it.

`HF_FT_PLUGINS_DISABLE=name,name` hides techniques; `HF_FT_PLUGINS_ONLY_BUILTIN=1` hides all but our own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import ConflictError, PluginError, UnknownTechniqueError
from .technique import Technique, nearest, parse_spec

GROUP = "hf_ft_plugins"
DISTRIBUTION = "hf-ft-plugins"
DISABLE_VARIABLE = "HF_FT_PLUGINS_DISABLE"
ONLY_BUILTIN_VARIABLE = "HF_FT_PLUGINS_ONLY_BUILTIN"


@dataclass(frozen=True)
class Offer:
    """One technique that an installed distribution offers; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    entry: EntryPoint

    def load(self) -> type[Technique]:
        """Import the technique.

        Raises:
            PluginError: it cannot be imported, or what it names is not a technique of this name.
        """
        try:
            found = self.entry.load()
        except Exception as error:
            raise PluginError(
                f"{self.name}: the plugin {self.distribution} {self.version} cannot be imported "
                f"({type(error).__name__}: {error}). Repair or uninstall {self.distribution}, "
                f"or leave {self.name} out of this run."
            ) from error
        if not (isinstance(found, type) and issubclass(found, Technique)):
            raise PluginError(
                f"{self.name}: {self.entry.value} in {self.distribution} {self.version} is not a Technique. "
                "Its entry point must name a subclass of hf_ft_plugins.Technique."
            )
        if found.name != self.name:
            raise PluginError(
                f"{self.name}: {self.entry.value} in {self.distribution} {self.version} calls itself "
                f"{found.name!r}. The entry point's name and the class's `name` must be equal."
            )
        return found


def offers() -> list[Offer]:
    """Every offered technique, sorted by name; a name that two distributions claim appears twice."""
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    only_builtin = os.environ.get(ONLY_BUILTIN_VARIABLE, "").lower() in ("1", "true", "yes", "on")
    found = {
        Offer(
            entry.name,
            entry.dist.name if entry.dist else "(unknown)",
            entry.dist.version if entry.dist else "",
            entry,
        )
        for entry in entry_points(group=GROUP)
    }
    return sorted(
        (
            offer
            for offer in found
            if offer.name not in disabled and (offer.distribution == DISTRIBUTION or not only_builtin)
        ),
        key=lambda offer: (offer.name, offer.distribution),
    )


def find(name: str) -> Offer:
    """The one offer of `name`.

    Raises:
        UnknownTechniqueError: nobody offers it; the text says which name is nearest.
        ConflictError: two distributions offer it.
    """
    known = offers()
    matches = [offer for offer in known if offer.name == name]
    if not matches:
        raise UnknownTechniqueError(
            f"unknown technique {name!r}.{nearest(name, (offer.name for offer in known))} "
            f"Installed: {', '.join(offer.name for offer in known) or '(none)'}."
        )
    if len(matches) > 1:
        owners = " and ".join(f"{offer.distribution} {offer.version}" for offer in matches)
        raise ConflictError(f"{name}: two distributions offer this technique: {owners}. Uninstall one of them.")
    return matches[0]


def resolve(spec: Technique | type[Technique] | str | Mapping[str, Any]) -> Technique:
    """A technique from any of its forms: an instance, its class, a string or a mapping."""
    if isinstance(spec, Technique):
        return spec
    if isinstance(spec, type) and issubclass(spec, Technique):
        return spec()
    name, options = parse_spec(spec)
    return find(name).load().from_options(options)


def origin(technique: Technique | type[Technique]) -> tuple[str, str]:
    """The distribution and version that a technique comes from; its module and no version where none is known."""
    home = technique.__module__.partition(".")[0]
    for offer in offers():
        if offer.name == technique.name and offer.entry.module.partition(".")[0] == home:
            return offer.distribution, offer.version
    return technique.__module__, ""


def refuse_conflicts(techniques: Iterable[Technique]) -> None:
    """Raise `ConflictError` when a technique is listed twice or refuses the company of another."""
    listed = list(techniques)
    for position, technique in enumerate(listed):
        for other in listed[:position]:
            if other.name == technique.name:
                raise ConflictError(
                    f"{technique.name}: named twice, as '{other}' and as '{technique}'. Keep one of them."
                )
            reason = _reason_against(technique, other) or _reason_against(other, technique)
            if reason:
                raise ConflictError(
                    f"{other.name} and {technique.name} cannot run together: {reason} Remove one of them."
                )


def _reason_against(technique: Technique, other: Technique) -> str | None:
    excluded = technique.excludes()
    for change in sorted(other.changes()):
        if change in excluded:
            return excluded[change]
    return technique.conflict(other)
