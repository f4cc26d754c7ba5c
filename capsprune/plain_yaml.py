"""YAML as recipes need it: mappings, lists and plain values, of bounded size.

There are no tags, so nothing but null, booleans, numbers and texts is ever made; what looks like a
date stays a text. Aliases and merge keys are known, and what they repeat counts as often as it is
repeated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

from capsprune.bounds import cut
from capsprune.files import BadFileError

_MAX_DEPTH = 20
#: Keys and values, after aliases are put in.
_MAX_VALUES = 10_000

#: As YAML 1.2 has them, and numbers that Python may read without limit of its own.
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]{1,50}|[0-9]{1,50}(\.[0-9]{0,50})?)([eE][-+]?[0-9]{1,3})?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


def parse_yaml(text: str) -> Any:
    """Parse a YAML document into plain values.

    Keys are texts, as they stand. A number that is too long stays a text, which whoever wants a
    number refuses.

    Raises:
        BadFileError: if it is no YAML, or holds more than plain values, or too many.
    """
    try:
        return _Document(text).value
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "it ends too early"
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise BadFileError(f"is no YAML ({cut(problem)}{where})") from error
    # Of escapes and directives with numbers that mean nothing.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, BadFileError):
            raise
        raise BadFileError(f"is no YAML ({cut(' '.join(str(error).split()))})") from error


class _Document:
    """Makes the values of a document from the parser's events, without recursion of its own."""

    def __init__(self, text: str) -> None:
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._values = 0
        #: Values by their anchor, and how many keys and values are in each, itself counted.
        self._anchored: dict[str, tuple[Any, int]] = {}
        self.value: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise BadFileError("holds several YAML documents; give one")
            elif isinstance(event, yaml.NodeEvent):
                self.value = self._node(event, 0)

    def _node(self, event: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise BadFileError(f"is nested too deeply{_line(event)}")
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name not in self._anchored:
                raise BadFileError(
                    f"has an alias to what is not there yet, '*{cut(name, 40)}'{_line(event)}"
                )
            value, count = self._anchored[name]
            self._count(count, event)
            return value
        before = self._values
        self._count(1, event)
        if event.tag not in (None, "!"):
            raise BadFileError(f"has a tag, {cut(event.tag, 40)}{_line(event)}; leave it out")
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(depth)
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._anchored[event.anchor] = (value, self._values - before)
        return value

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._node(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise BadFileError(f"has a key that is no text{_line(event)}")
            self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            key = event.value
            if key == "<<" and event.implicit[0]:
                for other in value if isinstance(value, list) else [value]:
                    if not isinstance(other, dict):
                        raise BadFileError(f"merges what is no mapping{_line(event)}")
                    merged = {**other, **merged}
            elif key in found:
                raise BadFileError(f"has '{cut(key, 40)}' twice{_line(event)}")
            else:
                found[key] = value
        return {**merged, **found}

    def _count(self, values: int, event: Any) -> None:
        self._values += values
        if self._values > _MAX_VALUES:
            raise BadFileError(f"holds more than {_MAX_VALUES} values{_line(event)}")


_READERS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (_NULL, lambda text: None),
    (_BOOLEAN, lambda text: text.lower() == "true"),
    (_INTEGER, int),
    (_FLOAT, lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan"))),
)


def _scalar(event: Any) -> Any:
    text: str = event.value
    text.encode()  # raises for half of a surrogate pair, which no file can hold
    if event.implicit[0]:  # It stands without quotes.
        for pattern, read in _READERS:
            if pattern.fullmatch(text):
                return read(text.lower())
    return text


def _line(event: Any) -> str:
    return f", line {event.start_mark.line + 1}" if event.start_mark is not None else ""
