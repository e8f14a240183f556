"""The results of the bench as tables of a page of the documentation, in English or Chinese."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fledge.doctor_bench.score import Rate
from fledge.errors import FledgeError

BEGIN, END = "<!-- results of fledge doctor bench -->", "<!-- end of the results -->"
SYMPTOMS_BEGIN, SYMPTOMS_END = "<!-- symptoms of fledge doctor bench -->", "<!-- end of the symptoms -->"
COMMON = 4  # faults that are named for a symptom
CHINESE = {
    "in all": "总计",
    "by group": "按组",
    "by stage": "按阶段",
    "simple rules": "同样日志上的简单规则",
    "silent faults": "流程里悄无声息的故障",
    "said of each fault": "对每种故障说了什么",
    "every miss": "每一次判错",
    "harmless faults": "没有可测影响的故障",
    "figure": "指标",
    "all depths": "全部深度",
    "curves and plan alone": "只看曲线和计划",
    "recall": "查出的故障",
    "false_alarms": "健康运行的误报",
    "top1": "根因正确",
    "precision": "说出根因时说对的",
    "top3": "前三个里有根因",
    "abstention": "没有说出根因",
    "alarms_without_effect": "对无害故障的警报",
    "category_f1": "类别的宏平均 F1",
    "group": "组",
    "stage": "阶段",
    "baseline": "对照",
    "silent fault": "悄无声息的故障",
    "fault": "故障",
    "named": "医生说的",
    "missed case": "判错的运行",
    "said": "说了什么",
    "right": "应当是",
    "healthy": "健康",
    "harmless fault": "没有可测影响的故障",
    "change": "变化",
    "symptom": "症状",
    "runs": "运行数",
    "their faults": "这些运行的故障",
    "others": "其他",
    "pairs": "配对数",
}
ENGLISH = {
    "in all": "In all",
    "by group": "By group",
    "by stage": "By stage",
    "simple rules": "Simple rules on the same logs",
    "silent faults": "Silent faults of the pipeline",
    "said of each fault": "What was named for each fault",
    "every miss": "Every miss",
    "harmless faults": "Faults without a measurable effect",
    "recall": "faults that are told",
    "false_alarms": "healthy runs with an alarm",
    "top1": "root cause right",
    "precision": "right, of the causes that are named",
    "top3": "root cause among the first three",
    "abstention": "no cause named",
    "alarms_without_effect": "alarms about harmless faults",
    "category_f1": "macro F1 of the category",
    "named": "what the doctor named",
    "harmless fault": "fault without a measurable effect",
}
RATES = ("recall", "false_alarms", "top1", "precision", "top3", "abstention", "alarms_without_effect")
PARTS = (("group", "groups", "by group"), ("stage", "shapes", "by stage"), ("baseline", "baselines", "simple rules"))
OF_PARTS = ("recall", "false_alarms", "top1", "precision", "top3")


class Page:
    """The tables of one language."""

    def __init__(self, results: Mapping[str, Any], *, is_chinese: bool = False) -> None:
        self.results, self.words = results, CHINESE if is_chinese else ENGLISH

    def _word(self, name: str) -> str:
        return self.words.get(name, name)

    def text(self) -> str:
        """All tables."""
        return "\n".join(self._lines()) + "\n"

    def _table(self, *columns: str, heading: str = "") -> Iterator[str]:
        if heading:
            yield f"\n### {self._word(heading)}"
        yield ""
        yield f"| {' | '.join(map(self._word, columns))} |"
        yield "|" + "---|" * len(columns)

    def _lines(self) -> Iterator[str]:
        full, curves = self.results["full"], self.results["curves"]
        yield from self._table("figure", "all depths", "curves and plan alone", heading="in all")
        for name in RATES:
            yield f"| {self._word(name)} | {_rate(full[name])} | {_rate(curves[name])} |"
        yield f"| {self._word('category_f1')} | {full['category_f1']} | {curves['category_f1']} |"
        for title, part, heading in PARTS:
            yield from self._table(title, *OF_PARTS, heading=heading)
            for name, values in self.results[part].items():
                yield f"| `{name}` | {' | '.join(_rate(values[key]) for key in OF_PARTS)} |"
        yield from self._table("silent fault", "figure", heading="silent faults")
        for name, values in self.results["silent"].items():
            yield f"| `{name}` | {_rate(values)} |"
        yield from self._cases()

    def symptoms(self) -> str:
        """The table of symptoms with the faults of the runs that had them."""
        lines = list(self._table("symptom", "runs", "their faults"))
        for symptom, faults in self.results["symptoms"].items():
            total = sum(faults.values())
            common = [(f"`{name}`" if name else self._word("healthy"), count) for name, count in list(faults.items())[:COMMON]]
            rest = total - sum(count for _, count in common)
            shares = [f"{name} {count / total:.0%}" for name, count in [*common, (self._word("others"), rest)] if count]
            lines.append(f"| `{symptom}` | {total} | {', '.join(shares)} |")
        return "\n".join(lines) + "\n"

    def _cases(self) -> Iterator[str]:
        """The tables of single faults and runs."""
        yield from self._table("fault", "named", heading="said of each fault")
        for fault, said in self.results["confusion"].items():
            yield f"| `{fault}` | {', '.join(f'`{cause}` {count}' for cause, count in said.items())} |"
        yield from self._table("missed case", "said", "right", heading="every miss")
        for miss in self.results["misses"]:
            right = ", ".join(f"`{cause}`" for cause in miss["right"]) or self._word("healthy")
            yield f"| `{miss['case']}` | `{miss['said']}` | {right} |"
        yield from self._table("harmless fault", "change", "p", "pairs", heading="harmless faults")
        for place, effect in self.results["without_effect"].items():
            yield f"| `{place}` | {effect['change']:.3g} | {effect['p_value']:.3g} | {effect['pairs']} |"


def _rate(values: Mapping[str, Any]) -> str:
    return Rate(values["hits"], values["count"]).text()


MARKS = ((BEGIN, END, Page.text), (SYMPTOMS_BEGIN, SYMPTOMS_END, Page.symptoms))
"""Where a page has the results, and where it has the symptoms."""


def write_page(results: Mapping[str, Any], file: Path) -> None:
    """Put tables between the marks that a page has, in Chinese below a folder `zh`; a page that is not there gets the results.
    FledgeError where it has no marks."""
    text = file.read_text(encoding="utf-8") if file.exists() else f"{BEGIN}\n{END}\n"
    page, is_written = Page(results, is_chinese="zh" in file.parts), False
    for begin, end, tables in MARKS:
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if found and closed:
            text, is_written = f"{before}{begin}\n{tables(page)}\n{end}{after}", True
    if not is_written:
        raise FledgeError(f"this page has no place for the results: {BEGIN} and {END}", where=str(file))
    file.write_text(text, encoding="utf-8")
