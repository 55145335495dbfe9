"""Lock URLs: what each means, and what is refused before anything is opened."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer.errors import UsageError
from warmer.urls import LockUrl, parse_lock

PASSWORD = "Planted" + "InAUrl"
LONGEST = "a" * 100


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("file", LockUrl("file", "", "", 30.0)),
        ("file?lease=3", LockUrl("file", "", "", 3.0)),
        ("file?lease=600", LockUrl("file", "", "", 600.0)),
        ("file?lease=4.5", LockUrl("file", "", "", 4.5)),
        ("k8s://ml/models", LockUrl("k8s", "ml", "models", 30.0)),
        ("k8s://m/a.b-c?lease=15", LockUrl("k8s", "m", "a.b-c", 15.0)),
        (f"k8s://ml/{LONGEST}", LockUrl("k8s", "ml", LONGEST, 30.0)),
        ("s3://locks/models", LockUrl("s3", "locks", "models", 30.0)),
        ("s3://my.locks-1/a/b_c/D?lease=20", LockUrl("s3", "my.locks-1", "a/b_c/D", 20.0)),
        ("s3://locks/models/", LockUrl("s3", "locks", "models", 30.0)),
    ],
)
def test_a_url_names_a_mechanism_a_place_a_prefix_and_a_lease(url, meant):
    assert parse_lock(url) == meant


@pytest.mark.parametrize(
    "url",
    [
        *("", " ", "file:", "file://", "file:///volume", "FILE", "files", "file ", "true"),
        *("redis://cache", "https://host/x", "K8S://ml/models", "k8s//ml/models", "k8s:ml/models"),
        *("k8s://", "k8s://ml", "k8s://ml/", "k8s:///models", "k8s://ml/a/b", "k8s://ml/A"),
        *("k8s://ML/models", "k8s://m_l/models", "k8s://-ml/models", "k8s://ml-/models"),
        *("k8s://ml/a_b", "k8s://ml/.a", "k8s://ml/a-", "k8s://ml/é", "k8s://ml/models\n"),
        *(f"k8s://ml/{LONGEST}a", f"k8s://{'n' * 64}/models", "k8s://ml/mod els"),
        *("s3://", "s3://locks", "s3://locks/", "s3:///models", "s3://locks//models"),
        *("s3://Locks/models", "s3://lo_cks/models", "s3://ab/models", f"s3://{'b' * 64}/models"),
        *("s3://locks/a//b", "s3://locks/../models", "s3://locks/a/./b", "s3://locks/a b"),
        *("s3://locks/a%20b", "s3://locks/é", "s3://locks/models\n", "s3://locks/" + "a/" * 33),
        *(
            "file?",
            "file?lease",
            "file?lease=",
            "file?lease=2.9",
            "file?lease=601",
            "file?lease=-5",
        ),
        *("file?lease=nan", "file?lease=inf", "file?lease=thirty", "file?ttl=30", "file?lease=5s"),
        *("file?lease=5&lease=6", "file?lease=5?lease=6", "?lease=5", "k8s://ml/models?Lease=5"),
        *("s3://locks/models#lease=5", "k8s://ml/a..b", "k8s://ml/a.-b", "k8s://ml/a-.b"),
    ],
)
def test_a_url_that_means_nothing_is_refused_with_what_was_got_and_what_is_expected(url):
    with pytest.raises(UsageError) as refused:
        parse_lock(url)
    error = refused.value
    assert (error.exit_code, error.reason) == (2, "bad-lock")
    assert error.message == f"got --lock {url!r}, expected a lock URL"
    assert "lease=SECONDS" in error.hint or "://" in error.hint


def test_a_query_of_somebody_else_is_refused_and_not_repeated():
    with pytest.raises(UsageError) as refused:
        parse_lock("s3://locks/models?region=us-east-1")
    assert refused.value.message == "got --lock 's3://locks/models?...', expected a lock URL"


PASSWORDS = [
    f"redis://:{PASSWORD}@cache:6379",
    f"s3://key:{PASSWORD}@locks/models",
    f"k8s://user:{PASSWORD}@ml/models",
    f"S3://key:{PASSWORD}@locks/models?lease=5",
]
UNMARKED = [
    f"user:{PASSWORD}@host/models",
    f"s3:key:{PASSWORD}@locks/models",
    f"s3://key:{PASSWORD}/models",
    f"s3:key:{PASSWORD}",
    f"s3://locks/models?secret={PASSWORD}",
    f"s3://locks/models?lease=5&secret={PASSWORD}",
    f"s3://locks/models?lease={PASSWORD}",
    f"k8s://ml/models?key=0{PASSWORD}",
]


@pytest.mark.parametrize("url", PASSWORDS)
def test_a_password_in_a_url_is_not_shown(url):
    with pytest.raises(UsageError) as refused:
        parse_lock(url)
    assert PASSWORD not in refused.value.message + refused.value.hint


@pytest.mark.parametrize("url", UNMARKED)
def test_a_password_in_no_url_is_not_shown_either(url):
    with pytest.raises(UsageError) as refused:
        parse_lock(url)
    assert PASSWORD not in refused.value.message + refused.value.hint


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def test_a_bad_url_is_exit_2_wherever_it_is_written_and_nothing_is_touched(place, tmp_path):
    bad = f"s3://key:{PASSWORD}@locks"
    config = tmp_path / "warmer.yaml"
    config.write_text(f"lock: {bad}\n")
    told = [
        {"options": ("--lock", bad)},
        {"options": (), "env": {"WARMER_LOCK": bad}},
        {"options": ("--config", str(config))},
    ]
    for how in told:
        result = place.run("prefill", "--json", *how["options"], env=how.get("env"))
        error = runs.failed(result, 2, "bad-lock", "lock")
        assert "s3://bucket/prefix" in error["hint"]
        assert PASSWORD not in result.out + result.err
    assert runs.listing(place.volume) == []
    assert len(place.hub.requests) == 0
