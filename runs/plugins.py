"""Methods, strategies and tasks that are found and not listed: what a run asks of them by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

from fedshift import UserError
from fedshift.client.contract.task import Task
from fedshift.client.methods import METHODS
from fedshift.client.tasks import TASKS
from fedshift.protocol.needs import DESCEND
from fedshift.protocol.registry import Registry, in_words
from fedshift.strategies import STRATEGIES

if TYPE_CHECKING:
    from fedshift.strategies.base import Strategy

KINDS: dict[str, Registry[Any]] = {"method": METHODS, "strategy": STRATEGIES, "task": TASKS}
"""By the node of the config that says which one a run has."""

AUGMENTATION = "augmentation"
"""The field by which a method takes the config's node of this name."""
_GIVEN = {"task": {field.name for field in dataclasses.fields(Task)}, "method": {AUGMENTATION}}
"""The fields that are no settings of the kind's own node."""


def register(cls: type, name: str | None = None) -> None:
    """See :func:`fedshift.register`."""
    from fedshift.client.rules import RULES  # torch

    every = [*KINDS.values(), RULES]
    if not isinstance(cls, type):
        raise UserError(
            f"{type(cls).__name__} is given to register as an object and not as a class; register "
            "the class itself, whose settings a config gives"
        )
    for registry in every:
        if registry.is_one(cls):
            registry.register(cls, name or in_words(cls))
            return
    bases = ", ".join(registry.base for registry in every)
    raise UserError(f"{cls.__name__} is none of {bases}; make it a subclass of one of them")


def defaults(kind: str, name: str) -> dict[str, Any]:
    """The config node of what is called ``name`` where no file says otherwise: the defaults of its
    class, and :data:`omegaconf.MISSING` for a field without one."""
    node: dict[str, Any] = {"name": name}
    _, fields = KINDS[kind].settings(name)
    for field in fields:
        if not field.init or field.name in _GIVEN.get(kind, ()):
            continue
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        node[field.name] = MISSING if value is dataclasses.MISSING else _plain(value)
    return node


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(item) for key, item in dataclasses.asdict(value).items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The method's settings: its node, and the augmentation if it takes one. Configs of older runs
    hold that in the method's node."""
    method = dict(config["method"])
    node = config.get(AUGMENTATION)
    if node is not None and AUGMENTATION not in method and takes_augmentation(method["name"]):
        method[AUGMENTATION] = node
    return method


def told_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What sites are told of the method: its settings but for those that are each site's own."""
    settings = method_settings(config)
    own = METHODS.named(settings["name"]).own
    return {name: value for name, value in settings.items() if name not in own}


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The method's settings that are each site's own; in a simulation all have the config's."""
    settings = method_settings(config)
    own = METHODS.named(settings["name"]).own
    return {name: value for name, value in settings.items() if name in own}


def takes_augmentation(method: str) -> bool:
    """Whether the method has a field ``augmentation``."""
    _, fields = METHODS.settings(method)
    return AUGMENTATION in {field.name for field in fields}


def rules_of(asked: Iterable[Strategy]) -> set[str]:
    """The names of the local rules that these strategies have.

    Raises :class:`UserError` for one that is not known here, takes other settings, or needs more
    than the strategy says, and for two that say how gradients come about: sites would fail in every
    round, or in a later one, or average as if there were no rule."""
    from fedshift.client.rules import RULES  # torch

    found = set()
    for strategy in asked:
        descending = []
        for name, given in strategy.rules().items():
            rule = RULES.named(name)
            try:
                inspect.signature(rule).bind(None, **given)
            except TypeError as error:
                raise UserError(
                    f"strategy={strategy.name} gives its rule {name} other settings than that "
                    f"takes ({error}); mend its rules()"
                ) from error
            if unsaid := sorted(rule.needs - strategy.needs()):
                raise UserError(
                    f"strategy={strategy.name} has the rule {name}, which needs {unsaid[0]}, and "
                    "does not say so; add it to what its needs() returns"
                )
            if DESCEND in rule.needs:
                descending.append(name)
            found.add(name)
        if len(descending) > 1:
            raise UserError(
                f"strategy={strategy.name} has the rules {' and '.join(descending)}, which all say "
                "how a step's gradients come about; only one can: leave the others out of its "
                "rules()"
            )
    return found


def check_one_process(named: Iterable[tuple[str, str]], way_out: str) -> None:
    """Raise :class:`UserError`, which ends with ``way_out``, where what is ``named``, by kind and
    name, is known in this process alone, though other processes are to run it."""
    from fedshift.client.rules import RULES  # torch

    for kind, name in named:
        if name in {**KINDS, RULES.kind: RULES}[kind].registered:
            raise UserError(
                f"{kind}={name} is registered in this process and other processes do not know it; "
                f"{way_out}"
            )
