"""What a cluster lets in, and for how long it waits: Pod Security, rollouts, manifests of others that are patched."""

import os
import subprocess

import pytest
import rendering
import yaml
from test_manifests import BUILT, EVERY, TOP, VALUES, _documents, containers, pods

STACK = TOP / "deploy/examples/production-stack"
VOLUMES = {
    "configMap",
    "emptyDir",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "csi",
    "ephemeral",
}
OURS = [where for where in EVERY if "examples" not in where or "kserve" in where]
"""Pods that are written here as a whole; the others belong to somebody else."""
ON_THE_NODE = {
    *(f"chart: {name}" for name, v in VALUES.items() if v.get("persistence", {}).get("hostPath")),
    "built: deploy/kustomize/overlays/node-local",
}


def broken(pod):
    """What Pod Security's level `restricted` finds wrong with a pod (pod-security-standards)."""
    whole = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", ()):
        yield from sorted(volume.keys() - {"name"} - VOLUMES)
    for container in containers(pod):
        own = container.get("securityContext", {})
        both, rights = whole | own, own.get("capabilities", {})
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield "escalation"
        if "ALL" not in rights.get("drop", ()) or set(rights.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield "capabilities"
        if both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0:
            yield "root"
        if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccomp"
        if any(port.get("hostPort") for port in container.get("ports", ())):
            yield "hostPort"


@pytest.mark.parametrize("where", OURS)
def test_pod_securitys_strictest_level_admits_all_but_a_path_of_the_node(where):
    found = {rule for pod in pods(_documents(where)) for rule in broken(pod)}
    assert found == ({"hostPath"} if where in ON_THE_NODE else set())


def test_a_pod_of_others_without_a_word_on_security_is_found_wanting():
    (pod,) = pods(_documents(f"built: {BUILT[-1].relative_to(TOP)}"))
    assert set(broken(pod)) == {"escalation", "capabilities", "root", "seccomp"}


@pytest.mark.parametrize("where", EVERY)
def test_a_rollout_is_no_failure_while_a_first_pod_fills_and_starts_cold(where):
    for document in _documents(where):
        if document["kind"] != "Deployment":
            continue
        (server,) = document["spec"]["template"]["spec"]["containers"]
        probe = server["startupProbe"]
        cold = probe["failureThreshold"] * probe.get("periodSeconds", 10)
        # It starts the engine twice, and downloads before: Kubernetes' own 600 s are too few.
        assert document["spec"]["progressDeadlineSeconds"] > 2 * cold


def test_every_container_that_prefills_sees_the_gpu_whose_name_is_in_the_keys():
    for where in EVERY:
        for pod in pods(_documents(where)):
            fillers = [c for c in containers(pod) if c["name"] == "warmer"]
            servers = [c for c in containers(pod) if c["name"] in ("vllm", "kserve-container")]
            asked = [
                {c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu") for c in some}
                for some in (fillers, servers)
            ]
            assert not (fillers and servers) or asked[0] == asked[1], where


def test_a_group_of_pods_outlives_a_prefill_that_is_tried_again():
    (group,) = _documents("file: deploy/examples/lws/leaderworkerset.yaml")
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["restartPolicy"] == "RecreateGroupAfterStart"
    for pod in pods(group):
        (filler,) = pod["initContainers"]
        assert int({e["name"]: e.get("value") for e in filler["env"]}["WARMER_RETRY"]) >= 600


def _stack(model):
    """A Deployment as production-stack's chart names and shapes it."""
    labels = {"model": model}
    engine = {"name": "vllm", "image": "x", "command": ["vllm", "serve", "org/x"]}
    pod = {"containers": [engine]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"stack-{model}-deployment-vllm"},
        "spec": {
            "progressDeadlineSeconds": 1200,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _rendered(*documents):
    return subprocess.run(
        [STACK / "render.sh"],
        input=yaml.safe_dump_all(documents),
        env={"PATH": os.pathsep.join((rendering.SCRIPTS, os.defpath))},
        capture_output=True,
        text=True,
    )


def test_what_is_patched_into_production_stack_is_probed_and_other_models_stay_as_they_are():
    done = _rendered(_stack("llama3"), _stack("other"))
    assert done.returncode == 0, done.stderr
    found = {
        d["spec"]["selector"]["matchLabels"]["model"]: d for d in yaml.safe_load_all(done.stdout)
    }
    (server,) = found["llama3"]["spec"]["template"]["spec"]["containers"]
    assert server["readinessProbe"]["exec"]["command"] == [
        "python3",
        "-IS",
        "/warm/handoff/check.py",
    ]
    assert found["llama3"]["spec"]["progressDeadlineSeconds"] == 7200
    assert found["other"] == _stack("other")


def test_a_model_that_the_patch_does_not_meet_is_an_error_and_not_a_cold_server():
    done = _rendered(_stack("qwen"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "kustomization.yaml" in done.stderr


def test_helm_4_finds_the_post_renderer_as_a_plugin():
    plugin = yaml.safe_load((STACK / "plugin.yaml").read_text())
    assert (plugin["type"], plugin["runtime"]) == ("postrenderer/v1", "subprocess")
    (run,) = plugin["runtimeConfig"]["platformCommand"]
    script = STACK / run["command"].replace("${HELM_PLUGIN_DIR}/", "")
    assert os.access(script, os.X_OK)
    assert f"--post-renderer {plugin['name']}\n" in (STACK / "values.yaml").read_text()


def test_scripts_keep_the_line_ends_of_linux_wherever_they_are_checked_out():
    scripts = list((TOP / "entrypoints").iterdir())
    scripts += [STACK / "render.sh", TOP / "deploy/docker/install.sh", TOP / "Dockerfile"]
    words = ["git", "check-attr", "eol", "--", *(str(p.relative_to(TOP)) for p in scripts)]
    told = subprocess.run(words, cwd=TOP, capture_output=True, text=True, check=True).stdout
    assert [line.rsplit(": ", 1)[1] for line in told.splitlines()] == ["lf"] * len(scripts)
