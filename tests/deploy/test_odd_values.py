"""Values that a person may well write: what they make is taken by Kubernetes, or refused in words."""

import json
import re

import custom
import pytest
import rendering
import yaml
from helm_python.chart import Chart
from helm_python.errors import HelmError, HelmValuesError
from test_manifests import ALL, MODEL, VALUES, VERSIONS, containers, pods

CHART = Chart.load(rendering.CHART)
WHOLE = {
    "sidecar": {"enabled": True},
    "metrics": {"podMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
    "networkPolicy": {"enabled": True},
}
KUBERNETES_OWN = {("podSecurityContext", "seccompProfile", "type")}
"""What is passed on as it is: that a type is missing there, Kubernetes says."""


def with_model(**changed):
    model = {key: value for key, value in (MODEL | changed).items() if value is not None}
    return {"servingEngineSpec": {"modelSpec": [model]}}


def _paths(values, at=()):
    for name, value in values.items():
        yield (*at, name)
        if isinstance(value, dict):
            yield from _paths(value, (*at, name))


def _with_null(values, path):
    name, *rest = path
    if rest and values.get(name, {}) is None:
        return values
    return values | {name: _with_null(values.get(name, {}), rest) if rest else None}


def _taken(documents):
    for document in documents:
        custom.validate(document, VERSIONS[-1])


def test_a_key_without_a_value_is_left_to_its_default_or_refused_by_its_name():
    refused, without = set(), WHOLE
    for path in sorted(set(_paths(CHART.values)) - KUBERNETES_OWN):
        try:
            CHART.validate_schema(_with_null(WHOLE, path))
        except HelmValuesError as exc:
            assert f"'{path[-1]}'" in str(exc), path
            refused.add(path)
        else:
            without = _with_null(without, path)
    for mode in ("init", "cron"):
        values = without | ({} if mode == "init" else {"mode": mode, "metrics": {}})
        _taken(rendering.chart(values))
        rendering.notes(values)
    assert ("warmer",) in refused
    assert not {("tolerations",), ("nodeSelector",), ("warmer", "trustedKeys")} & refused


def test_large_numbers_stay_whole():
    values = with_model(requestMemory=34359738368, vllmConfig={"maxModelLen": 1048576})
    values |= {"job": {"ttlSecondsAfterFinished": 1209600}, "warmer": {"wait": 2000000}}
    values |= {"mode": "job"}
    job = rendering.only(rendering.chart(values), "Job")["spec"]
    (filler,) = job["template"]["spec"]["containers"]
    assert filler["args"][:3] == ["--", "--max-model-len", "1048576"]
    assert filler["resources"]["limits"]["memory"] == "34359738368"
    assert isinstance(job["ttlSecondsAfterFinished"], int), "an API server reads no 1.2e+06"
    data = rendering.only(rendering.chart(values), "ConfigMap")["data"]
    assert data["WARMER_WAIT"] == "2000000"


@pytest.mark.parametrize("release", ["demo", "1234", "1-warmer", "a.b", "my.release.v1", "r" * 53])
@pytest.mark.parametrize("model", ["llama3", "123", "true", "1e3", "m" * 27])
def test_every_name_is_one_that_its_kind_may_have_and_every_label_is_text(release, model):
    documents = rendering.chart(WHOLE | with_model(name=model), name=release)
    _taken(documents)
    for document in documents:
        meta = document["metadata"]
        kinds = {"Service": r"[a-z]([-a-z0-9]*[a-z0-9])?"}
        allowed = kinds.get(document["kind"], r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
        assert re.fullmatch(allowed, meta["name"]), (document["kind"], meta["name"])
        assert all(isinstance(value, str) for value in meta["labels"].values())


def test_releases_that_begin_alike_have_names_of_their_own():
    names = {
        rendering.only(rendering.chart(name=name), "Deployment")["metadata"]["name"]
        for name in ("production-llama-serving-a", "production-llama-serving-b")
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        (["--tensor-parallel-size", "2"], "2"),
        (["--tensor-parallel-size=4", "-pp", "2"], "8"),
        (["--tensor_parallel_size", "2"], "2"),
        (["-tp=2", "-dp", "2"], "4"),
        (["-dp", "16", "--data-parallel-size-local", "4"], "4"),
        (["-dp", "16", "--data-parallel-rank", "3", "-tp", "2"], "2"),
        (["-tp", "2", "-pcp", "2"], "4"),
        (["-tp", "16", "--nnodes", "2", "--node-rank", "0"], "8"),
        (["--tensor-parallel", "2", "--pipeline=2"], "4"),
        (["--max-num-seqs", "2"], None),
        (["--tokenizer", "2"], None),
        (["-tp"], None),
    ],
    ids=str,
)
def test_parallel_sizes_among_further_arguments_are_counted(words, gpus):
    values = with_model(requestGPU=None, vllmConfig={"extraArgs": words})
    (pod,) = pods(rendering.only(rendering.chart(values), "Deployment"))
    for container in containers(pod):
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    if gpus is not None:
        short = with_model(requestGPU=int(gpus) - 1, vllmConfig={"extraArgs": words})
        with pytest.raises(HelmError, match=f"make {gpus} ranks"):
            rendering.chart(short)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"servingEngineSpec": {"modelSpec": []}}, "modelSpec is empty"),
        ({"servingEngineSpec": {"modelSpec": [MODEL, MODEL]}}, "are named llama3"),
        (with_model(vllmConfig={"extraArgs": ["--max-num-seqs 64"]}), '"--max-num-seqs 64" as one'),
        (
            {"persistence": {"hostPath": "/mnt/x", "existingClaim": "models"}},
            "a pod has one volume",
        ),
    ],
    ids=["no model", "one name for two", "a flag and its value as one word", "two volumes"],
)
def test_values_that_would_go_wrong_later_are_refused_now(values, why):
    with pytest.raises(HelmError, match=re.escape(why)):
        rendering.chart(values)


