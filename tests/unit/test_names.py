"""Names of exports, and NAME=SPEC on a command line."""

from __future__ import annotations

import pytest

from nbdfs.errors import UsageError
from nbdfs.names import check_name, named_plans, specs_by_name


@pytest.mark.parametrize(
    "text",
    ["memory:1M", "luks,passphrase=+key::/img", "data:a=1", "nbd://host/x?a=b", "[\0qemu-nbd\0a=b\0]", "./a=b", "/a=b",
     "cow::./a=b"],
)  # fmt: skip
def test_one_spec_is_no_name(text: str) -> None:
    try:
        assert list(named_plans([text])) == [""]
    except UsageError as error:
        assert "name" not in str(error)


@pytest.mark.parametrize("name", ["a", "a b", "vm1/root.img", "ü", "..a", "a-b_c+d~"])
def test_names(name: str) -> None:
    check_name(name)
    assert specs_by_name([f"{name}=luks,passphrase=+k::/x=y"]) == {name: "luks,passphrase=+k::/x=y"}


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "./a", "a\0b", "a\nb", "\x1b[2J", "\udcff", "\ud800",
             "x" * 256, "/".join(["x" * 200] * 30)]
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError) as error:
        check_name(name)
    assert str(error.value).isprintable()
