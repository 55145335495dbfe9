"""Render docs/families.md from the table: ``python tests/docs/families_page.py > docs/families.md``."""

import sys

from warmer.families import BUILDING, EXCLUDED, FAMILIES

HEAD = """# Families of caches

Generated from `warmer/families.py` (`make docs`). Every cache that a vLLM start writes, where it lands when nobody
says otherwise, and the variable by which warmer has it written under `<warm dir>/cache/<piece>/<family>`.

"""
ROW = "| {} | {} | {} | {} | {} | {} |\n"


def page():
    text = HEAD + ROW.format("family", "piece", "variables", "else lands in", "on", "keyed by")
    text += ROW.format(*["---"] * 6)
    for f in FAMILIES:
        names = [f"`{f.variable}`", *(f"`{name}={value}`" for name, value in f.also.items())]
        versions = ", ".join(f.packages) or "-"
        text += ROW.format(f.name, f.kind, ", ".join(names), f"`{f.default}`", f.on, versions)
    building = ", ".join(f"`{name}={value}`" for name, value in BUILDING.items())
    text += f"""
"Keyed by" names the distributions whose versions are factors of the piece's key beyond what every kernel key holds
(vLLM, torch, CUDA, the accelerator, the warm dir's path; `warmer plan --explain` shows them all). No family is
relocatable: trees are restored at the path they were built at.

The build run alone sets {building}. Left out of archives, but of bytecode's: \
{", ".join(f"`{pattern}`" for pattern in EXCLUDED)}.
"""
    return text


if __name__ == "__main__":
    sys.stdout.write(page())
