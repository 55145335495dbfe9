"""Ask whoever has the metrics, and read the answer; every failure says whose it is."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from warmer import textfile
from warmer.errors import SourceError, UsageError
from warmer.tune import exposition, fetch, observed, prometheus
from warmer.tune.proposal import Metric, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECRET: Final = 1 << 16
_SCRAPE_HINT: Final = "scrape under load, the earlier scrape first, both of one run of the server"
_QUERY_HINT: Final = (
    "try the query on Prometheus' own page; --metric, --since and --query change it"
)


def scrapes(places: Sequence[str], *, model: str | None) -> Seen:
    """Read one scrape, or what happened between two.

    Args:
        places: files, ``-``, or URLs; the earlier first.
        model: the served name; None where there is but one.

    Raises:
        UsageError: a file that is none of metrics, several models.
        SourceError: a server that does not give them.
    """
    if len(places) > 2:
        raise UsageError(
            f"got --metrics {len(places)} times, expected one scrape, or an earlier and a later one",
            reason="usage",
            hint="for many, ask a Prometheus: --prometheus",
        )
    read = [_scrape(place) for place in places]
    with _blaming(places[-1], _SCRAPE_HINT):
        name = _one(exposition.models(read[-1]), model)
        since = read[0] if len(read) == 2 else None
        counted = exposition.counted(read[-1], name, since=since)
        steps = observed.from_buckets(counted.buckets)
        if steps is None:
            raise observed.BadMetricsError(f"no engine step of {name}")
    origin = "between two scrapes" if since is not None else "since the server started"
    return Seen("tokens", f"{exposition.TOKENS}, {origin}", steps, "steps", counted.generated)


def history(
    server: str,
    *,
    metric: Metric,
    question: str | None,
    seconds: float,
    model: str | None,
    token_file: str | None,
) -> Seen:
    """Ask Prometheus what happened.

    Args:
        server: its URL.
        metric: what to ask for, where there is no question.
        question: in PromQL.
        seconds: how far back.
        model: the served name; None where there is but one.
        token_file: holds a bearer token.

    Raises:
        UsageError: the token cannot be read, several models.
        SourceError: Prometheus does not answer, or with something else.
    """
    if question is not None and model is not None:
        raise UsageError(
            "got --served-name beside --query, expected one of them",
            reason="usage",
            hint='put the model into the query, as {model_name="llama"}',
        )
    token = None if token_file is None else _token(token_file)
    step = prometheus.step(seconds)
    asked = question or prometheus.query(metric, model)
    now = time.time()
    body = fetch.over_http(
        server.rstrip("/") + "/api/v1/query_range",
        most=fetch.ANSWER,
        fields={
            "query": asked.replace(prometheus.STEP, f"{step}s"),
            "start": f"{now - seconds:.3f}",
            "end": f"{now:.3f}",
            "step": str(step),
        },
        token=token,
    )
    with _blaming(server, _QUERY_HINT):
        steps, buckets, models = prometheus.read(body)
        if model is None and len(models) > 1:
            _one(models, model)
        if steps is None:
            raise observed.BadMetricsError(f"nothing for {asked}")
    which: Metric = "tokens" if buckets else "running"
    name = question or (exposition.TOKENS if buckets else prometheus.RUNNING)
    return Seen(which, f"{name}, every {step} s", steps, "steps" if buckets else "samples")


def _scrape(place: str) -> exposition.Scrape:
    if fetch.is_url(place):
        body = fetch.over_http(fetch.parse_url(place, "--metrics"), most=fetch.SCRAPE)
    else:
        body = fetch.local(place)
    with _blaming(place, _SCRAPE_HINT):
        return exposition.read(body.decode(textfile.coding(body), errors="replace"))


def _one(models: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(models) == 1:
        return models[0]
    if wanted in models and wanted is not None:
        return wanted
    named = ", ".join(models[:10])
    got = f"metrics of {named}" if wanted is None else f"--served-name {wanted!r}"
    raise UsageError(
        f"got {got}, expected one model" + ("" if wanted is None else f" of {named}"),
        reason="several-models" if wanted is None else "bad-value",
        hint="give --served-name: sizes are chosen for one model at a time",
    )


def _token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as f:
            token = f.read(_SECRET).strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not ASCII"
        raise UsageError(
            f"got --token-file {path}: {why}, expected a token",
            reason="bad-value",
            hint="name a file that holds the token and nothing else",
        ) from exc
    if not token or len(token.split()) != 1:
        raise UsageError(
            f"got --token-file {path} without a token, expected one on a line",
            reason="bad-value",
            hint="it holds the token and nothing else",
        )
    return token


@contextmanager
def _blaming(place: str, hint: str) -> Iterator[None]:
    """Turn what is wrong with numbers into an error: of the user's file, or of the server's."""
    try:
        yield
    except observed.BadMetricsError as exc:
        remote = fetch.is_url(place)
        kind = SourceError if remote else UsageError
        raise kind(
            f"got {exc} from {fetch.shown(place)}, expected metrics of a vLLM that has served",
            reason="bad-metrics",
            hint=hint,
        ) from exc
