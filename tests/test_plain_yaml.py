import math
import time

import pytest
import yaml

from capsprune.files import BadFileError
from capsprune.plain_yaml import parse_yaml

#: What is no YAML of plain values, or too much of it.
HOSTILE = {
    "aliases that multiply": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(12)),
    "merges that multiply": "a0: &a0 {x: {y: 1}}\n"
    + "".join(f"a{n + 1}: &a{n + 1} {{b: *a{n}, c: *a{n}, <<: *a{n}}}\n" for n in range(20)),
    "an alias to itself": "a: &a [*a]",
    "an alias to nothing": "a: *b",
    "a merge of no mapping": "<<: [1]",
    "deep lists": "[" * 5000,
    "deep mappings": "{a: " * 5000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(400)),
    "a python tag": "a: !!python/object/apply:os.system [ls]",
    "an integer tag": "a: !!int x",
    "a boolean tag": "a: !!bool x",
    "a timestamp tag": "a: !!timestamp x",
    "binary": "a: !!binary /w==",
    "a set": "a: !!set {b, c}",
    "a key twice": "a: 1\na: 2",
    "a list for a key": "? [a, b]\n: 1",
    "a tab": "a:\n\t- b",
    "a control character": "a: \x07",
    "half a surrogate pair": 'a: "\\ud800"',
    "no character": 'a: "\\UFFFFFFFF"',
    "a version that is no number": f"%YAML {'9' * 5000}.1\n---\na: b",
    "an open quote": 'a: "b',
    "too many values": "a: [" + "x, " * 11_000 + "]",
    "no text": "a: \x00",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_are_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(BadFileError) as error:
        parse_yaml(text)
    assert time.process_time() - start < 5
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("12", 12),
        ("-3", -3),
        ("1.0e-4", 1e-4),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("'12'", "12"),
        ("2024-01-01", "2024-01-01"),
        ("2024-13-45", "2024-13-45"),
        ("9" * 5000, "9" * 5000),
        ("1:30", "1:30"),
        ("[1, [2, {a: b}], {}]", [1, [2, {"a": "b"}], {}]),
        ("25: {2024-01-01: x}", {"25": {"2024-01-01": "x"}}),
        ("a: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"a": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
        ("a: &a x\nb: *a", {"a": "x", "b": "x"}),
        ("a: |\n  two\n  lines", {"a": "two\nlines"}),
        ('"<<": {x: 1}', {"<<": {"x": 1}}),
    ],
)  # fmt: skip
def test_plain_values(text, value):
    assert parse_yaml(text) == value


def test_what_yaml_libraries_write_comes_back():
    value = {"a": [1, 2.5, None, True, "x y", "true", "12", ""], "b": {"c": [], "d": "é漢: #"}}
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value
