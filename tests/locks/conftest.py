"""One bench per lock, by name; the servers they talk to start when first asked for."""

import contextlib
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))

import owner
import s3
from cluster import ClusterLeases
from contract import FileBench, LeaseBench, ObjectBench
from leases import LeaseServer
from proxy import Proxy

from warmer.errors import LockError

CLUSTER = "WARMER_TEST_KUBECONFIG"
"""Names a kubeconfig: the suite then runs on that cluster, in WARMER_TEST_NAMESPACE."""


@pytest.fixture(scope="session")
def lease_server():
    with LeaseServer() as server:
        yield server


@pytest.fixture
def file_bench(tmp_path):
    bench = FileBench(f"{tmp_path}/file")
    yield bench
    bench.close()


@pytest.fixture
def lease_bench(lease_server, tmp_path, monkeypatch):
    """Leases of our own API server, which can be told to fail."""
    monkeypatch.setenv("KUBECONFIG", lease_server.kubeconfig(tmp_path / "kubeconfig"))
    how = {"leases": lease_server.leases, "namespace": lease_server.namespace}
    bench = LeaseBench(f"{tmp_path}/k8s", **how)
    yield bench
    bench.close()


@pytest.fixture
def k8s_bench(request, tmp_path, monkeypatch):
    if not (kubeconfig := os.environ.get(CLUSTER)):
        yield request.getfixturevalue("lease_bench")
        return
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    namespace = os.environ.get("WARMER_TEST_NAMESPACE", "default")
    leases = ClusterLeases(kubeconfig, namespace)
    bench = LeaseBench(f"{tmp_path}/k8s", leases=leases, namespace=namespace)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def bucket():
    return s3.seaweed().bucket()


@pytest.fixture
def s3_bench(bucket, tmp_path, monkeypatch):
    for name, value in s3.seaweed().environment().items():
        monkeypatch.setenv(name, value)
    bench = ObjectBench(f"{tmp_path}/s3", client=s3.seaweed().client(), bucket=bucket)
    yield bench
    bench.close()


@pytest.fixture(params=["file", "k8s", "s3"])
def bench(request):
    return request.getfixturevalue(f"{request.param}_bench")


@pytest.fixture
def benches(file_bench, k8s_bench, s3_bench):
    return (file_bench, k8s_bench, s3_bench)


class Far:
    """A bench of which one owner has a connection of its own: `lock` goes through the `proxy`."""

    def __init__(self, bench, proxy):
        self.bench, self.proxy = bench, proxy
        self._register = owner.open_register(bench.at)

    def lock(self, me="far", *, lease=30.0):
        return owner.open_lock(self.bench.at, me=me, lease=lease, register=self._register)


@pytest.fixture(params=["k8s", "s3"])
def reached(request, tmp_path, monkeypatch):
    """Have a lock's service reached, from then on, through what a class puts before its address."""

    @contextlib.contextmanager
    def through(link):
        kind = request.param
        bench = request.getfixturevalue("lease_bench" if kind == "k8s" else "s3_bench")
        server = (
            request.getfixturevalue("lease_server").url if kind == "k8s" else s3.seaweed().endpoint
        )
        bench.lock()  # opened now, by the straight way
        with link(server) as between:
            if kind == "k8s":
                config = (tmp_path / "kubeconfig").read_text().replace(server, between.url)
                (tmp_path / "kubeconfig").write_text(config)
            else:
                monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
            yield bench, between

    return through


@pytest.fixture
def far(reached):
    with reached(Proxy) as (bench, proxy):
        yield Far(bench, proxy)
        proxy.faults.clear()
        proxy.accept()
        bench.close()


@pytest.fixture
def refused():
    """Ask a lock that must fail; return the error, which repeats none of the secrets."""

    def ask(at, *secrets):
        with pytest.raises(LockError) as failed:
            owner.open_lock(at, me="me", lease=30.0).try_acquire(owner.KEY)
        error = failed.value
        assert (error.exit_code, "\n" in error.message) == (4, False), error.message
        assert error.hint
        shown = error.message + error.hint
        assert [secret for secret in secrets if secret in shown] == []
        return error

    return ask