def test_an_argument_that_is_json_may_hold_blanks():
    words = ["--compilation-config", '{"mode": 3}', '--kv-transfer-config={"a": "b c"}']
    (pod,) = pods(
        rendering.only(rendering.chart(with_model(vllmConfig={"extraArgs": words})), "Deployment")
    )
    (filler,) = pod["initContainers"]
    assert [word for word in filler["args"] if word in words] == words


def test_a_variable_that_is_given_twice_is_there_once_as_it_was_given_last():
    twice = [{"name": "HOME", "value": "/home/x"}, {"name": "VLLM_USE_V1", "value": "0"}]
    values = WHOLE | with_model(
        env=[{"name": "VLLM_USE_V1", "value": "1"}, {"name": "HF_TOKEN", "value": "x"}],
        hf_token={"secretName": "123", "secretKey": "true"},
    )
    (pod,) = pods(rendering.only(rendering.chart(values | {"extraEnv": twice}), "Deployment"))
    for container in containers(pod):
        names = [entry["name"] for entry in container["env"]]
        assert len(names) == len(set(names)), "a server that merges by name takes no two"
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert (env["HOME"], env["VLLM_USE_V1"]) == ("/home/x", "1")


def test_names_of_others_are_text_even_where_they_look_like_numbers():
    values = ALL | with_model(hf_token={"secretName": "123", "secretKey": "1"})
    values |= {"persistence": {"storageClass": "1"}, "runtimeClassName": "1"}
    values["warmer"] = {"trustedKeys": {"configMap": "1", "key": "2"}}
    _taken(rendering.chart(values))


@pytest.mark.parametrize(("given", "meant"), [("-", ""), ("efs-sc", "efs-sc"), ("", None)])
def test_a_claim_asks_for_a_class_for_the_default_or_for_none(given, meant):
    documents = rendering.chart({"persistence": {"storageClass": given}})
    claim = rendering.only(documents, "PersistentVolumeClaim")
    assert claim["spec"].get("storageClassName") == meant


@pytest.mark.parametrize(
    ("schedule", "taken"),
    [("@daily", True), ("0 4 * * *", True), ("@every 6h", True), ("daily", False), ("4 am", False)],
)
def test_a_schedule_is_five_fields_or_a_word_that_cron_knows(schedule, taken):
    for values in (
        {"mode": "cron", "cron": {"schedule": schedule}},
        {"gc": {"schedule": schedule}},
    ):
        if taken:
            CHART.validate_schema(values)
        else:
            with pytest.raises(HelmValuesError, match="schedule"):
                CHART.validate_schema(values)


@pytest.mark.parametrize("wrong", [{"name": "X", "value": 1}, {"value": "1"}], ids=str)
def test_a_variable_that_kubernetes_would_not_take_is_refused_by_its_place(wrong):
    with pytest.raises(HelmValuesError, match="/extraEnv/0"):
        CHART.validate_schema({"extraEnv": [wrong]})
    with pytest.raises(HelmValuesError, match="/servingEngineSpec/modelSpec/0/env/0"):
        CHART.validate_schema(with_model(env=[wrong]))


@pytest.mark.parametrize("mode", ["init", "job", "cron"])
def test_the_users_labels_and_annotations_are_on_every_pod_and_take_no_selectors_place(mode):
    values = WHOLE if mode == "init" else {"mode": mode}
    more = {
        "podLabels": {"azure.workload.identity/use": "true", "model": "x", "prefill": "x"}
        | {"app.kubernetes.io/component": "x", "app.kubernetes.io/instance": "x"},
        "podAnnotations": {"sidecar.istio.io/inject": "false", "checksum/options": "x"},
    }
    templates = list(_templates(rendering.chart(values | more)))
    plain = list(_templates(rendering.chart(values)))
    assert len(templates) == len(plain) == 2, "and the one that collects"
    for template, before in zip(templates, plain, strict=True):
        labels, annotations = (template["metadata"][k] for k in ("labels", "annotations"))
        assert labels["azure.workload.identity/use"] == "true", "a Job needs its identity too"
        assert annotations["sidecar.istio.io/inject"] == "false"
        assert before["metadata"]["labels"].items() <= labels.items()
        assert annotations["checksum/options"] != "x" or "checksum/options" not in (
            before["metadata"].get("annotations", {})
        )


