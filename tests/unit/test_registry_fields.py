"""Options whose names Python keeps for itself."""

from __future__ import annotations

import pytest

from nbdfs.backends import null
from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import TEXT, SourceDriver, option


class Options(Record):
    from_: str = option("", TEXT, "a keyword")
    two_words: str = option("", TEXT, "two words")


def test_an_option_may_be_a_keyword() -> None:
    driver = SourceDriver("x", "x", Options, open=null.DRIVER.open)
    assert [(one.name, one.field) for one in driver.option_table] == [("from", "from_"), ("two-words", "two_words")]
    assert driver.parse_options([("from", "a"), ("two-words", "b")]) == Options("a", "b")
    for name in "from_", "from-", "two_words":
        with pytest.raises(UsageError, match="has no option"):
            driver.parse_options([(name, "a")])
