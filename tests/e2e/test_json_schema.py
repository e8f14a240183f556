"""Answers that follow a JSON schema, from Python and from the command line."""

from pathlib import Path

import pytest

import fledge
from fledge.cli import main
from fledge.errors import FledgeError

pytest.importorskip("llguidance", reason="answers by a JSON schema need the extra eval")


def test_python_takes_a_mapping_or_json(finished: Path) -> None:
    model = fledge.load(finished)
    for schema in ({"enum": ["yes", "no"]}, '{"enum": ["yes", "no"]}'):
        assert model.chat("你是谁？", json_schema=schema, max_new_tokens=20) in ('"yes"', '"no"')
    for wrong in ("{", "[]", 3):
        with pytest.raises(FledgeError, match="json_schema"):
            model.chat("你是谁？", json_schema=wrong)


def test_the_command_reads_a_file(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"const": "yes"}')
    assert main(["generate", str(finished), "你是谁？", "--json-schema", str(file)]) == 0
    assert capsys.readouterr().out == '"yes"\n'
    file.write_text("[]")
    assert main(["generate", str(finished), "你是谁？", "--json-schema", str(file)]) == 2
    assert "a JSON schema is an object" in capsys.readouterr().err
    assert main(["generate", str(finished), "你是谁？", "--json-schema", str(tmp_path / "none.json")]) == 2
