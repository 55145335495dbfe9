"""Leases as a pod has them: by its service account, whose token rotates; and the suite on a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from contract import LeaseBench
from leases import LeaseServer
from owner import KEY, OTHER

# Where a pod finds its account. The mount is this process's alone.
IN_A_POD = """
mount --make-rprivate / && mount -t tmpfs run /run && mkdir -p /run/secrets/kubernetes.io &&
ln -s "$1" /run/secrets/kubernetes.io/serviceaccount && test -e /var/run/secrets/kubernetes.io &&
shift && exec "$@"
"""
ALL = {"get", "create", "update", "delete"}


@pytest.fixture
def server():
    with LeaseServer(tls=True, tokens={"the first token": ALL}) as server:
        yield server


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are root's")
def test_an_owner_whose_token_rotates_holds_on_and_the_new_token_is_used(server, tmp_path):
    account = tmp_path / "account"
    env = server.in_cluster(account) | {"KUBECONFIG": str(tmp_path / "none")}
    bench = LeaseBench(f"{tmp_path}/k8s", leases=server.leases, namespace=server.namespace)
    try:
        prefix = ("unshare", "-m", "sh", "-c", IN_A_POD, "sh", str(account))
        pod = bench.start("pod", env=env, prefix=prefix).ready()
        assert pod.ask("take", KEY)["epoch"] == 1
        server.rotate("the second token")
        server.in_cluster(account)
        assert pod.ask("mine", KEY) == {"mine": True}
        assert pod.ask("take", OTHER)["epoch"] == 1
        pod.ask("release", KEY)
        assert bench.read()["name"] == ""
        refused = [seen.method for seen in server.requests if seen.status == 401]
        assert len(refused) == 1, "the old token was tried once, and never again"
    finally:
        bench.close()


def test_the_suite_runs_on_the_cluster_that_a_kubeconfig_names(tmp_path):
    with LeaseServer(namespaces=("theirs",), tokens={"of a person": ALL}, tls=True) as cluster:
        theirs = cluster.kubeconfig(tmp_path / "theirs")
        env = {"WARMER_TEST_KUBECONFIG": theirs, "WARMER_TEST_NAMESPACE": "theirs"}
        words = ("release_is_idempotent", "epoch_grows", "[k8s-torn]", "removed_or_replaced")
        chosen = f"k8s and ({' or '.join(words)})".replace("[k8s-torn]", "torn")
        here = Path(__file__).parent
        run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
        suite = [str(here / name) for name in ("test_contract.py", "test_contract_records.py")]
        done = subprocess.run(
            [*run, *suite, f"--basetemp={tmp_path / 'runs'}"],
            env={k: v for k, v in os.environ.items() if k != "KUBECONFIG"} | env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
        assert {seen.method for seen in cluster.requests} >= {"GET", "POST", "PUT", "DELETE"}
        assert list(cluster.leases) == [], "what the suite made is gone again"
