"""Names from users stay what they are, wherever they are shown: rich, Markdown, HTML and matplotlib
parse none of them.
"""

import html
import io
import random
import re
from dataclasses import replace

import pytest
from made_up_sweep import ENVIRONMENT, fill, result_of
from page_reader import Reader
from rich.console import Console

from lora_jax import config as settings
from lora_jax.core.escapes import as_code, html_of, in_html, in_markdown, in_terminal, one_line
from lora_jax.sweeps import plots
from lora_jax.sweeps.cells import cells_of, gather
from lora_jax.sweeps.grid import run_id
from lora_jax.sweeps.plan import PlannedGroup, plan_table
from lora_jax.sweeps.report import summary_table, write_report
from lora_jax.sweeps.side_by_side import Pack, Predicted
from lora_jax.sweeps.store import RunStore
from lora_jax.sweeps.watch import frame, look

NASTY = (
    "[qv]", "[/]", "[bold red]", ":smile:", "m$_{1$", "$x^2$", r"\frac", "\\", "<script>alert(1)</script>", "&amp;", "<!--", "-->", "]]>",
    "|", "`", "```", "**", "__x__", "~~", "![a](b)", "{{ x }}", "%s", "\n", "\r", "\t", "\0", "\x1b[31m", "\u202e", "\u2028", "é", "\ud800",
    "'\"", "a b", "#", "1.", "- ",
)  # fmt: skip


def nasty(seed: int) -> str:
    """A name of a few parts that something would parse."""
    noise = random.Random(seed)
    return "n" + "".join(noise.choices(NASTY, k=noise.randint(1, 5)))


def printed(what) -> str:
    console = Console(width=4000, record=True, file=io.StringIO(), color_system=None)
    console.print(what)
    return console.export_text()


def text_of_markdown(text: str) -> str:
    """What CommonMark shows: a backslash before punctuation is not there."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


@pytest.mark.parametrize("name", [*NASTY, *map(nasty, range(200))], ids=repr)
def test_a_name_is_shown_as_it_is_by_each_function(name):
    line = one_line(name)
    assert line.isprintable() and one_line(line) == line
    line.encode("utf-8")
    assert printed(in_terminal(name)).strip() == line.strip()
    assert html.unescape(in_html(name)) == line and "<" not in in_html(name)
    marked = in_markdown(name)
    assert text_of_markdown(marked) == line
    # Nothing is left that could begin or end an element, a cell, a formula or an emphasis.
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*|<$\[\]~&]", marked)
    assert html.unescape(html_of(f"**{marked}**")) == f"<strong>{line}</strong>"
    fence = re.match("`+", as_code(name))[0]
    space = " " if len(fence) > 1 else ""
    assert as_code(name) == f"{fence}{space}{line}{space}{fence}" and fence not in line


@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_of_nasty_names_is_reported_watched_and_planned(seed, tmp_path):
    # Half a surrogate pair is refused where a run's settings are read.
    names = [nasty(1000 + 10 * seed + n).replace("\ud800", "") for n in range(3)]
    # Of every kind there is one, whatever the draw.
    names = [f"{one}{two}" for one, two in zip(names, ("[/]|`<b>", "m$_{1$ $", "\u202e[qv]\n"))]
    data = replace(settings.DataConfig(), name=names[0])
    runs = [
        replace(
            settings.Config(),
            data=data,
            lora=replace(settings.LoraConfig(), rank=rank, targets=targets),
            train=replace(settings.TrainConfig(), seed=n),
        )
        for rank in (1, 4)
        for targets in map(re.escape, names)
        for n in (0, 1)
    ]
    runs += [replace(run, data=replace(data, name=names[1])) for run in runs[:4]]
    store = RunStore(tmp_path / "runs")
    fill(store, runs, lambda run: result_of(replace(run, lora=settings.LoraConfig())))
    broken = replace(settings.Config(), method="full")
    store.start(run_id(broken), broken, ENVIRONMENT | {"command": f"lora-jax sweep {names[2]}```"})
    store.fail(run_id(broken), ValueError(f"bad {names[2]}"))

    page = write_report(store.root)
    markdown, text = page.read_text(), page.with_suffix(".html").read_text()
    shown = [one_line(name) for name in names]
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and "<script>alert" not in text and "\u202e" not in text + markdown
    assert not re.search(r"<b>(?!\w)", re.sub(r"\\.", "", markdown))
    seen = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert all(name in seen for name in shown[:2])
    rows = [line for line in markdown.split("\n") if line.startswith("| ")]
    widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows[:9]}
    assert len(widths) == 1

    cells = cells_of(gather([store.root])[0])
    table = printed(summary_table(cells))
    assert all(one_line(re.escape(name)) in table for name in names)
    # An error is one line: its line breaks are spaces.
    assert one_line(" ".join(names[2].split())) in printed(frame(look(store.root)))
    pack = Pack(tuple(runs), None, 1, (names[1],))
    needs = Predicted(1, 1, 1, (8,), 1.0, 1.0, 1)
    plan = printed(plan_table([PlannedGroup(pack, needs, (False,) * len(runs), 1.0)]))
    assert all(one_line(re.escape(name)) in plan for name in names)
    assert f"apart from group 0: {shown[1]}" in plan
    for name in ("rank_curve", "pareto"):
        assert plots.figure(name, cells) is not None
