"""Parameters of tasks and rules: every mistake is named in one error."""

from __future__ import annotations

import pytest

from crowdsurf.peer.compute.parameters import ParameterReader, Value
from crowdsurf.peer.compute.rules import parse_rule
from crowdsurf.peer.compute.tasks.digits import DigitsTask
from crowdsurf.peer.compute.tasks.text import TextTask
from crowdsurf.protocol.errors import MisuseError


def problems_of(parameters: dict[str, Value], kind: type[DigitsTask] | type[TextTask]) -> str:
    with pytest.raises(MisuseError) as caught:
        kind.parse(parameters)
    return str(caught.value)


def test_digits_report_all_mistakes() -> None:
    text = problems_of({"model": "vit", "hidden": 0, "shifted": 2, "hiden": 3}, DigitsTask)
    assert "model must be one of mlp, conv, not 'vit'" in text
    assert "hidden must be a whole number from 1 to 65536, not 0" in text
    assert "shifted must be a number from 0 to 1, not 2" in text
    assert "hiden is unknown (did you mean hidden?)" in text


def test_text_reports_all_mistakes() -> None:
    text = problems_of({"width": 10, "heads": 3, "path": "/no/such/file", "vocabulary": "words"}, TextTask)
    assert "width 10 must be a multiple of heads 3" in text
    assert "path '/no/such/file' does not exist" in text
    assert "vocabulary must be one of bytes" in text


def test_rules_report_all_mistakes_and_unknown_names() -> None:
    with pytest.raises(MisuseError, match=r"tau must .*; tolerance must .*; zzz is unknown \(known are tau"):
        parse_rule("centered_clip", {"tau": -1.0, "tolerance": float("nan"), "zzz": 1})
    with pytest.raises(MisuseError, match="rule 'medium' is unknown; known are bulyan, centered_clip, "):
        parse_rule("medium", {})
    for name in ("nnm", "+krum", "krum+nnm", "nnm+nnm+krum", "krum+"):
        with pytest.raises(MisuseError, match="is unknown"):
            parse_rule(name, {})
    with pytest.raises(MisuseError, match=r"bucket_rows must be .*; byzantine_share must be "):
        parse_rule("bucketing+krum", {"bucket_rows": 0, "byzantine_share": 0.5})
    with pytest.raises(MisuseError, match="bucket_rows is unknown"):
        parse_rule("nnm+krum", {"bucket_rows": 2})
    for pool in ("krum,krum", "krum,mixtailor", ""):
        with pytest.raises(MisuseError, match="rules must be different names"):
            parse_rule("mixtailor", {"rules": pool})
    with pytest.raises(MisuseError, match="tau is unknown"):
        parse_rule("mean", {"tau": 1.0})


def test_a_flag_is_not_a_number_and_a_number_is_not_a_flag() -> None:
    reader = ParameterReader("it", {"count": True, "flag": 1, "size": False, "name": 3})
    reader.integer("count", 1, 0, 5)
    reader.flag("flag", False)
    reader.number("size", 1.0, 0.0, 5.0)
    reader.text("name", "")
    assert len(reader.problems) == 4
