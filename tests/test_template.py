"""The chat template: what the models' makers meant, whatever the file they came in wants."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwqcli.errors import BadFile, QwqError, UsageError
from qwqcli.messages import Message
from qwqcli.template import DEFAULT, MAX_SOURCE, ChatTemplate, starts_in_thought

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "Hi")
TURNS = [USER, Message("assistant", "Hello", "Let me greet."), Message("user", "Bye")]

# The constructs of known models' templates, in our own words.
QWQ = r"""
{%- if tools %}{{- '<|im_start|>system\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" and not message.tool_calls %}
        {%- set content = message.content %}
        {%- if not loop.last %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" and messages[loop.index0 - 1].role != "tool" %}
        {{- '<|im_start|>user' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>\n' }}
    {%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}
{%- endif %}
"""

OLD_QWQ = QWQ.replace("{%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}", "")

QWEN3 = r"""
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
           and not message.content.startswith('<tool_response>') %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- generation %}
            {{- '<|im_start|>assistant\n' + content.strip('\n') + '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = r"""
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""

MISTRAL = r"""
{%- macro turn(text, last=false) %}[INST] {{ text }}[/INST]{% if last %}!{% endif %}{%- endmacro %}
{%- set users = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages | rejectattr("role", "equalto", "system") | list %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{- turn(message.content, message == users[-1]) }}
    {%- else %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}
"""

GEMMA = r"""{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}
"""

DEEPSEEK = r"""
{%- set ns = namespace(is_first=true, system='') -%}
{%- for message in messages -%}{%- if message['role'] == 'system' -%}
{%- set ns.system = message['content'] -%}{%- endif -%}{%- endfor -%}
{{- bos_token -}}{{- ns.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '<|User|>' + message['content'] -}}{%- endif -%}
{%- if message['role'] == 'assistant' and message['content'] is not none -%}
{%- set content = message['content'] -%}
{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}
{{- '<|Assistant|>' + content + '<|end|>' -}}{%- endif -%}
{%- endfor -%}{{- '<|Assistant|><think>\n' -}}
"""

PHI = r"""{% for message in messages %}{% if message['role'] not in ['user', 'assistant'] %}
{% continue %}{% endif %}{% if message['content'] %}
{{ '<|%s|>'.replace('%s', message['role'] | upper) ~ message.items() | list | length -}}
{% for key, value in message.items() %}{{ key | lower }}={{ [value, 1] | join(',') }};
{%- endfor %}{% endif %}{% endfor %}
{{ {'b': 1, 'a': '<é>'} | dictsort | tojson }}{{ messages | map(attribute='role') | join(' ') }}
"""

# what the row is for, the template, the conversation, the prompt
RENDERED = [
    ("QwQ opens the thought", QWQ, [USER], "<|im_start|>user\nHi<|im_end|>\n" + "A<think>\n"),
    (
        "QwQ, several turns: no reasoning goes back",
        QWQ,
        [SYSTEM, *TURNS],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "AHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\nA<think>\n",
    ),
    (
        "Qwen3: namespaces, reversed loops, break, generation blocks",
        QWEN3,
        TURNS,
        "<|im_start|>user\nHi<|im_end|>\nAHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\nA",
    ),
    (
        "Mistral: macros, tests as filters, comparisons",
        MISTRAL,
        TURNS,
        "[INST] Hi[/INST]Hello</s>[INST] Bye[/INST]!",
    ),
    (
        "Gemma: block newlines are trimmed",
        GEMMA,
        TURNS,
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "DeepSeek: a namespace filled in a loop",
        DEEPSEEK,
        [SYSTEM, *TURNS],
        "<s>Be brief.<|User|>Hi<|Assistant|>Hello<|end|><|User|>Bye<|Assistant|><think>\n",
    ),
    (
        "Phi: continue, items, filters, plain JSON",
        PHI,
        [SYSTEM, USER],
        '<|USER|>2role=user,1;content=Hi,1;[["a", "<é>"], ["b", 1]]system user',
    ),
    (
        "the default is ChatML without a thought",
        DEFAULT,
        [SYSTEM, *TURNS],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "AHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\nA",
    ),
    (
        "the default keeps text about the tag",
        DEFAULT,
        [Message("assistant", "It ends with </think>."), USER],
        "AIt ends with </think>.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\nA",
    ),
    ("bare format fields", "{{ '<{}{x}>'.format(1, x='y') }}", [USER], "<1y>"),
    ("indent", "{{ 'a\nb' | indent(2) }}|{{ 'a' | indent(2, first=true) }}", [USER], "a\n  b|  a"),
    ("loop variables", "{% for m in 'ab' %}{{ loop.length, loop.last }}{% endfor %}", [USER],
     "(2, False)(2, True)"),
    ("unknown filters fail only where they run", "{% if tools %}{{ 1 | from_json }}{% endif %}ok",
     [USER], "ok"),
    ("call blocks", "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{% endcall %}",
     [USER], "[x]"),
    ("set blocks and filter blocks",
     "{% set x %}a{% endset %}{% filter upper %}{{ x }}{% endfilter %}", [USER], "A"),
    ("not defined, none, mapping",
     "{{ x is defined, none is none, messages[0] is mapping, tools is none }}", [USER],
     "(False, True, True, True)"),
    ("filters on nothing", "{{ tools | selectattr('a', 'equalto', 1) | list }}", [USER], "[]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "source", "messages", "expected"), RENDERED, ids=[row[0] for row in RENDERED]
)
def test_renders(why: str, source: str, messages: list[Message], expected: str) -> None:
    """Templates in the constructs of known models give the prompts that are meant."""
    prompt = ChatTemplate(source, bos="<s>", eos="</s>").render(messages)
    assert prompt.replace("<|im_start|>assistant\n", "A") == expected, why


def test_llama_asks_for_the_date() -> None:
    """`strftime_now` gives today's date, and a system turn is found by slicing."""
    prompt = ChatTemplate(LLAMA3 + "{{ date_string }}", bos="<s>").render([SYSTEM, USER])
    assert prompt.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
    assert time.strftime("%Y") in prompt


@pytest.mark.parametrize(
    ("why", "source", "ending"),
    [
        ("a template with the switch decides", QWQ, "A<think>\n</think>"),
        ("one that opens the thought all the same is closed", OLD_QWQ, "A<think>\n</think>\n\n"),
        ("DeepSeek opens it too", DEEPSEEK, "<|Assistant|><think>\n</think>\n\n"),
        ("Qwen3 writes an empty thought itself", QWEN3, "A<think>\n\n</think>\n\n"),
        ("a model without thoughts gets none", DEFAULT, "<|im_end|>\nA"),
    ],
)
def test_without_thinking(why: str, source: str, ending: str) -> None:
    """Without thinking no prompt ends inside a thought, whatever the template knows."""
    prompt = ChatTemplate(source).render([USER], thinking=False)
    assert prompt.replace("<|im_start|>assistant\n", "A").endswith(ending), why
    assert not starts_in_thought(prompt)


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("assistant\n<think>\n", True),
        ("assistant\n<think>", True),
        ("<think> \n\n", True),
        ("<think>\n</think>\n\n", False),
        ("Use <think>.", False),
        ("", False),
    ],
)
def test_starts_in_thought(prompt: str, inside: bool) -> None:
    """The end of the prompt says whether the reply begins in a thought."""
    assert starts_in_thought(prompt) is inside


def test_refusal_is_the_templates_own_sentence() -> None:
    """What a template says with raise_exception reaches the person, in one line."""
    with pytest.raises(UsageError) as caught:
        ChatTemplate(MISTRAL).render([USER, USER])
    assert caught.value.message == (
        "The model's chat template refuses this conversation: "
        "Only user and assistant roles are supported."
    )
    assert caught.value.hint


@pytest.mark.parametrize(
    ("why", "source"),
    [
        ("a syntax error", "{% if %}"),
        ("an open block", "{% for m in messages %}"),
        ("an unknown tag", "{% frobnicate %}"),
        ("an undefined variable's attribute", "{{ nobody.home }}"),
        ("a wrong type", "{{ 1 + 'a' }}"),
        ("division by zero", "{{ 1 // 0 }}"),
        ("no such item", "{{ messages[0].content.index('z') }}"),
        ("None is no list", "{% for tool in tools %}{% endfor %}"),
    ],
)
def test_broken_templates(why: str, source: str) -> None:
    """A template that cannot be used ends in BadFile, one short line, never in jinja2's error."""
    with pytest.raises(BadFile) as caught:
        ChatTemplate(source).render([USER])
    assert "\n" not in caught.value.message, why
    assert len(caught.value.message) < 400


CUT = st.integers(0, len(QWQ))


@given(CUT, CUT, st.sampled_from(["", "{{", "%}", "(" * 300, "'", "[", "{% for x in x %}", "\0"]))
@settings(max_examples=60, deadline=None)
def test_damaged_templates(start: int, end: int, junk: str) -> None:
    """However a template is damaged, the outcome is a prompt or an error of ours."""
    with contextlib.suppress(QwqError):
        ChatTemplate(QWQ[:start] + junk + QWQ[end:]).render(TURNS)


def test_long_conversation() -> None:
    """200 turns with 100 kB of text are nowhere near the allowance, and take milliseconds."""
    turns = [Message("user" if i % 2 == 0 else "assistant", "word " * 100) for i in range(200)]
    template = ChatTemplate(QWQ)
    template.render(turns)
    started = time.process_time()
    prompt = template.render(turns)
    assert time.process_time() - started < 0.1  # 3 ms on a laptop; the machine may be busy
    assert prompt.count("word") == 20_000


@pytest.mark.parametrize("char", ["x", "名", "😀"])
@pytest.mark.parametrize("source", [QWQ, QWEN3, LLAMA3, DEEPSEEK, DEFAULT])
def test_long_message(source: str, char: str) -> None:
    """A message of a million characters is not mistaken for an attack."""
    long = Message("assistant", char * 1_000_000)
    assert char * 1_000_000 in ChatTemplate(source).render([USER, long, USER])


def test_a_render_leaves_nothing_behind() -> None:
    """A refused render does not shorten the allowance of the next one."""
    template = ChatTemplate("{% for i in range(messages[0].content | int) %}x{% endfor %}")
    with pytest.raises(BadFile):
        template.render([Message("user", "100000")] * 2 + [Message("user", "x" * 10)])
    assert template.render([Message("user", "3")]) == "xxx"


GROW = "{% set n = namespace(x='a', l=['a']) %}{% for i in range(60) %}%s{% endfor %}{{ n.x }}"
DAG = (
    "{% set n = namespace(x=('a',)) %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}"
    "{% endfor %}"
)
LOOP = "{% for i in range(99999) %}%s{% endfor %}"
BIG = "{% set b = 'ab ' * 100000 %}"
NAMES = "".join(f"{{% if a{i} %}}{{% set b{i} = 1 %}}{{% endif %}}" for i in range(700))

# what the row tries, and the template that tries it
ATTACKS = [
    ("nested loops without output", LOOP.replace("%s", LOOP.replace("%s", LOOP))),
    ("a loop filter that lets nothing through",
     LOOP.replace("%s", LOOP.replace(") %}", ") if 0 %}"))),
    ("a long body in a loop", LOOP.replace("%s", "{% if i %}{% endif %}" * 3000)),
    ("a huge range", "{% for i in range(10000000000) %}{% endfor %}"),
    ("a search in a range", LOOP.replace("%s", "{{ 1.5 in range(99999) }}")),
    ("repetition of text", "{{ 'a' * 10000000000 }}"),
    ("repetition of a list", "{{ ([1] * 10000000000) | length }}"),
    ("repetition with the number first", "{{ 10000000000 * 'a' }}"),
    ("repetition of static text", LOOP.replace("%s", "a" * 10000)),
    ("a percent width", "{{ '%1000000000d' % 1 }}"),
    ("a percent filter", "{{ '%1000000000d' | format(1) }}"),
    ("a format width", "{{ '{:>9999999999}'.format(1) }}"),
    ("a format width by argument", "{{ '{:{}}'.format(1, 10000000000) }}"),
    ("format by filter map", "{{ ['{:>9999999999}'] | map('format', 1) | list }}"),
    ("format attributes", "{{ '{0.__class__.__mro__}'.format(1) }}"),
    ("format_map", "{{ '{x:>9999999999}'.format_map({'x': 1}) }}"),
    ("many format fields of a long text", BIG + "{{ ('{0}' * 100000).format(b) }}"),
    ("center", "{{ 'a' | center(1000000000) }}"),
    ("the method center", "{{ 'a'.center(1000000000) }}"),
    ("zfill", "{{ '1'.zfill(1000000000) }}"),
    ("expandtabs", "{{ '\t'.expandtabs(1000000000) }}"),
    ("indent by a number", "{{ ('a\n' * 100000) | indent(1000000000) }}"),
    ("indent by a text", BIG + "{{ ('a\n' * 100000) | indent(b) }}"),
    ("replace by a longer text", BIG + "{{ b | replace('a', b) }}"),
    ("replace of nothing", BIG + "{{ b.replace('', b) }}"),
    ("doubling text with +", GROW.replace("%s", "{% set n.x = n.x + n.x %}")),
    ("doubling text with ~", GROW.replace("%s", "{% set n.x = n.x ~ n.x %}")),
    ("doubling text with a set block",
     GROW.replace("%s", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}")),
    ("doubling text with replace", GROW.replace("%s", "{% set n.x = n.x | replace('a', 'aa') %}")),
    ("doubling text with join", GROW.replace("%s", "{% set n.x = [n.x, n.x] | join(n.x) %}")),
    ("doubling text with a method", GROW.replace("%s", "{% set n.x = n.x.join([n.x, n.x]) %}")),
    ("doubling text with format", GROW.replace("%s", "{% set n.x = '{0}{0}'.format(n.x) %}")),
    ("doubling a list", GROW.replace("%s", "{% set n.l = n.l + n.l %}")),
    ("doubling a list by *", GROW.replace("%s", "{% set n.l = n.l * 2 %}")),
    ("doubling by nesting, printed", DAG + "{{ n.x }}"),
    ("doubling by nesting, compared",
     DAG + "{{ n.x == n.x }}{% set y = (n.x, 1) %}{{ (n.x, 2) < y }}"),
    ("doubling by nesting, as a key", DAG + "{{ {n.x: 1} }}"),
    ("doubling by nesting, looked up", DAG + "{{ messages[0][n.x] }}"),
    ("doubling by nesting, got", DAG + "{{ messages[0].get(n.x) }}"),
    ("doubling by nesting, as pairs", DAG + "{{ dict([(n.x, 1)]) }}"),
    ("doubling by nesting, as JSON", DAG + "{{ n.x | tojson }}"),
    ("doubling by nesting, joined", DAG + "{{ [n.x] | join }}"),
    ("doubling by nesting, sorted", DAG + "{{ [[n.x, 1], [n.x, 0]] | sort }}"),
    ("doubling by nesting, unique", DAG + "{{ [n.x, n.x] | unique | list }}"),
    ("doubling by nesting, tested", DAG + "{{ [n.x] | select('eq', (n.x,)) | list }}"),
    ("doubling by nesting, in dict views", DAG + "{{ {1: n.x}.items() - {1: n.x}.items() }}"),
    ("doubling by nesting, in text", DAG + "{{ n.x | upper }}{{ '{}'.format(n.x) }}"),
    ("a namespace that holds itself",
     "{% set n = namespace() %}{% set n.n = [n, n] %}{{ n.n | tojson }}"),
    ("namespaces that print each other",
     GROW.replace("%s", "{% set n.x = [namespace(a=n.x), n.x] * 2 %}")),
    ("list of a long text's letters", BIG + LOOP.replace("%s", "{% set x = b | list %}")),
    ("words of a long text", BIG + "{{ ('名 ' * 2000000).split() | length }}"),
    ("searching a long text again and again", BIG + LOOP.replace("%s", "{{ 'c' in b }}")),
    ("comparing long texts again and again",
     BIG + "{% set c = b + '' %}" + LOOP.replace("%s", "{{ b == c }}")),
    ("finding by generator",
     BIG + "{% set c = b + '' %}" + LOOP.replace("%s", "{{ c in ([b] * 999) | map('string') }}")),
    ("slicing a long text again and again", BIG + LOOP.replace("%s", "{% set x = b[1:] %}")),
    ("sorting long texts", BIG + "{{ ([b, b + ''] * 9999) | sort | length }}"),
    ("the sum of lists", LOOP.replace("%s", "{{ ([[1]] * 9999) | sum(start=[]) }}")),
    ("a tower of powers", "{{ 10 ** 10 ** 10 }}"),
    ("large numbers by multiplication",
     "{% set n = namespace(x=9) %}" + LOOP.replace("%s", "{% set n.x = n.x * n.x %}")),
    ("a long number as text", "{{ ('9' * 5000000) | int }}{{ ('9' * 5000000) | float }}"),
    ("rounding", "{{ 1.5 | round(1000000000, 'ceil') }}"),
    ("a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    ("a macro that calls itself twice",
     "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}"),
    ("a call block that calls itself",
     "{% macro m() %}{% call m() %}{% endcall %}{% endmacro %}{{ m() }}"),
    ("a chain of generators",
     GROW.replace("60", "99999").replace("%s", "{% set n.l = n.l | map('string') %}")),
    ("a chain of undefined values",
     GROW.replace("60", "99999").replace("%s", "{% set n.l = [n.l].no %}")),
    ("a chain of namespaces",
     GROW.replace("60", "99999").replace("%s", "{% set n.l = namespace(a=n.l) %}")),
    ("a recursive loop", "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}"),
    ("include", "{% include '/etc/passwd' %}"),
    ("import", "{% from '/etc/passwd' import x %}"),
    ("extends and blocks", "{% block a %}{{ self.a() }}{% endblock %}"),
    ("lipsum", "{{ lipsum(n=1000000000) }}"),
    ("cycler and joiner", "{{ cycler('a').next() }}{{ joiner() }}"),
    ("pprint", DAG + "{{ n.x | pprint }}"),
    ("batch with filling", "{{ [1] | batch(1000000000, 'x') | list }}"),
    ("slice with filling", "{{ [1] | slice(1000000000, 'x') | list }}"),
    ("wordwrap", BIG + "{{ b | wordwrap(1) }}"),
    ("urlize", BIG + "{{ b | urlize }}"),
    ("the class of a value", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("the class by item", "{{ ''['__class__']['__mro__'] }}"),
    ("the class by filter", "{{ [1] | map(attribute='__class__') | list | first | string + 1 }}"),
    ("the class by attr", "{{ 1 | attr('__class__') }}"),
    ("the globals of a function", "{{ raise_exception.__globals__ }}"),
    ("the sandbox of a function", "{{ raise_exception.__self__.left }}"),
    ("the code of a macro", "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}"),
    ("the frame of a generator", "{{ ([1] | map('string')).gi_frame.f_globals }}"),
    ("the meter as a filter", "{{ [1] | map('step', -999999999) | list }}"),
    ("a long path of attributes", "{{ [messages] | map(attribute='0.' * 100000 + '0') | list }}"),
    ("JSON with a wide indent", "{{ [[1]] | tojson(indent=1000000000) }}"),
    ("JSON with long separators", BIG + "{{ ([1] * 10000) | tojson(separators=(b, b)) }}"),
    ("a date with a width", "{{ strftime_now('%1000000000Y') }}"),
    ("a long date", "{{ strftime_now('%c' * 1000000) }}"),
    ("spread arguments", BIG + "{{ namespace(*b) }}"),
    ("spread arguments of a filter", "{{ 1 | default(*range(99999)) }}"),
    ("autoescape", "{% autoescape true %}{{ '<' * 9999999 }}{% endautoescape %}"),
    ("changing the messages", "{{ messages.append(1) }}{{ messages[0].update(a=1) }}"),
    ("a large source", "{{ 1 }}" * (MAX_SOURCE // 4)),
    ("very many nodes", "{{ x }}" * 15000),
    ("a deep expression", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"),
    ("a deep list", "{{ " + "[" * 5000 + "]" * 5000 + " }}"),
    ("a long chain of +", "{{ 1" + " + 1" * 9000 + " }}"),
    ("a long chain of attributes", "{{ x" + ".a" * 9000 + " }}"),
    ("a long chain of not", "{{ " + "not " * 9000 + "1 }}"),
    ("a long chain of ~", BIG + "{{ b" + " ~ b" * 2000 + " }}"),
    ("deep blocks", "{% if 1 %}" * 500 + "{% endif %}" * 500),
    ("deep loops", "{% for i in [1] %}" * 30 + "{% endfor %}" * 30),
    ("a long elif chain", "{% if 0 %}" + "{% elif 0 %}" * 4000 + "{% endif %}{{ 1 + 'a' }}"),
    ("many names in many branches", NAMES + "{{ 1 + 'a' }}"),
    ("half a surrogate pair", r"{{ '\ud800' }}"),
    ("nested macros with many names",
     "{% macro m() %}" * 30 + NAMES + "{% endmacro %}" * 30 + "{{ 1 + 'a' }}"),
    ("a long number", "{{ " + "9" * 100000 + " }}"),
    ("an open string", "{{ '" + "\\" * 100000),
    ("an open comment", "{#" * 50000),
]  # fmt: skip

CHILD = """
import json, resource, sys, time
from qwqcli.errors import QwqError
from qwqcli.messages import Message
from qwqcli.template import ChatTemplate

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
attacks = json.load(sys.stdin)
before = peak()
for attack in attacks:
    started = time.process_time()
    outcome = "rendered"
    try:
        ChatTemplate(attack).render([Message("user", "Hi")])
    except QwqError as error:
        outcome = type(error).__name__
    report = [outcome, time.process_time() - started]
    print(json.dumps(report), flush=True)
print(json.dumps([before, peak()]))
"""

# These render, and do no harm.
HARMLESS = {
    "a long number as text",  # jinja2 makes 0 and inf of it
    "the globals of a function",  # undefined, as far as the template can see
}


def test_attacks() -> None:
    """Every attack ends soon, in an error of ours, and the process stays small."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([source for _, source in ATTACKS]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = run.stdout.splitlines()
    reports = dict(zip([why for why, _ in ATTACKS], map(json.loads, lines), strict=False))
    assert len(lines) == len(ATTACKS) + 1, (ATTACKS[len(lines)][0], run.stderr[-2000:])
    slow = {why: seconds for why, (_, seconds) in reports.items() if seconds > 1}
    assert slow == {}
    passed = {why for why, (outcome, _) in reports.items() if outcome == "rendered"}
    assert passed <= HARMLESS
    before, after = json.loads(lines[-1])
    unit = 1 if sys.platform == "darwin" else 1024
    assert (after - before) * unit < 64 << 20
