"""Writes a report: Markdown, one HTML page, CSV and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capsprune.files import make_folder, remove_partials, write_bytes, write_text
from capsprune.report.charts import Figure, pictures
from capsprune.report.claims import claims
from capsprune.report.figures import make_figures
from capsprune.report.judging import PaperClaim
from capsprune.report.markdown import markdown, results_csv
from capsprune.report.page import write_page
from capsprune.report.results import Results

MARKDOWN = "report.md"
PAGE = "report.html"
CSV = "results.csv"
FIGURES = "figures"


def write_report(
    results: Results, directory: Path, judged: Sequence[PaperClaim] | None = None
) -> list[Path]:
    """Write a report.

    Each file is written beside its final name and renamed, so that a report that is there already
    is replaced and never lost.

    Args:
        results: what to report.
        directory: where; made if it is not there.
        judged: what `claims` gave, where it was asked before.

    Returns:
        The files, those to read first.

    Raises:
        OSError: if one of them cannot be written.
    """
    if judged is None:
        judged = claims(results)
    make_folder(directory)
    for folder in (directory, directory / FIGURES):
        remove_partials(folder)
    figures = make_figures(results)
    drawn = draw_figures(figures, directory / FIGURES)
    write_text(directory / MARKDOWN, markdown(results, judged, figures, FIGURES))
    write_text(directory / CSV, results_csv(results))
    write_page(results, directory / PAGE, judged, figures)
    return [directory / MARKDOWN, directory / PAGE, directory / CSV, *drawn]


def draw_figures(figures: Sequence[Figure], directory: Path) -> list[Path]:
    """Draw each figure as PNG and as SVG; the directory is made if it is not there."""
    paths = []
    for figure in figures:
        make_folder(directory)
        for ending, content in pictures(figure).items():
            paths.append(directory / f"{figure.name}.{ending}")
            write_bytes(paths[-1], content)
    return paths
