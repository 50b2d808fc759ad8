"""A memory of a bounded size, for what strangers can make a registry remember."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A mapping that forgets what was asked for longest ago, as soon as it would hold too much."""

    def __init__(self, *, most: int, heaviest: int | None = None) -> None:
        """Hold up to `most` values, which together weigh up to `heaviest`."""
        self._most = most
        self._heaviest = heaviest
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0

    def __len__(self) -> int:
        """Return how many values it holds."""
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Return the value of `key`, or None if it is not held."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, *, weight: int = 1) -> None:
        """Hold `value`, which weighs `weight`, as that of `key`."""
        self.forget(key)
        self._values[key] = (value, weight)
        self._weight += weight
        while len(self._values) > self._most or (self._heaviest is not None and self._weight > self._heaviest):
            _, (_, lighter) = self._values.popitem(last=False)
            self._weight -= lighter

    def forget(self, key: K) -> None:
        """Hold nothing for `key`."""
        found = self._values.pop(key, None)
        if found is not None:
            self._weight -= found[1]

    def clear(self) -> None:
        """Hold nothing."""
        self._values.clear()
        self._weight = 0
