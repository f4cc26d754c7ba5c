"""Open tables: what a user may name (criteria, samplers, heads, data sets, stages).

A table knows its own entries by name and by where they are defined, and imports one when it is
asked for: command line help stays quick. Other packages add to a table without touching this one:
by `register`, in a module that they announce as an entry point of the group `capsprune.plugins`:

    [project.entry-points."capsprune.plugins"]
    mine = "mine.capsprune_plugin"
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from capsprune.errors import CapspruneError, unknown_name

#: The group of entry points under which other packages announce modules that add to tables.
PLUGINS = "capsprune.plugins"

EntryT = TypeVar("EntryT")


class Table(Generic[EntryT]):
    """Entries of one kind by name."""

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, tuple[str, str]],
        *,
        error: type[CapspruneError] = CapspruneError,
    ) -> None:
        """Make a table.

        Args:
            kind: what its entries are, for messages: "criterion".
            entries: this package's own: where each is defined, as "module:attribute", and in a few
                words what it is.
            error: raised for a name that is not there.
        """
        self.kind = kind
        self._error = error
        self._places = {name: place for name, (place, _) in entries.items()}
        self._summaries = {name: summary for name, (_, summary) in entries.items()}
        self._entries: dict[str, EntryT] = {}

    def register(self, name: str, summary: str = "") -> Callable[[EntryT], EntryT]:
        """Return a decorator that adds an entry.

        Args:
            name: by which users ask for it.
            summary: in a few words what it is, for help texts.

        Raises:
            CapspruneError: if the name is taken.
        """

        def add(entry: EntryT) -> EntryT:
            if name in self._summaries and self._entries.get(name) is not entry:
                raise self._error(f"There is a {self.kind} '{name}' already; choose another name.")
            self._entries[name], self._summaries[name] = entry, summary
            return entry

        return add

    def unregister(self, name: str) -> None:
        """Take out an entry that was added by `register`, if it is there: to define it anew."""
        if name not in self._places:
            self._entries.pop(name, None)
            self._summaries.pop(name, None)

    def __getitem__(self, name: str) -> EntryT:
        """Return an entry.

        Raises:
            CapspruneError: if there is none of this name (the message has the nearest names).
        """
        if self.check(name) not in self._entries:
            self._entries[name] = resolve(self._places[name])
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._summaries:
            load_plugins()
        return name in self._summaries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._summaries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._summaries)

    def check(self, name: str) -> str:
        """Return a name that is in the table, for options.

        Raises:
            CapspruneError: if it is not.
        """
        if name not in self:
            raise self._error(unknown_name(self.kind, name, self._summaries))
        return name

    def name_of(self, entry: EntryT | str) -> str:
        """Return the name of an entry that a Python caller gave: it is added if it has none yet.

        Args:
            entry: the entry itself, or the name of one.

        Raises:
            CapspruneError: if there is no entry of that name.
        """
        if isinstance(entry, str):
            return self.check(entry)
        for name, known in self._entries.items():
            if known is entry:
                return name
        made = entry if hasattr(entry, "__qualname__") else type(entry)
        name = f"{made.__module__}.{made.__qualname__}"
        self.register(name)(entry)
        return name

    def help(self, but: str | None = None) -> str:
        """Return the names with what each is, for the help of an option.

        Args:
            but: a name that is left out.
        """
        return ", ".join(
            f"{name} ({self._summaries[name]})" if self._summaries[name] else name
            for name in self
            if name != but
        )


@functools.cache
def load_plugins() -> None:
    """Import what other packages announced, once.

    Raises:
        CapspruneError: if one cannot be imported.
    """
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # Whatever another package may raise.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CapspruneError(
                f"The plug-in '{plugin.name}' ({plugin.value}) cannot be imported ({reason}); "
                "repair or uninstall the package that announces it."
            ) from error


def resolve(place: str) -> Any:
    """Return what stands at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
