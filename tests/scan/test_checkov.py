"""Checkov finds nothing in the image's recipe and in what the chart and the overlays make of it.

It has a hundred dependencies, some of them others than vLLM's: an environment of its own, once per machine.
What it may say, each with a reason, is in .checkov.yaml.
"""

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from helm_python.chart import Chart

TOP = Path(__file__).parents[2]
PLACE = Path(os.environ.get("WARMER_SCAN_DIR") or TOP / ".scan")
"""Where it is kept between runs; `make clean` removes it."""
VERSION = "3.3.30"
ALL = {
    "sidecar": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "lock": {"mechanism": "k8s"},
    "metrics": {"podMonitor": {"enabled": True}, "dashboard": {"enabled": True}},
}
LOOSE = "loose.json"
_SERVER = {"name": "x", "image": "x:1", "securityContext": {"privileged": True}}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "x"},
    "spec": {"containers": [_SERVER]},
}


@pytest.fixture(scope="module")
def checkov():
    """Its command."""
    stamp = PLACE / VERSION
    if not stamp.exists():
        venv.create(PLACE, clear=True, with_pip=True)
        pip = [PLACE / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--quiet", f"checkov=={VERSION}"], check=True)
        stamp.touch()
    return [str(PLACE / "bin" / "python"), str(PLACE / "bin" / "checkov")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The Dockerfile, the chart in each of its modes, and the overlays as they are built."""
    top = tmp_path_factory.mktemp("scanned")
    (top / "Dockerfile").write_text((TOP / "Dockerfile").read_text())
    chart = Chart.load(TOP / "deploy" / "helm" / "warmer")
    for mode in ("init", "job", "cron"):
        values = ALL | {"mode": mode} if mode == "init" else {"mode": mode}
        rendered = chart.render(values, name="demo", namespace="default")
        texts = (text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))
        (top / f"chart-{mode}.yaml").write_text("\n---\n".join(texts))
    kubectl = f"{sysconfig.get_path('scripts')}/kubectl"
    for overlay in (TOP / "deploy" / "kustomize" / "overlays").iterdir():
        built = subprocess.run([kubectl, "kustomize", overlay], check=True, capture_output=True)
        (top / f"overlay-{overlay.name}.yaml").write_bytes(built.stdout)
    return top


def scan(checkov, place):
    """What failed: pairs of a check and a file; and how many checks there were."""
    words = [*checkov, "--config-file", str(TOP / ".checkov.yaml"), "--output", "json"]
    done = subprocess.run([*words, "--directory", str(place)], capture_output=True, text=True)
    reports = json.loads(done.stdout)
    reports = reports if isinstance(reports, list) else [reports]
    failed = {
        (c["check_id"], c["file_path"]) for r in reports for c in r["results"]["failed_checks"]
    }
    return failed, {r["check_type"]: r["summary"]["passed"] for r in reports}


def test_the_image_the_chart_and_the_overlays_pass_and_a_pod_with_rights_does_not(checkov, place):
    (place / LOOSE).write_text(json.dumps(POD))
    failed, passed = scan(checkov, place)
    assert {path for _, path in failed} == {f"/{LOOSE}"}
    assert ("CKV_K8S_16", f"/{LOOSE}") in failed, "privileged"
    assert passed.keys() == {"kubernetes", "dockerfile"}
    assert min(passed.values()) > 0
