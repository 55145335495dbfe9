"""What an engine leaves that did not end well is no cache: not recorded, handed off or published."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs
import volumes

KERNELS = ("compile", "flashinfer", "jit")
SHARED = ("flashinfer", "jit")
# The command line, with less patience for an engine that does not stop.
IMPATIENT = (
    "from warmer.fill import process; process._STOP_GRACE = 1.0; from warmer import cli; cli.main()"
)

# What answers to everything as a healthy engine does.
STRANGER = """
import http.server
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "m"}]}')
    do_POST = do_GET
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def place(tmp_path):
    """A pod with a GPU: its kernels are of every kind."""
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        yield place.but(engine=cuda)


def prefill(place, *options, mode=""):
    words = place.command("prefill", "--json", *options)[len(runs.WARMER) :]
    env = place.env({"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": mode})
    return runs.finish(runs.spawn([sys.executable, "-c", IMPATIENT, *words], env))


def tree(place, kind):
    """Hash what the server's cache variables lead to."""
    top = f"{place.warm}/cache/{kind}"
    found = {}
    for at, _, names in os.walk(top):
        for name in names:
            with open(f"{at}/{name}", "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[os.path.relpath(f"{at}/{name}", top)] = digest
    return found


def manifest(directory):
    with open(f"{directory}/manifest.json", encoding="utf-8") as stream:
        return {file["path"]: file["sha256"] for file in json.load(stream)["files"]}


def handed_off(place, kind):
    (piece,) = (piece for piece in place.handoff()["pieces"] if piece["kind"] == kind)
    return piece


@pytest.mark.parametrize(
    ("mode", "reason"), [("die", "exited"), ("stubborn", "stuck"), ("refuse=500", "broke")]
)
def test_an_engine_that_does_not_end_well_publishes_nothing(place, mode, reason):
    """With 500 vLLM's front end says that its engine died at the request, and may live on."""
    result = prefill(place, "--on-miss", "kernels=fail", mode=mode)
    runs.failed(result, 7, f"engine-{reason}", compared=False)
    assert [place.generations(kind) for kind in KERNELS] == [[], [], []]
    assert [tree(place, kind) for kind in KERNELS] == [{}, {}, {}]
    assert not [name for name in runs.listing(f"{place.warm}/cache") if name.endswith(".json")]
    assert (place.staged(), place.held(), runs.processes(place.warm)) == ([], [], [])

    result = prefill(place, mode=mode)
    assert (result.code, result.json["without"].keys()) == (0, set(KERNELS))
    assert [place.generations(kind) for kind in KERNELS] == [[], [], []]
    assert [tree(place, kind) for kind in KERNELS] == [{}, {}, {}]
    assert {place.verdicts()[kind] for kind in KERNELS} == {"absent"}

    assert prefill(place).json["warm"] is True
    for kind in KERNELS:
        (generation,) = place.generations(kind)
        assert not [path for path in manifest(generation) if "half" in path]


def test_another_engine_that_answers_on_our_port_is_not_taken_for_ours(place):
    """As where pods share the node's network: ours cannot listen, and is far from done."""
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER], stdout=subprocess.PIPE, text=True
    ) as stranger:
        port = stranger.stdout.readline().strip()
        words = place.command("prefill", "--json", "--on-miss", "kernels=fail")[len(runs.WARMER) :]
        env = place.env({"PATH": f"{place.engine.bin}:{os.defpath}", "FAKE_ENGINE": "slow=1"})
        code = f"from warmer.fill import engine; engine._free_port = lambda: {port}; {IMPATIENT}"
        result = runs.finish(runs.spawn([sys.executable, "-c", code, *words], env))
        stranger.kill()
    runs.failed(result, 7, "engine-exited", compared=False)
    assert "Address already in use" in result.json["error"]["message"]
    assert [place.generations(kind) for kind in KERNELS] == [[], [], []]


def test_a_crashed_build_of_another_model_spoils_no_shared_kernel(place):
    assert prefill(place).json["warm"] is True
    before = runs.published(place.volume)
    first = {kind: manifest(place.generations(kind)[0]) for kind in SHARED}
    other = place.but(model=place.pinned(runs.OTHER))

    result = prefill(other, mode="spoil,crash,op=second")
    assert (result.code, "compile" in result.json["without"]) == (0, True), result
    assert before.items() <= runs.published(place.volume).items()
    assert tree(place, "compile") == {}
    for kind in SHARED:
        assert len(place.generations(kind)) == 1
        piece = handed_off(place, kind)
        assert tree(place, kind) == (first[kind] if piece["verdict"] == "sealed" else {})

    result = prefill(other, mode="op=second")
    assert result.json["warm"] is True, result
    for kind in SHARED:
        one, two = place.generations(kind)
        assert manifest(one) == first[kind]
        assert manifest(one).items() < manifest(two).items()
        assert [os.path.basename(path) for path in manifest(two).keys() - manifest(one).keys()] == [
            "second.so"
        ]
        assert tree(place, kind) == manifest(two)
        assert handed_off(place, kind)["directory"] == two
    volumes.assert_invariants(place.volume)


def test_what_is_published_of_a_shared_kind_stays_as_it_is_in_later_generations(place):
    assert prefill(place).json["warm"] is True
    result = prefill(place.but(model=place.pinned(runs.OTHER)), mode="spoil,op=second")
    assert result.json["warm"] is True, result
    for kind in SHARED:
        one, two = (manifest(path) for path in place.generations(kind))
        assert one.items() < two.items(), "the engine wrote over it; what is published wins"
        assert tree(place, kind) == two, "the server gets what is published"
    assert place.run("check", "--deep").code == 0
