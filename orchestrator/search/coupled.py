"""Which packages of two environments can change without which others, and in what order.

Every difference between the ends is one *change*: a package that has another version, was added or
was removed. A mixture of both ends is the good end with a set of changes made. What can be
installed is a set that is *closed*: with each change, those that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Set: TypeAlias = frozenset[str]


@dataclass(frozen=True)
class Coupling:
    """The changes between two ends, and which need which.

    Parameters
    ----------
    needs : mapping of str to set of str
        Of each change those without which its package cannot be installed: they are made with it.
    """

    needs: Mapping[str, Set]

    def closed(self, changes: Iterable[str]) -> Set:
        """``changes`` and all that they need: the smallest set of them that can be installed."""
        found: set[str] = set()
        open_ = list(changes)
        while open_:
            change = open_.pop()
            if change not in found:
                found.add(change)
                open_.extend(self.needs[change])
        return frozenset(found)

    def order(self) -> tuple[Set, ...]:
        """All changes, what is needed before what needs it.

        Each is a set of one, or of several that need each other and cannot be told apart. Whatever
        number of them from the first on is closed.
        """
        reach = {change: self.closed([change]) for change in sorted(self.needs)}
        left = dict(reach)
        found: list[Set] = []
        while left:
            # What needs least comes first; equals, those that need each other, together.
            change = min(left, key=lambda name: (len(left[name]), name))
            together = frozenset(other for other in left if left[other] == left[change])
            found.append(together)
            for name in together:
                del left[name]
        return tuple(found)

    def without(self, changes: Set, left_out: Set) -> Set:
        """Of the closed set ``changes`` those that can be made without any of ``left_out``."""
        return frozenset(c for c in changes if not self.closed([c]) & left_out)
