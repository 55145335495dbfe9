"""Every manifest is one that Kubernetes takes, and names nothing that warmer does not have."""

import json
import os
import re
import subprocess

import custom
import jsonschema
import kubernetes_validate
import pytest
import rendering
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from warmer import levers
from warmer.cli import VERBS, options
from warmer.cli import gc as gc_verb
from warmer.cli import prefill as prefill_verb
from warmer.cli import sidecar as sidecar_verb
from warmer.layout import HANDOFF_FILES, WarmDir

TOP = rendering.TOP
VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34")
COMMANDS = {"prefill": prefill_verb, "gc": gc_verb, "sidecar": sidecar_verb}
MODEL = yaml.safe_load((rendering.CHART / "values.yaml").read_text())["servingEngineSpec"][
    "modelSpec"
][0]
ALL = {
    "warmer": {
        "compile": "never",
        "onMiss": ["kernels=cold", "weights=fail"],
        "wait": 0,
        "retry": 5,
        "engineTimeout": 900,
        "remote": "s3://kernels/team",
        "include": ["*.py"],
        "exclude": ["original/*", "*.pth"],
        "levers": ["fork=off", "imports=on"],
        "readAhead": "1.5Gi",
        "trustedKeys": {"configMap": "keys", "key": "k"},
        "signingKey": {"secret": "signing", "key": "k"},
    },
    "gc": {"minFree": "500G"},
    "networkPolicy": {"enabled": True},
    "servingEngineSpec": {
        "vllmApiKey": {"secretName": "server", "secretKey": "key"},
        "modelSpec": [
            MODEL | {"hf_token": {"secretName": "hf-token-secret", "secretKey": "HF_TOKEN"}},
            MODEL | {"name": "other", "requestGPU": 0, "vllmConfig": {"dtype": "bfloat16"}},
        ],
    },
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "x"},
    "imagePullSecrets": [{"name": "registry"}],
    "runtimeClassName": "nvidia",
}
PRODUCT = "nvidia.com/gpu.product"
ARCHS = [
    {"name": "h100", "nodeSelector": {PRODUCT: "NVIDIA-H100-80GB-HBM3"}},
    {"name": "l4", "nodeSelector": {PRODUCT: "NVIDIA-L4", "pool": "small"}},
]
VALUES = {
    "defaults": {},
    "everything": ALL,
    "job": {"mode": "job"},
    "jobs per kind of GPU": {"mode": "job", "job": {"archs": ARCHS}},
    "jobs on nodes' own disks": {
        "mode": "cron",
        "job": {"archs": ARCHS, "nodes": 3},
        "persistence": {"hostPath": "/mnt/nvme/warmer"},
    },
    "cron, leases": {"mode": "cron", "lock": {"mechanism": "k8s", "leaseSeconds": 15}},
    "gc alone": {"mode": "none"},
    "nothing": {"mode": "none", "gc": {"enabled": False}},
    "a bucket's lock": {"lock": {"mechanism": "s3", "bucket": "locks"}},
    "node's own disk": {"persistence": {"hostPath": "/mnt/nvme/warmer"}},
    "no volume": {"persistence": {"enabled": False}, "warmDir": {"medium": "Memory"}},
    "sidecar": {
        "sidecar": {"enabled": True},
        "metrics": {"podMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
        "networkPolicy": {"enabled": True},
    },
    "harvest": {
        "sidecar": {"enabled": True, "quiet": 5, "harvestEvery": 60, "harvestMost": 3},
        "metrics": {"port": 9651},
        "lock": {"mechanism": "k8s"},
        "warmer": {key: ALL["warmer"][key] for key in ("retry", "remote", "trustedKeys")}
        | {"compile": "harvest", "signingKey": {"secret": "signing", "key": "k"}},
        "servingEngineSpec": {"vllmApiKey": {"secretName": "server", "secretKey": "key"}},
    },
}
FILES = ["deploy/examples/kserve/inferenceservice.yaml", "deploy/examples/lws/leaderworkerset.yaml"]
BUILT = [
    *sorted((TOP / "deploy/kustomize/overlays").iterdir()),
    TOP / "deploy/examples/existing-deployment",
]


def _documents(where):
    kind, name = where.split(": ")
    if kind == "chart":
        return rendering.chart(VALUES[name])
    if kind == "file":
        return list(yaml.safe_load_all((TOP / name).read_text()))
    return rendering.overlay(TOP / name)


EVERY = [
    *(f"chart: {name}" for name in VALUES),
    *(f"file: {name}" for name in FILES),
    *(f"built: {path.relative_to(TOP)}" for path in BUILT),
]


@pytest.fixture(params=EVERY)
def documents(request):
    return _documents(request.param)


def pods(documents):
    """Every pod's spec, wherever it lies in a document."""
    found = []

    def look(value):
        if isinstance(value, dict):
            if "containers" in value:
                found.append(value)
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(documents)
    return found


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def variables(documents, container):
    """The variables that a container gets; what a Secret or the pod says is some word."""
    maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
    env = {}
    for source in container.get("envFrom", ()):
        env |= maps[source["configMapRef"]["name"]]
    return env | {e["name"]: e.get("value", "word") for e in container.get("env", ())}


def verb(container):
    """The verb that a container runs, and the words after it."""
    command = [*container.get("command", ()), *container.get("args", ())]
    if command[0].startswith("/opt/warmer/entrypoints/"):
        name = os.path.basename(command[0])
        text = (TOP / "entrypoints" / name).read_text()
        (found,) = re.findall(r"^exec /opt/warmer/bin/warmer (\w+) ", text, re.MULTILINE)
        return found, command[1:]
    return (command[1], command[2:]) if command[0] == "warmer" else (None, [])


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_is_linted_without_a_warning(name):
    report = lint(rendering.CHART, VALUES[name], strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_kubernetes_takes_every_manifest(documents):
    for document in documents:
        for version in VERSIONS:
            custom.validate(document, version)


def _put(document, path, value):
    """The document with one value changed or added."""
    changed = json.loads(json.dumps(document))
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("where", "kind", "path", "value"),
    [
        ("chart: sidecar", "PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), "30 s"),
        ("chart: sidecar", "PodMonitor", ("spec", "podMetricEndpoints"), []),
        ("chart: sidecar", "PodMonitor", ("apiVersion",), "monitoring.coreos.com/v2"),
        (f"file: {FILES[0]}", "InferenceService", ("spec", "predictor", "minReplica"), 1),
        (f"file: {FILES[0]}", "InferenceService", ("spec", "predictor", "scaleMetric"), "gpu"),
        (
            f"file: {FILES[0]}",
            "InferenceService",
            ("spec", "predictor", "containers", 0, "readinessProbe", "exec", "command"),
            "python3",
        ),
        (f"file: {FILES[1]}", "LeaderWorkerSet", ("spec", "leaderWorkerTemplate", "size"), "2"),
        (
            f"file: {FILES[1]}",
            "LeaderWorkerSet",
            ("spec", "leaderWorkerTemplate", "restartPolicy"),
            "Always",
        ),
        (
            f"file: {FILES[1]}",
            "LeaderWorkerSet",
            ("spec", "leaderWorkerTemplate", "workerTemplate", "spec", "initContainer"),
            [],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_custom_resource_with_a_mistake_is_not_taken(where, kind, path, value):
    changed = _put(rendering.only(_documents(where), kind), path, value)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError)):
        custom.validate(changed, VERSIONS[-1])


def test_names_that_a_pod_refers_to_are_there(documents):
    declared = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for pod in pods(documents):
        names = {v["name"] for v in pod.get("volumes", ())}
        assert len(names) == len(pod.get("volumes", ()))
        mounted = [m["name"] for c in containers(pod) for m in c.get("volumeMounts", ())]
        assert set(mounted) <= names
        for container in containers(pod):
            paths = [m["mountPath"] for m in container.get("volumeMounts", ())]
            assert len(paths) == len(set(paths))
            for source in container.get("envFrom", ()):
                assert ("ConfigMap", source["configMapRef"]["name"]) in declared
        account = pod.get("serviceAccountName")
        assert account is None or ("ServiceAccount", account) in declared


def test_every_verb_option_variable_and_path_is_one_that_warmer_has(
    documents, monkeypatch, tmp_path
):
    for name in [name for name in os.environ if name.startswith("WARMER_")]:
        monkeypatch.delenv(name)
    verbs = set()
    for pod in pods(documents):
        for container in containers(pod):
            named, words = verb(container)
            env = variables(documents, container)
            mine = {name: value for name, value in env.items() if name.startswith("WARMER_")}
            if named is None:
                assert mine == {}, "the server's container knows nothing of warmer"
                continue
            verbs.add(named)
            assert named in VERBS
            command = COMMANDS[named]
            known = {p.envvar for p in command.command.params}
            assert mine.keys() <= known, named
            paths = {m["mountPath"] for m in container["volumeMounts"]}
            for name in ("WARMER_VOLUME", "WARMER_WARM_DIR"):
                assert mine.get(name, "/warm") in paths | ({"/warm"} if named == "gc" else set())
            for name, file in (("WARMER_TRUSTED_KEYS", "keys.pub"), ("WARMER_SIGNING_KEY", "key")):
                if name in mine:
                    assert os.path.dirname(mine[name]) in paths
                    assert os.path.basename(mine[name]) == file
                    del mine[name]
            with monkeypatch.context() as patched:
                for name, value in mine.items():
                    patched.setenv(name, str(value))
                context = command.command.make_context(named, list(words))
                if named == "prefill":
                    settings = options.read(context.params, mine)
                    after = words[words.index("--") + 1 :] if "--" in words else []
                    assert list(settings.serve_argv) == after
    assert verbs or not pods(documents)


def test_the_server_takes_what_the_init_container_hands_off(documents):
    for pod in pods(documents):
        first = [verb(container)[0] for container in pod.get("initContainers", ())]
        assert first in ([], ["prefill"], ["prefill", "sidecar"]), "the handoff is there first"
        fillers = [c for c in pod.get("initContainers", ()) if verb(c)[0] == "prefill"]
        for filler in fillers:
            env = variables(documents, filler)
            warm = WarmDir(env.get("WARMER_WARM_DIR", "/warm"))
            for server in pod["containers"]:
                assert server["command"] == [f"{warm.handoff}/serve"]
                probe = server.get("readinessProbe")
                if probe:
                    assert probe["exec"]["command"] == [
                        "python3",
                        "-IS",
                        f"{warm.handoff}/check.py",
                    ]
                mounts = {m["mountPath"]: m for m in server["volumeMounts"]}
                (volume,) = (
                    m["mountPath"] for m in filler["volumeMounts"] if m["name"] == "models"
                )
                assert mounts[volume]["readOnly"], "servers never write to the volume"
                assert not mounts[warm.root].get("readOnly")
                gpu = [
                    c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
                    for c in (filler, server)
                ]
                builds = env.get("WARMER_COMPILE") != "never" and "never" not in filler["args"]
                assert gpu[0] == gpu[1] or not builds
                secrets = {e["name"] for e in server.get("env", ()) if "secret" in str(e)}
                assert secrets <= {"VLLM_API_KEY"}, "the server downloads nothing"
                assert "VLLM_API_KEY" not in env
    assert {"serve", "check.py"} <= set(HANDOFF_FILES)


def test_who_fills_has_a_home_and_may_write_on_a_new_claim(documents):
    for pod in pods(documents):
        for container in containers(pod):
            if verb(container)[0] == "prefill":
                assert container["command"][0] == "/opt/warmer/entrypoints/init"
                if any("persistentVolumeClaim" in volume for volume in pod["volumes"]):
                    assert pod["securityContext"]["fsGroup"] == 1000


def test_the_sidecar_is_where_probes_and_scrapers_look_and_holds_up_no_server(documents):
    for pod in pods(documents):
        for sidecar in (c for c in containers(pod) if verb(c)[0] == "sidecar"):
            assert sidecar["restartPolicy"] == "Always"
            assert not {"startupProbe", "readinessProbe"} & sidecar.keys()
            (port,) = sidecar["ports"]
            env = variables(documents, sidecar)
            params = {p.envvar: p.default for p in sidecar_verb.command.params}
            number = int(env.get("WARMER_HTTP_PORT", params["WARMER_HTTP_PORT"]))
            assert number == port["containerPort"]
            assert sidecar["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port["name"]}
            (server,) = pod["containers"]
            assert not server.get("args"), "one with further arguments is not harvested"
            (filler,) = (c for c in pod["initContainers"] if verb(c)[0] == "prefill")
            assert sidecar["image"] == filler["image"]
            words = filler["args"]
            served = [p["containerPort"] for p in server["ports"]]
            assert [int(words[words.index("--port") + 1])] == served
            mounts = {m["name"]: m for m in sidecar["volumeMounts"]}
            assert not any(mounts[name].get("readOnly") for name in ("models", "warm"))
            assert {m["mountPath"] for m in sidecar["volumeMounts"]} >= {
                m["mountPath"] for m in server["volumeMounts"] if m["name"] in ("models", "warm")
            }
            for monitor in (d for d in documents if d["kind"] == "PodMonitor"):
                (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
                assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
            for policy in (d for d in documents if d["kind"] == "NetworkPolicy"):
                open_ = [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]]
                assert port["containerPort"] in open_


@pytest.mark.parametrize(
    ("values", "secrets"),
    [
        ({}, {"WARMER_SIGNING_KEY", "VLLM_API_KEY"}),
        ({"sidecar": {"enabled": True, "harvestMost": 0}, "warmer": {"compile": "run"}}, set()),
        ({"warmer": {"compile": "never"}}, set()),
    ],
    ids=["harvests", "pages alone", "builds nothing"],
)
def test_secrets_reach_the_sidecar_only_where_it_publishes(values, secrets):
    whole = VALUES["harvest"] | values
    whole["warmer"] = VALUES["harvest"]["warmer"] | values.get("warmer", {})
    deployment = rendering.only(rendering.chart(whole), "Deployment")
    _, sidecar = deployment["spec"]["template"]["spec"]["initContainers"]
    names = {e["name"] for e in sidecar["env"]}
    assert names & {"WARMER_SIGNING_KEY", "VLLM_API_KEY", "HF_TOKEN"} == secrets
    mounted = {m["name"] for m in sidecar["volumeMounts"]}
    assert ("signing-key" in mounted) is ("WARMER_SIGNING_KEY" in secrets)


def test_the_compose_file_starts_what_the_image_has():
    services = yaml.safe_load((TOP / "deploy/docker/compose.yaml").read_text())["services"]
    warmer, server = services["warmer"], services["vllm"]
    words = ["--volume", warmer["environment"]["WARMER_VOLUME"], *warmer["command"]]
    context = prefill_verb.command.make_context("prefill", words)
    handoff = WarmDir(context.params["warm_dir"]).handoff
    assert server["entrypoint"] == [f"{handoff}/serve"]
    assert server["healthcheck"]["test"][-1] == f"{handoff}/check.py"
    mounts = {v.split(":")[1] for v in warmer["volumes"]}
    assert mounts == {v.split(":")[1] for v in server["volumes"]} == {"/models", "/warm"}
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", (TOP / "Dockerfile").read_text(), re.MULTILINE)
    assert server["image"] == warmer["build"]["args"]["BASE_IMAGE"] == base[1]


def test_leases_are_all_that_a_pod_may_touch_and_only_where_they_are_the_lock():
    assert not [d for d in rendering.chart() if "Role" in d["kind"]]
    documents = rendering.chart(VALUES["cron, leases"])
    rules = rendering.only(documents, "Role")["rules"]
    assert [(r["apiGroups"], r["resources"], r["verbs"]) for r in rules] == [
        (["coordination.k8s.io"], ["leases"], ["get", "create", "update"])
    ]
    for values, token in (("defaults", False), ("cron, leases", True)):
        for pod in pods(rendering.chart(VALUES[values])):
            assert pod["automountServiceAccountToken"] is token


def test_names_stay_within_what_kubernetes_allows():
    name = Chart.load(rendering.CHART).schema["properties"]["servingEngineSpec"]["properties"]
    longest = "m" * name["modelSpec"]["items"]["properties"]["name"]["maxLength"]
    values = {"servingEngineSpec": {"modelSpec": [MODEL | {"name": longest}]}}
    most = {"CronJob": 52}  # it puts a time behind its name
    for mode in ("init", "job", "cron"):
        for document in rendering.chart(values | {"mode": mode}, name="r" * 53):
            name = document["metadata"]["name"]
            assert len(name) <= most.get(document["kind"], 63), (document["kind"], name)


def test_the_chart_offers_the_ways_to_compile_and_the_levers_that_prefill_has():
    (option,) = (p for p in prefill_verb.command.params if p.name == "compile")
    offered = Chart.load(rendering.CHART).schema["properties"]["warmer"]["properties"]
    assert set(offered["compile"]["enum"]) == set(option.type.choices)
    pattern = offered["levers"]["items"]["pattern"]
    assert set(re.findall(r"[a-z-]{3,}", pattern)) == {*levers.NAMES, "off"}


def test_the_charts_port_of_the_sidecar_is_its_own():
    assert Chart.load(rendering.CHART).values["metrics"]["port"] == sidecar_verb.DEFAULT_PORT


def test_only_a_volume_that_pods_share_is_collected_by_a_job():
    for values, collected in (("defaults", True), ("node's own disk", False), ("no volume", False)):
        names = [d["metadata"]["name"] for d in rendering.chart(VALUES[values])]
        assert any(name.endswith("-gc") for name in names) is collected


def test_each_kind_of_gpu_has_a_job_of_its_own_on_nodes_of_that_kind():
    models = [MODEL, MODEL | {"name": "m" * 27}, MODEL | {"name": "m" * 26}]
    values = VALUES["jobs per kind of GPU"] | {
        "nodeSelector": {"pool": "large", "zone": "a"},
        "servingEngineSpec": {"modelSpec": models},
    }
    jobs = [d for d in rendering.chart(values, name="r" * 53) if d["kind"] == "Job"]
    names = [job["metadata"]["name"] for job in jobs]
    assert len(set(names)) == len(jobs) == len(models) * len(ARCHS)
    assert max(map(len, names)) <= 63
    placed = [job["spec"]["template"]["spec"]["nodeSelector"] for job in jobs]
    assert placed == [
        {"pool": "large", "zone": "a"} | a["nodeSelector"] for _ in models for a in ARCHS
    ]


def test_a_gc_that_hangs_ends_before_the_next_is_due():
    charts = [rendering.chart(), rendering.chart({"gc": {"activeDeadlineSeconds": 1_800_000}})]
    overlay = rendering.overlay(rendering.OVERLAYS / "rwx")
    crons = [rendering.only(found, "CronJob") for found in (*charts, overlay)]
    assert {cron["spec"]["concurrencyPolicy"] for cron in crons} == {"Forbid"}
    ends = [cron["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] for cron in crons]
    assert ends == [21600, 1_800_000, 21600]


def test_on_nodes_own_disks_a_job_is_one_pod_for_each_node_and_no_two_on_one():
    values = VALUES["jobs on nodes' own disks"] | {"affinity": {"nodeAffinity": {}}}
    crons = [d for d in rendering.chart(values) if d["kind"] == "CronJob"]
    apart = []
    for cron in crons:
        spec = cron["spec"]["jobTemplate"]["spec"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (
            "Indexed",
            3,
            3,
        )
        affinity = spec["template"]["spec"]["affinity"]
        assert "nodeAffinity" in affinity, "the user's own stays"
        (rule,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["topologyKey"] == "kubernetes.io/hostname"
        labels = spec["template"]["metadata"]["labels"]
        assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
        apart.append(rule["labelSelector"]["matchLabels"])
    assert len(apart) == len(ARCHS)
    assert apart[0] != apart[1], "pods of two kinds may be on one node"


def test_a_job_gets_another_name_when_what_it_does_changes():
    names = {
        rendering.only(rendering.chart({"mode": "job"} | values), "Job")["metadata"]["name"]
        for values in (
            {},
            {"warmer": {"remote": "s3://b/p"}},
            {"image": {"tag": "9"}},
            {"gc": {"keep": "9d"}},
        )
    }
    assert len(names) == 3, "and the same one when it does not"


@pytest.mark.parametrize("mode", ["init", "job", "cron"])
@pytest.mark.parametrize(
    ("asked", "config", "gpus"),
    [
        (None, {}, None),
        (None, {"tensorParallelSize": 2}, "2"),
        (None, {"tensorParallelSize": 4, "pipelineParallelSize": 2}, "8"),
        (8, {"tensorParallelSize": 2}, "8"),
        (0, {"tensorParallelSize": 2}, None),  # ranks on CPUs
        (1, {}, "1"),
    ],
    ids=str,
)
def test_each_rank_has_a_gpu_where_kernels_are_built_and_where_they_are_served(
    mode, asked, config, gpus
):
    model = {key: value for key, value in MODEL.items() if key != "requestGPU"}
    model |= {"vllmConfig": config} | ({} if asked is None else {"requestGPU": asked})
    documents = rendering.chart({"mode": mode, "servingEngineSpec": {"modelSpec": [model]}})
    found = [
        container
        for pod in pods(documents)
        for container in containers(pod)
        if container["name"] in ("warmer", "vllm")
    ]
    assert len(found) == (2 if mode == "init" else 1)
    for container in found:
        for kind in ("requests", "limits"):
            assert container["resources"][kind].get("nvidia.com/gpu") == gpus
    words = next(c["args"] for c in found if c["name"] == "warmer")
    for key, flag in (
        ("tensor", "--tensor-parallel-size"),
        ("pipeline", "--pipeline-parallel-size"),
    ):
        if size := config.get(f"{key}ParallelSize"):
            assert words[words.index(flag) + 1] == str(size)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"mod": "init"}, "'mod'"),
        ({"mode": "daemon"}, "/mode"),
        ({"warmer": {"compil": "run"}}, "'compil'"),
        ({"warmer": {"onMiss": ["kernels=maybe"]}}, "/warmer/onMiss/0"),
        ({"warmer": {"levers": ["forks=off"]}}, "/warmer/levers/0"),
        ({"warmer": {"readAhead": "much"}}, "/warmer/readAhead"),
        ({"warmer": {"readAhead": False}}, "/warmer/readAhead"),
        ({"sidecar": {"harvestMost": 0.5}}, "/sidecar/harvestMost"),
        ({"persistence": {"mountPath": "models"}}, "/persistence/mountPath"),
        ({"job": {"archs": [{"name": "h100", "nodeSelector": {}}]}}, "/job/archs/0"),
        ({"lock": {"leaseSeconds": 1}}, "/lock/leaseSeconds"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"servingEngineSpec": {"modelSpec": [{"name": "UP"}]}}, "/servingEngineSpec/modelSpec/0"),
    ],
    ids=json.dumps,
)
def test_values_that_mean_nothing_are_refused_and_named(values, where):
    with pytest.raises(HelmError, match=re.escape(where)):
        Chart.load(rendering.CHART).validate_schema(values)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"metrics": {"podMonitor": {"enabled": True}}}, "sidecar.enabled"),
        ({"lock": {"mechanism": "s3"}}, "lock.bucket"),
        ({"mode": "job", "job": {"nodes": 2}}, "persistence.hostPath"),
        ({"warmer": {"compile": "harvest"}}, "sidecar.enabled"),
        (VALUES["harvest"] | {"mode": "job"}, "mode init"),
        (VALUES["harvest"] | {"sidecar": {"enabled": True, "harvestMost": 0}}, "harvestMost"),
        (
            {
                "sidecar": {"enabled": True},
                "warmer": {"compile": "harvest", "trustedKeys": ALL["warmer"]["trustedKeys"]},
            },
            "warmer.signingKey",
        ),
        ({"sidecar": {"enabled": True}, "metrics": {"port": 8000}}, "metrics.port"),
        (
            {
                "servingEngineSpec": {
                    "modelSpec": [
                        MODEL | {"requestGPU": 1, "vllmConfig": {"tensorParallelSize": 2}}
                    ]
                }
            },
            "requestGPU is 1",
        ),
    ],
    ids=[
        *("a monitor of nothing", "no bucket", "one volume for all", "nobody publishes"),
        "nobody builds",
        *("nothing may be published", "nobody would trust it", "one port for two"),
        "fewer GPUs than ranks",
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_reason(values, why):
    with pytest.raises(HelmError, match=re.escape(why)):
        rendering.chart(values)


@pytest.mark.parametrize("mode", ["init", "job", "cron", "none"])
def test_the_notes_say_what_was_installed(mode):
    text = rendering.notes({"mode": mode})
    assert "/models" in text
    assert "{{" not in text


def test_what_passes_through_a_bucket_is_signed_and_the_chart_warns_where_it_is_not():
    for name, signed in (("bucket", True), ("node-local", True), ("rwx", False)):
        documents = rendering.overlay(rendering.OVERLAYS / name)
        (filler,) = rendering.only(documents, "Deployment")["spec"]["template"]["spec"][
            "initContainers"
        ]
        env = variables(documents, filler)
        assert ("WARMER_REMOTE" in env) is signed
        assert ({"WARMER_SIGNING_KEY", "WARMER_TRUSTED_KEYS"} <= env.keys()) is signed
    remote = {"warmer": {"remote": "s3://kernels/team"}}
    assert "who can write into s3://kernels/team" in rendering.notes(remote)
    remote["warmer"]["trustedKeys"] = ALL["warmer"]["trustedKeys"]
    assert "who can write into" not in rendering.notes(remote)


def test_what_production_stack_renders_becomes_the_handoffs_script():
    place = TOP / "deploy/examples/production-stack"
    (spec,) = yaml.safe_load((place / "values.yaml").read_text())["servingEngineSpec"]["modelSpec"]
    engine = {"name": "vllm", "image": "x", "command": ["vllm", "serve", spec["modelURL"]]}
    engine["volumeMounts"] = spec["extraVolumeMounts"]
    init = dict(spec["initContainer"])
    init["volumeMounts"] = init.pop("extraVolumeMounts")
    pod = {"initContainers": [init], "containers": [engine], "volumes": spec["extraVolumes"]}
    labels = {"model": spec["name"]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"stack-{spec['name']}-deployment-vllm"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    done = subprocess.run(
        [place / "render.sh"],
        input=yaml.safe_dump(deployment),
        env={"PATH": os.pathsep.join((rendering.SCRIPTS, os.defpath))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rendered = yaml.safe_load(done.stdout)
    kubernetes_validate.validate(rendered, VERSIONS[-1], strict=True)
    (server,) = pods(rendered)[0]["containers"]
    assert server["command"][0] == "/warm/handoff/serve"
    assert verb(pods(rendered)[0]["initContainers"][0])[0] == "prefill"
