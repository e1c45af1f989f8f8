"""Which techniques are installed, where they come from, and how a name becomes a technique.

Techniques are offered through the entry-point group `hf_ft_plugins`: entry name = technique name, value = class.
Names are read from the installed distributions' metadata; only a technique that is named is imported, so a plugin
that cannot be imported matters only to the run that names it.

`HF_FT_PLUGINS_DISABLE=name,name` hides techniques; `HF_FT_PLUGINS_ONLY_BUILTIN=1` hides all but our own.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from . import mends
from .errors import ConflictError, MissingPackageError, OptionError, PluginError, UnknownTechniqueError
from .near import closest, nearest
from .technique import FALSE_WORDS, TRUE_WORDS, Technique, parse_spec

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
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.name}: the plugin {self.distribution} {self.version} cannot be imported "
                f"({type(error).__name__}: {error}). Repair or uninstall {self.distribution}, "
                f"or leave {self.name} out of this run.",
                code="plugin-broken",
                mend=[mends.remove_technique(self.name)],
            ) from error
        if not (isinstance(found, type) and issubclass(found, Technique)):
            raise PluginError(
                f"{self.name}: {self.entry.value} in {self.distribution} {self.version} is not a Technique. "
                "Its entry point must name a subclass of hf_ft_plugins.Technique.",
                code="plugin-broken",
                mend=[mends.remove_technique(self.name)],
            )
        if found.name != self.name:
            raise PluginError(
                f"{self.name}: {self.entry.value} in {self.distribution} {self.version} calls itself "
                f"{found.name!r}. The entry point's name and the class's `name` must be equal.",
                code="plugin-broken",
                mend=[mends.remove_technique(self.name)],
            )
        try:
            found.option_infos()
        except Exception as error:
            raise PluginError(
                f"{self.name}: the options that {self.entry.value} in {self.distribution} {self.version} declares "
                f"cannot be read ({type(error).__name__}: {error}). Their annotations must name types that its module "
                "imports.",
                code="plugin-broken",
                mend=[mends.remove_technique(self.name)],
            ) from error
        return found


def offers() -> list[Offer]:
    """Every offered technique that is not hidden, sorted by name; a name that two distributions claim appears twice.

    Raises:
        OptionError: `HF_FT_PLUGINS_ONLY_BUILTIN` is neither on nor off.
    """
    only_builtin = is_on(ONLY_BUILTIN_VARIABLE)
    return [offer for offer in _all_offers() if _hidden_by(offer, only_builtin) is None]


def is_on(variable: str) -> bool:
    """Whether an environment variable says yes.

    Raises:
        OptionError: it says neither yes nor no.
    """
    word = os.environ.get(variable, "").strip().lower()
    if word and word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise OptionError(
            f"{variable}={word} is neither on nor off. Set it to 1 or 0.", mend=[mends.set_variable(variable, "0")]
        )
    return word in TRUE_WORDS


def names() -> frozenset[str]:
    """The names of all techniques that are offered, those that are hidden among them."""
    return frozenset(offer.name for offer in _all_offers())


def _all_offers() -> tuple[Offer, ...]:
    return _offers_on(tuple((folder, _changed_at(folder)) for folder in sys.path))


def _changed_at(folder: str) -> int | None:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return None


# A run asks at each save; reading the metadata of all distributions takes longer than saving a small model. The key is
# what importlib.metadata itself keeps a folder's listing by.
@functools.lru_cache(maxsize=1)
def _offers_on(search_path: tuple[tuple[str, int | None], ...]) -> tuple[Offer, ...]:
    found = {
        Offer(
            entry.name,
            entry.dist.name if entry.dist else "(unknown)",
            entry.dist.version if entry.dist else "",
            entry,
        )
        for entry in entry_points(group=GROUP)
    }
    return tuple(sorted(found, key=lambda offer: (offer.name, offer.distribution)))


def _hidden_by(offer: Offer, only_builtin: bool) -> str | None:
    disabled = os.environ.get(DISABLE_VARIABLE, "")
    if offer.name in {name.strip() for name in disabled.split(",")}:
        return f"{DISABLE_VARIABLE}={disabled} disables it"
    if only_builtin and offer.distribution != DISTRIBUTION:
        return f"{offer.distribution} is a third party's, and --only-builtin ({ONLY_BUILTIN_VARIABLE}) keeps these out"
    return None


def find(name: str) -> Offer:
    """The one offer of `name`.

    Raises:
        UnknownTechniqueError: nobody offers it, or it is hidden; the text says which name is nearest, or what hides it.
        ConflictError: two distributions offer it.
    """
    known = offers()
    matches = [offer for offer in known if offer.name == name]
    if not matches:
        hidden = [reason for offer in _all_offers() if offer.name == name if (reason := _hidden_by(offer, True))]
        if hidden:
            raise UnknownTechniqueError(
                f"the technique {name!r} is installed, and switched off: {hidden[0]}. Switch it on, or leave it out.",
                mend=[mends.remove_technique(name)],
            )
        near = closest(name, (offer.name for offer in known))
        raise UnknownTechniqueError(
            f"unknown technique {name!r}.{nearest(name, (offer.name for offer in known))} "
            f"Installed: {', '.join(offer.name for offer in known) or '(none)'}.",
            mend=[mends.rename_technique(name, near)] if near else [],
        )
    if len(matches) > 1:
        owners = " and ".join(f"{offer.distribution} {offer.version}" for offer in matches)
        raise ConflictError(
            f"{name}: two distributions offer this technique: {owners}. Uninstall one of them.", code="plugin-broken"
        )
    return matches[0]


def resolve(spec: Technique | type[Technique] | str | Mapping[str, Any]) -> Technique:
    """A technique from any of its forms: an instance, its class, a string or a mapping.

    Raises:
        PluginError: there is no such technique, its options do not fit, or a package that it needs is not installed.
    """
    if isinstance(spec, Technique):
        technique = spec
    elif isinstance(spec, type) and issubclass(spec, Technique):
        technique = spec()
    else:
        name, options = parse_spec(spec)
        technique = find(name).load().from_options(options)
    refuse_missing_packages(technique)
    return technique


def refuse_missing_packages(technique: Technique) -> None:
    """Raise `MissingPackageError` where a package that the technique needs with these options is not installed."""
    ours = origin(technique)[0] == DISTRIBUTION
    for module, requirement in technique.packages().items():
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            clone = ' From a clone of hf-ft-plugins: pip install -c constraints.txt -e ".[all]".' if ours else ""
            raise MissingPackageError(
                f"{technique.name}: {technique} needs the package {module}, which is not installed. "
                f"pip install '{requirement}'.{clone}",
                mend=[mends.install(requirement)],
            )


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
                    f"{technique.name}: named twice, as '{other}' and as '{technique}'. Keep one of them.",
                    # What is named later comes from nearer: --with stands behind a recipe.
                    mend=[mends.name_once(one.name, one.changed_options()) for one in (technique, other)],
                )
            reason = _reason_against(technique, other) or _reason_against(other, technique)
            if reason:
                raise ConflictError(
                    f"{other.name} and {technique.name} cannot run together: {reason} Remove one of them.",
                    mend=[mends.remove_technique(technique.name), mends.remove_technique(other.name)],
                )


def _reason_against(technique: Technique, other: Technique) -> str | None:
    excluded = technique.excludes()
    for change in sorted(other.changes()):
        if change in excluded:
            return excluded[change]
    return technique.conflict(other)
