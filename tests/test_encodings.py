"""What a file says must not hang on the locale of whoever reads it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Owners of an `open` or `read_text` that is not of text, or that always means UTF-8.
NOT_TEXT = {"os", "Image", "tarfile", "archive", "files", "zipfile", "gzip"}


def lines_without_encoding(source: str) -> list[int]:
    """The lines of calls that read or write text in the locale's encoding."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _hangs_on_the_locale(node)
    ]


def _hangs_on_the_locale(call: ast.Call) -> bool:
    given = {word.arg: word.value for word in call.keywords}
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "encoding" in given or (isinstance(owner, ast.Name) and owner.id in NOT_TEXT):
        return False
    if name == "open":
        modes = call.args[1:] if owner is None else call.args
        mode = given.get("mode", modes[0] if modes else None)
        return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))
    if name in ("read_text", "write_text"):
        return owner is not None
    if name not in ("run", "Popen", "call", "check_call", "check_output"):  # of subprocess
        return False
    return any(word in given for word in ("text", "universal_newlines"))


def test_every_text_is_read_and_written_as_utf_8():
    paths = [*(ROOT / "capsprune").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    lines = {
        str(path.relative_to(ROOT)): found
        for path in paths
        if (found := lines_without_encoding(path.read_text(encoding="utf-8")))
    }
    assert len(paths) > 90
    assert not lines


def test_what_hangs_on_the_locale_is_found():
    bad = "open(a)\na.open('w')\na.read_text()\na.write_text(b)\nrun(a, text=True)\nopen(a, 'r')"
    assert lines_without_encoding(bad) == [1, 2, 3, 4, 5, 6]
    good = "open(a, 'rb')\na.open('wb')\nopen(a, encoding='utf-8')\nread_text(a)\nImage.open(a)"
    assert lines_without_encoding(good) == []
