"""How the page of `warmer.report.page` looks: colours of the phases, and one style sheet. Pure.

Colours group what belongs together: grey and blue for Python and its processes, green for weights,
yellow to red for compiling, violet for the GPU's memory and graphs. The number in a segment says the
same, so that nothing hangs on telling them apart. On each, its text has a contrast of 4.5 at least.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Colour(NamedTuple):
    """What a phase is drawn in: ground and text, on a light page and on a dark one."""

    light: str
    on_light: str
    dark: str
    on_dark: str


_WHITE: Final = "#ffffff"
_INK: Final = "#14171c"

COLOURS: Final = {
    "imports": Colour("#3f4e63", _WHITE, "#93a4bb", _INK),
    "config": Colour("#5f6f86", _WHITE, "#b9c5d6", _INK),
    "engine_process": Colour("#1f6f9f", _WHITE, "#7cc0e8", _INK),
    "distributed": Colour("#2b5f78", _WHITE, "#8fd0dd", _INK),
    "download": Colour("#2e7d52", _WHITE, "#7fd0a2", _INK),
    "weights": Colour("#1f6a63", _WHITE, "#69c7bb", _INK),
    "dynamo": Colour("#8a5a00", _WHITE, "#efc566", _INK),
    "compile": Colour("#ad4f0c", _WHITE, "#f5a25d", _INK),
    "jit": Colour("#b23a2e", _WHITE, "#f28d80", _INK),
    "warmup": Colour("#a8471f", _WHITE, "#f2a07a", _INK),
    "memory_profile": Colour("#76479f", _WHITE, "#c9a3ea", _INK),
    "graph_capture": Colour("#5450b3", _WHITE, "#aaa8f2", _INK),
    "engine_init_rest": Colour("#7a5c4d", _WHITE, "#cbb0a2", _INK),
    "api_setup": Colour("#2f66c4", _WHITE, "#8fb8f7", _INK),
    "other": Colour("#d9dce1", _INK, "#454b55", _WHITE),
}
"""By segment, as `warmer.report.timeline.kinds` names them."""


def _rules(*, dark: bool) -> str:
    """Draw the rules of the segments in one scheme."""
    picked = {
        name: (colour.dark, colour.on_dark) if dark else (colour.light, colour.on_light)
        for name, colour in COLOURS.items()
    }
    return "\n".join(
        f".{name}{{fill:{ground};stroke:{ground}}}.on-{name}{{fill:{text}}}"
        for name, (ground, text) in picked.items()
    )


STYLE: Final = f"""
:root{{color-scheme:light dark;--page:#ffffff;--ink:#14171c;--soft:#565e6b;--line:#dfe2e7;--quiet:#f5f6f8}}
{_rules(dark=False)}
@media (prefers-color-scheme:dark){{
:root{{--page:#14171c;--ink:#eceef1;--soft:#a9b1bd;--line:#343a44;--quiet:#1c2027}}
{_rules(dark=True)}
}}
*{{box-sizing:border-box}}
html{{background:var(--page);color:var(--ink);-webkit-text-size-adjust:100%}}
body{{margin:0;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:64rem;margin:0 auto;padding:3rem 1.5rem 4rem}}
h1{{margin:0;font-size:1rem;font-weight:600;color:var(--soft)}}
.lead{{margin:.25rem 0 2rem;font-size:1.75rem;line-height:1.25;font-weight:400;letter-spacing:-.01em;text-wrap:balance}}
.lead+.verdict{{margin:-1.5rem 0 2rem;color:var(--soft);overflow-wrap:anywhere}}
.lead strong{{font-weight:650;white-space:nowrap}}
figure{{margin:0}}
svg{{display:block;overflow:visible}}
svg text{{font-family:inherit}}
rect,.edge{{stroke:none}}
.tick{{stroke:var(--line)}}
.axis{{fill:var(--soft);font-size:13px;font-variant-numeric:tabular-nums}}
.name{{fill:var(--ink);font-size:15px;font-weight:600;paint-order:stroke;stroke:var(--page);stroke-width:6px}}
.total{{font-weight:400;fill:var(--soft);font-variant-numeric:tabular-nums}}
.edge{{stroke:var(--page);stroke-width:1}}
.thin{{stroke-width:1.5}}
.number{{font-size:13px;font-weight:600;font-variant-numeric:tabular-nums;stroke:none}}
.legend{{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem 1.25rem;margin:1.25rem 0 2.5rem;padding:0;font-size:.875rem}}
.legend li{{display:flex;align-items:center;gap:.5rem}}
.swatch{{flex:none}}
.swatch .number{{font-size:12px}}
table{{width:100%;border-collapse:collapse;font-size:.9375rem}}
caption{{text-align:left;color:var(--soft);font-size:.875rem;padding-bottom:.5rem}}
th,td{{padding:.4rem 0 .4rem 1rem;border-bottom:1px solid var(--line);text-align:left;font-weight:400}}
th:first-child{{padding-left:0}}
thead th{{color:var(--soft);font-size:.875rem;vertical-align:bottom}}
tbody .swatch{{display:inline-block;vertical-align:-4px;margin:0 .6rem 0 calc(-24px - .6rem)}}
tbody th:has(.swatch){{padding-left:calc(24px + .6rem)}}
tbody .part th:has(.swatch){{padding-left:calc(48px + 1.2rem)}}
.figure{{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}}
.total th,.total td{{font-weight:650;border-bottom:0;border-top:1px solid var(--soft)}}
.remarks{{margin:1.5rem 0 0;padding:0;list-style:none;color:var(--soft);font-size:.875rem;overflow-wrap:anywhere}}
.remarks li+li{{margin-top:.25rem}}
details{{margin-top:1.25rem;font-size:.875rem}}
summary{{cursor:pointer}}
pre{{margin:.5rem 0 0;padding:.75rem 1rem;background:var(--quiet);border-radius:4px;overflow-wrap:anywhere;white-space:pre-wrap;font:12px/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
@media (max-width:40rem){{
main{{padding:1.5rem 1rem 3rem}}
.lead{{font-size:1.375rem}}
.tight{{display:none}}
th,td{{padding-left:.6rem}}
tbody .part th:has(.swatch){{padding-left:calc(36px + 1rem)}}
table{{font-size:.875rem}}
}}
@media print{{*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}main{{padding:0}}}}
"""
