"""The pages on clusters say what the chart and the program do."""

import functools
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import rendering
import yaml
from helm_python.chart import Chart

from warmer import errors
from warmer.cli import VERBS

DOCS = rendering.TOP / "docs"
PAGES = ("quickstart.md", "concepts.md", "storage.md", "kubernetes.md", "troubleshooting.md")


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def server(values=None):
    documents = rendering.chart(values or {})
    return rendering.only(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def test_the_quickstarts_values_are_taken_and_make_what_it_names():
    (text,) = blocks("quickstart.md", "yaml")
    values = yaml.safe_load(text)
    Chart.load(rendering.CHART).validate_schema(values)
    documents = rendering.chart(values, name="warm", namespace="ml")
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    page = (DOCS / "quickstart.md").read_text()
    for kind in ("Deployment", "Service"):
        name = rendering.only(documents, kind)["metadata"]["name"]
        assert f"{kind.lower()}{' ' if kind == 'Deployment' else '/'}{name}" in page
    secret = values["servingEngineSpec"]["modelSpec"][0]["hf_token"]
    assert f"generic {secret['secretName']} --from-literal={secret['secretKey']}=" in page
    assert values["image"]["repository"] + ":" + values["image"]["tag"] in page


def test_the_probes_on_the_page_are_the_charts():
    (text,) = blocks("kubernetes.md", "yaml")
    shown = yaml.safe_load(text)
    assert shown.keys() == {"startupProbe", "readinessProbe", "livenessProbe"}
    assert shown == {name: server()[name] for name in shown}


def test_every_mode_of_the_chart_is_on_the_page():
    modes = Chart.load(rendering.CHART).schema["properties"]["mode"]["enum"]
    page = (DOCS / "kubernetes.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE) == modes


def test_values_that_pages_speak_of_are_the_charts():
    known = Chart.load(rendering.CHART).values
    for page in PAGES:
        for path in re.findall(r"`((?:\w+)(?:\.\w+)+)(?::[^`]*)?`", (DOCS / page).read_text()):
            top, *rest = path.split(".")
            if top in known:
                at = known[top]
                for name in rest:
                    assert name in at, path
                    at = at[name]


def test_every_storage_on_the_page_is_one_that_the_chart_and_kubernetes_take():
    whole = [yaml.safe_load(text) for text in blocks("storage.md", "yaml")]
    classes = {d["metadata"]["name"] for d in whole if "kind" in d}
    assert len(classes) > 1
    chart = Chart.load(rendering.CHART)
    named = set()
    for values in whole:
        if "kind" in values:
            kubernetes_validate.validate(values, "1.33", strict=True)
            continue
        chart.validate_schema(values)
        volume = values["persistence"]
        documents = rendering.chart(values)
        claims = [d for d in documents if d["kind"] == "PersistentVolumeClaim"]
        assert [d["spec"].get("storageClassName") for d in claims] == (
            [volume["storageClass"]] if "storageClass" in volume else []
        )
        named.add(volume.get("storageClass"))
        assert "who can write into" not in rendering.notes(values), "a bucket is signed"
        maps = [d["data"] for d in documents if d["kind"] == "ConfigMap"]
        assert {m["WARMER_LOCK"].partition(":")[0] for m in maps} == {
            values.get("lock", {}).get("mechanism", "file")
        }
    assert classes < named, "each class that is shown is used"


def test_keys_of_the_page_on_storage_are_made_as_the_overlays_make_them():
    text = (rendering.TOP / "deploy/kustomize/components/signed/kustomization.yaml").read_text()
    values = [yaml.safe_load(block) for block in blocks("storage.md", "yaml")]
    keys = [v["warmer"] for v in values if "trustedKeys" in v.get("warmer", {})]
    assert keys
    for each in keys:
        trusted, signing = each["trustedKeys"], each["signingKey"]
        assert f"configmap {trusted['configMap']} --from-file={trusted['key']}=" in text
        assert f"generic {signing['secret']} --from-file={signing['key']}=" in text


def test_every_exit_status_of_the_program_is_explained():
    page = (DOCS / "troubleshooting.md").read_text()
    codes = {cls.exit_code for cls in errors.WarmerError.__subclasses__()}
    codes |= {errors.EXIT_OK, errors.EXIT_NOT_WARM, errors.EXIT_BUG}
    for code in codes:
        assert f"\n| {code} | " in page, code
    assert f"{errors.EXIT_INTERRUPTED}, {errors.EXIT_TERMINATED}" in page


@functools.cache
def _helps():
    """What every verb says of itself."""
    words = ([sys.executable, "-m", "warmer", verb, "--help"] for verb in VERBS)
    return "".join(subprocess.run(w, capture_output=True, text=True).stdout for w in words)


@pytest.mark.parametrize("page", PAGES)
def test_every_verb_and_option_on_a_page_is_there(page):
    text = (DOCS / page).read_text()
    named = set(re.findall(r"`(?:\w+ )?warmer (\w+)", text)) - {"VERB"}
    assert named <= VERBS.keys()
    known = set(re.findall(r"--[a-z-]+", _helps()))
    ours = {
        option
        for quoted in re.findall(r"`([^`\n]*)`", text)
        if quoted.startswith(("--", "warmer "))
        for option in re.findall(r"--[a-z-]+", quoted)
    }
    vllms_and_helms = {"--host", "--port", "--max-model-len", "--set", "--build-arg", "--platform"}
    assert ours - vllms_and_helms <= known
