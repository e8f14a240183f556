"""Chat templates in the manner of well-known model families, written for these tests, and the tokens that they use."""

FAMILIES: dict[str, str] = {
    # thoughts are kept only behind the last question; the last answer always has a thought, if an empty one
    "thoughts-of-the-last-answer": (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% if tools %}{{ '<b>system\\n' }}{% for t in tools %}{{ t | tojson }}{{ '\\n' }}{% endfor %}{{ '<e>\\n' }}{% endif %}"
        "{% for m in messages %}{{ '<b>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}"
        "{% set thought = m.reasoning_content or '' %}{% set text = m.content %}"
        "{% if '</think>' in text %}"
        "{% set thought = text.split('</think>')[0].split('<think>')[-1] %}{% set text = text.split('</think>')[-1] %}"
        "{% endif %}"
        "{% if loop.index0 > ns.last %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}"
        "{{ text.lstrip('\\n') }}"
        "{% for c in m.tool_calls or [] %}{{ '<call>' + (c.function | tojson) + '</call>' }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<e>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<b>assistant\\n' }}{% endif %}"
    ),
    # one more token stands behind the whole conversation
    "token-behind-the-conversation": (
        "{% for m in messages %}{{ '<b>' + m.role + '\\n' + m.content + '<e>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<b>assistant\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    # thoughts are thrown away everywhere, and the prompt opens one
    "thoughts-thrown-away": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<a>' + m.content.split('</think>')[-1] + eos_token }}{% elif m.role == 'user' %}{{ '<u>' + m.content }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<a><think>\\n' }}{% endif %}"
    ),
    # no token ends an answer but the one that begins the next question; an empty thought where there is none
    "ended-by-the-next-turn": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% set thought, text = '', m.content %}"
        "{% if '</think>' in m.content %}{% set thought = m.content.split('</think>')[0].split('<think>')[-1] %}"
        "{% set text = m.content.split('</think>')[-1] %}{% endif %}"
        "{{ '<a>\\n<think>' + thought.strip() + '</think>\\n' + text.strip() }}"
        "{% elif m.role == 'user' %}{{ '<u>\\n' + m.content }}{% else %}{{ '<s>\\n' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
    ),
    # channels: a thought is a message of its own, the last answer ends with another token than earlier ones
    "channels": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if m.thinking and loop.last %}{{ '<b>assistant<c>analysis<m>' + m.thinking + '<e>' }}{% endif %}"
        "{{ '<b>assistant<c>final<m>' + m.content + ('<r>' if loop.last else '<e>') }}"
        "{% else %}{{ '<b>' + m.role + '<m>' + m.content + '<e>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<b>assistant' }}{% endif %}"
    ),
    # brackets: the blank before an answer belongs to it, white space is trimmed, roles must alternate
    "brackets": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('there is no place for a system turn') }}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[Q] ' + m.content | trim + ' [/Q]' }}"
        "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # the prompt opens an empty thought, which rows with a thought do not have; the date is written
    "empty-thought-in-the-prompt": (
        "{{ '<b>system\\nToday is ' + strftime_now('%d %B %Y') + '<e>\\n' }}"
        "{% for m in messages %}{{ '<b>' + m.role + '\\n' }}{% if m.role == 'assistant' and '</think>' not in m.content %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<e>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<b>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    ),
    # two tokens end an answer
    "two-end-tokens": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<b><a><r>' + m.content + '<m><e>' }}"
        "{% else %}{{ '<b><u>' + m.content + '<e>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<b><a><r>' }}{% endif %}"
    ),
}  # fmt: skip
TOKENS = ("<b>", "<e>", "<a>", "<u>", "<s>", "<c>", "<m>", "<r>", "<bos>", "<eos>")
ENDS = {
    "thoughts-thrown-away": "<eos>",
    "brackets": " <eos>",
    "channels": "<r>",
    "ended-by-the-next-turn": "",
    "two-end-tokens": "<m><e>",
}
"""What ends the last answer, where it is not `<e>`."""
