"""The verb: from metrics to sizes, and into the file."""

import contextlib
import gzip
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading

import click
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import volumes
from scrapes import EARLIER, LATER, MODEL, read

from warmer import freedoms
from warmer.cli import tune as verb
from warmer.cli.tune import command
from warmer.errors import SourceError, UsageError
from warmer.tune import fetch

BOTH = ("--metrics", EARLIER, "--metrics", LATER)
SEQS = ("--", "--max-num-seqs", "64")
H200 = os.path.join(HERE, "..", "report", "logs", "h200-cold-0.26.log")


def fails(kind, reason, *words):
    with pytest.raises(kind) as caught:
        command.main([*map(str, words)], standalone_mode=False)
    assert caught.value.reason == reason, caught.value.message
    assert "got " in caught.value.message
    assert "expected " in caught.value.message
    assert caught.value.hint
    return caught.value


def matrix(values, **labels):
    points = [[n, str(value)] for n, value in enumerate(values)]
    data = {"resultType": "matrix", "result": [{"metric": labels, "values": points}]}
    return json.dumps({"status": "success", "data": data}).encode()


def config(tmp_path, text="serve-args:\n- --max-num-seqs\n- 64\n"):
    path = tmp_path / "warmer.yaml"
    path.write_text(text)
    return path


def test_two_scrapes_of_a_real_server_become_sizes_that_cover_and_pad_little(tune):
    found = json.loads(tune(*BOTH, "--json", *SEQS))
    sizes = found["proposed"]["sizes"]
    assert sizes[-1] == 64
    assert found["proposed"]["covered"] >= 0.99
    assert found["proposed"]["padding"] <= 0.10
    assert len(sizes) < len(found["default"]["sizes"])
    assert found["serve_args"] == ["--cudagraph-capture-sizes", *map(str, sizes)]
    assert found["steps"] == 786
    assert found["set_aside"] == pytest.approx(13 / 786)
    assert not found["max_num_seqs"]["assumed"]


def test_the_screen_says_what_the_metric_is_what_is_risked_and_what_is_built_anew(tune):
    screen = tune(*BOTH, *SEQS)
    assert "which steps only decode it" in " ".join(screen.split())
    assert re.search(
        r"^risk +A step of more than 64 tokens runs without a CUDA graph", screen, re.MULTILINE
    )
    assert re.search(r"^key +Sizes are part of the compile key", screen, re.MULTILINE)
    assert re.search(r"^--cudagraph-capture-sizes( \d+)+$", screen, re.MULTILINE)
    assert "assumed: 51 sizes took 5 s and 0.98 GiB" in " ".join(screen.split())
    assert max(map(len, screen.splitlines())) <= 80


def test_sizes_are_a_factor_of_the_compile_key():
    for vllm in ("0.20.0", "0.32.0", "0.40.0"):
        assert not freedoms.free_flag("--cudagraph-capture-sizes", freedoms.version(vllm))


def test_less_padding_costs_more_sizes(tune):
    counts = [
        len(json.loads(tune(*BOTH, "--json", "--max-padding", p, *SEQS))["proposed"]["sizes"])
        for p in (30, 10, 5)
    ]
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


def test_requests_that_are_not_told_are_assumed_and_the_answer_says_so(tune):
    assert "--max-num-seqs 256 is assumed" in tune(*BOTH)


def test_what_a_size_costs_is_read_from_a_log(tune):
    found = json.loads(tune(*BOTH, "--log", H200, "--json"))
    assert found["per_size"]["seconds"] == pytest.approx(5 / 51)
    assert found["per_size"]["bytes"] == pytest.approx(0.98 * 2**30 / 51, abs=1)
    assert found["per_size"]["origin"].startswith("measured")


def test_a_server_is_scraped_over_http(tune, web):
    web.body = read(LATER).encode()
    found = json.loads(tune("--metrics", f"{web.url}/metrics", "--json", *SEQS))
    assert found["steps"] == 794
    assert [path for path, _, _ in web.asked] == ["/metrics"]


