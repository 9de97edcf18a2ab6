"""A reader of a report's page, as strict as a test needs it."""

import html.parser


class Reader(html.parser.HTMLParser):
    """Tags that are open, what each table holds, and everything that a page could fetch."""

    EMPTY = {"meta", "link", "img", "br", "input", "use", "path", "image"}

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.fetched, self.table, self.ids = [], {}, [], None, []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.fetched += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag == "table":
            self.table = values["id"]
        if tag == "tr" and self.table:
            self.rows[self.table] = self.rows.get(self.table, 0) + 1
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.EMPTY:
            return
        assert self.open.pop() == tag
        if tag == "table":
            self.table = None
