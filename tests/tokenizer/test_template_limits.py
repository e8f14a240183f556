"""Templates that would hang, take gigabytes, or raise any exception end with a TemplateError."""

import resource
import time

import pytest

from fledge.errors import FledgeError
from fledge.tokenizer import ChatTemplate, Message

DOUBLING = "{% set ns = namespace(s='xxxxxxxxxx') %}{% for i in range(60) %}STEP{% endfor %}"
HOSTILE = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ 'x' * 10**10 }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 10 ** (10 ** 10) }}",
    DOUBLING.replace("STEP", "{% set ns.s = ns.s ~ ns.s %}"),
    DOUBLING.replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
    DOUBLING.replace("STEP", "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"),
    DOUBLING.replace("STEP", "{% set ns.s = [ns.s, ns.s] %}") + "{{ ns.s | tojson }}",
    DOUBLING.replace("STEP", "{% set ns.s = dict(a=ns.s, b=ns.s) %}") + "{{ ns.s }}",
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "{{ ('y' * 100000).join('x' * 100000) }}",
    "{{ ('x' * 100000) | list | join('y' * 100000) }}",
    "{{ ('x\n' * 100000) | indent(99999) }}",
    "{{ ('a ' * 100000) | wordwrap(1, wrapstring='y' * 100000) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ nothing.x.y }}",
    "{{ 1 / 0 }}",
    "{% include 'x' %}",
    "{{ strftime_now(5) }}",
    "{{ namespace(_x=1) }}",
    "{{ messages[0].content() }}",
]
INVALID = [
    "{% for %}",
    "{{ 'a' | nofilter }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
]


@pytest.mark.parametrize("jinja", [*HOSTILE, *INVALID], ids=lambda jinja: jinja[:40])
def test_a_hostile_template_ends_with_an_error_in_little_time_and_memory(jinja: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FledgeError):
        ChatTemplate("own", jinja, ("<e>",)).rendering([Message("user", "a"), Message("assistant", "b")])
    assert time.process_time() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10  # KiB
