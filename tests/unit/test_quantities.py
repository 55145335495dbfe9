"""Durations, sizes and rates as people write them."""

import pytest

from warmer.errors import UsageError
from warmer.quantities import parse_duration, parse_rate, parse_size, show_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("14d", 14 * 86400),
        ("2w", 14 * 86400),
        ("36h", 129600),
        ("90m", 5400),
        ("90min", 5400),
        ("1.5h", 5400),
        ("30s", 30),
        ("30", 30),
        ("0", 0),
        (" 14 D ", 14 * 86400),
    ],
)
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text, "--keep") == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100G", 100 * 10**9),
        ("100GB", 100 * 10**9),
        ("1.5Ti", 1.5 * 2**40),
        ("1KiB", 1024),
        ("500m", 500 * 10**6),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text, "--min-free") == size


@pytest.mark.parametrize("parse", [parse_duration, parse_size])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "d",
        "-1d",
        "1e9",
        "inf",
        "nan",
        "1 2",
        "1x",
        "0x1",
        "\N{ARABIC-INDIC DIGIT ONE}d",
        "1.d",
        "9" * 30,
        "1ib",
    ],
)
def test_anything_else_is_refused_by_the_options_name(parse, text):
    with pytest.raises(UsageError) as caught:
        parse(text, "--some")
    assert "--some" in caught.value.message
    assert repr(text) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("size", [0, 999, 1000, 12_345_678, 10**12, 10**16])
def test_what_is_shown_is_read_as_about_the_same(size):
    assert parse_size(show_bytes(size), "--x") == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1GB/s", 1e9),
        ("500 MB/s", 5e8),
        ("1.5Gi/s", 1.5 * 2**30),
        ("100MiB/s", 100 * 2**20),
        ("200M", 2e8),
        ("10Gbit/s", 1.25e9),
        ("10Gbps", 1.25e9),
        ("100mbps", 1.25e7),
        ("8b/s", 1),
        ("8B/s", 8),
        ("10GBps", 1e10),
        ("10 MBps", 1e7),
        ("1GiBps", 2**30),
    ],
)
def test_a_rate_is_read_in_bytes_or_in_bits(text, rate):
    assert parse_rate(text, "--network") == rate


@pytest.mark.parametrize("text", ["10Gb", "10gb", "10Gib/s", "10Gibps", "1.5 Mb"])
def test_a_rate_that_may_be_of_bits_or_of_bytes_is_asked_again(text):
    with pytest.raises(UsageError, match="expected bits or bytes") as caught:
        parse_rate(text, "--network")
    assert caught.value.hint == "as 10Gbit/s or 10GB/s"


@pytest.mark.parametrize("text", ["", "fast", "0", "0Gbps", "-1MB/s", "1GB/h", "1GiBit/s", "nan"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_rate(text, "--network")
    assert caught.value.message.startswith("got --network ")
