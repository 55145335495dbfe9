"""Documentation that can be checked is checked."""

import os
import re
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.join(HERE, "..", "..")
sys.path.insert(0, HERE)

import cli_page
import docker_page
import families_page

from warmer import errors
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
