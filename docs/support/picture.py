"""Takes a picture of a page of `cllm report`. Arguments: a browser, the page, the picture.

Part of docs/recording.sh.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

browser, page, picture = (str(Path(path).resolve()) for path in sys.argv[1:])
with sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=browser)
    tab = chromium.new_page(viewport=dict(width=1200, height=1172), color_scheme="light")
    tab.goto(Path(page).as_uri())
    tab.locator('[data-figure="loss"] path.line').first.wait_for()
    tab.screenshot(path=picture)
    chromium.close()
