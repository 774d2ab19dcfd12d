"""Markdown that streams: finished blocks stay in the scrollback, the rest is a live region.

Blocks are split by lines, so those that stay are the same for any split of the text into pieces.
A reference (`[a]: url`), HTML and LaTeX are shown as they were written; a link shows where it
leads. markdown-it reads, rich lays out; both are imported with the first text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from qwqcli.terminal import Clock, Output, Region, Throttle, cells, visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token
    from markdown_it.tree import SyntaxTreeNode
    from rich.console import (
        Console,
        ConsoleOptions,
        OverflowMethod,
        RenderableType,
        RenderResult,
    )
    from rich.text import Text


@dataclass(frozen=True, slots=True)
class Block:
    """Finished Markdown: one block, or one item of a list. `source` is its own text."""

    source: str
    joined: bool = False  # the next item of a list: no empty row before it


@dataclass(frozen=True, slots=True)
class Code:
    """Some lines of fenced code, which is drawn as it grows; `context` are the lines before."""

    source: str
    language: str
    context: str = ""
    opens: bool = False  # `source` begins with the fence
    closes: bool = False  # `source` ends with it

    @property
    def joined(self) -> bool:
        return not self.opens


Piece = Block | Code

CODE_LINES = 16  # fenced code stays after this many lines, however long it gets
CODE_CONTEXT = 80  # lines before them that the highlighter reads again
_FENCE = r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)"


class MarkdownSplitter:
    """Cuts a stream of Markdown into finished pieces; their sources add up to the text.

    CommonMark closes a block for good as soon as the next one begins, so all blocks but the last
    are finished, and so are all items but the last of a list. Only whole lines are looked at:
    the pieces are the same for any split of the text.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # whole lines of the unfinished block
        self._partial = ""  # the line that is still coming
        self._joined = False  # the unfinished block is the next item of a list
        self._fence: Code | None = None  # the code we are in: its language and its context
        self._closing = ""  # the marker that will close it

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is finished by it."""
        *lines, self._partial = (self._partial + text).split("\n")
        return [piece for line in lines for piece in self._line(line + "\n")]

    def flush(self) -> list[Piece]:
        """The text is over: return all that is left."""
        partial, self._partial = self._partial, ""
        pieces = self._line(partial) if partial else []
        if self._fence is None:
            pieces += self._settle()
        rest = self.tail
        self._lines, self._fence, self._joined = [], None, False
        return [*pieces, rest] if rest else pieces

    @property
    def tail(self) -> Piece | None:
        """What is not finished yet, to be drawn for the time being."""
        source = "".join(self._lines) + self._partial
        if self._fence is not None:
            return replace(self._fence, source=source) if source else None
        return Block(source, self._joined) if source else None

    def _line(self, line: str) -> list[Piece]:
        before = self._lines[-1].strip() if self._lines else ""
        self._lines.append(line)
        if self._fence is not None:
            return self._code_line(line)
        first = line.lstrip()[:1]
        if before and (first.isalpha() or first == "|"):
            return []  # goes on with prose or with a table, which saves reading it all again
        return self._settle()

    def _settle(self) -> list[Piece]:
        """Cut off all blocks that are finished; enter a fence if that is what the last one is."""
        starts, last = _block_starts("".join(self._lines))
        if starts and not self._lines[-1].strip() and last not in _GO_ON:
            starts.append((len(self._lines), False))
        pieces: list[Piece] = []
        if starts and starts[0][0] > 0:  # empty lines, which belong to no block
            starts.insert(0, (0, False))
        joins = [self._joined or joined for _, joined in starts[:1]]
        joins += [joined for _, joined in starts[1:]]
        cuts = [line for line, _ in starts]
        for begin, end, joined in zip(cuts, cuts[1:], joins, strict=False):
            pieces.append(Block("".join(self._lines[begin:end]), joined))
        if starts:
            self._lines, self._joined = self._lines[cuts[-1] :], joins[-1]
        if last == "fence":
            self._enter_fence()
        return pieces

    def _enter_fence(self) -> None:
        match = re.match(_FENCE, self._lines[0])
        assert match is not None
        self._closing = match[1]
        self._fence = Code("", match[2], opens=True)

    def _code_line(self, line: str) -> list[Piece]:
        marker = line.strip()
        closed = (
            marker.startswith(self._closing)
            and not marker.strip(self._closing[0])
            and len(line) - len(line.lstrip(" ")) < 4
        )
        if not closed and len(self._lines) < CODE_LINES:
            return []
        assert self._fence is not None
        piece = replace(self._fence, source="".join(self._lines), closes=closed)
        self._lines, self._joined = [], False
        self._fence = None if closed else _after(piece)
        return [piece]


def _after(piece: Code) -> Code:
    """The code that follows `piece`, with what the highlighter must have read."""
    lines = (piece.context + piece.source).split("\n")[:-1]
    if piece.opens:
        lines = lines[1:]
    context = "".join(line + "\n" for line in lines[-CODE_CONTEXT:])
    return Code("", piece.language, context)


# the blocks that an empty line does not end
_GO_ON = ("bullet_list_open", "ordered_list_open", "code_block", "fence")


def _block_starts(text: str) -> tuple[list[tuple[int, bool]], str]:
    """The lines where blocks and items of lists begin, each with whether it is a further item.

    Also the type of the last block.
    """
    starts: list[tuple[int, bool]] = []
    last, first_item = "", False
    for token in _parser().parse(text):
        if token.map is None or token.nesting < 0:
            continue
        if token.level == 0:
            last = token.type
            first_item = last in ("bullet_list_open", "ordered_list_open")
            if not first_item:
                starts.append((token.map[0], False))
        elif token.level == 1 and token.type == "list_item_open":
            starts.append((token.map[0], not first_item))
            first_item = False
    return starts, last


def code_blocks(text: str) -> list[str]:
    """The contents of all blocks of code in a text, without the newline at their ends."""
    kinds = ("fence", "code_block")
    return [t.content.rstrip("\n") for t in _parser().parse(text) if t.type in kinds]


def as_html(text: str) -> str:
    """Markdown as HTML. What was written as HTML stays text, and a link runs no script."""
    return str(_parser().render(text))


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    """CommonMark with tables, where HTML and LaTeX stay text and nothing written vanishes."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["reference", "image"])
    parser.inline.ruler.before("escape", "math", _math_inline)
    parser.block.ruler.before("code", "math_block", _math_block, {"alt": ["paragraph"]})
    parser.add_render_rule("math_block", _math_html)
    return parser


