"""Records: what they share with frozen dataclasses."""

from __future__ import annotations

from typing import Any

import pytest

from nbdfs.records import Record, as_dict, field, fields, record, replace


class Place(Record):
    host: str
    port: int = 1
    notes: list[str] = field(default_factory=list)


class Named(Place, kw_only=True):
    name: str
    kind: str = field(default="usual", metadata={"help": "what it is"})


def test_fields_by_place_and_by_name() -> None:
    place = Place("a", notes=["x"])
    assert (place.host, place.port, place.notes) == ("a", 1, ["x"])
    named = Named("a", 2, name="n")
    assert as_dict(named) == {"host": "a", "port": 2, "notes": [], "name": "n", "kind": "usual"}
    assert list(as_dict(named)) == list(fields(Named))
    assert fields(Named)["kind"].metadata == {"help": "what it is"}


def test_each_has_its_own_made_default() -> None:
    assert Place("a").notes is not Place("a").notes


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), (("a", 1, [], "n"), {}), (("a",), {"host": "b"}), (("a",), {"hots": "b"}), (("a",), {"name": "n"})],
)
def test_wrong_fields(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Place"):
        Place(*values, **named)


def test_what_must_be_given() -> None:
    with pytest.raises(TypeError, match="Named lacks name"):
        Named("a")


def test_it_does_not_change() -> None:
    place = Place("a")
    with pytest.raises(AttributeError, match="Place does not change: port"):
        place.port = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del place.port
    assert replace(place, port=2) == Place("a", 2)
    assert place.port == 1


def test_equal_if_all_fields_are() -> None:
    assert Place("a") == Place("a", 1) != Place("a", 2)
    assert Named("a", name="n") != Place("a")
    pair = record("Pair", {"one": 1, "other": field(default=2)})
    assert len({pair(), pair(1), pair(other=2), pair(2)}) == 2
    assert repr(pair(other="x")) == "Pair(one=1, other='x')"


class Even(Record):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(self.number)


def test_fields_are_checked() -> None:
    with pytest.raises(ValueError, match="3"):
        replace(Even(2), number=3)
