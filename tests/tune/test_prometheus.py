"""Answers of Prometheus' query_range."""

import json

import pytest

from warmer.tune import prometheus
from warmer.tune.observed import BadMetricsError, Band


def matrix(*series):
    result = [
        {"metric": labels, "values": [[1.0 + n, str(value)] for n, value in enumerate(values)]}
        for labels, values in series
    ]
    data = {"resultType": "matrix", "result": result}
    return json.dumps({"status": "success", "data": data}).encode()


def test_each_point_of_each_series_is_a_sample():
    body = matrix(({"model_name": "m", "pod": "a"}, [3, 0]), ({"model_name": "m"}, [4]))
    steps, buckets, models = prometheus.read(body)
    assert steps.bands == (Band(3, 3, 1), Band(4, 4, 1))
    assert not buckets
    assert models == ["m"]


def test_the_increases_of_a_buckets_series_are_added_over_time():
    body = matrix(({"le": "8"}, [1, 2]), ({"le": "+Inf"}, [1, 4]))
    steps, buckets, models = prometheus.read(body)
    assert steps.bands == (Band(1, 8, 3), Band(9, 16, 2))
    assert buckets
    assert models == []


def test_no_series_is_nothing_observed():
    assert prometheus.read(matrix())[0] is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no answer of Prometheus"),
        (b'{"status": "error", "error": "parse error at char 3"}', "parse error at char 3"),
        (b'{"status": "success", "data": {"resultType": "vector", "result": []}}', "no matrix"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": [7]}}', "series"),
        (matrix(({"le": "8"}, [1]), ({}, [1])), "with and without"),
        (matrix(({"le": "8"}, ["NaN"]), ({"le": "+Inf"}, [1])), "nan"),
        (matrix(({}, ["nan"])), "'nan'"),
        (matrix(({}, ["many"])), "'many'"),
        (matrix(({"le": "8"}, [-1]), ({"le": "+Inf"}, [1])), "-1"),
        (matrix(({"le": "8"}, [1])), "Inf"),
        (matrix(({"le": "x"}, [1])), "'x'"),
    ],
)
def test_an_answer_that_is_none_is_refused_with_the_reason(body, why):
    with pytest.raises(BadMetricsError, match=why):
        prometheus.read(body)


def test_points_of_an_idle_engine_that_are_no_number_are_passed_over():
    steps, buckets, _ = prometheus.read(matrix(({}, ["NaN", 3, "NaN", 5])))
    assert steps.weight == 2
    assert steps.quantile(1) == 5
    assert not buckets
    assert prometheus.read(matrix(({}, ["NaN"])))[0] is None


def test_points_are_far_enough_apart_for_prometheus_and_its_scrapes():
    week = 7 * 86400
    assert week / prometheus.step(week) < 11_000
    assert prometheus.step(60) == 15
    assert prometheus.step(10 * 366 * 86400) > week / 11_000


def test_a_name_cannot_leave_its_place_in_a_query():
    assert prometheus.query("running", 'a"} or up{x="') == (
        'vllm:num_requests_running{model_name="a\\"} or up{x=\\""}'
    )
