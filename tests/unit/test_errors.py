"""The error tree (`warmer.errors`): exit codes are part of the product, and so are reasons."""

import errno
import importlib
import os
import pkgutil
import signal

import pytest

import warmer
from warmer import errors
from warmer.errors import VolumeError, WarmerError, using, volume_error

CODES = {
    "NotWarmError": 1,
    "UsageError": 2,
    "BusyError": 3,
    "SourceError": 4,
    "LockError": 4,
    "IntegrityError": 5,
    "VolumeError": 6,
    "EngineError": 7,
}


def everything():
    """Every class of failure that any module of warmer defines."""
    for module in pkgutil.walk_packages(warmer.__path__, "warmer."):
        importlib.import_module(module.name)
    found, left = [], list(WarmerError.__subclasses__())
    while left:
        found.append(left.pop())
        left += found[-1].__subclasses__()
    return found


def test_each_class_of_failure_has_its_exit_code():
    assert {cls.__name__: cls.exit_code for cls in WarmerError.__subclasses__()} == CODES


def test_no_finer_class_changes_the_exit_code_of_what_it_is():
    finer = [cls for cls in everything() if cls.__name__ not in CODES]
    assert len(finer) >= 3
    for cls in finer:
        families = [c for c in cls.__mro__ if c.__name__ in CODES]
        assert len(families) == 1, cls
        assert cls.exit_code == CODES[families[0].__name__], cls


def test_the_other_statuses_are_those_of_the_contract():
    assert (errors.EXIT_OK, errors.EXIT_NOT_WARM, errors.EXIT_BUG) == (0, 1, 70)
    assert errors.EXIT_INTERRUPTED == 128 + signal.SIGINT
    assert errors.EXIT_TERMINATED == 128 + signal.SIGTERM
    assert WarmerError.exit_code == errors.EXIT_BUG


def test_a_request_to_stop_is_no_failure_that_a_handler_could_swallow():
    assert not issubclass(errors.TerminatedError, Exception)
    assert errors.TerminatedError(15).signum == 15


def test_a_failure_carries_what_a_person_and_a_program_need():
    failure = errors.SourceError("got x, expected y", reason="not-found", hint="try z")
    assert (failure.message, failure.reason, failure.hint) == (
        "got x, expected y",
        "not-found",
        "try z",
    )
    assert str(failure) == "got x, expected y"
    assert errors.SourceError("x", reason="y").hint == ""


@pytest.mark.parametrize(
    ("number", "reason", "has_hint"),
    [
        (errno.ENOSPC, "no-space", True),
        (errno.EDQUOT, "quota", True),
        (errno.EROFS, "read-only", True),
        (errno.EACCES, "permission", True),
        (errno.EPERM, "permission", True),
        (errno.ENOTDIR, "not-a-directory", True),
        (errno.ENOENT, "missing", True),
        (errno.EIO, "io", True),
        (errno.ESTALE, "stale-handle", True),
        (errno.EMFILE, "io", False),
        (errno.ELOOP, "io", False),
    ],
    ids=lambda value: errno.errorcode.get(value) if type(value) is int else None,
)
def test_an_operating_system_error_says_what_failed_where_and_why(number, reason, has_hint):
    failure = volume_error(OSError(number, "ignored", "/volume/a"), "the volume")
    assert failure.message == f"the volume failed: {os.strerror(number)} at /volume/a"
    assert failure.reason == reason
    assert bool(failure.hint) is has_hint
    assert failure.exit_code == 6


def test_an_operating_system_error_without_a_number_keeps_its_text():
    failure = volume_error(OSError("short read"), "the warm dir")
    assert (failure.message, failure.reason) == ("the warm dir failed: short read", "io")


def test_a_real_error_inside_the_block_is_translated_and_chained(tmp_path):
    with pytest.raises(VolumeError, match=f"^the volume failed: .* at {tmp_path}/none$") as caught:
        with using("the volume"), open(tmp_path / "none", encoding="utf-8"):
            pass
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert caught.value.reason == "missing"


def test_other_failures_pass_through_the_block():
    for failure in (errors.BusyError("x", reason="y"), ValueError("z"), errors.TerminatedError(15)):
        with pytest.raises(type(failure)) as caught, using("the volume"):
            raise failure
        assert caught.value is failure
