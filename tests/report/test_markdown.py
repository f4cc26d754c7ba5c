"""Names may hold anything; report.md and results.csv show them as they are."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from page_results import make_results

from capsprune.report.charts import pictures
from capsprune.report.figures import make_figures
from capsprune.report.judging import PaperClaim
from capsprune.report.markdown import escaped, markdown, results_csv
from capsprune.report.results import BackboneResult, Results

NAMES = [
    '<script>alert("1")</script>',
    "<img src=x onerror=alert(2)>",
    "&lt;b&gt; &amp; &copy;",
    "a|b",
    "`code` ``x",
    "line\nbreak\r\n\n# heading",
    "[link](javascript:alert(1)) ![image](x)",
    "# heading",
    "- item",
    "1. item",
    "***bold*** __bold__ _x_ snake_case_name",
    "~~gone~~ $x^2$",
    "back\\slash \\| \\<",
    "<!-- comment",
    "=cmd|' /C calc'!A0",
    "漢字 ümlaut",
]


def rendered(text: str) -> tuple[list[str], list[str], list[str]]:
    """Give what a reader of Markdown sees of the cells, items and headings, and the kinds of marks.

    Returns:
        Texts, kinds of block marks, and kinds of marks within them.
    """
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    inline = [token for token in tokens if token.type == "inline"]
    children = [child for token in inline for child in token.children or ()]
    shown = ["".join(c.content for c in token.children or ()) for token in inline]
    return shown, [token.type for token in tokens], [child.type for child in children]


def as_one_line(name: str) -> str:
    return " ".join(name.split())


@pytest.fixture
def hostile():
    """Results in which a name stands wherever one can."""

    def make(name: str) -> Results:
        results = make_results()
        row = results.rows[0]
        cells = [replace(one, data=name, backbone=name, run=name) for one in row.cells]
        backbone = BackboneResult(
            run=name, data=name, backbone=name, pruned=0, stage="baseline", seed=0, values={}
        )
        return Results(
            name,
            [replace(row, data=name, backbone=name, cells=cells)],
            backbones=[backbone],
            searches=[replace(results.searches[0], data=name, backbone=name, run=name)],
            missing={name: name},
            notes=[name],
        )

    return make


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_text_in_markdown(hostile, name):
    claim = PaperClaim(name, "holds", name)
    shown, blocks, marks = rendered(markdown(hostile(name), [claim], [], "figures"))
    line = as_one_line(name)
    assert shown.count(line) >= 6  # title, table, backbones, claim, evidence, note
    assert f"{line}: {line}" in shown
    assert set(marks) <= {"text", "text_special", "strong_open", "strong_close"}
    assert marks.count("strong_open") == 1  # the verdict
    assert "html_block" not in blocks and blocks.count("bullet_list_open") == 2
    assert "ordered_list_open" not in blocks and "code_block" not in blocks
    # What is in all columns of a table stays in its column.
    assert blocks.count("th_open") > 10


@given(st.text())
def test_any_text_is_shown_as_it_is(text):
    shown, blocks, marks = rendered(f"| a |\n| --- |\n| x{escaped(text)}x |\n")
    assert shown[1:] == [f"x{seen(text)}x"]
    assert set(marks) <= {"text", "text_special"}
    assert blocks.count("td_open") == 1


def seen(text: str) -> str:
    """What is to be seen: blanks and control characters are one blank."""
    return re.sub(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+", " ", text).strip()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum", "\t=1", " =1", "\r=1\r"])
def test_a_spreadsheet_takes_no_name_for_a_formula(hostile, name):
    text = results_csv(hostile(name))
    for line in csv.DictReader(io.StringIO(text, newline="")):
        assert line["data"] == line["backbone"] == f"'{seen(name)}"
    # Figures stay figures, below zero too.
    results = make_results()
    row = results.rows[0]
    cells = [replace(row.cells[0], values={"loss": -0.5})]
    text = results_csv(Results("x", [replace(row, cells=cells)]))
    assert next(csv.DictReader(io.StringIO(text)))["loss"] == "-0.5"


def test_names_are_no_formulas_in_figures(hostile):
    name = "a $\\frac{$ b_$x^{$"
    drawn = make_figures(hostile(name))
    assert drawn
    for figure in drawn:
        assert "\\frac{" in pictures(figure)["svg"].decode()


@pytest.mark.parametrize("name", ["漢字 ümlaut عربى", "<b>&amp;", "\x00\n", "x" * 300])
def test_a_picture_can_be_drawn_whatever_the_names_are(hostile, name):
    for figure in make_figures(hostile(name)):
        assert pictures(figure)["png"].startswith(b"\x89PNG")
