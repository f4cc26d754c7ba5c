"""What a value of a file, an option or a recipe may be at most, and what is said of one that isn't.

The bounds are far above what anybody needs, and low enough that no damaged file asks for a computer
that nobody has. The same quantity has the same bound wherever it is read.
"""

from __future__ import annotations

import hashlib
import reprlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from capsprune.files import BadFileError

#: Pixels a side.
MAX_IMAGE_SIZE = 4096
MAX_CLASSES = 100_000
#: Of a layer, and of what channels are rounded to.
MAX_CHANNELS = 2**20
#: Values in a capsule.
MAX_CAPSULE_SIZE = 4096
MAX_ITERATIONS = 100
MAX_EPOCHS = 100_000
#: Images a step, or a forward pass.
MAX_BATCH = 2**16
#: Strategies tried in a search.
MAX_CANDIDATES = 1_000_000
#: Images or batches looked at.
MAX_COUNT = 10**9
MAX_WORKERS = 1024
MAX_REPEATS = 100_000
MAX_SEED = 2**31 - 1
MAX_LEARNING_RATE = 1e6
#: Layers of a network, groups of channels, cells of a profile.
MAX_ENTRIES = 100_000
#: Measurements and counts: far above any that is real, far below what overflows.
MAX_NUMBER = 1e18

#: Characters of a name (of a class, a layer, a meter), and of any other text, paths among them.
MAX_NAME = 255
MAX_TEXT = 4096
#: Bytes of a file's name, which no file system exceeds.
_MAX_FILE_NAME = 255

#: Of the values below one that is read whole, such as a stage's summary.
_MAX_DEPTH = 8
_MAX_VALUES = 1_000_000


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it should hold no NUL character")
    return text


def _check_path(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("it should hold no NUL character")
    if len(str(path)) > MAX_TEXT or any(
        len(part.encode(errors="surrogateescape")) > _MAX_FILE_NAME for part in path.parts
    ):
        raise ValueError("it should have names that a file can have; these are too long")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError("it should be UTF-8, to be written down; rename the file") from None
    return path


def check_plain(value: Any) -> Any:
    """Check that a parsed value is of bounded size, with bounded numbers and texts.

    Raises:
        ValueError: if it is not.
    """
    todo, seen = [(value, 0)], 0
    while todo:
        part, depth = todo.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            raise ValueError("it should be nested less deeply and hold fewer values")
        if isinstance(part, dict):
            todo += [(inner, depth + 1) for pair in part.items() for inner in pair]
        elif isinstance(part, list | tuple):
            todo += [(inner, depth + 1) for inner in part]
        elif isinstance(part, str):
            _check_text(part)
            if len(part) > MAX_TEXT:
                raise ValueError(f"it should hold texts of at most {MAX_TEXT} characters")
        elif isinstance(part, int | float) and not abs(part) <= MAX_NUMBER:
            raise ValueError(f"it should hold finite numbers of at most {MAX_NUMBER:g}")
    return value


Name = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_check_text)]
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_check_text)]
FilePath = Annotated[Path, AfterValidator(_check_path)]

Count = Annotated[int, Field(ge=0, le=int(MAX_NUMBER))]
#: Finite, of either sign.
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
#: A measurement.
Amount = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
#: A part of a whole, such as an accuracy.
Share = Annotated[float, Field(ge=0, le=1)]

ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
ClassCount = Annotated[int, Field(ge=2, le=MAX_CLASSES)]
ChannelCount = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
CapsuleSize = Annotated[int, Field(ge=1, le=MAX_CAPSULE_SIZE)]
IterationCount = Annotated[int, Field(ge=1, le=MAX_ITERATIONS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 2


def shown(value: Any) -> str:
    """Write a value for a message, cut where it is long."""
    return _SHORT.repr(value)


def cut(text: str, length: int = 120) -> str:
    """Cut a text in its middle where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[-(length - 1 - head) :]}"


def cut_apart(text: str, length: int) -> str:
    """Shorten a text as `cut` does; it stays another than every other that is shortened."""
    if len(text) <= length:
        return text
    return f"{cut(text, length)} ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def what_is_wrong(error: Exception) -> str:
    """Say what is wrong with a file that was read and checked.

    Args:
        error: of a model, whose first refused value is named; of what reads files; or any other.
    """
    if isinstance(error, BadFileError):
        return f"it {error}"
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_context=False)[0]
    where = cut(".".join(str(part) for part in problem["loc"] if part != "[key]"))
    if problem["type"] == "missing":
        return f"{where} is missing"
    what = f"{where} {shown(problem['input'])}" if where else shown(problem["input"])
    return f"{what} is not accepted; {requirement(problem['msg'])}"


def requirement(message: str) -> str:
    """Write a message of pydantic so that it goes on a sentence: "it should be less than 1"."""
    message = message.removeprefix("Value error, ").replace("Input should be", "it should be")
    return message[0].lower() + message[1:]
