"""The report page in headless Chromium, without a network."""

import re
import shutil

import pytest
from page_results import make_results

from capsprune.report.claims import claims
from capsprune.report.figures import make_figures
from capsprune.report.page import write_page

playwright_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP = {"width": 1200, "height": 900}
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; Debian has it in the package of that name"
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The page, what went wrong in it, and what it asked for."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    results = make_results()
    write_page(results, path, claims(results), make_figures(results))
    problems, requests = [], []
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport=DESKTOP, color_scheme="light", offline=True)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        wait_for_charts(page)
        yield page, problems, requests
        browser.close()


@pytest.fixture
def page(watched):
    page, problems, requests = watched
    yield page
    assert problems == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def wait_for_charts(page):
    page.wait_for_selector("html[data-charts=drawn]")


def column(page, heading):
    """Give the cells' texts under a heading of the first table."""
    return page.evaluate(
        """heading => {
            const table = document.querySelector("#networks table");
            const titles = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
            const place = titles.findIndex(title => title.startsWith(heading));
            return [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
        }""",
        heading,
    )


def heading(page, name):
    return page.locator("#networks thead th").filter(has_text=name)


def means(texts):
    return [float(text.split(" ")[0]) for text in texts]


def background(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


def first_line(page):
    """Give the colour of the first line of the first chart."""
    line = page.locator("#figure3 .chart .mark-line path").first
    return line.evaluate("line => getComputedStyle(line).stroke")


def test_charts_are_drawn(page):
    for name in ("figure3", "search", "training", "robustness", "capsules"):
        assert page.locator(f"#{name} .chart .mark-symbol.role-mark path").count() > 3, name
    assert page.locator("#latency .chart .mark-rect.role-mark path").count() > 8


def test_a_click_sorts_the_table_and_another_turns_it_round(page):
    before = column(page, "Accuracy")
    accuracy = heading(page, "Accuracy")
    accuracy.get_by_role("button").click()
    assert accuracy.get_attribute("aria-sort") == "ascending"
    ascending = column(page, "Accuracy")
    assert means(ascending) == sorted(means(before)) != means(before)
    accuracy.get_by_role("button").click()
    assert accuracy.get_attribute("aria-sort") == "descending"
    assert means(column(page, "Accuracy")) == sorted(means(before), reverse=True)
    # The rows go as a whole.
    names = page.locator("#networks tbody th").all_inner_texts()
    assert "finetuned" in names[0]
    assert "frozen" in names[-1]


def test_the_keyboard_sorts_too_and_what_is_missing_comes_last_both_ways(page):
    memory = heading(page, "Memory")
    for order in ("ascending", "descending"):
        memory.get_by_role("button").press("Enter")
        assert memory.get_attribute("aria-sort") == order
        assert heading(page, "Accuracy").get_attribute("aria-sort") == "none"
        texts = column(page, "Memory")
        missing = texts.count("not available")
        assert missing > 0
        assert texts[-missing:] == ["not available"] * missing
        numbers = means(texts[:-missing])
        assert numbers == sorted(numbers, reverse=order == "descending")
    network = heading(page, "Network")
    network.get_by_role("button").press(" ")
    words = page.locator("#networks tbody th").evaluate_all("all => all.map(c => c.dataset.order)")
    assert words == sorted(words)


def test_hovering_a_point_of_figure_3_tells_its_figures(page):
    # Capsules lie above the linear ones, and the first of those are unpruned.
    page.locator("#figure3").scroll_into_view_if_needed()
    page.locator("#figure3 .mark-symbol.role-mark").last.locator("path").first.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = tooltip.inner_text().replace("\t", " ").replace("\n", " ")
    assert text.startswith("mobilenet_v1, 0 % pruned")
    assert "frozen, capsules" in text
    assert re.search(r"Accuracy:? +\d\d\.\d\d ± \d\.\d\d %", text)
    assert "1.14" in text
    assert re.search(r"Seeds:? +3", text)


def test_colours_follow_the_system_while_the_page_is_open(page):
    light, line = background(page), first_line(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "old => getComputedStyle(document.documentElement).backgroundColor !== old", arg=light
    )
    wait_for_charts(page)
    assert background(page) == "rgb(15, 18, 22)"
    assert first_line(page) != line
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "old => getComputedStyle(document.documentElement).backgroundColor === old", arg=light
    )
    wait_for_charts(page)
    assert first_line(page) == line


def test_the_button_changes_the_colours_and_they_are_remembered(page):
    light, line = background(page), first_line(page)
    button = page.get_by_role("button", name="Switch to dark colours")
    button.click()
    wait_for_charts(page)
    assert background(page) != light
    assert first_line(page) != line
    page.reload()
    wait_for_charts(page)
    assert background(page) != light
    page.get_by_role("button", name="Switch to light colours").click()
    wait_for_charts(page)
    assert (background(page), first_line(page)) == (light, line)


def test_the_legend_fades_all_but_what_is_clicked(page):
    lines = page.locator("#figure3 .chart .mark-line path")
    opacities = "all => all.map(line => getComputedStyle(line).opacity)"
    assert set(lines.evaluate_all(opacities)) == {"1"}
    page.locator("#figure3 .role-legend-label text").filter(has_text="capsules, frozen").click()
    page.wait_for_function(
        """() => [...document.querySelectorAll("#figure3 .mark-line path")]
            .filter(line => getComputedStyle(line).opacity === "1").length === 2"""
    )
    page.reload()
    wait_for_charts(page)


@pytest.fixture
def narrow(page):
    yield page
    page.set_viewport_size(DESKTOP)
    page.wait_for_selector("html:not([data-charts])")
    wait_for_charts(page)


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out_of_a_narrow_screen(narrow, width):
    page = narrow
    page.set_viewport_size({"width": width, "height": 740})
    page.wait_for_selector("html:not([data-charts])")
    wait_for_charts(page)
    for chart in page.locator(".chart").all():
        assert chart.evaluate("chart => chart.scrollWidth <= chart.clientWidth")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    # The table is wider, and scrolls by itself with the names in sight.
    region = page.locator("#networks .scroll")
    assert region.evaluate("element => element.scrollWidth > element.clientWidth")
    region.evaluate("element => { element.scrollLeft = 300; }")
    name, box = page.locator("#networks tbody th").first.bounding_box(), region.bounding_box()
    assert abs(name["x"] - box["x"]) < 8


def test_paper_is_white_and_has_everything_unfolded(page, tmp_path):
    page.get_by_role("button", name="Switch to dark colours").click()
    wait_for_charts(page)
    # The page cannot be asked while it is being printed, so it is asked to remember.
    page.evaluate(
        """() => addEventListener("beforeprint", () => {
            const root = document.documentElement;
            const line = document.querySelector("#figure3 .mark-line path");
            window.printed = [root.dataset.theme, getComputedStyle(line).stroke,
                document.querySelectorAll("details:not([open])").length];
        })"""
    )
    on_screen = first_line(page)
    page.pdf(path=tmp_path / "report.pdf")
    theme, line, folded = page.evaluate("window.printed")
    assert (theme, folded) == ("light", 0)
    assert line != on_screen
    wait_for_charts(page)
    assert first_line(page) == on_screen
