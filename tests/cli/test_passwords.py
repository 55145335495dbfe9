"""Passwords inside addresses and inside JSON are secrets too, whatever their variable is called."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

PASSWORD = "Planted" + "InAnAddress"


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place


def leaks(place, result):
    """Name what holds the password: the output, or a file or link that the run wrote."""
    found = ["output"] if PASSWORD in result.out + result.err else []
    for top in (place.volume, place.warm, f"{place.top}/home"):
        for at, names, files in os.walk(top):
            for name in names + files:
                path = f"{at}/{name}"
                text = path.encode()
                if os.path.islink(path):
                    text += os.fsencode(os.readlink(path))
                elif os.path.isfile(path):
                    with open(path, "rb") as stream:
                        text += stream.read()
                found += [path] if PASSWORD.encode() in text else []
    return found


@pytest.mark.parametrize(
    "address", [f"redis://:{PASSWORD}@cache:6379", f"redis://{PASSWORD}@cache"]
)
def test_a_variable_with_a_password_in_its_address_is_written_nowhere(place, address):
    env = {"TORCHINDUCTOR_REDIS_URL": address}
    result = place.warmed(env=env)
    assert leaks(place, result) == []
    planned = place.run("plan", "--json", "--explain", env=env)
    assert (planned.code, leaks(place, planned)) == (0, [])
    failed = place.run(
        *("prefill", "--json", "--on-miss", "fail"),
        serve=("--max-model-len", "9"),
        env=env | {"FAKE_ENGINE": "crash"},
    )
    assert (failed.code, leaks(place, failed)) == (7, [])


@pytest.mark.parametrize(
    "words",
    [
        ("--kv-transfer-config", f'{{"x": {{"api_key": "{PASSWORD}"}}}}'),
        (f'--kv-transfer-config={{"x": [{{"redis_password": "{PASSWORD}"}}]}}',),
        ("--model-loader-extra-config", f'{{"s3_secret_access_key": "{PASSWORD}"}}'),
        ("--kv-transfer-config.x.api_key", PASSWORD),
    ],
    ids=["inside", "in a list", "at the top", "dotted"],
)
def test_a_secret_inside_json_is_refused_and_not_repeated(place, words):
    result = place.run("prefill", "--json", serve=words)
    runs.failed(result, 2, "secret-in-argv")
    assert leaks(place, result) == []
    assert runs.listing(place.volume) == []


@pytest.mark.parametrize("trouble", ["unavailable", "one file", "refused", "no port", "no address"])
def test_a_password_of_an_endpoint_that_fails_is_never_printed(place, trouble):
    if trouble == "unavailable":
        place.hub.fault(status=503)
    if trouble == "one file":  # the client tries again by itself, and would say so
        place.hub.fault("/resolve/", status=503, times=1)
    at = {"refused": f"127.0.0.1:{runs.closed_port()}", "no port": "127.0.0.1:99999999"}
    at |= {"no address": "[bad"}
    hub = place.hub.url.removeprefix("http://")
    env = {"HF_ENDPOINT": f"http://user:{PASSWORD}@{at.get(trouble, hub)}"}
    result = place.run("prefill", "--json", "--retry", "0.5", env=env)
    assert leaks(place, result) == []
    assert result.code == (0 if trouble == "one file" else 4), result
