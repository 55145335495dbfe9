"""Kinds that are not Kubernetes' own: what their published types say of the fields that manifests may use.

Written down from the sources named below, in JSON Schema; a field that is not here is refused, as an API
server refuses it with `fieldValidation=Strict`. Where such a kind holds a pod, Kubernetes' own schema
judges that part.

- PodMonitor: prometheus-operator, pkg/apis/monitoring/v1/podmonitor_types.go
- InferenceService: kserve, pkg/apis/serving/v1beta1/{inference_service,predictor,component}.go
- LeaderWorkerSet: lws, api/leaderworkerset/v1/leaderworkerset_types.go
"""

import functools
import json

import jsonschema
import kubernetes_validate


def _of(required=(), **fields):
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _one(*values):
    return {"enum": list(values)}


_TEXT, _NUMBER, _ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_SHARE = {"anyOf": [_NUMBER, {"type": "string", "pattern": "^[0-9]+%$"}]}
_DURATION = {"type": "string", "pattern": r"^(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"}
_META = _of(("name",), name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS)
_SELECTOR = _of(matchLabels=_TEXTS, matchExpressions={"type": "array"})
_ENDPOINT = _of(
    ("port",),
    port=_TEXT,
    path={"type": "string", "pattern": "^/"},
    scheme=_one("http", "https"),
    interval=_DURATION,
    scrapeTimeout=_DURATION,
    honorLabels={"type": "boolean"},
    relabelings={"type": "array"},
    metricRelabelings={"type": "array"},
)
_EXTENSION = {
    "minReplicas": _NUMBER,
    "maxReplicas": _NUMBER,
    "scaleTarget": _NUMBER,
    "scaleMetric": _one("cpu", "memory", "concurrency", "rps"),
    "containerConcurrency": _NUMBER,
    "timeout": _NUMBER,
    "canaryTrafficPercent": _NUMBER,
    "labels": _TEXTS,
    "annotations": _TEXTS,
    "deploymentStrategy": _ANY,
}
"""What KServe adds to a predictor; the rest of it is a pod's spec."""
_GROUP = _of(
    ("workerTemplate",),
    leaderTemplate=_ANY,
    workerTemplate=_ANY,
    size={"type": "integer", "minimum": 1},
    restartPolicy=_one("RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"),
    subGroupPolicy=_of(
        subGroupPolicyType=_one("LeaderWorker", "LeaderExcluded"), subGroupSize=_NUMBER
    ),
)
_ROLLOUT = _of(
    ("type",),
    type=_one("RollingUpdate"),
    rollingUpdateConfiguration=_of(partition=_NUMBER, maxUnavailable=_SHARE, maxSurge=_SHARE),
)
SPECS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): _of(
        ("selector", "podMetricsEndpoints"),
        jobLabel=_TEXT,
        podTargetLabels={"type": "array", "items": _TEXT},
        podMetricsEndpoints={"type": "array", "items": _ENDPOINT, "minItems": 1},
        selector=_SELECTOR,
        namespaceSelector=_of(any={"type": "boolean"}, matchNames={"type": "array"}),
        sampleLimit=_NUMBER,
        targetLimit=_NUMBER,
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): _of(("predictor",), predictor=_ANY),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): _of(
        ("leaderWorkerTemplate",),
        replicas=_NUMBER,
        leaderWorkerTemplate=_GROUP,
        rolloutStrategy=_ROLLOUT,
        startupPolicy=_one("LeaderCreated", "LeaderReady"),
        networkConfig=_of(("subdomainPolicy",), subdomainPolicy=_one("Shared", "UniquePerReplica")),
    ),
}
"""Version and kind → its spec."""


def validate(document, version):
    """Refuse what an API server would refuse that knows this kind.

    Args:
        document: a manifest.
        version: of Kubernetes, for what is Kubernetes' own.
    """
    spec = SPECS.get((document["apiVersion"], document["kind"]))
    if spec is None:
        _kubernetes(json.dumps(document), version)
        return
    whole = _of(("metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=_META, spec=spec)
    jsonschema.validate(document, whole)
    for template in _templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}} | template
        _kubernetes(json.dumps(pod), version)


@functools.cache
def _kubernetes(text, version):
    """Ask Kubernetes' own schema; what it has taken once is not asked again, and much is rendered twice."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def _templates(document):
    """The pods that a document of another's kind holds."""
    spec = document["spec"]
    if document["kind"] == "LeaderWorkerSet":
        group = spec["leaderWorkerTemplate"]
        return [group[name] for name in ("leaderTemplate", "workerTemplate") if name in group]
    if document["kind"] == "InferenceService":
        predictor = spec["predictor"]
        jsonschema.validate(
            {name: predictor[name] for name in predictor.keys() & _EXTENSION}, _of(**_EXTENSION)
        )
        return [{"spec": {n: v for n, v in predictor.items() if n not in _EXTENSION}}]
    return []
