"""Look at the built site as readers do: `python scripts/check_site.py [PAGES...]`; `make docs-check` does.

Needs the site in _docs, `pip install playwright` and a Chromium (`apt-get install chromium`). Opens each
page wide and narrow, light and dark, and prints what it finds:

- pages of more than 25 screens of 1440 x 900 with all sources closed;
- printed output that is cut at its right edge, and pages that are wider than their window;
- requests that leave the site;
- text whose contrast with its ground is below 4.5 (large text: 3), WCAG 2.2, 1.4.3;
- searches whose first answer is another page than `SEARCHES` says.

Ends with 1 where there is anything.
"""

import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import readme

SCREEN, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SCREENS = 25
SEARCHES = {  # what a reader types -> the page that answers
    "install": "install.html",
    "RewardModel.score": "3_scores/text_scorer.html",
    "add a loss": "changing.html",
    "custom data format": "changing.html",
    "reward hacking": "tutorials/over_optimisation.html",
}
LOOK = """() => {
  const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const lum = c => { const [r, g, b] = c.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const rgba = s => (s.match(/[\\d.]+/g) || []).map(Number);
  const over = (a, b) => { const t = a[3] ?? 1; return [0, 1, 2].map(i => a[i] * t + b[i] * (1 - t)); };
  const ground = e => { let stack = [];
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if ((c[3] ?? 1) > 0) stack.push(c);
    }
    return stack.reverse().reduce((below, c) => over(c, below), [255, 255, 255]); };
  const faint = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const style = getComputedStyle(e), below = ground(e), colour = over(rgba(style.color), below);
    const [a, b] = [lum(colour), lum(below)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    if (ratio < (large ? 3 : 4.5) - .01)
      faint.set(e.tagName + "." + e.className, [ratio.toFixed(2), text.slice(0, 40)]);
  }
  const cut = [...document.querySelectorAll(".cell-output pre, .cell-output pre code")];
  return {height: document.documentElement.scrollHeight, width: document.documentElement.scrollWidth,
          cut: cut.filter(e => e.scrollWidth > e.clientWidth + 1).length,
          faint: [...faint.entries()].slice(0, 5)};
}"""


class Quiet(SimpleHTTPRequestHandler):
    "Files without a line for each."

    def log_message(self, *_):
        pass


def look(page, address: str, viewport: dict) -> list:
    "What is wrong with a page in a window."
    page.goto(address)
    page.wait_for_timeout(200)
    seen, found = page.evaluate(LOOK), []
    screens = seen["height"] / viewport["height"]
    if viewport is SCREEN and screens > SCREENS:
        found.append(f"{screens:.0f} screens")
    if seen["width"] > viewport["width"]:
        found.append(f"{seen['width'] - viewport['width']} pixels wider than the window")
    if seen["cut"]:
        found.append(f"{seen['cut']} outputs are cut")
    return found + [f"contrast {ratio}: {where} {text!r}" for where, (ratio, text) in seen["faint"]]


def search(page, address: str, words: str) -> str:
    "The address of the first answer."
    page.goto(address)
    page.keyboard.press("s")
    page.wait_for_selector(".aa-Input")
    page.keyboard.type(words, delay=20)
    page.wait_for_timeout(3000)
    first = page.query_selector(".aa-Item a, .search-result-link")
    return first.get_attribute("href") if first else "nothing"


def main() -> int:
    "Look at every page, or those that are named."
    from playwright.sync_api import sync_playwright

    root = readme.ROOT / readme.settings()["doc_path"]
    pages = sys.argv[1:] or sorted(p.relative_to(root).as_posix() for p in root.rglob("*.html"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here, count = f"http://127.0.0.1:{server.server_port}/", 0

    def say(*words) -> None:
        nonlocal count
        count += 1
        print(*words, flush=True)

    def requested(request) -> None:
        if not request.url.startswith(("data:", "blob:", here)):
            say("leaves the site:", request.url)

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for mode in ("light", "dark"):
            for viewport in (SCREEN, PHONE):
                page = browser.new_context(viewport=viewport, color_scheme=mode).new_page()
                page.on("request", requested)
                for name in pages:
                    for fault in look(page, here + name, viewport):
                        say(f"{name} ({mode}, {viewport['width']}):", fault)
        page = browser.new_context(viewport=SCREEN).new_page()
        for words, wanted in SEARCHES.items() if len(sys.argv) == 1 else ():
            found = search(page, here + "index.html", words)
            if not re.search(rf"(^|/){re.escape(wanted)}(#|\?|$)", found):
                say(f"search {words!r}: {found}, not {wanted}")
    print(f"{len(pages)} pages, {count} findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
