"""Turn a conversation into the prompt of a model, with the chat template from the model's file.

Contract: `ChatTemplate(source).render(messages)` is what the model's makers meant, for templates
written for transformers. Earlier assistant turns go in as their answer, without the thought.

The source is untrusted. It runs in jinja2's immutable sandbox, narrowed to the constructs that
chat templates are made of, and every render has one allowance in bytes: each evaluated node and
each byte read or made is charged to it before the work is done, so one number bounds both time
and memory, the same on every machine. Rendering one conversation at a time is assumed.

Non-goals: tools, pictures, template inheritance, `%` formatting and powers.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from datetime import datetime
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, Undefined, filters, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwqcli.errors import BadFile, UsageError
from qwqcli.messages import Message

# QwQ's form without its forced <think>, which only a model trained for it understands. Content is
# not searched for </think> as QwQ's template does: our turns hold no thought, so it could only
# lose text that talks about the tag.
DEFAULT = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# The largest of 70 templates of known models has 17 kB and 1,300 nodes; compiling is not metered,
# so these also bound its time (0.5 s at worst) and its recursion.
MAX_SOURCE = 128 << 10
MAX_NODES = 4_000
MAX_DEPTH = 80  # the deepest known template has 40 levels

# QwQ's own template spends 20 kB a turn and 7 to 24 bytes per character; 250,000
# evaluated nodes take about 0.2 s, and all values together stay below 24 MiB.
ALLOWANCE = 24 << 20
ALLOWANCE_PER_INPUT_BYTE = 128
MESSAGE_BYTES = 4096  # a turn counts as at least this much input

NODE_BYTES = 100  # one evaluated node, or one small object that it makes
POINTER_BYTES = 8  # an item of a list
CHAR_BYTES = 4  # a string that is made may need the widest characters
REPR_GROWTH = 16  # str() of a list of '\\x80' beside one emoji
MAX_VALUE_DEPTH = 64  # of nested lists and dicts that are printed or compared
MAX_INT_BITS = 4096
MAX_FORMAT = 4096  # length of what str.format gets; checking it takes memory
MAX_OPTION = 128  # length of attribute names, separators and date formats

HINT = "Use another file of this model; its chat template is at fault"

_PLAIN_FORMAT = re.compile(r"(?:[^{}]|\{\w*\}|\{\{|\}\})*")
_PLAIN_DATE = re.compile(r"(?:[^%]|%-?[A-Za-z%])*")
_SPACES = [char for char in map(chr, range(0x3001)) if char.isspace()]


class ChatTemplate:
    """A compiled chat template. Raises BadFile if the source is none."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "") -> None:
        self._sandbox = _Sandbox()
        self._template = self._sandbox.compile_untrusted(source)
        self._tokens = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Message], *, thinking: bool = True) -> str:
        """The prompt up to where the reply begins. Raises UsageError, BadFile.

        `thinking=False` asks for a reply without a thought.
        """
        prompt = self._sandbox.render_untrusted(
            self._template,
            # A thought is never sent back: the model was trained without it in earlier turns.
            [{"role": message.role, "content": message.content} for message in messages],
            {**self._tokens, "enable_thinking": thinking},
        )
        if not thinking and starts_in_thought(prompt):
            # A template without the switch opens the thought all the same: close it, empty, in
            # the form in which the model has seen the end of a thought.
            prompt = prompt.rstrip() + "\n</think>\n\n"
        return prompt


def starts_in_thought(prompt: str) -> bool:
    """Whether the reply to `prompt` begins inside a thought."""
    return prompt.rstrip().endswith("<think>")


class _Refused(Exception):
    """The template called raise_exception: it cannot say this conversation."""


