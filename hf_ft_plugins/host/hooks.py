"""Asking techniques: pluggy, with the house's two rules.

A hook is a method named `ft_...`, without a decorator, and each technique is asked alone, in the order given, so that
an exception can say whose it is. Imports neither torch nor transformers: `hf-ft check` needs only this.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from .. import hookspecs, mends
from ..errors import ConflictError, PluginError
from ..near import nearest
from ..registry import origin, refuse_conflicts
from ..technique import Technique


class Manager(pluggy.PluginManager):
    """pluggy, with methods named `ft_...` taken as answers to hooks without a decorator."""

    def __init__(self, project_name: str) -> None:
        super().__init__(project_name)
        # By technique and hook; None where it does not answer.
        self.callers: dict[tuple[str, str], pluggy.HookCaller | None] = {}

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if not name.startswith(hookspecs.PREFIX) or not inspect.ismethod(getattr(plugin, name, None)):
            return None
        defaults = [
            parameter.name
            for parameter in inspect.signature(getattr(plugin, name)).parameters.values()
            if parameter.default is not inspect.Parameter.empty
        ]
        if defaults:
            # pluggy never passes an argument that has a default: the technique would silently see the default.
            raise PluginError(
                f"{plugin.name}: {name} gives {', '.join(defaults)} a default, and would always receive it. "
                "Remove the default.",
                code="plugin-broken",
                mend=[mends.remove_technique(plugin.name)],
            )
        return dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False) | {
            "specname": None
        }


def manager(techniques: Sequence[Technique], trainer_class: type | None = None) -> Manager:
    """A plugin manager with these techniques registered, for trainers of a class, where it is known.

    Raises:
        ConflictError: two owners of one hook, the same technique twice, or two that refuse each other.
        PluginError: a method named `ft_...` that is no hook, or takes arguments the hook does not have.
    """
    refuse_conflicts(techniques)
    manager = Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    for technique in techniques:
        try:
            manager.register(technique, name=technique.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            distribution, version = origin(technique)
            raise PluginError(
                f"{technique.name} ({distribution} {version}): a hook does not fit the contract: "
                f"{_misfit(technique) or f'{error}.'} The hooks and their arguments are in hf_ft_plugins/hookspecs.py.",
                code="plugin-broken",
                mend=[mends.remove_technique(technique.name)],
            ) from error
    for name, caller in vars(manager.hook).items():
        if name.startswith(hookspecs.PREFIX) and _is_owner_hook(caller):
            owner(techniques, name, trainer_class)
    return manager


def _misfit(technique: Technique) -> str:
    """Which method is no hook, or takes what its hook has not, and what there is instead."""
    arguments = {
        name: list(inspect.signature(spec).parameters)
        for name, spec in vars(hookspecs).items()
        if name.startswith(hookspecs.PREFIX)
    }
    for name in dir(type(technique)):
        if not name.startswith(hookspecs.PREFIX) or not inspect.ismethod(getattr(technique, name)):
            continue
        if name not in arguments:
            return f"there is no hook {name}.{nearest(name, arguments)}"
        taken = inspect.signature(getattr(technique, name)).parameters
        unknown = [argument for argument in taken if argument not in arguments[name]]
        if unknown:
            return (
                f"{name} has no argument {', '.join(unknown)}; it has "
                f"{', '.join(arguments[name]) or 'none'}, of which a method takes any, by name."
            )
    return ""


def _is_owner_hook(caller: pluggy.HookCaller) -> bool:
    return caller.spec is not None and caller.spec.opts["firstresult"]


def owner(techniques: Sequence[Technique], hook: str, trainer_class: type | None = None) -> Technique | None:
    """The one technique that answers a hook which only one may answer; None where none does."""
    owners = [technique for technique in techniques if technique.answers_on(hook, trainer_class)]
    if len(owners) > 1:
        raise ConflictError(
            f"{' and '.join(owner.name for owner in owners)} both answer {hook}, which only one technique may. "
            "Remove one of them.",
            mend=[mends.remove_technique(owner.name) for owner in reversed(owners)],
        )
    return owners[0] if owners else None


def ask(manager: Manager, technique: Technique, hook: str, arguments: Mapping[str, Any]) -> Any:
    """One technique's answer to one hook; an exception gets a note that says whose it is."""
    caller = _caller(manager, technique, hook)
    if caller is None:
        return None
    try:
        answer = caller(**arguments)
    except Exception as error:
        add_note(error, f"hook {hook}", technique)
        raise
    if _is_owner_hook(caller):
        return answer
    return answer[0] if answer else None


def asked(manager: Manager, techniques: Sequence[Technique], hook: str) -> list[Technique]:
    """Those that answer a hook, in the order given."""
    return [technique for technique in techniques if _caller(manager, technique, hook) is not None]


def _caller(manager: Manager, technique: Technique, hook: str) -> pluggy.HookCaller | None:
    """What asks this technique alone; None where it does not answer. Kept, since some hooks are asked in each step."""
    key = (technique.name, hook)
    if key not in manager.callers:
        others = [plugin for plugin in manager.get_plugins() if plugin is not technique]
        answers = technique.answers(hook)
        manager.callers[key] = manager.subset_hook_caller(hook, remove_plugins=others) if answers else None
    return manager.callers[key]


def add_note(error: BaseException, where: str, technique: Technique) -> None:
    """Say, once, whose an exception is; of the options, those that are not as by default."""
    distribution, version = origin(technique)
    options = technique.changed_options()
    note = f"in {where} of technique {technique.name} ({distribution} {version}), options {options or 'as by default'}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
