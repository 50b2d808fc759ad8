"""Lists of random keys; the rest of the driver contract is proven by the kit, in tests/conformance/test_driver_kit.py."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from stores import Kind, listed, new_store

DIRECTORIES = st.sampled_from(["a", "a-b", "a.b", "a0", "a1", "A", "_a", "b", "1.0", "1.0-x", "1.0.1", "1"])
LEAVES = st.sampled_from(["link", "link-1", "link.x", "data"])
KEYS = st.tuples(st.lists(DIRECTORIES, max_size=3), LEAVES).map(lambda both: "/".join([*both[0], both[1]]))
PREFIXES = st.lists(DIRECTORIES, max_size=2).map(lambda folders: "".join(each + "/" for each in folders))


@pytest.mark.parametrize("kind", ["memory", "filesystem"])
@settings(max_examples=60, deadline=None)
@given(
    written=st.sets(KEYS, max_size=12),
    removed=st.sets(KEYS, max_size=6),
    prefix=PREFIXES,
    delimiter=st.sampled_from(["", "/"]),
    after=st.one_of(st.just(""), KEYS, PREFIXES),
    limit=st.integers(1, 5),
)
async def test_a_list_gives_what_is_there_in_order_page_by_page(
    kind: Kind, written: set[str], removed: set[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with new_store(kind, Path(folder)).open() as driver:
            for key in sorted(written):
                await driver.write(key, b"12", durable=False)
            await driver.delete(*sorted(removed), durable=False)
            wanted = [key for key in listed(written - removed, prefix, delimiter) if key > after]
            found: list[str] = []
            while True:
                listing = await driver.list(
                    prefix, after=found[-1] if found else after, delimiter=delimiter, limit=limit
                )
                found += [entry.key for entry in listing.entries]
                for entry in listing.entries:
                    assert entry.size in {None, 2}
                if not listing.more:
                    break
                assert len(listing.entries) == limit
            assert found == wanted