def _templates(documents):
    """Every pod's template."""
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield spec["template"]


@pytest.mark.parametrize("mode", ["init", "job", "cron"])
def test_what_the_notes_select_is_there(mode):
    (selector,) = re.findall(r"get pods -l (\S+)", rendering.notes({"mode": mode}))
    wanted = dict(pair.split("=") for pair in selector.split(","))
    labels = [t["metadata"]["labels"] for t in _templates(rendering.chart({"mode": mode}))]
    found = [each for each in labels if wanted.items() <= each.items()]
    assert len(found) == 1, "not the pods that collect: they have no container of that name"


def test_jobs_of_a_schedule_have_the_releases_labels():
    crons = [d for d in rendering.chart({"mode": "cron"}) if d["kind"] == "CronJob"]
    assert len(crons) == 2
    for cron in crons:
        labels = cron["spec"]["jobTemplate"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo"


def test_notes_warn_of_what_will_not_be_kept_and_of_what_is_not_admitted():
    assert "nothing outlives a pod" in rendering.notes({"persistence": {"enabled": False}})
    kept = {"persistence": {"enabled": False}, "warmer": {"remote": "s3://b/p"}}
    assert "nothing outlives a pod" not in rendering.notes(kept)
    assert "Pod Security" in rendering.notes(VALUES["node's own disk"])
    assert "NOTE" not in rendering.notes()


def test_on_many_nodes_one_that_fails_ends_no_other():
    crons = rendering.chart(VALUES["jobs on nodes' own disks"])
    for spec in (d["spec"]["jobTemplate"]["spec"] for d in crons if d["kind"] == "CronJob"):
        assert spec["backoffLimitPerIndex"] == CHART.values["job"]["backoffLimit"]
        assert "backoffLimit" not in spec
    job = rendering.only(rendering.chart({"mode": "job"}), "Job")
    assert job["spec"]["backoffLimit"] == CHART.values["job"]["backoffLimit"]


def test_a_quota_finds_a_request_and_a_limit_in_every_container():
    most = {"cpu": "1", "memory": "1Gi"}
    values = WHOLE | with_model(
        limitCPU=16, limitMemory="48Gi", requestGPUType="nvidia.com/mig-1g.5gb"
    )
    values |= {"gc": {"resources": {"requests": most, "limits": most}}}
    values["sidecar"] = {"enabled": True, "resources": {"requests": most, "limits": most}}
    documents = rendering.chart(values)
    _taken(documents)
    for pod in pods(documents):
        for container in containers(pod):
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys(), container["name"]
            if container["name"] in ("warmer", "vllm"):
                assert container["resources"]["limits"]["nvidia.com/mig-1g.5gb"] == "1"


def test_a_full_cluster_can_be_rolled_and_an_autoscaler_keeps_its_number():
    values = with_model(replicaCount=None, priorityClassName="serving")
    swap = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    values["servingEngineSpec"]["strategy"] = swap
    documents = rendering.chart(values)
    _taken(documents)
    spec = rendering.only(documents, "Deployment")["spec"]
    assert (spec["strategy"], "replicas" in spec) == (swap, False)
    assert spec["template"]["spec"]["priorityClassName"] == "serving"
    job = rendering.only(rendering.chart(values | {"mode": "job"}), "Job")
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "serving"


def test_the_collector_has_what_the_variables_of_every_container_name():
    values = {
        "lock": {"mechanism": "s3", "bucket": "locks"},
        "extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/ca/ca.crt"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    documents = rendering.chart(values)
    _taken(documents)
    for pod in pods(documents):
        assert "ca" in {volume["name"] for volume in pod["volumes"]}
        for container in containers(pod):
            assert "/ca" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(("mechanism", "open_"), [("file", {443}), ("k8s", {443, 6443})])
def test_leases_reach_the_api_server_through_the_policy(mechanism, open_):
    values = {"networkPolicy": {"enabled": True}, "lock": {"mechanism": mechanism}}
    policy = rendering.only(rendering.chart(values), "NetworkPolicy")
    assert {p["port"] for p in policy["spec"]["egress"][1]["ports"]} == open_


def test_where_openshift_chooses_the_user_none_is_named():
    (text,) = re.findall(
        r"`(podSecurityContext: {.*?})`", (rendering.TOP / "docs/kubernetes.md").read_text()
    )
    for pod in pods(rendering.chart(yaml.safe_load(text))):
        named = pod["securityContext"]
        assert not {"runAsUser", "fsGroup"} & named.keys(), "others than its own it refuses"
        assert named["runAsNonRoot"] is True


def test_values_with_the_line_ends_of_windows_make_the_same():
    text = (rendering.CHART / "values.yaml").read_text()
    there = yaml.safe_load(text.replace("\n", "\r\n"))
    assert rendering.chart(there) == rendering.chart(yaml.safe_load(text))
    assert json.dumps(rendering.chart(there)).count("\\r") == 0
