"""Kubernetes APIs that cannot be used: which error, what to do about it, no secret in it."""

import json
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import owner
import runs
from leases import LeaseServer
from owner import KEY

from warmer.fill.locks.record import Owner

K8S = {"mechanism": "k8s", "place": "warm", "prefix": "models"}
TOKEN = "planted-token-of-the-pod"
IN_A_POD = os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token")


@pytest.fixture
def leases():
    with LeaseServer(tokens={TOKEN: {"get", "create", "update"}}) as server:
        yield server


@pytest.fixture
def kubeconfig(leases, tmp_path, monkeypatch):
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", leases.kubeconfig(path))
    return path


@pytest.mark.parametrize(("allowed", "missing"), [(set(), "get"), ({"get"}, "create")])
def test_a_role_that_lacks_a_verb_is_denied_and_the_verb_named(
    refused, leases, kubeconfig, allowed, missing
):
    leases.tokens = {TOKEN: allowed}
    error = refused(K8S, TOKEN)
    assert error.reason == "lock-denied"
    assert f"{missing} leases" in error.hint
    assert "'warm'" in error.hint
    assert len(leases.leases) == 0


def test_a_role_that_may_not_update_is_found_out_at_the_next_grant(refused, leases, kubeconfig):
    owner.open_lock(K8S, me="before", lease=30.0).try_acquire(KEY).release()
    leases.tokens = {TOKEN: {"get", "create"}}
    error = refused(K8S, TOKEN)
    assert (error.reason, "update leases" in error.hint) == ("lock-denied", True)


def test_a_token_that_is_not_known_is_denied(refused, leases, kubeconfig):
    leases.tokens = {"another": {"get", "create", "update"}}
    error = refused(K8S, TOKEN)
    assert error.reason == "lock-denied"
    assert "token" in error.hint


def test_a_namespace_that_is_absent_is_named(refused, leases, kubeconfig):
    error = refused(K8S | {"place": "nowhere"}, TOKEN)
    assert error.reason == "lock-denied"
    assert "'nowhere'" in error.hint
    assert "exists" in error.hint


def test_a_namespace_that_is_absent_is_named_to_an_administrator_too(refused, leases, kubeconfig):
    leases.fault(path="/leases$", method="POST", status=404)
    assert "exists" in refused(K8S, TOKEN).hint


@pytest.mark.skipif(IN_A_POD, reason="this machine is a pod with an account of its own")
@pytest.mark.parametrize("missing", ["not named", "not there", "a directory"])
def test_no_kubeconfig_at_all_is_an_error_that_names_what_is_wanted(
    refused, tmp_path, monkeypatch, missing
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path if missing == "a directory" else tmp_path / "x"))
    if missing == "not named":
        monkeypatch.delenv("KUBECONFIG")
    error = refused(K8S)
    assert error.reason == "no-kubernetes"
    assert "KUBECONFIG" in error.message


@pytest.mark.skipif(IN_A_POD, reason="this machine is a pod with an account of its own")
@pytest.mark.parametrize(
    "text",
    [
        '{"clusters": [], "contexts": []}',
        '{"clusters": [{}], "contexts": []}',
        '{"clusters": [], "contexts": [], "current-context": "here"}',
        *("", "[]", "words", "{[", '{"clusters": 5, "contexts": 6}', "\0\x7f"),
        f"users: [{{name: x, user: {{token: {TOKEN}\n",  # a parser may show the line it fails at
    ],
)
def test_a_kubeconfig_that_is_none_is_an_error(refused, kubeconfig, text):
    kubeconfig.write_text(text)
    assert refused(K8S, TOKEN).reason == "no-kubernetes"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 500}, "lock-unavailable"),
        ({"status": 503}, "lock-unavailable"),
        ({"status": 503, "bare": True}, "lock-unreachable"),
        ({"status": 429}, "lock-unavailable"),
        ({"drop": "before"}, "lock-unreachable"),
        ({"drop": "before", "reset": True}, "lock-unreachable"),
    ],
    ids=str,
)
def test_an_api_server_in_trouble_is_one_that_did_not_answer(
    refused, leases, kubeconfig, fault, reason
):
    leases.fault(**fault)
    assert refused(K8S, TOKEN).reason == reason
    leases.faults.clear()
    grant = owner.open_lock(K8S, me="me", lease=30.0).try_acquire(KEY)
    assert not isinstance(grant, Owner)
    grant.release()


def test_a_token_that_no_header_may_hold_is_not_repeated(refused, leases, kubeconfig):
    kubeconfig.write_text(kubeconfig.read_text().replace(TOKEN, f"{TOKEN}\\n"))
    error = refused(K8S, TOKEN)
    assert TOKEN in str(error.__cause__), "what must not be repeated"


def test_a_password_of_the_server_is_not_repeated(refused, leases, kubeconfig):
    text = kubeconfig.read_text()
    kubeconfig.write_text(text.replace("http://", "http://user:planted-password@"))
    for fault in ({"status": 429}, {"drop": "before"}):
        leases.faults.clear()
        leases.fault(**fault)
        assert refused(K8S, TOKEN, "planted-password")


def test_an_api_server_that_is_not_there_is_unreachable(refused, leases, kubeconfig):
    leases.close()
    assert refused(K8S, TOKEN).reason == "lock-unreachable"


def test_a_role_without_a_verb_ends_prefill_with_4(tmp_path, leases, kubeconfig):
    with runs.place(tmp_path / "place") as place:
        leases.tokens = {TOKEN: {"get"}}
        env = {"KUBECONFIG": str(kubeconfig)}
        options = ("--lock", "k8s://warm/models")
        error = place.fails(4, "lock-denied", "create", options=options, env=env, compared=False)
        assert TOKEN not in json.dumps(error)
        result = place.run("prefill", *options, env=env)
        assert result.code == 4
        assert TOKEN not in result.out + result.err
