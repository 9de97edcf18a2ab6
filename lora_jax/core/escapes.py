"""Names from users, given to things that would parse them: one function for each.

Pictures need none beyond `one_line`: matplotlib's own mathematics are switched off where they are
drawn (sweeps/plot_style.py: STYLE).
"""

from __future__ import annotations

import html
import re
import unicodedata

from rich.text import Text

_JOINERS = "\u200c\u200d"  # they shape letters and emoji
_PUNCTUATION = r"[!-/:-@\[-`{-~]"


def one_line(text: object) -> str:
    """The text with everything that is no letter on its line as an escape: line breaks, control
    characters, marks that turn the direction of what follows, half a surrogate pair.

    >>> print(one_line("a\\nb"))
    a\\nb
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if _is_hidden(letter) else letter
        for letter in line
    )


def in_terminal(text: object) -> Text:
    """What rich prints as it is: neither its markup nor its emoji codes are read."""
    return Text(one_line(text))


def in_html(text: object) -> str:
    """What a page shows as it is."""
    return html.escape(one_line(text))


def in_markdown(text: object) -> str:
    r"""What a page of Markdown shows as it is, also in a cell of a table.

    >>> print(in_markdown("layers/[qv]|<b>"))
    layers/\[qv\]\|\<b>
    """
    # An underscore inside of a word is one anyway.
    return re.sub(r"[\\`*\[\]<|$&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


def as_code(text: object) -> str:
    """The same, set as code: between more backticks than it holds in a row."""
    line = one_line(text)
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"


def html_of(markdown: str) -> str:
    """Markdown's ** and ` as HTML; what `in_markdown` escaped stays what it is."""
    parts = re.split(rf"\\({_PUNCTUATION})", markdown)
    safe = "".join(
        f"&#{ord(part)};" if n % 2 else html.escape(part, quote=False)
        for n, part in enumerate(parts)
    )
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", safe)


def _is_hidden(letter: str) -> bool:
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return letter not in _JOINERS and unicodedata.category(letter) in kinds
