"""``diff`` and ``blame``: what differs between two versions, and who set each attribute; pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pgaudit_ctx.change import Operation
from pgaudit_ctx.reading.version import Difference, Trail, Version

M = TypeVar("M")


def diff(a: Version[Any] | None, b: Version[Any] | None) -> Mapping[str, Difference]:
    """Compare two versions, of one record or of two.

    Args:
        a: The old side; ``None`` for "was not there", as ``as_of`` gives it.
        b: The new side.

    Returns:
        Attribute → ``Difference(old, new)`` for each that differs, in the model's order; ``None``
        stands for "not there", as it does for NULL. A DELETE and a TRUNCATE have no attributes.
    """
    old, new = _state(a), _state(b)
    names = dict.fromkeys([*new, *old])
    return MappingProxyType(
        {
            name: Difference(old.get(name), new.get(name))
            for name in names
            if not _same(old.get(name), new.get(name))
        }
    )


def _state(version: Version[Any] | None) -> Mapping[str, Any]:
    return {} if version is None or version.after is None else version.after


def _same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and bool(old == new))


def blame_of(trail: Trail[M]) -> Mapping[str, Version[M]]:
    """Find which version set each attribute of a record last.

    Args:
        trail: The record's, whole.

    Returns:
        Attribute → version, the key included, in the model's order. For a record that is gone, as
        it was before. Attributes that were set before the trail's first trace are left out.
    """
    living = [version for version in trail.versions if version.after is not None]
    if not living:
        return MappingProxyType({})
    last = living[-1]
    found: dict[str, Version[M]] = {}
    for version in reversed(trail.versions[: trail.versions.index(last) + 1]):
        for name in _set_by(version):
            found.setdefault(name, version)
        if version.operation is not Operation.UPDATE:
            break
    return MappingProxyType({name: found[name] for name in last.after or {} if name in found})


def _set_by(version: Version[Any]) -> Mapping[str, Any] | tuple[str, ...]:
    if version.operation is not Operation.UPDATE:
        return tuple(version.after or ())
    if version.changed is not None:
        return version.changed
    # The log did not carry the old row; what differs from the version before was set since.
    return diff(version.previous, version) if version.previous is not None else ()