def _math_html(
    renderer: object, tokens: Sequence[Token], index: int, options: object, env: object
) -> str:
    return f"<pre>{html.escape(tokens[index].content)}</pre>\n"


_MATH = r"\\\(.+?\\\)|\\\[.+?\\\]|\$\$.+?\$\$|\$(?!\s)[^$\n]+?(?<!\s)\$(?!\d)"


def _math_inline(state: StateInline, silent: bool) -> bool:
    """LaTeX is text: its underscores and backslashes are not Markdown."""
    match = re.compile(_MATH, re.DOTALL).match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.push("text", "", 0).content = match[0]
    state.pos = match.end()
    return True


def _math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""Lines from `\[` or `$$` to the line with its end; an empty line gives it up."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    closing = {"\\[": "\\]", "$$": "$$"}.get(first[:2])
    if closing is None or state.is_code_block(start):
        return False
    if silent:
        return True
    line, text = start, first[2:]
    while closing not in text and line + 1 < end and not state.isEmpty(line + 1):
        line += 1
        text = state.src[state.bMarks[line] : state.eMarks[line]]
    state.line = line + 1
    token = state.push("math_block", "", 0)
    token.content = state.getLines(start, line + 1, state.blkIndent, False)
    token.map = [start, line + 1]
    return True


