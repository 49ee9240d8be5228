"""Methods, strategies, their local rules and tasks by name: found where they lie, in no list.

A module or folder in the package of its kind is one, and is called as it is; so is what another
installed package names in an entry point of the kind's group, and what a program registered in its
own process. Names that begin with an underscore, and ``base``, are none: there lies what the others
share. A module defines one concrete class of its kind.

Nothing is imported before it is built, so that names can be listed at once. A message brings a name
and never a module: only what is installed at a site can run there.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from traceback import extract_tb
from typing import Any, Generic, TypeVar

from fedshift import UserError
from fedshift.protocol.settings import from_mapping, suggest

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """All of a ``kind``, such as "method": modules of ``package``, and entry points of ``group``,
    that define a subclass of ``base``, which is written ``module:class``."""

    kind: str
    package: str
    group: str
    base: str
    registered: dict[str, type[T]] = field(default_factory=dict)
    """What :meth:`register` added in this process."""

    def names(self) -> list[str]:
        """The names of all, sorted."""
        return sorted({*self._modules(), *_entry_points(self.group), *self.registered})

    def named(self, name: str) -> type[T]:
        """The class called ``name``.

        Raises :class:`UserError` when there is none or more than one, and when its module or what
        an entry point names cannot be imported.
        """
        found: dict[str, Callable[[], type[T]]] = {}
        if name in self._modules():
            found[f"{self.package}.{name}"] = partial(self._defined, name)
        for point in _entry_points(self.group).get(name, ()):
            found[f"{point.value} of {_owner(point)}"] = partial(self._loaded, point)
        if name in self.registered:
            found["this process"] = lambda: self.registered[name]
        if not found:
            raise UserError(f"{self.kind}={name} is not known{suggest(name, self.names())}")
        if len(found) > 1:
            raise UserError(
                f"{self.kind}={name} is there more than once, in {' and in '.join(found)}; rename "
                "or remove all but one"
            )
        return next(iter(found.values()))()

    def usable(self) -> tuple[dict[str, type[T]], list[str]]:
        """All that can be used, by name, and a sentence for each that cannot: a broken one is an
        error only to who asks for it."""
        found: dict[str, type[T]] = {}
        faults = []
        for name in self.names():
            try:
                found[name] = self.named(name)
            except UserError as error:
                faults.append(str(error))
        return found, faults

    def build(self, settings: Mapping[str, Any]) -> T:
        """What ``settings["name"]`` calls, of the other settings.

        Raises :class:`UserError` as :meth:`settings` and :func:`from_mapping` do.
        """
        given = dict(settings)
        cls, _ = self.settings(str(given.pop("name", "")))
        return from_mapping(cls, given, self.kind)

    def settings(self, name: str) -> tuple[type[T], tuple[Field[Any], ...]]:
        """The class called ``name`` and its fields, which are its settings.

        Raises :class:`UserError` as :meth:`named`, and for a class that is no dataclass, or that
        adds to one without being one.
        """
        cls = self.named(name)
        # What a dataclass's child adds that is none itself would be no setting, in silence.
        bare = [parent for parent in cls.__mro__ if is_dataclass(parent) and _is_bare(parent)]
        if bare or not is_dataclass(cls):
            lacking = bare[0] if bare else cls
            raise UserError(
                f"{self.kind}={name}: {lacking.__name__} is no dataclass, whose fields are its "
                "settings; write @dataclass before it"
            )
        return cls, fields(cls)

    def register(self, cls: type[T], name: str) -> None:
        """Make ``cls`` known in this process as ``name``. A class that is defined once more, as by
        running a cell of a notebook again, takes its own place.

        Raises :class:`UserError` for a name that cannot be one, or is another's.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(
                f"'{name}' cannot be the name of a {self.kind}; use small letters, digits and "
                "underscores"
            )
        self._check_whole(cls)
        before = self.registered.get(name)
        again = before is not None and _place(before) == _place(cls)
        if name in self.names() and not again:
            raise UserError(f"there is a {self.kind} called {name}; register yours by another name")
        self.registered[name] = cls

    def name_of(self, cls: type[T]) -> str:
        """What ``cls`` is called: as it is registered, or as its module or entry point is."""
        for name, registered in self.registered.items():
            if registered is cls:
                return name
        if cls.__module__.startswith(f"{self.package}."):
            return cls.__module__.removeprefix(f"{self.package}.").partition(".")[0]
        for name, points in _entry_points(self.group).items():
            if any(point.value == _place(cls) for point in points):
                return name
        return in_words(cls)

    def is_one(self, cls: type) -> bool:
        """Whether ``cls`` is of this kind; imports nothing."""
        return any(_place(parent) == self.base for parent in cls.__mro__)

    def _modules(self) -> list[str]:
        spec = find_spec(self.package)
        places = spec.submodule_search_locations if spec is not None else None
        names = [module.name for module in pkgutil.iter_modules(places)]
        return [name for name in names if name != "base" and not name.startswith("_")]

    def _defined(self, name: str) -> type[T]:
        """The one class of this kind that the module or folder ``name`` defines."""
        place = f"{self.package}.{name}"
        with self._importing(name, f"{place} cannot be imported", "repair or remove that module"):
            module = import_module(place)
        found = {
            cls.__name__: cls
            for cls in vars(module).values()
            if isinstance(cls, type)
            and self.is_one(cls)
            and not inspect.isabstract(cls)
            and not cls.__name__.startswith("_")
            and f"{cls.__module__}.".startswith(f"{module.__name__}.")
        }
        if len(found) != 1:
            there = f"defines {' and '.join(sorted(found))}" if found else "defines none"
            raise UserError(
                f"{module.__file__} must define one {self.kind}, a subclass of {self.base} without "
                f"an abstract method, and {there}; what others share begins with an underscore"
            )
        (cls,) = found.values()
        self._check_whole(cls)
        return cls

    def _loaded(self, point: EntryPoint) -> type[T]:
        place = f"{point.value} of {_owner(point)} cannot be imported"
        with self._importing(point.name, place, "repair or remove that package"):
            cls = point.load()
        if not isinstance(cls, type) or not self.is_one(cls):
            raise UserError(
                f"{self.kind}={point.name}: {point.value} of {_owner(point)} is no subclass of "
                f"{self.base}; repair or remove that package"
            )
        self._check_whole(cls)
        return cls

    def _check_whole(self, cls: type[T]) -> None:
        """Raise :class:`UserError` for a class without some abstract method or class variable."""
        declared = {
            name
            for parent in cls.__mro__
            for name, kind in vars(parent).get("__annotations__", {}).items()
            if str(kind).startswith("ClassVar")
        }
        lacking = {name for name in declared if not hasattr(cls, name)}
        lacking |= getattr(cls, "__abstractmethods__", frozenset())
        if lacking:
            raise UserError(
                f"{cls.__name__} is no whole {self.kind}: it lacks {', '.join(sorted(lacking))}"
            )

    @contextmanager
    def _importing(self, name: str, said: str, way_out: str) -> Iterator[None]:
        """One sentence for whatever another's code raises, or for its way to end the program."""
        try:
            yield
        except (Exception, SystemExit) as error:
            theirs = [
                f", at {frame.filename}:{frame.lineno}"
                for frame in extract_tb(error.__traceback__)
                if frame.filename != __file__ and "importlib" not in frame.filename
            ]
            why = " ".join(f"{type(error).__name__}: {error}".split())
            place = theirs[-1] if theirs else ""  # None where the module itself is not there.
            raise UserError(f"{self.kind}={name}: {said} ({why}{place}); {way_out}") from error


@lru_cache
def _entry_points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Those of all installed packages, by name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.value):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _is_bare(cls: type) -> bool:
    """Whether the class, which is not marked as a dataclass itself, has fields or an ``__init__``
    of its own."""
    own = vars(cls)
    kinds = own.get("__annotations__", {}).values()
    return "__dataclass_fields__" not in own and (
        "__init__" in own or any("ClassVar" not in str(kind) for kind in kinds)
    )


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an installed package"


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def in_words(cls: type) -> str:
    """The name of a class as that of a module: ``FedAvgM`` is ``fed_avg_m``, ``DRAI`` ``drai``."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", cls.__name__)
    return "_".join(parts).lower()
