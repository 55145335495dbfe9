"""The dashboard asks for what the sidecar shows, and the chart brings it as it is."""

import json
import re

import grafana
import promql_parser as promql
import pytest
import rendering
from helm_python.chart import Chart
from helm_python.errors import HelmError

from warmer import tally
from warmer.layout import Volume, WarmDir
from warmer.model import KINDS
from warmer.sidecar.board import Board
from warmer.sidecar.metrics import Metrics, Survey

FILE = rendering.CHART / "dashboards" / "warmer.json"
BOARD = json.loads(FILE.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
OF_GRAFANA = {"$__range": "1h", "$job": ".*"}
"""What Grafana writes in its place."""
OF_PROMETHEUS = {"job", "instance"}
"""Labels that every series gets from the scrape."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Metric → label → values: of a sidecar that has everything to show."""
    top = tmp_path_factory.mktemp("pod")
    warm, volume = WarmDir(str(top)), Volume(str(top))
    some = dict.fromkeys(KINDS, 1.0)
    did = tally.Tally("hf", some, 1, some, KINDS, {"429": 1}, 1.0, 1.0, 1, dict.fromkeys(KINDS, 1))
    (top / "outcome.json").write_text(tally.encode(did))
    assert warm.outcome == str(top / "outcome.json")
    board, survey = Board(), Survey(warm, volume)
    board.results.update({(kind, how): 1 for kind in KINDS for how in ("published", "failed")})
    board.bytes.update(dict.fromkeys(KINDS, 1))
    board.ready_s = 1.0
    survey.room = (1, 1)
    survey.verdicts = dict.fromkeys(KINDS, "sealed")
    found = {}
    for metric in Metrics(board, survey, warm).collect():
        assert metric.samples, metric.name
        for sample in metric.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def asked():
    """Every expression of the dashboard, with its panel and its legend."""
    for panel in PANELS:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in OF_GRAFANA.items():
                text = text.replace(name, value)
            yield panel["title"], promql.parse(text), target["legendFormat"]


def parts(node):
    """An expression and all that is in it."""
    yield node
    inner = (getattr(node, name, None) for name in ("lhs", "rhs", "expr", "param"))
    for part in (*inner, *getattr(node, "args", ())):
        if isinstance(part, promql.Expr):
            yield from parts(part)


def selectors(node):
    for part in parts(node):
        if isinstance(part, promql.VectorSelector):
            yield part
        elif isinstance(part, promql.MatrixSelector):
            yield part.vector_selector


def test_every_expression_names_metrics_labels_and_values_that_the_sidecar_shows(shown):
    for title, tree, _ in asked():
        looked_for = list(selectors(tree))
        assert looked_for, title
        known = set.intersection(*({*shown[found.name]} for found in looked_for)) | OF_PROMETHEUS
        for found in looked_for:
            assert any(m.name == "job" for m in found.matchers.matchers), title
            for matcher in found.matchers.matchers:
                if matcher.name in OF_PROMETHEUS:
                    continue
                values = shown[found.name][matcher.name]
                named = set(matcher.value.split("|"))
                assert named <= values, (title, matcher.name)
        for part in parts(tree):
            if isinstance(part, promql.AggregateExpr) and part.modifier:
                assert set(part.modifier.labels) <= known, title


def test_every_metric_of_the_sidecar_is_asked_for(shown):
    assert {found.name for _, tree, _ in asked() for found in selectors(tree)} == shown.keys()


def test_a_legend_names_the_labels_that_are_left():
    for title, tree, legend in asked():
        named = re.findall(r"{{(\w+)}}", legend)
        modifier = tree.modifier if isinstance(tree, promql.AggregateExpr) else None
        assert named == (modifier.labels if modifier else []), title


def test_grafana_can_import_it_whatever_its_data_source_is_called():
    source, job = BOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    for place in (job, *PANELS, *(target for panel in PANELS for target in panel["targets"])):
        assert place["datasource"] == {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    assert (job["name"], BOARD["id"]) == ("job", None)
    assert re.fullmatch(r"[\w-]{1,40}", BOARD["uid"])
    assert BOARD["schemaVersion"] >= 39, "older ones are migrated, later than some Grafana's"
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


BY_THE_EDITOR = {".id", ".templating.list[1].definition"}
"""What Grafana's editor writes and its types do not name: no number yet; the query, to be read by people."""


def test_grafanas_own_types_read_all_of_it_and_each_value_is_one_of_theirs():
    misfits, lost = grafana.read(BOARD)
    assert misfits == []
    assert set(lost) == BY_THE_EDITOR


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("panels", 0, "gridPos", "w"), "4", "board.panels[0].grid_pos.w"),
        (("panels", 0, "options", "colorMode"), "loud", "board.panels[0].options.color_mode"),
        (("templating", "list", 1, "refresh"), 9, "board.templating.list_val[1].refresh"),
        (("panels", 0, "titel"), "Pods", ".panels[0].titel"),
        (("panels", 0, "targets", 0, "legend"), "", ".panels[0].targets[0].legend"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_in_the_dashboard_would_be_seen(path, value, where):
    board = json.loads(json.dumps(BOARD))
    at = board
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    misfits, lost = grafana.read(board)
    assert where in {*(place for place, _ in misfits), *lost}


def test_no_panel_lies_over_another():
    taken = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_the_job_is_chosen_from_those_that_have_a_sidecar(shown):
    job = BOARD["templating"]["list"][1]["query"]["query"]
    (metric,) = re.fullmatch(r"label_values\((\w+), job\)", job).groups()
    assert metric in shown


def test_the_chart_brings_it_unchanged_where_it_is_wanted():
    assert not [d for d in rendering.chart() if d["metadata"]["name"].endswith("dashboard")]
    metrics = {"dashboard": {"enabled": True, "annotations": {"grafana_folder": "vLLM"}}}
    documents = rendering.chart({"mode": "none", "metrics": metrics})
    found = rendering.only(documents, "ConfigMap")
    assert found["data"] == {"warmer.json": FILE.read_text()}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "vLLM"}


def test_no_models_options_are_taken_for_the_dashboard():
    chart = Chart.load(rendering.CHART)
    model = chart.values["servingEngineSpec"]["modelSpec"][0] | {"name": "dashboard"}
    values = {"metrics": {"dashboard": {"enabled": True}}}
    values["servingEngineSpec"] = {"modelSpec": [model]}
    documents = rendering.chart(values)
    names = [d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"]
    assert len(names) == len(set(names)) == 2


@pytest.mark.parametrize(
    "values", [{"enable": True}, {"enabled": "yes"}, {"labels": {"grafana_dashboard": 1}}]
)
def test_a_dashboard_that_means_nothing_is_refused(values):
    with pytest.raises(HelmError, match=r"/metrics/dashboard|'enable'"):
        Chart.load(rendering.CHART).validate_schema({"metrics": {"dashboard": values}})
