"""A namespace of the tests: a hub on the node, the chart rendered for it, and its pods.

It is that of docs/quickstart.md, with the page's own values, but for what is not here: a GPU, a large
model, the Hub.
"""

import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

import images
import rendering
import yaml
from fakeengine import make_engine
from hub import Hub
from kubelet import Pod
from tinymodel import make_tiny_llama
from words import ENGINE, Objects

REPO = "org/tiny"
TOKEN = "hf_PlantedTokenOfTheHub"
API_KEY = "PlantedKeyOfTheServer"
PAGE = (rendering.TOP / "docs" / "quickstart.md").read_text()
(_TEXT,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
QUICKSTART = yaml.safe_load(_TEXT)
(_MODEL,) = QUICKSTART["servingEngineSpec"]["modelSpec"]
STOCK = f"{_MODEL['repository']}:{_MODEL['tag']}"
RANDOM_USER = 1_000_660_000
"""Such numbers OpenShift gives to a namespace: nobody's, in group 0."""
QUICK = {"initialDelaySeconds": 0, "periodSeconds": 4, "failureThreshold": 600, "timeoutSeconds": 5}


class Namespace:
    """What the chart renders, and pods of it.

    Args:
        top: a directory of the node.
        hub: where models come from; it gives them to whoever has `TOKEN`.
        fake: start a fake engine instead of the real one.
        values: of the chart, over those that the tests need.
    """

    def __init__(self, top, hub, *, fake=True, values=None):
        self.top, self.hub, self.pods = Path(top), hub, []
        self.top.mkdir(parents=True, exist_ok=True)
        self.top.chmod(0o755)
        self.engine = self.account = self.api = None
        if fake:
            engine = self.top / "node" / "engine"
            self.engine = make_engine(engine)
            for each in (engine.parent, engine):
                each.chmod(0o777)
        self.values = _merged(self._needed(), values or {})
        self.render({})

    def _needed(self):
        env = [
            {"name": "NODE_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            {"name": "HF_ENDPOINT", "value": f"http://$(NODE_ADDRESS):{self.hub.port}"},
            {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
        ]
        model = _MODEL | {
            "modelURL": self.model,
            "requestCPU": 1,
            "requestMemory": "4Gi",
            "requestGPU": 0,
            "vllmConfig": {"maxModelLen": 512},
        }
        values = {
            "servingEngineSpec": {
                "modelSpec": [model],
                "vllmApiKey": {"secretName": "server", "secretKey": "VLLM_API_KEY"},
                "startupProbe": QUICK,
                "readinessProbe": QUICK,
                "livenessProbe": QUICK,
            },
            "podSecurityContext": {"runAsUser": RANDOM_USER},
        }
        if self.engine is not None:
            env.append({"name": "WARMER_VLLM", "value": self.engine.vllm})
            values["extraVolumes"] = [{"name": "engine", "hostPath": {"path": "/engine"}}]
            mount = {"name": "engine", "mountPath": self.engine.top}
            values["extraVolumeMounts"] = [mount]
        return _merged(QUICKSTART, values | {"extraEnv": env})

    @property
    def model(self):
        """The model, pinned."""
        return f"hf://{REPO}@{self.hub.sha(REPO)}"

    def render(self, values=()):
        """Render the chart: its documents, which pods from now on are started with."""
        documents = rendering.chart(_merged(self.values, dict(values)))
        hub, server = {_MODEL["hf_token"]["secretKey"]: TOKEN}, {"VLLM_API_KEY": API_KEY}
        secrets = {_MODEL["hf_token"]["secretName"]: hub, "server": server}
        self.adopt([*documents, *(secret(name, data) for name, data in secrets.items())])
        return documents

    def adopt(self, documents):
        """Let these documents be what the namespace holds."""
        self.objects = Objects(self.top, documents, account=self.account, api=self.api)

    @property
    def volume(self):
        """Where the claim's volume lies on the node."""
        return self.top / "claims" / "demo-warmer-models"

    def spec(self, kind="Deployment", **values):
        """The pod's spec of the chart's one object of a kind, rendered with further values."""
        documents = self.render(values)
        found = [
            d for d in documents if d["kind"] == kind and not d["metadata"]["name"].endswith("-gc")
        ]
        return _pod_of(found[0])["spec"]

    def gc(self):
        """The spec of the pods that collect."""
        (found,) = (d for d in self.render({}) if d["metadata"]["name"].endswith("-gc"))
        return _pod_of(found)["spec"]

    def pod(self, spec=None, **how):
        """Start a pod; it is removed with the namespace."""
        spec = spec or self.spec()
        every = [*spec.get("initContainers", ()), *spec["containers"]]
        known = {c["image"]: images.BASE if c["image"] == STOCK else images.IMAGE for c in every}
        how = {"engine": [] if self.engine else ENGINE, "hurry": 10} | how
        pod = Pod(self.objects, spec, known, **how)
        self.pods.append(pod)
        return pod

    def two_at_once(self):
        """Start two pods; the engine that one of them runs is done when the other waits for it."""
        gate = self.top / "node" / "engine" / "gate"
        spec = with_env(self.spec(), "warmer", FAKE_ENGINE=f"gate={self.engine.top}/gate")
        pods = [self.pod(spec) for _ in range(2)]
        waits = lambda _: any('"event": "waiting"' in pod.log("warmer") for pod in pods)  # noqa: E731
        for pod in pods:
            pod.wait_running("warmer")
        pods[0].wait(waits, what="one that waits")
        gate.touch()
        return pods

    def staged(self):
        """What lies in staging."""
        top = self.volume / "v1" / "staging"
        return sorted(os.listdir(top)) if top.is_dir() else []


def secret(name, data):
    """Make a Secret of words."""
    return {"kind": "Secret", "metadata": {"name": name}, "stringData": data}


def with_env(spec, container, **env):
    """A spec whose container has further variables."""
    spec = json.loads(json.dumps(spec))
    every = [*spec.get("initContainers", ()), *spec["containers"]]
    (found,) = (c for c in every if c["name"] == container)
    found["env"] += [{"name": name, "value": value} for name, value in env.items()]
    return spec


@contextmanager
def namespace(top, **how):
    """Set one up, with a private model of one layer."""
    make_tiny_llama(f"{top}/hub/{REPO}", layers=1)
    with Hub(f"{top}/hub", host="0.0.0.0", private={REPO: TOKEN}) as hub:
        space = Namespace(Path(top) / "space", hub, **how)
        try:
            yield space
        finally:
            for pod in space.pods:
                pod.remove()


def _pod_of(document):
    spec = document["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]


def _merged(base, more):
    """Merge values as Helm does: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
