"""A hub that sends to a CDN: what is secret stays with the hub, and stands nowhere."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs
from hub import Hub

TOKEN = "hf_PlantedTokenOfTheHub"
NETRC = "PlantedPasswordOfTheNetrc"
SHARD = runs.SHARDS[1]


@pytest.fixture
def split(tmp_path):
    """A place whose hub sends to a CDN on another port, beside a .netrc that names both."""
    with Hub(f"{tmp_path}/hub") as cdn, runs.place(tmp_path, cdn=cdn) as place:
        with open(f"{place.top}/home/.netrc", "w", encoding="ascii") as stream:
            stream.write(f"machine 127.0.0.1 login somebody password {NETRC}\n")
        os.chmod(f"{place.top}/home/.netrc", 0o600)
        yield place


def resolved(hub):
    return [seen for seen in hub.log if "/resolve/" in seen.path]


def files_below(top):
    """Read every file: path → bytes."""
    found = {}
    for at, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(at, name), "rb") as stream:
                found[os.path.relpath(stream.name, top)] = stream.read()
    return found


def test_the_token_stays_with_the_hub_and_a_netrc_goes_nowhere(split):
    split.hub.private[runs.REPO] = TOKEN
    split.warmed(env={"HF_TOKEN": TOKEN})
    assert len(resolved(split.hub.cdn)) >= 2, "the weights came from the CDN"
    assert {seen.authorized for seen in split.hub.cdn.log} == {False}
    assert {seen.authorized for seen in split.hub.log} == {True}


def test_without_a_token_nobody_is_sent_a_netrc(split):
    split.warmed()
    assert {seen.authorized for seen in (*split.hub.log, *split.hub.cdn.log)} == {False}


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ({"status": 403}, 4, "denied"),
        ({"status": 500}, 4, "unavailable"),
        ({"reset": True}, 4, "unreachable"),
        ({"truncate": 1000}, 4, "unreachable"),
        ({"corrupt": True}, 5, "hash-mismatch"),
        ({"lie": 9}, 4, "size-mismatch"),
        ({"status": 429, "retry_after": 900}, 4, "rate-limited"),
    ],
)
def test_nothing_written_anywhere_holds_a_token_a_password_or_a_signed_url(
    split, fault, code, reason
):
    split.hub.private[runs.REPO] = TOKEN
    split.hub.cdn.fault(SHARD, method="GET", **({"code": ""} if "status" in fault else {}), **fault)
    env = {"HF_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1", "HF_DEBUG": "1"}
    result = split.run("prefill", "--json", "--retry", "0", env=env)
    assert (result.code, result.json["error"]["reason"]) == (code, reason), result
    assert SHARD in result.json["error"]["message"]
    assert resolved(split.hub.cdn), "a signed URL was used"
    os.unlink(f"{split.top}/home/.netrc")
    for place in (split.volume, split.warm, f"{split.top}/home"):
        for path, data in files_below(place).items():
            assert b"Planted" not in data, path
    assert "Planted" not in result.out + result.err