class MarkdownStream:
    """Draws Markdown as it comes: finished pieces stay, the unfinished rest is a live region."""

    def __init__(self, out: Output, clock: Clock) -> None:
        self._out = out
        self._region = Region(out)
        self._throttle = Throttle(clock)
        self._splitter = MarkdownSplitter()
        self._painter: Painter | None = None  # made with the first text: rich takes 50 ms
        self._changed = False  # there is text that has not been drawn
        self._empty = True  # nothing has been drawn yet: no empty row before the first block

    def feed(self, text: str) -> None:
        self._changed = True
        self.draw(self._stay(self._splitter.feed(visible(text))))

    def draw(self, above: str = "") -> None:
        """Draw the unfinished rest if it has changed and a frame is due; `above` stays above it."""
        if above or (self._changed and self._throttle.due()):
            self._region.draw(self._tail_rows(), above)
            self._changed = False

    def flush(self) -> None:
        """The text is over: all of it stays."""
        self._region.draw([], self._stay(self._splitter.flush()))

    def _stay(self, pieces: Iterable[Piece]) -> str:
        return "".join(row + "\n" for piece in pieces for row in self._rows(piece, stays=True))

    def _tail_rows(self) -> list[str]:
        tail = self._splitter.tail
        if tail is None:
            return []
        height = self._region.height
        room = self._region.width * height
        if len(tail.source) > 4 * room + 4000:  # too much to lay out ten times a second
            tail = Block("```\n" + tail.source[-room:])
        return self._rows(tail, stays=False)[-height:]

    def _rows(self, piece: Piece, stays: bool) -> list[str]:
        if self._painter is None:
            self._painter = Painter(self._out)
        rows = self._painter.rows(piece, self._region.width, soft=stays)
        gap = [] if self._empty or piece.joined or not rows else [""]
        if stays and rows:
            self._empty = False
        return gap + rows


_JUSTIFY: dict[str, Literal["right", "center"]] = {"right": "right", "center": "center"}


class Painter:
    """Turns pieces of Markdown into rows for one terminal."""

    def __init__(self, out: Output) -> None:
        self._symbols = out.symbols
        self._console = out.console()

    def rows(self, piece: Piece, width: int, soft: bool) -> list[str]:
        """`soft` leaves long lines of code to the terminal, so that a copy of them is whole."""
        if isinstance(piece, Code):
            drawn: RenderableType = self._code(piece, "ignore" if soft else "fold")
        else:
            from markdown_it.tree import SyntaxTreeNode

            drawn = self._stack(SyntaxTreeNode(_parser().parse(piece.source)).children)
        with self._console.capture() as capture:
            self._console.print(drawn, width=width, soft_wrap=soft and isinstance(piece, Code))
        rows = capture.get().split("\n")[:-1]
        return [] if rows == [""] and isinstance(piece, Block) else rows

    def _stack(self, nodes: Sequence[SyntaxTreeNode], spaced: bool = True) -> RenderableType:
        from rich.console import Group

        drawn: list[RenderableType] = []
        for node in nodes:
            if drawn and spaced:
                drawn.append("")
            drawn.append(self._node(node))
        return Group(*drawn)

    def _node(self, node: SyntaxTreeNode) -> RenderableType:
        from rich.rule import Rule
        from rich.text import Text

        match node.type:
            case "heading":
                return self._inline(node, "bold underline" if node.tag == "h1" else "bold")
            case "fence":
                fence = f"{node.markup}{node.info}\n{node.content}{node.markup}"
                return self._code(Code(fence, node.info.split(" ")[0], opens=True, closes=True))
            case "code_block" | "math_block":
                return Text(visible(node.content.rstrip("\n")))
            case "blockquote":
                return Prefixed(self._stack(node.children), self._symbols.quote)
            case "bullet_list" | "ordered_list":
                return self._list(node)
            case "table":
                return self._table(node)
            case "hr":
                return Rule(style="dim", characters="-")
            case _:
                return self._inline(node)

    def _list(self, node: SyntaxTreeNode) -> RenderableType:
        from rich.console import Group

        number = int(node.attrs.get("start", 1))
        items = []
        for index, item in enumerate(node.children):
            bullet = self._symbols.bullet
            if node.type == "ordered_list":
                bullet = f"{number + index}{item.markup} "
            tight = any(child.type == "paragraph" and child.hidden for child in item.children)
            inner = self._stack(item.children, spaced=not tight)
            items.append(Prefixed(inner, bullet, " " * len(bullet)))
        return Group(*items)

    def _table(self, node: SyntaxTreeNode) -> RenderableType:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
        head, *body = [row for part in node.children for row in part.children]
        for cell in head.children:
            aligned = str(cell.attrs.get("style", "")).removeprefix("text-align:")
            table.add_column(self._inline(cell), justify=_JUSTIFY.get(aligned, "left"))
        for row in body:
            table.add_row(*(self._inline(cell) for cell in row.children))
        return table

    def _code(self, piece: Code, overflow: OverflowMethod = "fold") -> RenderableType:
        """Code between its own fences, so that a copy of it is Markdown again."""
        from rich.console import Group
        from rich.text import Text

        lines = visible(piece.source.removesuffix("\n")).split("\n")
        opening = [lines.pop(0)] if piece.opens else []
        closing = [lines.pop()] if piece.closes else []
        rows = [
            *(Text(fence, style="dim") for fence in opening),
            *highlight(piece.context, lines, piece.language),
            *(Text(fence, style="dim") for fence in closing),
        ]
        for row in rows:
            row.overflow, row.no_wrap = overflow, overflow == "ignore"
        return Group(*rows)

    def _inline(self, node: SyntaxTreeNode, style: str = "") -> Text:
        from rich.text import Text

        text = Text(style=style, overflow="fold")
        _append(text, node, "")
        return text


