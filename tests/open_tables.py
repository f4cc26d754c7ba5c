"""Tables as they were, once a test has added to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from capsprune.tables import Table


@contextmanager
def restored(*tables: Table[Any]) -> Iterator[None]:
    """Take out at the end what was added to the tables within."""
    before = [set(table) for table in tables]
    try:
        yield
    finally:
        for table, names in zip(tables, before, strict=True):
            for name in set(table) - names:
                table.unregister(name)