def test_metrics_come_through_a_pipe(tmp_path):
    with open(LATER, "rb") as stdin:
        argv = [sys.executable, "-m", "warmer", "tune", "--metrics", "-", "--json"]
        done = subprocess.run(argv, stdin=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 794


def test_prometheus_is_asked_for_running_requests_over_a_week(tune, web, tmp_path):
    web.body = matrix([0, 3, 3, 3, 12], model_name="m")
    token = tmp_path / "token"
    token.write_text("hush\n")
    found = json.loads(tune("--prometheus", f"{web.url}/", "--token-file", token, "--json"))
    assert found["proposed"]["sizes"] == [3, 12]
    assert found["samples"] == 4
    ((path, fields, headers),) = web.asked
    assert path == "/api/v1/query_range"
    assert fields["query"] == "vllm:num_requests_running"
    assert float(fields["end"]) - float(fields["start"]) == pytest.approx(7 * 86400, abs=0.01)
    assert int(fields["step"]) * 11_000 > 7 * 86400
    assert headers["Authorization"] == "Bearer hush"


def test_prometheus_is_asked_for_tokens_of_one_model(tune, web):
    web.body = json.dumps(
        {
            "status": "success",
            "data": {
                "resultType": "matrix",
                "result": [
                    {"metric": {"le": le, "model_name": "m"}, "values": [[1, count]]}
                    for le, count in (("8", "90"), ("16", "100"), ("+Inf", "101"))
                ],
            },
        }
    ).encode()
    words = ("--metric", "tokens", "--served-name", "m", "--since", "1h", "--json")
    found = json.loads(tune("--prometheus", web.url, *words, "--", "--max-num-seqs", "16"))
    assert found["metric"] == "tokens"
    assert found["proposed"]["sizes"][-1] == 16
    asked = web.asked[0][1]["query"]
    assert asked.endswith('(increase(vllm:iteration_tokens_total_bucket{model_name="m"}[15s]))')


def test_more_running_requests_than_vllm_allows_by_default_are_believed(tune, web):
    web.body = matrix([300, 300, 900])
    found = json.loads(tune("--prometheus", web.url, "--json"))
    assert found["proposed"]["sizes"][-1] == 900
    assert found["max_num_seqs"] == {"value": 1024, "assumed": True}


def test_speculative_tokens_widen_every_request(tune, web):
    web.body = matrix([2, 5, 5])
    draft = '{"model": "d", "num_speculative_tokens": 3}'
    found = json.loads(
        tune(
            "--prometheus",
            web.url,
            "--json",
            "--max-padding",
            "0",
            "--",
            "--speculative-config",
            draft,
        )
    )
    assert found["proposed"]["sizes"] == [8, 20]
    dotted = ("--speculative-config.num_speculative_tokens", "3")
    again = tune("--prometheus", web.url, "--json", "--max-padding", "0", "--", *dotted)
    assert json.loads(again)["proposed"] == found["proposed"]
    assert "taken to be 4 times as wide" in tune(
        *BOTH, "--", "--speculative-config", draft
    ).replace("\n          ", " ")


def test_sizes_that_the_server_has_now_are_shown_beside_the_proposal(tune):
    words = (*BOTH, "--", "--cudagraph-capture-sizes", "8", "32", "1", "--max-num-seqs", "64")
    present = json.loads(tune(*words[:4], "--json", *words[4:]))["present"]
    assert present["sizes"] == [1, 8, 32]
    assert 0 < present["covered"] < 0.9
    assert re.search(r"^present +3 +32 ", tune(*words), re.MULTILINE)
    assert json.loads(tune(*BOTH, "--json"))["present"] is None


@pytest.mark.parametrize("flag", [("--enforce-eager",), ("--config", "vllm.yaml")])
def test_arguments_that_make_the_answer_worth_less_are_named(tune, flag):
    found = json.loads(tune(*BOTH, "--json", "--", *flag))
    assert any(text.startswith(f"{flag[0]} is given") for text in found["warnings"])


def test_without_write_the_change_is_shown_and_the_file_stays(tune, tmp_path):
    path = config(tmp_path)
    before = path.read_bytes()
    screen = tune(*BOTH, "--config", path)
    assert path.read_bytes() == before
    assert "\n+- --cudagraph-capture-sizes\n+- 1\n" in screen
    assert "not written" in screen
    assert "64 requests in a step at most" in screen, "the file's own serve-args count"


def test_write_puts_the_sizes_in_keeps_mode_and_comments_and_leaves_nothing_beside(tune, tmp_path):
    path = config(tmp_path, "# ours\nserve-args:\n- --max-num-seqs\n- 64 # wide\n")
    path.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    found = json.loads(tune(*BOTH, "--config", link, "--write", "--json"))
    assert found["written"]
    assert path.read_text() == (
        "# ours\nserve-args:\n- --max-num-seqs\n- 64 # wide\n- --cudagraph-capture-sizes\n"
        + "".join(f"- {size}\n" for size in found["proposed"]["sizes"])
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "warmer.yaml"]
    inode = path.stat().st_ino
    assert "has these sizes already" in tune(*BOTH, "--config", path, "--write")
    assert path.stat().st_ino == inode, "nothing to change, nothing is replaced"


def test_the_shown_change_holds_nothing_of_the_file_but_sizes(tune, tmp_path):
    path = config(tmp_path, "signing-key: planted\nserve-args:\n- --seed\n- 0\nimage: planted\n")
    screen = tune(*BOTH, "--config", path)
    assert "+- --cudagraph-capture-sizes" in screen
    assert "planted" not in screen


def test_prefill_reads_what_write_wrote(tune, tmp_path):
    path = config(tmp_path)
    tune(*BOTH, "--config", path, "--write")
    argv = [sys.executable, "-m", "warmer", "plan", "--config", str(path)]
    argv += ["--volume", str(tmp_path), "--model", f"file://{tmp_path}/none"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr  # the options are right; the model is not there


def test_a_file_that_changes_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    path = config(tmp_path)
    look = verb._look

    def slowly(values):
        path.write_text("serve-args: []  # of somebody else\n")
        return look(values)

    monkeypatch.setattr(verb, "_look", slowly)
    fails(UsageError, "config-changed", *BOTH, "--config", path, "--write")
    assert path.read_text().endswith("# of somebody else\n")
    assert os.listdir(tmp_path) == ["warmer.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_that_is_mounted_by_itself_is_refused_with_what_to_do(tmp_path):
    path = config(tmp_path)
    before = path.read_text()
    with volumes.tmpfs(str(tmp_path / "disk"), "size=64k"):
        mounted = tmp_path / "disk" / "warmer.yaml"
        mounted.touch()
        subprocess.run(["mount", "--bind", str(path), str(mounted)], check=True)
        try:
            failure = fails(UsageError, "bad-config", *BOTH, "--config", mounted, "--write")
            assert os.listdir(tmp_path / "disk") == ["warmer.yaml"]
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    assert "busy" in failure.message
    assert "ConfigMap" in failure.hint
    assert path.read_text() == before


@pytest.mark.parametrize(
    "args",
    [
        "- --max-cudagraph-capture-size\n- 8\n",
        "- --compilation-config\n- '{\"cudagraph_capture_sizes\": [1]}'\n",
        "- -cc.cudagraph_capture_sizes=[1]\n",
    ],
)
def test_sizes_said_in_another_way_are_not_contradicted(tmp_path, args):
    path = config(tmp_path, f"serve-args:\n{args}")
    before = path.read_bytes()
    fails(UsageError, "contradiction", *BOTH, "--config", path, "--write")
    fails(UsageError, "contradiction", *BOTH, "--config", path, "--write", *SEQS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [("- a\n", "bad-config"), ("serve-args: no\n", "bad-config"), ("a: [\n", "bad-config")],
)
def test_a_file_that_is_none_of_warmers_is_refused(tmp_path, text, reason):
    fails(UsageError, reason, *BOTH, "--config", config(tmp_path, text))


def test_odd_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        fails(UsageError, "bad-config", *BOTH, "--config", path)
    (tmp_path / "big").write_bytes(b"#" * (2 << 20))
    fails(UsageError, "bad-config", *BOTH, "--config", tmp_path / "big")
    (tmp_path / "latin").write_bytes(b"a: \xe9\n")
    fails(UsageError, "bad-config", *BOTH, "--config", tmp_path / "latin")


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path):
    path = config(tmp_path)
    path.with_name("x" * 250 + ".yaml").write_text("serve-args: []\n")  # no room for a name beside
    fails(
        UsageError, "bad-config", *BOTH, "--config", path.with_name("x" * 250 + ".yaml"), "--write"
    )


def test_wrong_words_are_refused(tmp_path):
    fails(UsageError, "usage", "--metrics", LATER, "--write")
    fails(UsageError, "usage")
    fails(UsageError, "usage", "--metrics", LATER, "--prometheus", "http://x")
    fails(UsageError, "usage", "--prometheus", "http://x", "--query", "up", "--served-name", "m")
    fails(UsageError, "usage", *BOTH, "--metrics", LATER)
    fails(UsageError, "bad-value", "--prometheus", "ftp://x")
    fails(UsageError, "bad-value", "--prometheus", "http://[")
    fails(UsageError, "bad-value", "--prometheus", "http://x", "--since", "1s")
    fails(UsageError, "bad-value", "--metrics", LATER, "--served-name", "other")
    fails(UsageError, "bad-value", "--metrics", LATER, "--", "--max-num-seqs", "0")
    fails(UsageError, "bad-value", "--metrics", LATER, "--", "--max-num-seqs", "many")
    draft = "--speculative-config.num_speculative_tokens"
    fails(UsageError, "bad-value", "--metrics", LATER, "--", draft, "-3")
    with pytest.raises(click.BadParameter):
        command.main([*BOTH, "--cover", "nan"], standalone_mode=False)
    fails(UsageError, "log-foreign", "--metrics", LATER, "--log", LATER)
    fails(UsageError, "log-unreadable", "--metrics", LATER, "--log", tmp_path / "none")


def test_a_file_without_metrics_is_the_users_mistake(tmp_path):
    (tmp_path / "empty").write_text("")
    fails(UsageError, "bad-metrics", "--metrics", tmp_path / "empty")
    fails(UsageError, "metrics-unreadable", "--metrics", tmp_path / "none")
    fails(UsageError, "bad-metrics", "--metrics", LATER, "--metrics", EARLIER)
    fails(UsageError, "bad-metrics", "--metrics", LATER, "--metrics", LATER)
    with open(tmp_path / "endless", "wb") as f:
        f.truncate(fetch.SCRAPE + 1)
    fails(UsageError, "too-large", "--metrics", tmp_path / "endless")


def test_steps_that_only_hold_prompts_say_nothing_of_decoding(tmp_path):
    lines = read(LATER).replace("794.0", "7e5").splitlines()
    body = [re.sub(r'(le="(?:1|8|16|32|64|128|256)\.0".*) .*', r"\1 0", line) for line in lines]
    (tmp_path / "prompts").write_text("\n".join(body) + "\n")
    fails(UsageError, "nothing-observed", "--metrics", tmp_path / "prompts", *SEQS)


def test_several_models_are_told_apart_by_name(tmp_path, tune):
    both = read(LATER) + read(LATER).replace(MODEL, "other")
    (tmp_path / "both").write_text(both)
    error = fails(UsageError, "several-models", "--metrics", tmp_path / "both")
    assert "--served-name" in error.hint
    assert json.loads(tune("--metrics", tmp_path / "both", "--served-name", "other", "--json"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "denied"),
        (403, "denied"),
        (404, "not-found"),
        (500, "unreachable"),
        (302, "unreachable"),
    ],
)
def test_a_server_that_refuses_is_a_failed_source(web, status, reason):
    web.status, web.headers = status, {"Location": "http://127.0.0.1:1/"}
    for where in ("--metrics", "--prometheus"):
        fails(SourceError, reason, where, web.url)
    assert len(web.asked) == 2, "no redirect is followed"


def test_a_server_that_is_away_is_a_failed_source_and_its_password_is_not_said(web):
    web.close()
    url = web.url.replace("http://", "http://me:hunter22@")
    error = fails(SourceError, "unreachable", "--prometheus", url)
    assert "hunter22" not in error.message + error.hint


def test_an_answer_that_is_too_long_is_not_read_to_its_end(web):
    web.body = b"#" * (fetch.SCRAPE + (1 << 20))
    fails(SourceError, "too-large", "--metrics", web.url)


@pytest.mark.parametrize("length", ["Content-Length: 100000", "Connection: close"])
def test_a_server_that_trickles_is_not_waited_for(monkeypatch, length):
    monkeypatch.setattr(fetch, "_WHOLE", 0.5)
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle():
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
                while not gone.wait(0.02):
                    connection.sendall(b"#")

        server = threading.Thread(target=trickle)
        server.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        fails(SourceError, "too-slow", "--metrics", url)
        gone.set()
        server.join()


def test_an_answer_that_is_packed_though_nobody_asked_is_read(tune, web):
    web.body = gzip.compress(read(LATER).encode())
    web.headers = {"Content-Encoding": "gzip"}
    assert tune("--metrics", web.url, *SEQS) == tune("--metrics", LATER, *SEQS)


def test_an_answer_that_is_no_metrics_is_the_servers_mistake(web):
    web.body = b"<html>"
    fails(SourceError, "bad-metrics", "--metrics", web.url)
    fails(SourceError, "bad-metrics", "--prometheus", web.url)
    web.body = matrix([0, 0])
    assert "nothing for" in fails(SourceError, "bad-metrics", "--prometheus", web.url).message


def test_what_prometheus_says_against_a_query_is_passed_on(web):
    web.status, web.body = 400, b'{"status": "error", "error": "unexpected end of input"}'
    error = fails(SourceError, "bad-metrics", "--prometheus", web.url, "--query", "sum(")
    assert "unexpected end of input" in error.message


def test_a_token_file_holds_one_token(tmp_path, web):
    for text in ("", "two words", "\xe9"):
        (tmp_path / "token").write_text(text)
        fails(UsageError, "bad-value", "--prometheus", web.url, "--token-file", tmp_path / "token")
    fails(UsageError, "bad-value", "--prometheus", web.url, "--token-file", tmp_path / "none")
    assert web.asked == []


def test_the_exit_status_says_whose_mistake_it_is(web):
    web.status = 404
    runs = [(2, ["--metrics", "/nowhere"]), (4, ["--metrics", web.url])]
    for code, words in runs:
        argv = [sys.executable, "-m", "warmer", "tune", "--json", *words]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == code
        assert json.loads(done.stdout)["error"]["code"] == code


def test_a_scrape_that_was_packed_or_redirected_by_powershell_is_read(tune, tmp_path):
    with open(LATER, "rb") as f:
        text = f.read()
    packed, wide = tmp_path / "later.gz", tmp_path / "later.txt"
    packed.write_bytes(gzip.compress(text))
    wide.write_text(text.decode(), encoding="utf-16")
    plain = tune("--metrics", LATER, *SEQS)
    assert tune("--metrics", packed, *SEQS) == plain
    assert tune("--metrics", wide, *SEQS) == plain
    packed.write_bytes(gzip.compress(text)[:-100])
    assert "cut" in fails(UsageError, "metrics-unreadable", "--metrics", packed).message
    packed.write_bytes(gzip.compress(b"#" * (fetch.SCRAPE + 1)))
    fails(UsageError, "too-large", "--metrics", packed)


def test_a_server_that_was_restarted_is_said_so_in_a_sentence(tmp_path):
    text = read(LATER)
    anew = tmp_path / "anew.txt"
    anew.write_text(re.sub(r"(iteration_tokens_total_bucket\{.*\}) .*", r"\1 1.0", text))
    message = fails(UsageError, "bad-metrics", "--metrics", LATER, "--metrics", anew).message
    assert "between two scrapes (the server was restarted) from" in message