_STYLES = {"em": " italic", "strong": " bold", "s": " strike", "link": " underline"}


def _append(text: Text, node: SyntaxTreeNode, style: str) -> None:
    """Add what stands in `node` to `text`; a line break stays one, as the model wrote it."""
    for child in node.children:
        if child.type in ("softbreak", "hardbreak"):
            text.append("\n")
        elif child.type == "code_inline":
            text.append(visible(child.content), f"{style} bold magenta")
        elif child.children:
            start = len(text)
            _append(text, child, style + _STYLES.get(child.type, ""))
            url = visible(str(child.attrs.get("href", "")))
            if url not in ("", text.plain[start:]):  # a label must not hide where it leads
                text.append(f" ({url})", f"{style} dim")
        else:
            text.append(visible(child.content), style)


# Pygments' kinds of words. Of 16 colours only red, magenta and green can be read on black and on
# white in the palettes of the usual terminals (a contrast of 2 or more); yellow, cyan and white
# vanish on white, blue and grey on black.
_CODE = {
    ("Comment",): "italic dim",
    ("Keyword",): "magenta",
    ("Operator", "Word"): "magenta",
    ("Name", "Function"): "bold",
    ("Name", "Class"): "bold",
    ("Name", "Decorator"): "magenta",
    ("Name", "Tag"): "magenta",
    ("Name", "Variable"): "red",
    ("Literal", "String"): "green",
    ("Generic", "Deleted"): "red",
    ("Generic", "Inserted"): "green",
    ("Generic", "Heading"): "bold",
    ("Generic", "Subheading"): "bold",
    ("Generic", "Prompt"): "bold",
    ("Generic", "Error"): "red",
    ("Error",): "underline",
}


def highlight(context: str, lines: list[str], language: str) -> list[Text]:
    """`lines` of code in colours, given the code before them."""
    from rich.style import Style
    from rich.syntax import ANSISyntaxTheme, Syntax

    if not lines:
        return []
    theme = ANSISyntaxTheme({kind: Style.parse(style) for kind, style in _CODE.items()})
    syntax = Syntax("", language or "text", theme=theme)
    known = context.count("\n")
    code = syntax.highlight(context + "\n".join(lines)).split("\n", allow_blank=True)
    return list(code[known : known + len(lines)])


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Something drawn behind a prefix, such as a bullet; `after` stands before further rows."""

    inner: Any
    first: str
    after: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        width = max(options.max_width - cells(self.first), 1)
        prefix = self.first
        inner = console.render_lines(self.inner, options.update(width=width), pad=False)
        for line in inner or [[]]:
            yield Segment(prefix)
            yield from line
            yield Segment.line()
            prefix = self.first if self.after is None else self.after
