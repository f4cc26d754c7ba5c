"""The report page as a text; what it does in a browser is in test_page_in_browser.py."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise

import pytest
from page_results import make_results

from capsprune.report.charts import COLOURS
from capsprune.report.claims import claims
from capsprune.report.figures import make_figures
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


def write(results, path):
    write_page(results, path, claims(results), make_figures(results))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write(make_results(), path)
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
    for section, head in (("networks", "capsules"), ("baselines", "linear")):
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


def test_each_figure_has_a_name_and_its_points_have_tooltips(page):
    charts = [a for _, a in Elements(page).tags if a.get("class") == "chart"]
    assert all(chart["aria-label"].startswith("Chart: ") for chart in charts)
    figures = charts_of(page)["figures"]
    assert [chart["data-figure"] for chart in charts] == list(figures)
    assert list(figures) == ["figure3", "search", "training", "latency", "robustness", "capsules"]
    for figure in figures.values():
        for panel in figure["concat"]:
            tips = [tip for layer in panel["layer"] for tip in layer["encoding"].get("tooltip", [])]
            fields = [tip["field"] for tip in tips]
            assert len(fields) >= 2
            for record in records_of(figure, panel):
                assert all(record[field] is not None for field in fields)


def test_figure_3_looks_as_in_the_paper(page):
    figure = charts_of(page)["figures"]["figure3"]
    (panel,) = figure["concat"]
    encodings = [layer["encoding"] for layer in panel["layer"]]
    dash = next(e["strokeDash"] for e in encodings if "strokeDash" in e)
    dashes = dict(zip(dash["scale"]["domain"], dash["scale"]["range"], strict=True))
    assert dashes["resnet50"] == [6, 3] and dashes["mobilenet_v1"] == [1, 0]
    colours = encodings[-1]["color"]["scale"]["domain"]
    assert colours == ["capsules, finetuned", "capsules, frozen",
                       "linear, finetuned", "linear, frozen"]  # fmt: skip
    assert encodings[-1]["shape"]["scale"]["domain"] == colours, "colour tells nothing alone"
    sizes = next(e["size"]["scale"]["range"] for e in encodings if "size" in e)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    records = records_of(figure, panel)
    assert all(record["hollow"] == record["series"].startswith("linear") for record in records)
    line = [r for r in records if r["key"] == "capsules, finetuned, resnet50"]
    assert [r["order"] for r in line] == [0, 25, 50, 75]
    assert all(r["low"] < r["y"] < r["high"] for r in line)
    assert line[2]["title"] == "resnet50, 50 % pruned"
    assert line[2]["Network"] == "finetuned, capsules"
    assert line[2]["Total training FLOPs"].startswith("6.1")
    assert " ± " in line[2]["Accuracy"]


def test_each_data_set_has_a_panel_of_figure_3(tmp_path):
    write(make_results(("cifar10", "tiny-imagenet")), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    panels = charts_of(text)["figures"]["figure3"]["concat"]
    assert [panel["title"]["text"] for panel in panels] == [["cifar10"], ["tiny-imagenet"]]
    assert ">Data set<span" in text


def test_hostile_names_stay_text(tmp_path):
    results = make_results()
    cells = [replace(cell, data=HOSTILE, backbone=HOSTILE) for cell in results.rows[0].cells]
    results = Results(
        HOSTILE,
        [replace(results.rows[0], data=HOSTILE, backbone=HOSTILE, cells=cells)],
        searches=[replace(results.searches[0], data=HOSTILE, backbone=HOSTILE, run=HOSTILE)],
        latencies=[replace(results.latencies[0], backbone=HOSTILE, provider=HOSTILE)],
        missing={HOSTILE: HOSTILE},
        notes=[HOSTILE],
    )
    write(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    elements = Elements(text)
    assert [tag for tag, _ in elements.tags].count("script") == 3
    assert not [tag for tag, attributes in elements.tags if tag == "img" or "onerror" in attributes]
    charts = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text)[1]
    assert "<" not in charts
    assert HOSTILE in json.dumps(json.loads(charts), ensure_ascii=False).replace('\\"', '"')
    assert "".join(elements.texts["h1"]) == HOSTILE


def test_a_page_without_results_says_so(tmp_path):
    write(Results("Nothing yet", []), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "No network is trained yet." in text
    tags = [tag for tag, _ in Elements(text).tags]
    assert "table" not in tags and "figure" not in tags
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_one_network_of_one_seed_is_enough(tmp_path):
    row = make_results().rows[0]
    write(Results("One", [replace(row, cells=row.cells[:1])]), tmp_path / "report.html")
    figure = charts_of((tmp_path / "report.html").read_text("utf-8"))["figures"]["figure3"]
    (record,) = records_of(figure, figure["concat"][0])
    assert "low" not in record


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_stand_out_from_the_background(mode):
    colours = {name: luminance(pair[mode]) for name, pair in COLOURS.items()}
    for name, wanted in {"ink": 7, "quiet": 4.5, "link": 4.5, "good": 4.5, "bad": 4.5}.items():
        for behind in ("surface", "page"):
            assert contrast(colours[name], colours[behind]) >= wanted, (name, behind)
    series = [name for name in colours if name.startswith("series-")]
    assert len(series) == 8
    for name in series:
        assert contrast(colours[name], colours["surface"]) >= 3, name


def charts_of(page):
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)
    return json.loads(found[1])


def records_of(figure, panel):
    # One panel alone has its data one step up.
    return figure["datasets"][(panel if "data" in panel else figure)["data"]["name"]]


def luminance(colour):
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_claims_that_cannot_be_told_are_folded_away(tmp_path):
    (row, *_) = (row for row in make_results().rows if row.head == "capsules")
    write(Results(title="alone", rows=[row]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('id="claims') : page.index('id="networks')]
    assert section.index("9 claims cannot be told") < section.index('data-verdict="cannot be told"')
    assert "Unfold one for its figures" not in section
