"""The last rows of a text that grows, wrapped to the window as it is.

Adding costs what is added and drawing costs what is drawn, however long the text has become. Rows
that are full never change, so what scrolls by holds still; a window of another width wraps anew.

Non-goals: knowing what the text is, colours.
"""

from __future__ import annotations

from collections import deque

from qwqcli.terminal import clip, visible

MOST_ROWS = 6
_KEPT = 4_000  # characters, for a window that is resized


class Tail:
    """A text of which the end is shown."""

    def __init__(self) -> None:
        self._new: list[str] = []  # not wrapped yet
        self._kept = ""
        self._width = 0
        self._rows: deque[str] = deque(maxlen=MOST_ROWS)
        self._row = ""  # the last one, which may grow

    def add(self, text: str) -> None:
        self._new.append(text)

    def rows(self, width: int, count: int) -> list[str]:
        """At most `count` rows of at most `width` cells, made safe to show."""
        new = "".join(self._new)[-_KEPT:]
        self._new.clear()
        self._kept = (self._kept + new)[-_KEPT:]
        if width != self._width:
            self._width, self._row, new = width, "", self._kept
            self._rows.clear()
        for at, line in enumerate(visible(new).replace("\t", " ").split("\n")):
            if at:
                self._end_row()
            self._wrap(line)
        shown = [*self._rows, self._row.rstrip()] if self._row.strip() else list(self._rows)
        return shown[len(shown) - min(count, len(shown)) :]

    def _wrap(self, line: str) -> None:
        self._row += line if self._row else line.lstrip(" ")
        while len(fits := clip(self._row, self._width)) < len(self._row):
            space = len(fits) if self._row[len(fits)] == " " else fits.rfind(" ") + 1
            # a word that fills most of a row is broken, and so is text without spaces
            cut = space if space > len(fits) // 2 else max(len(fits), 1)
            rest = self._row[cut:].lstrip(" ")
            self._row = self._row[:cut]
            self._end_row()
            self._row = rest

    def _end_row(self) -> None:
        if self._row.strip():  # an empty line would take a row from the text
            self._rows.append(self._row.rstrip())
        self._row = ""
