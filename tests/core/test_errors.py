import inspect
import re

import pytest

from moorage import (
    BlobUnknown,
    DriverError,
    KeyUnknown,
    Listing,
    ListRepositories,
    ManifestBlobUnknown,
    MemoryDriver,
    RangeInvalid,
    Refused,
    Registry,
    RegistryError,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UploadOutOfOrder,
    _errors,
)
from moorage_conformance.registry.expect import CODES


def classes(base: type[Exception]) -> list[type[Exception]]:
    found = [each for _, each in inspect.getmembers(_errors, inspect.isclass)]
    return [each for each in found if issubclass(each, base) and each is not base]


@pytest.mark.parametrize("error", classes(RegistryError))
def test_every_error_of_a_client_has_a_code_of_the_spec(error: type[RegistryError]) -> None:
    if error.status < 499:
        assert error.status >= 400
        assert error.code in CODES
    else:
        assert error.code in {"UNKNOWN", "UNAVAILABLE"}


def test_the_drawing_of_the_tree_is_the_tree() -> None:
    drawn = {
        name: (int(status), code)
        for name, status, code in re.findall(r"── (\w+) +(\d{3}) (\w+)", _errors.__doc__ or "")
    }
    real = {
        each.__name__: (each.status, each.code) for each in classes(RegistryError) if issubclass(each, RegistryError)
    }
    del real["Refused"]
    assert drawn == real
    names = set(re.findall(r"── (\w+)", _errors.__doc__ or ""))
    assert names == {each.__name__ for each in [*classes(RegistryError), *classes(DriverError)]}


def test_an_answer_has_one_entry_with_code_message_and_detail() -> None:
    assert BlobUnknown("gone", detail={"digest": "x"}).entries() == [
        {"code": "BLOB_UNKNOWN", "message": "gone", "detail": {"digest": "x"}}
    ]
    assert BlobUnknown("gone").entries() == [{"code": "BLOB_UNKNOWN", "message": "gone"}]


def test_each_missing_reference_has_an_entry_of_its_own() -> None:
    entries = ManifestBlobUnknown([{"digest": "a"}, {"digest": "b"}]).entries()
    assert [entry["detail"] for entry in entries] == [{"digest": "a"}, {"digest": "b"}]


@pytest.mark.parametrize("status", [400, 403, 409, 422, 499])
def test_a_refusal_may_be_any_4xx(status: int) -> None:
    assert Refused("no", status=status).status == status


@pytest.mark.parametrize("status", [200, 399, 500, 503])
def test_a_refusal_is_nothing_but_a_4xx(status: int) -> None:
    with pytest.raises(ValueError, match="4xx"):
        Refused("no", status=status)


def test_errors_carry_what_their_answers_need() -> None:
    assert Unauthorized("who?", challenges=["Basic", "Bearer"]).challenges == ("Basic", "Bearer")
    assert TooManyRequests("slow down", retry_after=1.5).retry_after == 1.5
    assert Unavailable("later").retry_after > 0
    assert RangeInvalid("beyond", size=3).size == 3
    assert UploadOutOfOrder("wrong", upload_id="x", offset=3).detail == {"offset": 3}


def test_an_error_of_a_driver_says_who_did_what_to_which_key() -> None:
    error = KeyUnknown("no such key", driver="s3", operation="stat", key="a/b")
    assert str(error) == "s3: stat a/b: no such key"
    assert str(KeyUnknown("x", driver="s3", operation="list")) == "s3: list (no key): x"


def test_an_error_of_a_driver_says_whether_it_may_have_happened_and_when_to_come_back() -> None:
    plain = StoreBusy("slow down", driver="s3", operation="write")
    assert (plain.ambiguous, plain.retry_after) == (False, None)
    telling = StoreUnavailable("no reply", driver="s3", operation="write", ambiguous=True, retry_after=2.5)
    assert (telling.ambiguous, telling.retry_after) == (True, 2.5)


@pytest.mark.parametrize("kind", [StoreBusy, StoreUnavailable])
@pytest.mark.parametrize(("said", "told"), [(None, 5), (0, 0), (17.5, 17.5)])
async def test_a_client_is_told_to_come_back_when_the_store_says(
    kind: type[DriverError], said: float | None, told: float
) -> None:
    class Failing(MemoryDriver):
        async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
            raise kind("later", driver=self.name, operation="list", key=prefix, retry_after=said)

    with pytest.raises(Unavailable) as error:
        await Registry(Failing())(ListRepositories())
    assert error.value.retry_after == told


def test_only_what_may_work_later_is_retryable() -> None:
    assert {each.__name__ for each in classes(DriverError) if issubclass(each, DriverError) and each.retryable} == {
        StoreBusy.__name__,
        StoreUnavailable.__name__,
    }
    assert not StoreReadOnly.retryable
