"""The pages on clusters say what the chart and the program do."""

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
    for page in ("quickstart.md", "kubernetes.md", "troubleshooting.md"):
        for path in re.findall(r"`((?:\w+)(?:\.\w+)+)(?::[^`]*)?`", (DOCS / page).read_text()):
            top, *rest = path.split(".")
            if top in known:
                at = known[top]
                for name in rest:
                    assert name in at, path
                    at = at[name]


def test_every_exit_status_of_the_program_is_explained():
    page = (DOCS / "troubleshooting.md").read_text()
    codes = {cls.exit_code for cls in errors.WarmerError.__subclasses__()}
    codes |= {errors.EXIT_OK, errors.EXIT_NOT_WARM, errors.EXIT_BUG}
    for code in codes:
        assert f"\n| {code} | " in page, code
    assert f"{errors.EXIT_INTERRUPTED}, {errors.EXIT_TERMINATED}" in page


@pytest.mark.parametrize("page", ["quickstart.md", "kubernetes.md", "troubleshooting.md"])
def test_every_verb_and_option_on_a_page_is_there(page):
    text = (DOCS / page).read_text()
    named = set(re.findall(r"`(?:\w+ )?warmer (\w+)", text)) - {"VERB"}
    assert named <= VERBS.keys()
    helps = (
        subprocess.run(
            [sys.executable, "-m", "warmer", verb, "--help"], capture_output=True, text=True
        ).stdout
        for verb in VERBS
    )
    known = set(re.findall(r"--[a-z-]+", "".join(helps)))
    ours = {
        option
        for quoted in re.findall(r"`([^`\n]*)`", text)
        if quoted.startswith(("--", "warmer "))
        for option in re.findall(r"--[a-z-]+", quoted)
    }
    vllms_and_helms = {"--host", "--port", "--max-model-len", "--set", "--build-arg"}
    assert ours - vllms_and_helms <= known
