"""What only a cluster has: leases by a service account, native sidecars, manifests of others."""

import json
import re
import subprocess
import sys
import urllib.error

import cables
import namespaces
import pytest
import rendering
from leases import LeaseServer

NODES = tuple(cables.node(number) for number in range(1, 100))


@pytest.fixture
def space(node):
    with namespaces.namespace(node / f"cluster-{len(list(node.iterdir()))}") as space:
        yield space


def test_two_pods_agree_by_leases_with_the_rights_of_the_charts_role_and_no_others(space):
    space.values["lock"] = {"mechanism": "k8s", "leaseSeconds": 3}
    (rule,) = rendering.only(space.render(), "Role")["rules"]
    tokens = {"token-of-the-pod": set(rule["verbs"])}
    how = {"namespaces": ("default",), "tokens": tokens, "tls": True}
    with LeaseServer(host="0.0.0.0", known_as=NODES, **how) as server:
        space.account, space.api = space.top / "account", server.port
        server.in_cluster(space.account)
        pods = space.two_at_once()
        notes = [pod.wait_ready().wait_ended("warmer").note for pod in pods]
        assert sorted(note["built"] for note in notes) == [False, True]
        assert max(note["waited_seconds"] for note in notes) > 0
        statuses = {(seen.method, seen.status) for seen in server.requests}
        assert ("POST", 201) in statuses
        assert not {status for _, status in statuses} & {401, 403}
        token = pods[0].execute(
            "vllm", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"
        )
        assert token.returncode == 0, "a pod's containers share its account"


def test_what_the_first_pods_server_builds_its_sidecar_publishes_for_the_second(space):
    space.values["sidecar"] = {"enabled": True, "quiet": 1, "livenessProbe": namespaces.QUICK}
    space.values["warmer"] = {"compile": "harvest"}
    spec = space.spec()
    first = space.pod(spec).wait_ready()
    note = first.wait_ended("warmer").note
    assert (note["warm"], note["built"], set(note["without"])) == (False, False, {"compile"})
    started = {name: first.status[name].began for name in ("warmer", "warmer-sidecar", "vllm")}
    assert list(started) == sorted(started, key=started.get)
    published = 'warmer_fills_total{kind="compile",result="published"} 1.0'
    first.wait(lambda pod: published in _page(pod, spec, "/metrics"), what=published)
    assert "Starting torch.compile" in first.log("vllm"), "it was the server that built"
    assert (_page(first, spec, "/livez"), json.loads(_page(first, spec, "/readyz"))["warm"]) == (
        "ok\n",
        True,
    )
    filled = 'warmer_fill_bytes_total{kind="weights",source="hf"}'
    assert filled in _page(first, spec, "/metrics"), "what the init container did is seen here"
    assert namespaces.TOKEN not in json.dumps(first.inspect("warmer-sidecar"))
    alive = ("liveness", 0)
    first.wait(lambda pod: alive in {probe[:2] for probe in pod.status["warmer-sidecar"].probes})
    first.terminate(grace=5)
    ends = {name: first.status[name].runs[-1].ended for name in ("vllm", "warmer-sidecar")}
    assert ends["vllm"] < ends["warmer-sidecar"]
    assert first.status["warmer-sidecar"].runs[-1].code == 143, "by itself, and not killed"

    second = space.pod(spec).wait_ready()
    note = second.wait_ended("warmer").note
    assert (note["warm"], note["built"], note["fetched_bytes"]) == (True, False, {})
    assert note["restored_bytes"]["compile"] > 0
    assert "Directly load AOT compilation" in second.log("vllm")
    assert "Starting torch.compile" not in second.log("vllm")


def _page(pod, spec, path):
    """What the sidecar of a pod says; nothing before it listens."""
    (sidecar,) = (c for c in spec["initContainers"] if c["name"] == "warmer-sidecar")
    try:
        return pod.get(path, port=sidecar["ports"][0]["containerPort"])[1].decode()
    except urllib.error.URLError:
        return ""


SIGNED = ("bucket", "node-local")
"""What passes through a bucket, which others may write into."""


def _keys(top):
    """The Secret and the ConfigMap that an overlay which signs tells how to make."""
    words = [sys.executable, "-m", "warmer", "keygen", "warmer"]
    subprocess.run(words, cwd=top, check=True, capture_output=True)
    trusted = {"keys.pub": (top / "warmer.pub").read_text()}
    yield namespaces.secret("warmer-signing", {"key": (top / "warmer").read_text()})
    yield {"kind": "ConfigMap", "metadata": {"name": "warmer-trusted"}, "data": trusted}


def _made_as_it_says(node, spec):
    """Make a node's directory with the command that its overlay shows; return it."""
    page = (rendering.OVERLAYS / "node-local" / "kustomization.yaml").read_text()
    mode, path = re.search(r"install -d -m (\d+) -g 0 (\S+)", page).groups()
    (models,) = (v["hostPath"] for v in spec["volumes"] if v["name"] == "models")
    assert (models["path"], models["type"]) == (path, "Directory")
    here = node / path.lstrip("/")
    here.parent.mkdir(parents=True)
    for each in (here.parent, here.parent.parent):
        each.chmod(0o755)
    subprocess.run(["install", "-d", "-m", mode, "-g", "0", here], check=True)
    return here


@pytest.mark.parametrize("overlay", ["rwx", "harvest", "bucket", "node-local"])
def test_a_pod_of_an_overlay_fills_and_serves(space, overlay):
    documents = rendering.overlay(rendering.OVERLAYS / overlay)
    for document in documents:
        if document["kind"] == "ConfigMap":
            document["data"].pop("WARMER_REMOTE", None)
            document["data"]["WARMER_MODEL"] = space.model
            document["data"]["WARMER_VLLM"] = space.engine.vllm
    spec = rendering.only(documents, "Deployment")["spec"]["template"]["spec"]
    spec["volumes"].append({"name": "engine", "hostPath": {"path": "/engine"}})
    for container in (*spec["initContainers"], *spec["containers"]):
        mount = {"name": "engine", "mountPath": space.engine.top}
        container["volumeMounts"].append(mount)
        container["env"] += space.values["extraEnv"]
        container["resources"]["limits"]["memory"] = "4Gi"
    token = namespaces.secret("hf-token-secret", {"HF_TOKEN": namespaces.TOKEN})
    space.adopt([*documents, token, *_keys(space.top)])
    volume = space.objects.claim("models")
    if overlay == "node-local":
        volume = _made_as_it_says(space.top / "node", spec)
    pod = space.pod(spec).wait_ready()
    assert pod.wait_ended("warmer").note["warm"] is (overlay != "harvest")
    if overlay == "bucket":
        volume = space.top / "pods" / pod.name / "models"
    if overlay != "harvest":
        (text,) = [path.read_text() for path in volume.glob("v1/pieces/compile/*/*/seal.json")]
        assert bool(json.loads(text).get("signatures")) is (overlay in SIGNED)
    if overlay == "harvest":
        pod.wait(lambda pod: _page(pod, spec, "/livez") == "ok\n", what="the sidecar")
    assert json.loads(pod.get("/v1/models")[1])["data"]
