"""Look at every built page in a headless Chromium, and follow every link: `make docs-check`.

At 1280 and 400 pixels no page may scroll sideways, and no table or picture may leave its column.
At 1280 pixels no table may scroll inside its column either, but for folded ones, which have the
lead in their second column, and the outputs of notebooks.
"""

import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import sync_playwright

PAGES = (Path(__file__).parent / "_build" / "html").resolve()
OURS_ALONE = {"genindex.html", "py-modindex.html", "search.html"}  # made by Sphinx
MEASURE = """
() => {
  const article = document.querySelector('article') || document.body;
  const column = article.getBoundingClientRect();
  const found = [];
  if (document.documentElement.scrollWidth > window.innerWidth + 1)
    found.push('the page scrolls sideways');
  document.querySelectorAll('details').forEach(d => d.open = true);
  for (const box of article.querySelectorAll('table, img, .highlight, div.math')) {
    const {right, width} = box.getBoundingClientRect();
    const name = box.tagName.toLowerCase() + ': ' + box.innerText.trim().slice(0, 40);
    if (width && right > column.right + 1) found.push('leaves its column, ' + name);
    const mayScroll = box.closest('details, .cell_output') || window.innerWidth < 1280;
    if (box.tagName == 'TABLE' && !mayScroll && box.scrollWidth > box.clientWidth + 1)
      found.push('scrolls, ' + name);
  }
  return found;
}
"""


class Links(HTMLParser):
    """Targets of the links of a page, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.targets.add(attributes.get({"a": "href", "img": "src"}.get(tag)))


def broken_links(pages):
    """Links to pages, files or anchors that are not there."""
    known = {page: Links(page.read_text()) for page in pages}
    for page, links in known.items():
        for target in links.targets - {None, "#", ""}:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.exists():
                yield f"{page.relative_to(PAGES)}: no file {target}"
            elif parts.fragment and file in known:
                if unquote(parts.fragment) not in known[file].anchors:
                    yield f"{page.relative_to(PAGES)}: no anchor {target}"


def misfits(pages):
    """Whatever is wider than its column."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for width in (1280, 400):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.route("http*://**", lambda route: route.abort())  # works without a network
            for page in pages:
                tab.goto(page.as_uri())
                for trouble in tab.evaluate(MEASURE):
                    yield f"{page.relative_to(PAGES)} at {width} pixels: {trouble}"
        browser.close()


def main():
    """Print what is wrong; fail if anything is."""
    pages = sorted(PAGES.rglob("*.html"))
    pages = [page for page in pages if page.name not in OURS_ALONE and "_static" not in page.parts]
    if not pages:
        sys.exit("There are no pages: run `make docs` first.")
    wrong = [*broken_links(pages), *misfits(pages)]
    print("\n".join(wrong))
    print(f"{len(pages)} pages, {len(wrong)} problems")
    sys.exit(len(wrong) > 0)


if __name__ == "__main__":
    main()
