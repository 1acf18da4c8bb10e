"""Templates are untrusted programs: those that need too much time or memory, or access internals, are refused."""

import time

import pytest

from components.tokenizer import sandbox
from components.tokenizer.codec import TokenizerError
from components.tokenizer.template import DEFAULT_TEMPLATE, ChatTemplate

TOKENS = {"bos_token": "<bos>"}
ASK = [{"role": "user", "content": "x"}]
END = "{% for m in messages %}{{ m.content }}{% endfor %}"
# ruff: noqa: E501  (a template is one line)
BOMBS = {
    "a giant loop": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "loops in loops over text": "{% set a = 'x' * 9999 %}{% for i in a %}{% for j in a %}{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop within itself": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a long text": "{{ 'x' * 10**10 }}",
    "a long list": "{{ [0] * 10**10 }}",
    "a text doubled by ~": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a text doubled by +": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list doubled": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a huge power": "{{ 10 ** (10**10) }}",
    "a power of powers": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x ** n.x %}{% endfor %}",
    "a number squared often": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide format method": "{{ '{:>9999999999}'.format(1) }}",
    "a wide justification": "{{ 'x'.ljust(10**10) }}",
    "a wide filling": "{{ 'x'.zfill(10**10) }}",
    "wide tabs": "{{ '\\t'.expandtabs(10**10) }}",
    "many bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "a wide center": "{{ 'x' | center(10**10) }}",
    "a wide indent": "{{ 'x\\ny' | indent(10**10) }}",
    "a wide indent of JSON": "{{ {'a': 1} | tojson(indent=10**10) }}",
    "a replacement that grows": "{% set a = 'x' * 99999 %}{{ a | replace('x', a) }}",
    "a replacement method that grows": "{% set a = 'x' * 99999 %}{{ a.replace('x', a) }}",
    "a join that grows": "{% set a = 'x' * 99999 %}{{ a | join(a) }}",
    "a join method that grows": "{% set a = 'x' * 99999 %}{{ a.join(a) }}",
    "a wide indent of JSON by its place": "{{ {'a': 1} | tojson(False, 10**10) }}",
    "wide separators of JSON": "{{ ([1] * 99999) | tojson(separators=('x' * 99999, ':')) }}",
    "JSON of one text over and over": "{% set a = 'x' * 99999 %}{{ ([a] * 99999) | tojson }}",
    "a list of one text over and over": "{% set a = 'x' * 99999 %}{{ [a] * 99999 }}",
    "a list of one text, joined": "{% set a = 'x' * 99999 %}{{ '' ~ [a] * 99999 }}",
    "a list of one text, as a string": "{% set a = 'x' * 99999 %}{{ ([a] * 99999) | string }}",
    "lists of lists of lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x }}",
    "JSON of JSON of JSON": "{{ '\"' " + "| tojson " * 60 + "}}",
    "a long output": "{% set a = 'x' * 99999 %}{% for i in range(9999) %}{{ a }}{% endfor %}",
    "filler text": "{{ lipsum(10**6) }}",
    "a batch": "{{ [1] | batch(10**9, 'x') | list }}",
    "Python's insides": "{{ ''.__class__.__mro__ }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "a subclass of object": "{{ messages.__class__.__base__.__subclasses__() }}",
    "an attribute by filter": "{{ '' | attr('__class__') }}",
    "the context": "{{ self._TemplateReference__context }}",
    "changed messages": "{{ messages.append(1) }}",
    "an included file": "{% include '/etc/passwd' %}",
    "an imported file": "{% import '/etc/passwd' as x %}{{ x }}",
    "an extended file": "{% extends '/etc/passwd' %}",
    "a hundred nested loops": "{% for i in messages %}" * 100 + "{% endfor %}" * 100,
    "brackets without end": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a number without end": "{{ " + "9" * 50_000 + " }}",
    "a source without end": "x" * 2_000_000,
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_a_template_that_needs_too_much_is_refused_at_once(source):
    began = time.process_time()  # of this process only, independent of other load
    with pytest.raises(TokenizerError, match="the chat template"):
        ChatTemplate(source + END, TOKENS).segments(ASK, add_generation_prompt=False)
    assert time.process_time() - began < 5


USUAL = """{%- set ns = namespace(found=false) -%}
{%- macro header(role) -%}<|{{ role }}|>{%- endmacro -%}
{{- bos_token }}
{%- for message in messages -%}
{%- if not loop.first and loop.index0 > 99 -%}{%- break -%}{%- endif -%}
{{- header(message['role'] | lower | trim) ~ '\\n' -}}
{%- if message.role == 'system' or message.content is string -%}{{ message.content }}{%- endif -%}
{{- '<|end|>' if loop.last else '<|' + 'end' + '|>' -}}
{%- set ns.found = true -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.found -%}{{ ['<|', 'assistant'] | join }}{{ '|>x'[:-1] }}{%- endif -%}"""


def test_what_templates_usually_do_is_rendered():
    segments = ChatTemplate(USUAL, TOKENS).segments(ASK, add_generation_prompt=True)
    assert "".join(segment.text for segment in segments) == "<bos><|user|>\nx<|end|><|assistant|>"


def test_a_long_dialogue_is_within_the_bounds():
    turns = [{"role": ("user", "assistant")[n % 2], "content": "word " * 4000} for n in range(1000)]
    segments = ChatTemplate(DEFAULT_TEMPLATE, TOKENS).segments(turns, add_generation_prompt=False)
    assert sum(len(segment.text) for segment in segments if segment.role) == 20_000_000 > sandbox.MAX_SIZE


def test_steps_are_counted_separately_for_each_rendering():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}" + END, TOKENS)
    for _ in range(3):
        template.segments(ASK, add_generation_prompt=False)
