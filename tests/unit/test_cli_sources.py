"""`nbdfs sources`."""

from __future__ import annotations

import json

import pytest

from nbdfs import registry
from nbdfs.cli.main import main


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources"]) == 0
    text = capsys.readouterr().out
    for name in registry.names():
        driver = registry.find(name)
        assert f"  {driver.synopsis}" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_one_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "memory"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("memory:SIZE\n")
    assert "  mlock=BOOL " in text
    assert "(default no)" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "--json"]) == 0
    assert [record["name"] for record in json.loads(capsys.readouterr().out)] == registry.names()
    assert main(["sources", "http", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "source"
    assert "https" in record["schemes"]
    assert {"name": "password", "type": "SECRET", "default": "", "secret": True}.items() <= next(
        one for one in record["options"] if one["name"] == "password"
    ).items()


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "memroy"]) == 2
    assert "did you mean 'memory'?" in capsys.readouterr().err