# What Python itself may raise while it runs an expression of the template.
_MISTAKES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template, and the meter of the render that is going on."""

    # `-` because views of dicts subtract as sets, which would hash whatever is in them
    intercepted_binops = frozenset("+-*%")

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _Generation],
            optimized=False,  # constants would be folded before any meter runs
            finalize=_finalize,
        )
        self.left = ALLOWANCE
        self.globals = {
            "dict": self.make_dict,
            "namespace": self.make_namespace,
            "raise_exception": self.refuse,
            "range": self.make_range,
            "strftime_now": self.strftime_now,
        }
        self.filters: dict[str, Any] = _filter_table(self)
        self.tests: dict[str, Any] = _test_table(self)

    # -- from source to prompt

    def compile_untrusted(self, source: str) -> Template:
        """Parse, check, meter and compile `source`."""
        if len(source) > MAX_SOURCE:
            raise _broken(f"it is longer than {MAX_SOURCE >> 10} KiB")
        try:
            with warnings.catch_warnings():
                # Python's remarks on the code that jinja2 makes are of no use to anybody here
                warnings.simplefilter("ignore")
                tree = self.parse(source)
                _check(tree)
                code = self.compile(_Meter(self).visit(tree))
            return Template.from_code(self, code, self.make_globals(None))
        except (SyntaxError, MemoryError, AssertionError, *_MISTAKES) as error:
            raise _broken(_sentence(error)) from error

    def render_untrusted(
        self, template: Template, messages: list[dict[str, str]], values: dict[str, Any]
    ) -> str:
        """Run `template` on an allowance that grows with the conversation."""
        size = sum(MESSAGE_BYTES + sys.getsizeof(message["content"]) for message in messages)
        self.left = ALLOWANCE + ALLOWANCE_PER_INPUT_BYTE * size
        known = {"add_generation_prompt": True, "tools": None, "documents": None}
        context = template.new_context({"messages": messages, **known, **values})
        try:
            prompt = self.concat(template.root_render_func(context))
            prompt.encode()  # half a surrogate pair would only fail later, in the tokenizer
            return prompt
        except _Refused as error:
            raise UsageError(
                f"The model's chat template refuses this conversation: {_sentence(error)}.",
                "Start a new conversation, or leave out the system prompt",
            ) from error
        except _MISTAKES as error:
            raise _broken(_sentence(error)) from error

    # -- the meter

    def charge(self, size: int) -> None:
        """Take `size` bytes off the allowance, before they are read or made."""
        self.left -= size
        if self.left < 0:
            raise _broken("it takes more time or memory than a chat template needs")

    def weigh(self, value: Any) -> int:
        """Charge for reading all of `value`, as often as it occurs in itself; its size."""
        if isinstance(value, str):
            self.charge(size := sys.getsizeof(value))
            return size
        before = self.left
        level = [value]
        for _ in range(MAX_VALUE_DEPTH):
            below: list[Any] = []
            for item in level:
                self.charge(NODE_BYTES + sys.getsizeof(item))
                if isinstance(item, (list, tuple, dict, range, KeysView, ItemsView, ValuesView)):
                    self.charge(NODE_BYTES * len(item))
                    below += _children(item)
            if not below:
                return before - self.left
            level = below
        raise SecurityError("a value is nested too deeply")

    def paid(self, value: Any) -> Any:
        """`value`, a copy that has just been made and is no larger than its original."""
        self.charge(sys.getsizeof(value))
        return value

    def text(self, value: Any) -> str:
        """`str(value)`, charged if it must be made."""
        if isinstance(value, str):
            return value
        self.charge(REPR_GROWTH * self.weigh(value))
        return str(value)

    def each(self, values: Any, weight: int = 1) -> Iterator[Any]:
        """Iterate, and charge for the `weight` nodes that are evaluated for each item."""
        for value in values:
            self.charge(NODE_BYTES * weight)
            yield value

    def step(self, weight: int) -> None:
        """Charge for the body of a macro."""
        self.charge(NODE_BYTES * weight)

    def operand(self, value: Any) -> Any:
        """A value that is about to be compared, to its depths."""
        self.weigh(value)
        return value

    def container(self, value: Any) -> Any:
        """A value in which something is about to be looked for."""
        if isinstance(value, (dict, KeysView, Undefined)):
            return value  # a look-up, not a search
        if not isinstance(value, (str, list, tuple, range, ItemsView, ValuesView)):
            value = list(self.each(value))  # a generator would be compared item by item, unmetered
        return self.operand(value)

    def key(self, value: Any) -> Any:
        """A key of a dict: hashing a tuple would hash all that is in it."""
        if isinstance(value, (str, int, float, Undefined)) or value is None:
            return value
        raise SecurityError(f"a {type(value).__name__} cannot be a key")

    # -- jinja2's own hooks

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            self.charge(_joined_size(left, right))
        elif operator == "*":
            self.charge(_product_size(left, right))
        elif not all(isinstance(value, (int, float, Undefined)) for value in (left, right)):
            raise SecurityError(f"{operator} is for numbers")
        return super().call_binop(context, operator, left, right)

    def concat_values(self, *values: Any) -> str:
        """The operator `~`."""
        return self.join(values, "")

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.key(argument))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        if isinstance(obj, LoopContext):
            return attr in LOOP_ATTRIBUTES
        return attr in METHODS.get(type(obj), ())

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is metered as the other methods are, in `method`."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        # jinja2 adds these for functions that take a context; none of ours does
        kwargs.pop("_loop_vars", None)
        kwargs.pop("_block_vars", None)
        if isinstance(obj, MethodType) and obj.__self__ is self:
            return obj(*args, **kwargs)
        self.charge(NODE_BYTES * (1 + len(args) + len(kwargs)))
        if isinstance(obj, (Macro, Undefined)):
            return super().call(context, obj, *args, **kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, BuiltinMethodType) and obj.__name__ in METHODS.get(type(owner), ()):
            return self.method(owner, obj.__name__, *args, **kwargs)
        raise SecurityError(f"a {type(obj).__name__} cannot be called")

    def method(self, owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of METHODS, the growth of its result charged first."""
        for argument in (*args, *kwargs.values()):
            self.weigh(argument)
        if name == "join":
            (values,) = args
            return self.join(values, owner)
        if name == "format":
            return self.format(owner, args, kwargs)
        if isinstance(owner, str):
            self.charge(CHAR_BYTES * _result_chars(owner, name, args))
        elif not isinstance(owner, dict):
            self.weigh(owner)
        return getattr(owner, name)(*args, **kwargs)

    def join(self, values: Any, separator: Any = "", attribute: Any = None) -> str:
        """Text of all `values`, as filter, as method of strings and for `~`."""
        if attribute is not None:
            key = self.key(attribute)
            values = [self.getitem(value, key) for value in self.each(values)]
        texts = [self.text(value) for value in self.each(values)]
        between = self.text(separator)
        width = _width(between, *texts)
        self.charge(width * (sum(map(len, texts)) + len(texts) * len(between)))
        return between.join(texts)

    def format(self, pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """`pattern.format(...)` with bare fields: widths and attributes are for attackers."""
        if len(pattern) > MAX_FORMAT or not _PLAIN_FORMAT.fullmatch(pattern):
            raise SecurityError("only bare {} fields can be formatted")
        texts = [self.text(value) for value in args]
        named = {name: self.text(value) for name, value in kwargs.items()}
        longest = max(map(len, [*texts, *named.values()]), default=0)
        self.charge(CHAR_BYTES * (len(pattern) + pattern.count("{") * longest))
        return pattern.format(*texts, **named)

    # -- what templates call

    def make_dict(self, mapping: Mapping[str, Any] | None = None, /, **values: Any) -> Any:
        """`dict(mapping, key=value)`: pairs are not needed, and could have keys of any depth."""
        if mapping is not None and not isinstance(mapping, dict):
            raise SecurityError("dict() takes a mapping")
        self.charge(NODE_BYTES * (len(mapping or ()) + len(values)))
        return {**(mapping or {}), **values}

    def make_namespace(self, mapping: Mapping[str, Any] | None = None, /, **values: Any) -> Any:
        return _Namespace(self.make_dict(mapping, **values))

    def make_range(self, *args: int) -> range:
        self.step(1)
        return safe_range(*args)

    def refuse(self, reason: Any = "") -> NoReturn:
        raise _Refused(self.text(reason))

    def strftime_now(self, pattern: str) -> str:
        self.step(1)
        if len(pattern) > MAX_OPTION or not _PLAIN_DATE.fullmatch(pattern):
            raise SecurityError("that date format is not for chat templates")
        return datetime.now().strftime(pattern)

    # -- filters

    def last(self, values: Any) -> Any:
        return filters.do_last(self, values)

    def first(self, values: Any) -> Any:
        return filters.do_first(self, values)

    def reverse(self, value: Any) -> Any:
        return self.paid(value[::-1] if isinstance(value, str) else list(self.each(value))[::-1])

    def to_list(self, value: Any) -> list[Any]:
        return list(self.each(value))

    def to_int(self, value: Any, default: int = 0, base: int = 10) -> int:
        self.weigh(value)
        return filters.do_int(value, default, base)

    def to_float(self, value: Any, default: float = 0.0) -> float:
        self.weigh(value)
        return filters.do_float(value, default)

    def indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        pad = width if isinstance(width, str) else " " * min(width, MAX_OPTION)
        text = self.method(self.text(value), "replace", "\n", "\n" + pad)
        if not blank:
            # as jinja2: a line without text gets no padding
            text = self.method(text, "replace", "\n" + pad + "\n", "\n\n")
        return self.join((pad, text)) if first else str(text)

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers defines it: plain JSON, nothing escaped for HTML."""
        if (indent or 0) > 8 or len("".join(separators or ())) > 8:
            raise SecurityError("that is too much space in JSON")
        # a character may become \\u0000, and an item may be indented MAX_VALUE_DEPTH times
        self.charge((3 * CHAR_BYTES + 2 * (indent or 0) * CHAR_BYTES) * self.weigh(value))
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )


class _Namespace(Namespace):
    """A namespace whose repr does not show what is in it: it could hold itself, many times."""

    def __repr__(self) -> str:
        return "<namespace>"


@pass_context  # a finalizer with a context is never run at compile time
def _finalize(context: Context, value: Any) -> str:
    """Charge for a piece of output."""
    sandbox = context.environment
    assert isinstance(sandbox, _Sandbox)
    text = sandbox.text(value)
    sandbox.charge(NODE_BYTES + CHAR_BYTES * len(text))
    return text


# -- what templates may do


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOOP_ATTRIBUTES = _words("index index0 revindex revindex0 first last length previtem nextitem")

METHODS: dict[type, frozenset[str]] = {
    str: _words(
        "capitalize count endswith find format index isalnum isalpha isdigit islower isnumeric"
        " isspace isupper join lower lstrip partition removeprefix removesuffix replace rfind"
        " rindex rpartition rsplit rstrip split splitlines startswith strip title upper"
    ),
    list: _words("count index"),
    tuple: _words("count index"),
    dict: _words("get items keys values"),
}

_NODES = _words(
    "Template Output TemplateData Const Name NSRef Getattr Getitem Slice Call Keyword Filter Test"
    " Compare Operand Concat And Or Not Neg Pos Add Sub Mul Div FloorDiv Mod CondExpr If For Break"
    " Continue Assign AssignBlock Macro CallBlock FilterBlock With List Tuple Dict Pair"
)


def _filter_table(sandbox: _Sandbox) -> dict[str, Any]:
    """The filters that chat templates use; an unknown one fails when it is reached."""
    table: dict[str, Any] = {
        "abs": abs,
        "count": len,
        "d": filters.do_default,
        "default": filters.do_default,
        "first": sandbox.first,
        "float": sandbox.to_float,
        "indent": sandbox.indent,
        "int": sandbox.to_int,
        "items": filters.do_items,
        "join": sandbox.join,
        "last": sandbox.last,
        "length": len,
        "list": sandbox.to_list,
        "reverse": sandbox.reverse,
        "safe": sandbox.text,
        "string": sandbox.text,
        "tojson": sandbox.to_json,
        "trim": _text_filter(sandbox, "strip"),
    }
    for name in ("capitalize", "lower", "replace", "title", "upper"):
        table[name] = _text_filter(sandbox, name)
    for name in ("map", "reject", "rejectattr", "select", "selectattr"):
        table[name] = _lazy_filter(sandbox, filters.FILTERS[name])
    for name in ("dictsort", "max", "min", "sort", "unique"):
        table[name] = _ordering_filter(sandbox, filters.FILTERS[name])
    return table


def _text_filter(sandbox: _Sandbox, name: str) -> Any:
    """A filter that is a method of strings."""

    def apply(value: Any, *args: Any) -> Any:
        return sandbox.method(sandbox.text(value), name, *args)

    return apply


def _lazy_filter(sandbox: _Sandbox, function: Any) -> Any:
    """A filter that yields item by item what another filter or test makes of it."""

    @pass_context
    def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_name(args[0] if args else kwargs.get("attribute"))
        if isinstance(value, GeneratorType):
            # a long chain of generators would be freed by recursion, on the C stack
            value = list(sandbox.each(value))
        return function(context, sandbox.each(value or ()), *args, **kwargs)

    return apply


def _ordering_filter(sandbox: _Sandbox, function: Any) -> Any:
    """A filter that compares items with each other, many times, in lower case."""
    needs_environment = hasattr(function, "jinja_pass_arg")

    def apply(value: Any, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            _check_name(argument)
        values = value if isinstance(value, dict) else list(sandbox.each(value))
        sandbox.charge(3 * CHAR_BYTES * sandbox.weigh(values) * len(values).bit_length())
        return function(*([sandbox] if needs_environment else []), values, *args, **kwargs)

    return apply


def _check_name(name: Any) -> None:
    """An attribute 'a.b.c' is followed step by step for each item: it must not be long."""
    if isinstance(name, str) and len(name) > MAX_OPTION:
        raise SecurityError("a name is too long")


def _test_table(sandbox: _Sandbox) -> dict[str, Any]:
    """jinja2's tests, without those that look at jinja2 itself or make text of a value."""
    plain = (
        "boolean callable defined divisibleby even false float integer iterable mapping none"
        " number odd sameas sequence string true undefined"
    )
    comparing = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le"
    table: dict[str, Any] = {name: TESTS[name] for name in plain.split()}
    for name in comparing.split():
        table[name] = _comparing_test(sandbox, TESTS[name])
    table["in"] = lambda value, values: sandbox.operand(value) in sandbox.container(values)
    return table


def _comparing_test(sandbox: _Sandbox, function: Any) -> Any:
    def apply(value: Any, other: Any) -> Any:
        return function(sandbox.operand(value), sandbox.operand(other))

    return apply


# -- sizes of results, known before they are made


def _width(*texts: str) -> int:
    """Bytes that each character of `texts`, once joined, may need."""
    return 1 if all(map(str.isascii, texts)) else CHAR_BYTES


def _joined_size(left: Any, right: Any) -> int:
    if isinstance(left, str) and isinstance(right, str):
        return NODE_BYTES + _width(left, right) * (len(left) + len(right))
    return sys.getsizeof(left) + sys.getsizeof(right)


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_INT_BITS:
            raise SecurityError("a number is too large")
        return NODE_BYTES
    values, times = (right, left) if isinstance(left, int) else (left, right)
    if isinstance(times, int) and isinstance(values, (str, list, tuple)):
        width = _width(values) if isinstance(values, str) else POINTER_BYTES
        return NODE_BYTES + width * len(values) * max(times, 0)
    return NODE_BYTES  # floats, or a mistake that Python reports


def _result_chars(owner: str, name: str, args: tuple[Any, ...]) -> int:
    """The most characters that a method of `owner` takes, its result and working space."""
    given = [argument for argument in args if isinstance(argument, str)]
    if name in ("capitalize", "lower", "title", "upper"):
        return NODE_BYTES + 3 * len(owner)  # as 'ß' becomes 'SS'
    if name in ("rsplit", "split", "splitlines"):
        pieces = owner.count(given[0]) if given else sum(map(owner.count, _SPACES))
        return len(owner) + NODE_BYTES * (pieces + 1)
    if name == "replace" and len(given) == 2:
        return NODE_BYTES + len(owner) + owner.count(given[0]) * len(given[1])
    return NODE_BYTES + len(owner)


def _children(item: Any) -> list[Any]:
    if isinstance(item, range):
        return []
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return list(item)


# -- the tree of a template


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; for a prompt it is its content."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check(tree: nodes.Template) -> None:
    """Refuse constructs that chat templates are not made of, and sizes they do not have."""
    level: list[nodes.Node] = [tree]
    count = 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        if not level or count > MAX_NODES:
            break
        for node in level:
            _check_node(node)
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        raise SecurityError("it is larger or deeper than chat templates are")


def _check_node(node: nodes.Node) -> None:
    name = type(node).__name__
    spread = getattr(node, "dyn_args", None) or getattr(node, "dyn_kwargs", None)
    recursive = isinstance(node, nodes.For) and node.recursive
    if name not in _NODES or spread or recursive:
        what = "spread arguments" if spread else "a recursive loop" if recursive else name.lower()
        raise SecurityError(f"{what} is not for chat templates (line {node.lineno or 1})")


class _Meter(NodeTransformer):
    """Lead everything that repeats, grows or searches through the sandbox.

    `environment.each` and so on are reached by a node that templates cannot write.
    """

    def __init__(self, sandbox: _Sandbox) -> None:
        self._sandbox = sandbox

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it goes through _finalize

    def visit_For(self, node: nodes.For) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        node.iter = _hook("each", node.iter, nodes.Const(weight))
        return node

    def _visit_body(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_hook("step", nodes.Const(weight))))
        return node

    visit_Macro = _visit_body
    visit_CallBlock = _visit_body

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _hook("concat_values", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _hook("paid", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _hook("key", node.key)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        equality = all(operand.op in ("eq", "ne") for operand in node.ops)
        if len(sides) == 2 and equality and any(isinstance(side, nodes.Const) for side in sides):
            return node  # a constant is small, and is unequal to anything larger at once
        node.expr = _hook("operand", node.expr)
        for operand in node.ops:
            search = operand.op in ("in", "notin")
            operand.expr = _hook("container" if search else "operand", operand.expr)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        self._know(node.name, self._sandbox.filters)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        self._know(node.name, self._sandbox.tests)
        return node

    def _know(self, name: str, table: dict[str, Any]) -> None:
        # many templates have a branch for tools with filters of one program: it is never reached
        def unknown(*args: Any, **kwargs: Any) -> NoReturn:
            raise SecurityError(f"the filter or test '{name}' is not known")

        table.setdefault(name, unknown)


def _hook(name: str, *args: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _weight(node: nodes.Node) -> int:
    return sum(1 for _ in node.find_all(nodes.Node))


# -- errors


def _broken(reason: str) -> BadFile:
    return BadFile(f"The model's chat template cannot be used: {reason}.", HINT)


def _sentence(error: BaseException) -> str:
    """The reason that an error gives, as a clause of one line."""
    if isinstance(error, (RecursionError, MemoryError)):
        return "it is nested too deeply"
    text = " ".join(str(error)[:300].split()).rstrip(".")
    if isinstance(error, SyntaxError):
        return "it is nested too deeply or is not a template"
    line = getattr(error, "lineno", None)
    return f"{text or type(error).__name__}" + (f" (line {line})" if line else "")
