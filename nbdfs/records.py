"""Records: classes of a few named values that do not change.

They are written and used as frozen dataclasses are.  But those are compiled one by one when their module is imported,
by modules that are large themselves, which would be a quarter of a short command's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar, dataclass_transform

R = TypeVar("R", bound="Record")

_MISSING: Any = object()


class Field:
    """How a field begins, and what else is known of it."""

    __slots__ = ("default", "factory", "metadata")

    def __init__(self, default: Any, factory: Callable[[], Any] | None, metadata: Mapping[str, Any]) -> None:
        self.default = default
        self.factory = factory
        self.metadata = metadata


def field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """A field of a record that needs more said than its default."""
    return Field(default, default_factory, metadata or {})


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """A subclass lists its fields by annotations, after those it inherits, with their defaults.

    With `kw_only=True` its own fields are given by name only.  Records of one class are equal if all their fields are.
    """

    _fields: ClassVar[dict[str, Field]] = {}
    _order: ClassVar[tuple[str, ...]] = ()  # of the fields that may be given without their names
    _must: ClassVar[frozenset[str]] = frozenset()
    _usual: ClassVar[dict[str, Any]] = {}  # the defaults there are
    _made: ClassVar[tuple[tuple[str, Callable[[], Any]], ...]] = ()  # what makes the default of each such field

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        super().__init_subclass__()
        cls._fields = {**cls._fields, **{name: _own_field(cls, name) for name in cls.__annotations__}}
        cls._order = tuple(cls._fields) if not kw_only else cls._order
        cls._usual = {name: field.default for name, field in cls._fields.items() if field.default is not _MISSING}
        cls._made = tuple((name, field.factory) for name, field in cls._fields.items() if field.factory)
        cls._must = frozenset(cls._fields).difference(cls._usual, dict(cls._made))

    def __init__(self, *values: Any, **named: Any) -> None:
        given = dict(zip(self._order, values, strict=False))
        if len(values) > len(given) or not named.keys() <= self._fields.keys() - given.keys():
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self._fields)}")
        given.update(named)
        if not self._must <= given.keys():
            raise TypeError(f"{type(self).__name__} lacks {', '.join(sorted(self._must - given.keys()))}")
        for name, make in self._made:
            if name not in given:
                given[name] = make()
        self.__dict__.update(self._usual)
        self.__dict__.update(given)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the fields: what a subclass may want to raise for."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} does not change: {name}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return tuple(self._values()) == tuple(other._values())

    def __hash__(self) -> int:
        return hash(tuple(self._values()))

    def __repr__(self) -> str:
        fields = zip(self._fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"

    def _values(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)


def record(name: str, fields: Mapping[str, Any]) -> type[Record]:
    """A class of records that is made, not written: its fields with their defaults, or what `field` gives."""
    return type(name, (Record,), {**fields, "__annotations__": dict.fromkeys(fields, "Any")})


def replace(record: R, **changes: Any) -> R:
    """The same record but for some fields."""
    return type(record)(**{**as_dict(record), **changes})


def fields(record: Record | type[Record]) -> Mapping[str, Field]:
    """The fields by their names, in order."""
    return record._fields


def as_dict(record: Record) -> dict[str, Any]:
    """The fields with their values, which are not copied, in order."""
    return dict(zip(record._fields, record._values(), strict=True))


def _own_field(cls: type, name: str) -> Field:
    """The field, whose default becomes that of the class."""
    found = cls.__dict__.get(name, _MISSING)
    if not isinstance(found, Field):
        return Field(found, None, {})
    if found.default is _MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, found.default)
    return found
