"""Take a picture of a report page in headless Chromium, such as the README's.

    python tools/screenshot_report.py runs/default/report.html report.png [--height 1500]

Needs Playwright for Python and a chromium, which Debian has in the package of that name.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

from capsprune.files import replacing


def take(page_path: Path, picture: Path, width: int, height: int | None, dark: bool) -> None:
    """Write a picture of a page.

    Args:
        page_path: the HTML file.
        picture: the PNG file, replaced if it is there.
        width: of the window, in px.
        height: from the top of the page, in px; None for the whole page.
        dark: in dark colours.

    Raises:
        FileNotFoundError: if there is no page or no chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise FileNotFoundError("There is no chromium here; on Debian: apt-get install chromium.")
    if not page_path.is_file():
        raise FileNotFoundError(f"There is no page at {page_path}.")
    with sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox. The page loads nothing anyhow.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height or 900},
            device_scale_factor=1,
            color_scheme="dark" if dark else "light",
            offline=True,
        )
        page.goto(page_path.resolve().as_uri())
        page.wait_for_selector("html[data-charts=drawn]")
        with replacing(picture) as partial:
            partial.write_bytes(page.screenshot(full_page=height is None))
        browser.close()


def main() -> None:
    """Read the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="report.html")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--width", type=int, default=1200, help="px of the window (1200)")
    parser.add_argument("--height", type=int, help="px from the top (the whole page)")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    args = parser.parse_args()
    try:
        take(args.page, args.picture, args.width, args.height, args.dark)
    except (OSError, Error) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
