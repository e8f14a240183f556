"""Cleaning repairs faults, names each step that changed something, and leaves everything else; languages are detected."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.cleaning import cleaning, markup, mojibake
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item, clean_text
from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.data.cleaning.markup import SUSPECTED_HTML
from fledge.data.cleaning.mojibake import SUSPECTED_MOJIBAKE
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, PreferencePair
from fledge.errors import FledgeError
from fledge.recipe.schema import CleanConfig
from fledge.tokenizer import Message

ALL = CleaningSteps()

FRAGMENTS = [
    "<p>", "</p>", "<b>", "</b>", '<div class="a">', "</div>", "<pre>", "</pre>", "<code>", "</code>", "<br>", "<li>", "<td>",
    "<html>", "</html>", "<body>", "<script>", "</script>", "<svg>", "</svg>", "<object>", "<xml>", "</xml>", "<!--", "-->",
    "&lt;", "&gt;", "&amp;", "lt;", "&nbsp;", "&#60;", "&#64979;", "&#64980;", "\ufdd3", "\ufdd4", "0", "`", "```", "\n```\n",
    "~~~", "\n", "\n\n", "  ", "\t", "\r", "\r\n", "\x00", "\x85", "\x93", "\ufeff", "\u200b", "\xa0", "\u3000", "\u2028",
    "a", "é", "e\u0301", "\u0301", "Ã©", "â€œ", "锛", "浣犲ソ", "你好。", "\ufffd", "<", "/", ">", "x<y", "List<String>", ";",
    '"', "word ",
]  # fmt: skip
PROSE = st.text(st.sampled_from("abcxyzÄéñ你好世界春風кот 1234,.;:!?()'-\"\n"), max_size=80)


def cleaned(text: str) -> str:
    """The text after all cleaning steps."""
    return clean_text(text, ALL)[0]


@settings(max_examples=400)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join))
def test_cleaning_a_cleaned_text_changes_nothing(text: str) -> None:
    try:
        once, _ = clean_text(text, ALL)
    except RowError as error:
        assert error.reason == "HTML only"
        return
    assert clean_text(once, ALL) == (once, ())


@given(st.lists(PROSE, max_size=6))
def test_faultless_text_is_not_changed(paragraphs: list[str]) -> None:
    lines = [line.rstrip() for paragraph in paragraphs for line in paragraph.split("\n")]
    text = "\n".join(line for line in lines if line)
    assert clean_text(text, ALL) == (text, ())


@pytest.mark.parametrize(
    "text",
    [
        "naïve café – “ok” à la… É…, Ångström, Ça va? ÀÉÎÕÜ £5 ©2024 ½ °C",
        "Größe, Übermut, Straße; señor, ¿qué?; São Paulo, ações; Łódź, źdźbło; Český kůň; İstanbul, ğüş",
        "Привет, мир! Съешь ещё этих мягких французских булок. Р. С. Пушкин",
        "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。「橫濱」的銀行、涓涓細流。",
        "横浜市の鉄道、カタカナ・ひらがな。한국어 문장입니다. שלום עולם. مرحبا بالعالم. สวัสดีชาวโลก. नमस्ते दुनिया",
        "👩‍👩‍👧 emoji, ﬁ ligature, x² + y² ≤ r², ∀ε>0 ∃δ: |x−a|<δ ⇒ |f(x)−f(a)|<ε",
    ],
)
def test_faultless_text_of_any_language_is_not_changed(text: str) -> None:
    assert clean_text(text, ALL) == (text, ())


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("He said â€œhelloâ€\x9d in the cafÃ© â€” twice.", "He said “hello” in the café — twice."),
        ("你好，世界。今天天气很好".encode().decode("latin-1"), "你好，世界。今天天气很好"),
        ("Привет, как дела?".encode().decode("cp1251"), "Привет, как дела?"),
        ("你好，世界！".encode().decode("gb18030"), "你好，世界！"),
        ("我是中国人，你好。".encode().decode("gb18030", "replace"), "我是中国人，你好\ufffd"),
        ("I\x92m \x93fine\x94", "I’m “fine”"),
        ("naïve is right, cafÃ© is not\nnaïve", "naïve is right, café is not\nnaïve"),
    ],
)
def test_mojibake_is_repaired(broken: str, mended: str) -> None:
    assert clean_text(broken, ALL) == (mended, ("mojibake",))


def test_without_ftfy_suspected_mojibake_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    mojibake._ftfy_fix_encoding.cache_clear()
    try:
        assert clean_text("cafÃ©", ALL) == ("cafÃ©", (SUSPECTED_MOJIBAKE,))
        item, (event,) = clean_item(Document("cafÃ©"), ALL)
        assert item == Document("cafÃ©") and event.excerpts is None and not event.detail
    finally:
        mojibake._ftfy_fix_encoding.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "if (a < b && c > d) { x <<= 2; } a<b && b>c",
        "List<String> xs = new ArrayList<>(); Map<K, V>; std::vector<a> v; Vec<p>; Option<Box<i>>",
        "#include <map>\n#include <time>\nusage: cp <source> <target> [<data>]",
        "<s>[INST] question [/INST] answer</s>\n<think>no</think><tool_call>{}</tool_call>",
        "Write `<b>bold</b>` or ``<i>`x`</i>`` in a line.",
        "As in:\n\n```html\n<div>x &amp; y</div>\n```\n\n~~~\n<p>one</p>\n~~~",
        "<note><to>Tove</to><from>Jani</from><body>Don't forget</body></note>",
        'import os\n\ndef page():\n    x = "<div>" + os.name + "</div>"\n    return x\n',
        "<Button onClick={go}><Label>Go</Label></Button>",
        "Here is a page:\n\n<html>\n<body>\n<h1>Hi</h1>\n</body>\n</html>\n\nSave it as index.html.",
        "the entities &lt;b&gt; and &lt;/b&gt; show <b>",
        "R&D at AT&T; x &= y; &copy=2&reg=1",
    ],
)
def test_text_or_code_that_looks_like_markup_stays(text: str) -> None:
    assert cleaned(text) == text.rstrip()


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>One &amp; two<br/>three</p><p>four</p>", "One & two\nthree\n\nfour"),
        ("Hello <b>bold</b> and <a href='http://x.org/?a=1&b=2'>a link</a>.", "Hello bold and a link."),
        ("a < b && c > d, List<String>\n<p>end</p>", "a < b && c > d, List<String>\n\nend"),
        ("<div>x<script>if (a<b) { alert('</p>') }</script><style>p {}</style><!-- no --></div>", "x"),
        (
            "<ul><li>one</li><li>two</li></ul><table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>",
            "one\ntwo\n\n1\t2\n3",
        ),
        ("<p>Code:</p><pre>  if (a &lt; b &amp;&amp; c)\n    x = y[0];</pre>", "Code:\n\n  if (a < b && c)\n    x = y[0];"),
        ("<p>Use</p><pre>&lt;div&gt;&lt;/div&gt;</pre>", "Use\n\n```\n<div></div>\n```"),
        ("<p>The <code>&lt;br&gt;</code> tag</p>", "The `<br>` tag"),
        (
            '# Title\n\n<p align="center"><img src="a.png"></p>\n\n- one\n    - two\n\n        code',
            "# Title\n\n- one\n    - two\n\n        code",
        ),
        ("Tom &amp; Jerry&#39;s &quot;hit&quot; &mdash; again &amp;amp; again", 'Tom & Jerry\'s "hit" — again & again'),
        (
            "<!DOCTYPE html>\n<html><head><title>Name</title></head>\n <p>One\n   line <i>of</i> text</p>\n</html>",
            "Name\n\nOne line of text",
        ),
        ("<svg><script>x</script></svg><object><object>y</object></object><p>left</p>", "left"),
    ],
)
def test_markup_is_removed_and_text_stays(markup: str, text: str) -> None:
    result, names = clean_text(markup, ALL)
    assert result == text and "html" in names


@pytest.mark.parametrize(
    "text", ["<html><script>go()</script></html>", "<div class='x'><img src='a.png'><br></div>", "<p>&nbsp;</p>"]
)
def test_markup_without_text_is_an_error(text: str) -> None:
    with pytest.raises(RowError) as caught:
        clean_text(text, ALL)
    assert caught.value.reason == "HTML only"


def test_markup_is_removed_from_documents_and_not_from_conversations_by_default() -> None:
    assert CleaningSteps.of(CleanConfig(), strip_html=True).html and not CleaningSteps.of(CleanConfig(), strip_html=False).html
    assert (
        CleaningSteps.of(CleanConfig(html=True), strip_html=False).html
        and not CleaningSteps.of(CleanConfig(html=False), strip_html=True).html
    )
    assert CleaningSteps.of(CleanConfig(unicode=False, whitespace=False, mojibake=False), strip_html=False) == CleaningSteps(
        False, False, False, False
    )
    answer = "<p>A page:</p>\n<b>x</b>"
    assert clean_text(answer, CleaningSteps.of(CleanConfig(), strip_html=False)) == (answer, ())


def test_without_selectolax_markup_is_noticed_and_explicit_html_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    markup.html_parser.cache_clear()
    try:
        assert clean_text("<p>x</p>", CleaningSteps.of(CleanConfig(), strip_html=True)) == ("<p>x</p>", (SUSPECTED_HTML,))
        with pytest.raises(FledgeError, match="selectolax"):
            CleaningSteps.of(CleanConfig(html=True), strip_html=True)
    finally:
        markup.html_parser.cache_clear()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\rc\x0bd\u2028e", "a\nb\nc\nd\ne"),
        ("\ufeffa\x00b\x1b[0m\x7fc\ud800", "ab[0mc"),
        ("a \t\n\tb\xa0\n  c\u3000\n", "a\n\tb\n  c"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("\n \n   indented\n\u200b\n ", "   indented"),
        ("zero\u200bwidth stays\u200d inside", "zero\u200bwidth stays\u200d inside"),
        ("\t\tif x:\n\t\t\treturn", "\t\tif x:\n\t\t\treturn"),
    ],
)
def test_white_space_is_normalised_and_indentation_kept(before: str, after: str) -> None:
    assert clean_text(before, ALL) == (after, ("whitespace",) if before != after else ())


def test_unicode_is_composed() -> None:
    assert clean_text("e\u0301 \u212b \uac00", ALL) == ("é Å 가", ("unicode",))
    assert clean_text("e\u0301", CleaningSteps(unicode=False)) == ("e\u0301", ())


def test_every_text_of_every_kind_of_item_is_cleaned() -> None:
    before, after = "x \ny", "x\ny"
    turns = (Message("system", before), Message("user", before), Message("assistant", "", weight=0.5))
    mended = (Message("system", after), Message("user", after), Message("assistant", "", weight=0.5))
    tools = '[{"name":  "f"} ]\n '
    assert clean_item(Document(before), ALL)[0] == Document(after)
    assert clean_item(Conversation(turns, tools), ALL)[0] == Conversation(mended, tools)
    assert clean_item(PreferencePair(turns, before, "z", tools), ALL)[0] == PreferencePair(mended, after, "z", tools)
    assert clean_item(BinaryFeedback(turns, before, True), ALL)[0] == BinaryFeedback(mended, after, True)
    untouched = Conversation(mended, tools)
    assert clean_item(untouched, ALL) == (untouched, ())


def test_each_step_is_reported_once_with_an_excerpt() -> None:
    item = Conversation((Message("user", "a" * 100 + " cafe\u0301 ok \r\n" + "b" * 100), Message("assistant", "x \ny")))
    _, events = clean_item(item, ALL)
    assert [(event.state, event.reason) for event in events] == [("changed", "unicode"), ("changed", "whitespace")]
    before, after = events[0].excerpts or ("", "")
    assert "e\u0301" in before and "é" in after and len(before) <= 2 * cleaning.EXCERPT
    assert events[0].detail == f"{before!r} -> {after!r}"


def test_item_without_text_after_cleaning_is_an_error() -> None:
    for item in (Document("\x00\x07"), Conversation((Message("user", "\ufeff"), Message("assistant", "x")))):
        with pytest.raises(RowError) as caught:
            clean_item(item, ALL)
        assert caught.value.reason == "empty after cleaning"
    with pytest.raises(RowError) as caught:
        clean_item(PreferencePair((Message("user", "q"),), "same", "same \r\n"), ALL)
    assert caught.value.reason == "chosen equals rejected"


def test_real_texts_are_changed_only_where_they_are_faulty(shared_data: Path) -> None:
    lines = (shared_data / "llamafactory" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    steps_by_text = [clean_text(json.loads(line)["text"], ALL)[1] for line in lines]
    assert [names for names in steps_by_text if names] == [("html",)] * 3  # three texts with &apos;
    poems = json.loads((shared_data / "poetry" / "poet.tang.1000.json").read_text(encoding="utf-8"))
    assert {name for poem in poems for name in clean_text("\n".join(poem["paragraphs"]), ALL)[1]} <= {"whitespace"}
    pairs = json.loads((shared_data / "llamafactory" / "kto_en_demo.json").read_text(encoding="utf-8"))
    texts = [turn["content"] for pair in pairs for turn in pair["messages"]]
    mended = [text for text in texts if "mojibake" in clean_text(text, ALL)[1]]
    assert len(mended) == 2 and all("Ã" in text for text in mended)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of France? It is Paris.", "en"),
        ("Raymond is selling this sketch.", "en"),
        ("Hello world", "en"),
        ("Bonjour, je voudrais une baguette et du fromage pour le dîner, s'il vous plaît.", "latin"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft weg.", "latin"),
        ("El perro de mi vecina es muy grande y no le gusta el agua.", "latin"),
        ("春眠不覺曉，處處聞啼鳥。", "zh"),
        ("使用 Python 的 pandas 库处理数据", "zh"),
        ("The word 你好 means hello in Chinese.", "en"),
        ("吾輩は猫である。名前はまだ無い。", "ja"),
        ("東京タワーへ行く", "ja"),
        ("안녕하세요, 반갑습니다", "ko"),
        ("Съешь ещё этих мягких французских булок", "ru"),
        ("Їжак їсть яблуко, а ґава летить", "cyrillic"),
        ("السلام عليكم ورحمة الله", "ar"),
        ("سلام دوست من، چطوری؟ گربه کجاست", "arabic"),
        ("नमस्ते दुनिया", "hi"),
        ("สวัสดีชาวโลก", "th"),
        ("Γειά σου Κόσμε", "el"),
        ("def f(x):\n    y = x + 1\n    return y\n", "code"),
        ("int main(void) {\n  int x = 0;\n  return x;\n}\n", "code"),
        ("1 + 1 = 2 !!!", "other"),
        ("", "other"),
        ("👍🎉", "other"),
    ],
)
def test_language_is_detected(text: str, language: str) -> None:
    assert detect_language(text) == language


@given(st.text())
def test_every_text_has_a_language_code(text: str) -> None:
    assert LANGUAGES.index(detect_language(text)) < 256


def test_languages_of_real_texts_are_detected(shared_data: Path) -> None:
    poems = [
        poem for file in sorted((shared_data / "poetry").glob("*.json"))[:3] for poem in json.loads(file.read_text("utf-8"))
    ]
    assert {detect_language("\n".join(poem["paragraphs"])) for poem in poems if poem["paragraphs"]} == {"zh"}
    sentences = [json.loads(line)["sentence_good"] for line in (shared_data / "blimp" / "wh_island.jsonl").open()]
    assert sum(detect_language(text) == "en" for text in sentences) >= 0.99 * len(sentences)
    english = json.loads((shared_data / "llamafactory" / "alpaca_en_demo.json").read_text("utf-8"))
    assert sum(detect_language(row["instruction"]) == "en" for row in english) >= 0.99 * len(english)
    chinese = json.loads((shared_data / "llamafactory" / "alpaca_zh_demo.json").read_text("utf-8"))
    assert sum(detect_language(row["instruction"]) == "zh" for row in chinese) >= 0.99 * len(chinese)


def test_cleaning_does_not_depend_on_hash_randomisation() -> None:
    code = (
        "from fledge.data.cleaning.cleaning import *; from fledge.data.cleaning.languages import detect_language\n"
        "text = '<div><p>caf\\u00c3\\u00a9 &amp; the <b>rest</b></p><ul><li>x</li></ul></div> \\r\\n'\n"
        "print(clean_text(text, CleaningSteps()), detect_language('the cat and le chat et the dog'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
