"""The page is one file that needs nothing else, says what the Markdown says, and works in a
browser.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_sweep import fill, grid
from page_reader import Reader

from lora_jax.core.escapes import html_of
from lora_jax.sweeps.cells import cells_of, gather
from lora_jax.sweeps.findings import findings_of
from lora_jax.sweeps.grid import expand, run_id
from lora_jax.sweeps.html_report import MOST_ROWS, table, told
from lora_jax.sweeps.report import write_report
from lora_jax.sweeps.store import RunStore

BROWSER = next(
    (
        path
        for name in ("chromium-headless-shell", "chromium", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Five seeds of a grid, a run that failed with text that would break a page, and one to
    come.
    """
    store = RunStore(tmp_path_factory.mktemp("runs"))
    runs = expand(grid((0, 1, 2, 3, 4)))
    fill(store, runs[:-2])
    store.start(run_id(runs[-2]), runs[-2], {})
    store.fail(run_id(runs[-2]), ValueError("<script>alert('no')</script> & more"))
    store.write_plan([run_id(run) for run in runs])
    return store


@pytest.fixture(scope="module")
def page(store) -> Path:
    return write_report(store.root).with_name("report.html")


def test_the_page_is_whole_and_fetches_nothing(page, store):
    text = page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in reader.fetched)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(reader.ids) == len(set(reader.ids))
    cells = cells_of(gather([store.root])[0])
    assert (
        reader.rows["cells"] == len(cells) + 1
        and reader.rows["failed"] == 2
        and reader.rows["waiting"] == 2
    )
    assert text.count("<svg") == len(list(page.parent.glob("*.png"))) >= 6


def test_the_page_and_the_markdown_say_the_same(page, store):
    text, markdown = (
        html.unescape(re.sub(r"<[^>]+>", "", page.read_text())),
        page.with_suffix(".md").read_text(),
    )
    records, pending = gather([store.root])
    conclusions = findings_of(cells_of(records), missing=len(pending) + 1).conclusions
    assert len(conclusions.supported) > 2
    for sentence in (*conclusions.supported, *conclusions.unsupported):
        assert sentence.replace("**", "").replace("`", "") in text and f"- {sentence}" in markdown


def test_what_runs_say_cannot_become_part_of_the_page(page):
    text = page.read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_pictures_follow_the_theme(page):
    for svg in re.findall(r"<svg.*?</svg>", page.read_text(), re.DOTALL):
        assert (
            not re.search(r"(fill|stroke): #(000000|ffffff|e6e6e6|555555|9a9a9a)\b", svg)
            and "var(--" in svg
        )


def test_long_tables_are_cut_and_say_so():
    rows = [[str(n), f"{n / 7:.2f} ± 1", "text"] for n in range(MOST_ROWS + 1)]
    text = table("long", ("n", "value", "word"), rows)
    assert text.count("<tr>") == MOST_ROWS + 1 and f"{MOST_ROWS} of {MOST_ROWS + 1} rows" in text
    assert text.count("class=number") == 2 + 2 * MOST_ROWS and 'data-key="0.14"' in text


def test_a_column_that_says_nothing_in_any_row_is_left_out():
    rows = [["rank", "n/a", "", "n/a", "–"], ["format", "0.1", "", "n/a in loss", "n/a"]]
    headings, kept = told(["source", "low", "p", "high", "F"], rows)
    assert headings == ["source", "low"] and kept == [["rank", "n/a"], ["format", "0.1"]]
    assert told(["source", "low"], []) == (["source", "low"], [])


@pytest.mark.skipif(BROWSER is None, reason="needs a headless Chromium on the path")
def test_tables_sort_and_themes_change_in_a_real_browser(page, tmp_path):
    """A script at the end of a copy of the page clicks as a person would, and leaves what it saw in
    the document.
    """
    probe = """
    <script>
    const column = (table, n) => [...document.querySelectorAll(`#${table} tbody tr`)].map((row) => row.cells[n].textContent);
    const click = (table, n) => document.querySelectorAll(`#${table} thead button`)[n].click();
    const seen = { errors: [] };
    addEventListener("error", (event) => seen.errors.push(event.message));
    click("cells", 4); seen.falling = column("cells", 4);
    click("cells", 4); seen.rising = column("cells", 4);
    click("cells", 3); seen.ranks = column("cells", 3);
    click("cells", 0); seen.methods = column("cells", 0);
    const ink = () => getComputedStyle(document.querySelector("figure svg text")).fill + getComputedStyle(document.body).backgroundColor;
    seen.before = ink(); document.getElementById("theme").click(); seen.after = ink();
    document.getElementById("theme").click(); seen.again = ink();
    seen.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    seen.pictures = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().width);
    document.title = "seen" + JSON.stringify(seen);
    </script>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(html.unescape(re.search(r"<title>seen(.*?)</title>", done.stdout)[1]))
    accuracies = [float(text.split()[0]) for text in seen["rising"]]
    assert seen["errors"] == [] and accuracies == sorted(accuracies) and len(accuracies) > 10
    assert [float(text.split()[0]) for text in seen["falling"]] == sorted(accuracies, reverse=True)
    ranks = [int(text) for text in seen["ranks"] if text]
    assert ranks == sorted(ranks, reverse=True) and seen["ranks"][-1] == ""  # empty cells come last
    assert seen["methods"] == sorted(seen["methods"])
    assert seen["before"] != seen["after"] and seen["again"] == seen["before"]
    assert seen["width"] <= 0 and all(width > 300 for width in seen["pictures"])


def test_sentences_are_escaped_before_their_marks_are_read():
    """Names of targets, formats and files are a user's: they stand in the headline and in what the
    data support.
    """
    assert html_of("**<b>x</b>** is `a & b`") == (
        "<strong>&lt;b&gt;x&lt;/b&gt;</strong> is <code>a &amp; b</code>"
    )
