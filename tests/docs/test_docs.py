"""Documentation that can be checked is checked."""

import glob
import importlib
import os
import re
import sys
from pathlib import Path

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.join(HERE, "..", "..")
sys.path.insert(0, HERE)

import cli_page
import docker_page
import families_page

from warmer import check, errors
from warmer.cli import VERBS

PAGES = sorted(name for name in os.listdir(os.path.join(TOP, "docs")) if name.endswith(".md"))


def read(*parts):
    with open(os.path.join(TOP, *parts), encoding="utf-8") as f:
        return f.read()


def test_the_command_line_page_is_what_the_program_prints():
    assert read("docs", "cli.md") == cli_page.page(), "run `make docs`"


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)], ids=" ".join)
def test_every_help_ends_with_examples_that_are_verbs_and_with_exit_statuses(words):
    said = cli_page.help_of(*words)
    at = said.index("Example")
    assert at < said.index("Exit status", at)
    named = set(re.findall(r"\bwarmer (\w+)", said[at:]))
    if words == ("check",):  # runs where warmer is not
        assert "/handoff/check.py" in said[at:]
    else:
        assert named & ({*words} or {*VERBS})
    assert named <= {*VERBS, "VERB"}


def test_the_page_of_families_is_the_table():
    assert read("docs", "families.md") == families_page.page(), "run `make docs`"


def test_the_page_of_reliability_is_what_campaigns_recorded():
    sys.path.insert(0, os.path.join(TOP, "tests", "campaign"))
    import page  # noqa: PLC0415 - it brings faults along, which no other page needs

    assert read("docs", "reliability.md") == page.page(), "run `make docs`"


def test_the_page_of_the_image_has_the_table_of_gpus():
    assert read("deploy", "docker", "README.md") == docker_page.page(), "run `make docs`"


def test_every_exit_code_of_the_program_is_in_the_table():
    table = cli_page.HEAD
    codes = {cls.exit_code for cls in errors.WarmerError.__subclasses__()}
    codes |= {errors.EXIT_OK, errors.EXIT_NOT_WARM, errors.EXIT_BUG}
    for code in codes:
        assert f"\n| {code} | " in table, code
    assert f"{errors.EXIT_INTERRUPTED} / {errors.EXIT_TERMINATED}" in table


def test_the_readme_names_no_make_target_and_no_verb_that_is_not_there():
    readme = read("README.md")
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"^    make (\w+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
    verbs = set(re.findall(r"^\| `warmer (\w+)` \|", readme, re.MULTILINE))
    assert verbs == set(VERBS)


def test_the_continuous_integration_runs_the_readmes_commands():
    script = read(".ci", "run").splitlines()
    assert "make test" in script
    assert "make demo" in script


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", read("docs", page)):
        assert os.path.exists(os.path.join(TOP, "docs", target)), target


def _written():
    """Every page and every manifest, with what it says."""
    tops = ("docs", "deploy", "entrypoints")
    paths = [
        os.path.join(at, name)
        for top in tops
        for at, _, names in os.walk(os.path.join(TOP, top))
        for name in names
        if not name.endswith(".pyc")
    ]
    paths += [os.path.join(TOP, name) for name in ("README.md", "CHANGELOG.md", "Dockerfile")]
    return [
        (os.path.relpath(path, TOP), read(os.path.relpath(path, TOP))) for path in sorted(paths)
    ]


def _options():
    """Verb → its options and their variables."""
    found = {}
    for verb, (module, _) in VERBS.items():
        params = importlib.import_module(module).command.params
        found[verb] = {name for p in params for name in (*p.opts, p.envvar) if name}
    found["check"] |= set(re.findall(r"--[a-z-]+|WARMER_[A-Z_]+", check.USAGE))
    return found


WRITTEN = _written()


def test_the_pages_and_manifests_are_looked_at():
    assert len(WRITTEN) > 60
    assert sum("WARMER_" in text for _, text in WRITTEN) > 10


@pytest.mark.parametrize(("path", "text"), WRITTEN, ids=[path for path, _ in WRITTEN])
def test_every_variable_option_and_path_that_is_written_down_is_there(path, text):
    options = _options()
    variables = set(re.findall(r"\bWARMER_[A-Z_]+\b", text))
    assert variables <= set().union(*options.values())
    for verb, words in re.findall(r"(?:^|[\s`(])warmer (\w+)([^\n`]*)", text):
        if verb in VERBS:
            named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", words.split(" -- ")[0])
            assert {*named} - {"--help"} <= options[verb], verb
    tops = "deploy|docs|tests|warmer|entrypoints"
    for named in re.findall(rf"(?<![\w/.])((?:{tops})/[\w./-]*\w)", text):
        places = glob.glob(os.path.join(TOP, f"{named}*"))
        assert places, named


def test_what_the_security_page_claims_is_shown_by_tests_of_that_name():
    claims = re.findall(r"\[([^\]]+)\]\(\.\./(tests/[^)]+)\)", read("docs", "security.md"))
    assert len(claims) > 40
    for claim, path in claims:
        name = re.sub(r"\W+", "_", claim)
        assert f"\ndef test_{name}(" in read(path), (claim, path)


def test_the_architecture_page_names_every_module():
    page = read("docs", "architecture.md")
    top = os.path.join(TOP, "warmer")
    for name in sorted(os.listdir(top)):
        module = name.removesuffix(".py")
        if name.startswith("__") or not (
            name.endswith(".py") or os.path.isdir(os.path.join(top, name))
        ):
            continue
        assert f"`{module}" in page, f"docs/architecture.md does not mention {module}"


def test_no_module_is_too_long_to_be_read_at_once():
    modules = Path(TOP, "warmer").rglob("*.py")
    lengths = {str(path): len(path.read_text().splitlines()) for path in modules}
    assert {path: length for path, length in lengths.items() if length > 300} == {}
