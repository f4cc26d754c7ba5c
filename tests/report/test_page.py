"""The report page as a text; what it does in a browser is in test_page_in_browser.py."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest
from page_results import make_results

from capsprune.report.page import write_page
from capsprune.report.results import Results

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>&</style>'


class Elements(HTMLParser):
    """Collects start tags, and the text of headings, cells and scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.texts = {}
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(make_results(), path)
    return path.read_text("utf-8")


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in Elements(page).tags:
        for name in ("src", "srcset", "href", "data", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    style = resources.files("capsprune.report").joinpath("assets/page.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_a_policy_forbids_to_load_what_the_charts_library_could(page):
    policy = next(a for t, a in Elements(page).tags if "http-equiv" in a)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none';")
    assert "http" not in policy["content"]


def test_every_row_is_in_its_table(page):
    rows = make_results().rows
    assert page.count('<th scope="row"') == len(rows)
    for section, head in (("networks", "capsules"), ("controls", "linear")):
        table = re.search(rf'<section id="{section}".*?</section>', page, re.DOTALL)[0]
        of_head = [row for row in rows if row.head == head]
        assert table.count('<th scope="row"') == len(of_head)
        for row in of_head:
            spread = row.spread("accuracy")
            assert f"{100 * spread.mean:.2f} ± {100 * spread.deviation:.2f}" in table


def test_what_was_not_measured_is_said_and_cannot_be_sorted(page):
    assert '<td class="number none">not available</td>' in page


def test_verdicts_are_words_not_colours_alone(page):
    assert re.search(r'data-verdict="does not hold"><span[^>]*>✗</span> does not hold</span>', page)


def test_headings_are_in_order_and_elements_have_unique_ids(page):
    tags = Elements(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids


def test_each_chart_has_a_name_and_its_points_have_tooltips(page):
    charts = [a for _, a in Elements(page).tags if a.get("class") == "chart"]
    assert all(chart["aria-label"].startswith("Chart: ") for chart in charts)
    figures = panels_of(page)
    assert set(figures) == {
        "accuracy",
        "searches",
        "training",
        "latency",
        "robustness",
        "routing",
        "bottleneck",
    }
    panels = [panel for of_figure in figures.values() for panel in of_figure]
    assert len(charts) == len(panels)
    for panel in panels:
        assert panel["traces"]
        for trace in panel["traces"]:
            # The whiskers of bars lie upon bars that have them.
            if trace["hoverinfo"] != "skip":
                assert len(trace["hovertext"]) == len(trace["x"]) == len(trace["y"]) > 0


def test_figure_3_looks_as_in_the_paper(page):
    traces = {t["legendgroup"]: t for t in panels_of(page)["accuracy"][0]["traces"]}
    resnet, mobilenet = traces["resnet50, finetuned"], traces["mobilenet_v1, finetuned"]
    assert (resnet["line"]["dash"], mobilenet["line"]["dash"]) == ("dash", "solid")
    assert resnet["line"]["color"] == mobilenet["line"]["color"]
    assert resnet["line"]["color"] != traces["resnet50, frozen"]["line"]["color"]
    sizes = resnet["marker"]["size"]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert len(resnet["error_y"]["array"]) == 4
    assert traces["resnet50, frozen, linear"]["marker"]["symbol"].endswith("-open")
    tooltip = resnet["hovertext"][2]
    assert tooltip.startswith("<b>resnet50, 50 % pruned</b><br>finetuned, capsules<br>Accuracy: ")
    assert "<br>Total training FLOPs: 6.1" in tooltip


def test_each_data_set_has_a_panel_of_figure_3(tmp_path):
    write_page(make_results(("cifar10", "tiny-imagenet")), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert len(panels_of(text)["accuracy"]) == 2
    for data in ("cifar10", "tiny-imagenet"):
        assert f'aria-label="Chart: Accuracy against training FLOPs. {data}, accuracy"' in text
    assert ">Data set<span" in text


def test_hostile_names_stay_text(tmp_path):
    results = make_results()
    cells = [replace(cell, data=HOSTILE, backbone=HOSTILE) for cell in results.rows[0].cells]
    results = Results(
        HOSTILE,
        [replace(results.rows[0], data=HOSTILE, backbone=HOSTILE, cells=cells)],
        searches=[replace(results.searches[0], data=HOSTILE, backbone=HOSTILE, run=HOSTILE)],
        latencies=[replace(results.latencies[0], label=HOSTILE, provider=HOSTILE)],
        analyses=results.analyses,
        missing={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    write_page(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags].count("script") == 3
    assert not [tag for tag, attributes in elements.tags if tag == "img" or "onerror" in attributes]
    # Plotly knows some HTML in its texts.
    traces = [t for panels in panels_of(text).values() for panel in panels for t in panel["traces"]]
    assert traces
    assert "<script" not in json.dumps([trace.get("hovertext") for trace in traces])
    assert "".join(elements.texts["h1"]) == HOSTILE


def test_a_page_without_results_says_so(tmp_path):
    write_page(Results("Nothing yet", []), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "No network is trained yet." in text
    assert "<table" not in text
    assert "<figure" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_one_network_of_one_seed_is_enough(tmp_path):
    row = make_results().rows[0]
    write_page(Results("One", [replace(row, cells=row.cells[:1])]), tmp_path / "report.html")
    traces = panels_of((tmp_path / "report.html").read_text("utf-8"))["accuracy"][0]["traces"]
    assert "error_y" not in traces[0]


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_stand_out_from_the_background(mode):
    style = resources.files("capsprune.report").joinpath("assets/page.css").read_text("utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: luminance((light, dark)[mode]) for name, light, dark in pairs}
    for name, wanted in {"ink": 7, "quiet": 4.5, "link": 4.5, "good": 4.5, "bad": 4.5}.items():
        for behind in ("surface", "page"):
            assert contrast(colours[name], colours[behind]) >= wanted, (name, behind)
    series = [name for name in colours if name.startswith("series-")]
    assert len(series) == 5
    for name in series:
        assert contrast(colours[name], colours["surface"]) >= 3, name


def panels_of(page):
    found = re.search(r'<script type="application/json" id="panels">(.*?)</script>', page)
    return json.loads(found[1])


def luminance(colour):
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_claims_that_cannot_be_told_are_folded_away(tmp_path):
    (row, *_) = (row for row in make_results().rows if row.head == "capsules")
    write_page(Results(title="alone", rows=[row]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="claims') : page.index('id="networks')]
    assert section.index("9 claims cannot be told") < section.index('data-verdict="cannot be told"')
    assert "Unfold one for its figures" not in section
