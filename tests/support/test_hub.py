import hashlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi, constants, errors, file_download, hf_hub_download
from huggingface_hub.utils import _http

sys.path.insert(0, os.path.dirname(__file__))
from hub import Hub

REPO, WEIGHTS, TOKEN = "org/tiny", "model.safetensors", "hf_planted"
FILES = {
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    WEIGHTS: random.Random(0).randbytes(300_000),  # noqa: S311 - not a secret
    "sub/deep/notes one.txt": b"notes",
}
SIZES = {(path, len(data)) for path, data in FILES.items()}


@pytest.fixture
def root(tmp_path, monkeypatch):
    # Or the client asks huggingface.co which AI agents there are, to tell it whether one runs it.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    for path, data in FILES.items():
        write(tmp_path / "hub", path, data, 1)
    return tmp_path / "hub"


@pytest.fixture
def hub(root):
    with Hub(root) as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch):
    """The seconds the client would have slept between its own retries."""
    slept = []
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append))
    return slept


def write(root, path, data, mtime):
    target = root / REPO / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    os.utime(target, (mtime, mtime))


def api(hub, token=False):
    return HfApi(endpoint=hub.url, token=token)


def download(hub, to, name=WEIGHTS, *, repo=REPO, token=False, **more):
    more |= {"local_dir": to / "local", "cache_dir": to / "cache"}
    return Path(hf_hub_download(repo, name, endpoint=hub.url, token=token, **more)).read_bytes()


def refused(call, *args, **kwargs):
    with pytest.raises(errors.HfHubHTTPError) as caught:
        call(*args, **kwargs)
    return type(caught.value), caught.value.response.status_code


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def test_model_info_tells_the_commit_and_each_file(hub):
    info = api(hub).model_info(REPO, files_metadata=True)
    assert (info.sha, info.gated, info.private) == (hub.sha(REPO), False, False)
    found = {each.rfilename: each for each in info.siblings}
    assert {(each.rfilename, each.size) for each in info.siblings} == SIZES
    assert found["config.json"].blob_id == blob_id(FILES["config.json"])
    assert found["config.json"].lfs is None
    digest, size = hashlib.sha256(FILES[WEIGHTS]).hexdigest(), len(FILES[WEIGHTS])
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n"
    assert found[WEIGHTS].lfs == {"sha256": digest, "size": size, "pointer_size": len(pointer)}
    assert found[WEIGHTS].blob_id == blob_id(pointer.encode())
    for revision in (info.sha, "main"):
        plain = api(hub).model_info(REPO, revision=revision)
        assert (plain.sha, plain.siblings[0].size) == (info.sha, None)
        assert hub.requests[-1] == ("GET", f"/api/models/{REPO}/revision/{revision}")


def test_the_tree_holds_files_and_directories(hub):
    entries = {each.path: each for each in api(hub).list_repo_tree(REPO, recursive=True)}
    assert set(entries) == {*FILES, "sub", "sub/deep"}
    assert entries[WEIGHTS].lfs.sha256 == hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    assert (entries["empty.txt"].lfs, entries["empty.txt"].size) == (None, 0)
    assert not hasattr(entries["sub"], "size")
    flat = {each.path for each in api(hub).list_repo_tree(REPO)}
    assert flat == {"config.json", "empty.txt", WEIGHTS, "sub"}
    assert [each.path for each in api(hub).list_repo_tree(REPO, "sub")] == ["sub/deep"]
    with pytest.raises(errors.RemoteEntryNotFoundError):
        list(api(hub).list_repo_tree(REPO, "nowhere"))


@pytest.mark.parametrize("name", FILES)
def test_download(hub, tmp_path, name):
    data = FILES[name]
    assert download(hub, tmp_path, name) == data
    path = f"/{REPO}/resolve/main/{name.replace(' ', '%20')}"
    assert hub.requests == [("HEAD", path)] + [("GET", path)] * bool(data)  # empty is known
    noted = tmp_path / "local/.cache/huggingface/download" / f"{name}.metadata"
    etag = hashlib.sha256(data).hexdigest() if name == WEIGHTS else blob_id(data)
    assert noted.read_text().split()[:2] == [hub.sha(REPO), etag]


def test_snapshot_download_by_hf_endpoint(hub, tmp_path):
    script = "import huggingface_hub as h; h.snapshot_download('org/tiny', local_dir='here')"
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", script], env=os.environ | env, cwd=tmp_path, check=True)
    assert {path: (tmp_path / "here" / path).read_bytes() for path in FILES} == FILES
    assert [method for method, _ in hub.requests].count("HEAD") == len(FILES)
    assert all(seen.authorized for seen in hub.log)
    assert TOKEN not in repr(hub.log)


def test_a_connection_serves_ranges_one_after_another(hub):
    weights, path = FILES[WEIGHTS], f"/{REPO}/resolve/main/{WEIGHTS}"
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=10)
    connection.connect()
    opened = connection.sock
    for asked, status, told, body in (
        ("bytes=10-19", 206, "bytes 10-19/300000", weights[10:20]),
        ("bytes=299990-", 206, "bytes 299990-299999/300000", weights[-10:]),
        ("bytes=0-999999", 206, "bytes 0-299999/300000", weights),
        ("bytes=300000-", 416, "bytes */300000", None),
        ("lines=1-2", 200, None, weights),
    ):
        connection.request("GET", path, headers={"Range": asked})
        answer = connection.getresponse()
        got = answer.read()
        assert (answer.status, answer.headers["Content-Range"]) == (status, told)
        assert answer.headers["X-Linked-Size"] == (None if status == 416 else "300000")
        assert body is None or got == body
        assert hub.log[-1].range == asked
        assert connection.sock is opened
    connection.close()


def test_changed_content_moves_main(hub, root, tmp_path):
    shas = [hub.sha(REPO)]
    for number, mtime in ((2, 2), (3, 2**33), (4, 2**33)):  # the last: as if at once
        write(root, "config.json", b'{"a": %d}' % number, mtime)
        shas.append(api(hub).model_info(REPO).sha)
    assert len(set(shas)) == 4
    assert refused(api(hub).model_info, REPO, revision=shas[2])[0] is errors.RevisionNotFoundError
    assert hub.snapshot(REPO) == shas[3]
    write(root, "config.json", b"{}", 3)
    assert download(hub, tmp_path, "config.json", revision=shas[3]) == b'{"a": 4}'


@pytest.mark.parametrize(("token", "status"), [(False, 401), (TOKEN, 404)])
def test_what_does_not_exist(hub, tmp_path, token, status):
    no_repo = (errors.RepositoryNotFoundError, status)
    assert refused(api(hub, token).model_info, "org/none") == no_repo
    assert refused(download, hub, tmp_path, repo="org/none", token=token) == no_repo
    no_revision = (errors.RevisionNotFoundError, 404)
    assert refused(api(hub, token).model_info, REPO, revision="none") == no_revision
    assert refused(download, hub, tmp_path, revision="none", token=token) == no_revision
    with pytest.raises(errors.RemoteEntryNotFoundError) as caught:
        download(hub, tmp_path, "none.json", token=token)
    assert caught.value.response.headers["X-Repo-Commit"] == hub.sha(REPO)


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_private_or_gated_repo_takes_its_token(root, tmp_path, kind):
    private, gated = kind == "private", kind == "gated"
    error = errors.RepositoryNotFoundError if private else errors.GatedRepoError
    with Hub(root, **{kind: {REPO: TOKEN}}) as hub:
        assert refused(download, hub, tmp_path) == (error, 401)
        assert refused(download, hub, tmp_path, token="hf_other") == (
            error,
            404 if private else 403,
        )
        assert download(hub, tmp_path, token=TOKEN) == FILES[WEIGHTS]
        assert [seen.authorized for seen in hub.log] == [False, True, True, True]
        info = api(hub, TOKEN if private else False).model_info(REPO)  # anyone lists what is gated
        assert (info.private, info.gated) == (private, gated and "manual")


@pytest.mark.parametrize(
    ("status", "more", "error", "says"),
    [
        (401, {}, errors.GatedRepoError, f"model {REPO} is restricted. You must have access"),
        (403, {}, errors.GatedRepoError, "not in the authorized list"),
        (403, {"code": "", "message": "no scope"}, errors.HfHubHTTPError, "no scope"),
        (401, {"code": ""}, errors.HfHubHTTPError, f"model {REPO} is restricted"),
        (404, {"code": "RevisionNotFound"}, errors.RevisionNotFoundError, "Repository not found"),
        (429, {"retry_after": 7}, errors.HfHubHTTPError, "Retry after 7 seconds"),
        (503, {}, errors.HfHubHTTPError, "We're working hard to fix this"),
    ],
)
def test_a_status_ends_in_its_exception(hub, status, more, error, says):
    hub.fault(status=status, **more)
    with pytest.raises(errors.HfHubHTTPError, match=says) as caught:
        api(hub).model_info(REPO)
    assert (type(caught.value), caught.value.response.status_code) == (error, status)
    assert caught.value.response.headers.get("Retry-After") == ("7" if status == 429 else None)


def test_a_fault_is_limited_by_path_method_and_count(hub, tmp_path, waits):
    fault = hub.fault(r"/config\.json$", method="GET", status=429, retry_after=2, times=2)
    assert download(hub, tmp_path) == FILES[WEIGHTS]
    assert (fault.times, waits) == (2, [])
    assert download(hub, tmp_path, "config.json") == FILES["config.json"]
    assert (fault.times, waits) == (0, [3.0, 3.0])
    hub.fault(status=500)
    hub.faults.clear()
    assert api(hub).model_info(REPO).sha == hub.sha(REPO)


def test_a_truncated_body_is_resumed(hub, tmp_path, waits, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client drops a partial chunk
    hub.fault(truncate=123_456, times=1)
    assert download(hub, tmp_path) == FILES[WEIGHTS]
    assert [seen.range for seen in hub.log] == [None, None, "bytes=123000-"]


def test_a_body_which_never_comes(hub, tmp_path, waits):
    hub.fault(truncate=0)
    with pytest.raises(httpx2.RemoteProtocolError, match="received 0 bytes, expected 300000"):
        download(hub, tmp_path)
    assert waits == [1] * 5
    assert not os.path.exists(tmp_path / "local" / WEIGHTS)


def test_a_corrupt_body_has_one_wrong_byte_and_the_client_takes_it(hub, tmp_path):
    hub.fault(corrupt=True)
    got = download(hub, tmp_path)
    wrong = [at for at, byte in enumerate(FILES[WEIGHTS]) if got[at] != byte]
    assert (len(got), wrong) == (300_000, [150_000])


def test_a_stall_outlasts_the_timeout(hub):
    hub.fault(stall=30)
    with pytest.raises(httpx2.ReadTimeout):
        api(hub).model_info(REPO, timeout=0.05)


@pytest.mark.parametrize("truncate", [None, 1000])
def test_a_reset_is_a_reset(hub, tmp_path, truncate):
    hub.fault(method="GET", reset=True, truncate=truncate)
    with pytest.raises(httpx2.ReadError, match="reset by peer"):
        download(hub, tmp_path)
    assert [method for method, _ in hub.requests] == ["HEAD", "GET"]


def test_a_slow_body_takes_its_time_and_close_ends_it(hub, tmp_path):
    hub.fault(WEIGHTS, rate=1_000_000, times=1)
    start = time.monotonic()
    assert download(hub, tmp_path) == FILES[WEIGHTS]
    assert time.monotonic() - start >= 0.29
    hub.fault(WEIGHTS, rate=1000)
    with socket.create_connection(("127.0.0.1", hub.port), timeout=10) as connection:
        connection.sendall(f"GET /{REPO}/resolve/main/{WEIGHTS} HTTP/1.1\r\n\r\n".encode())
        received = connection.recv(65536)
        hub.close()
        while chunk := connection.recv(65536):
            received += chunk
    assert 0 < len(received) < 100_000


def test_closed_is_refused_and_the_port_can_come_back(hub, root, tmp_path, waits):
    assert api(hub).model_info(REPO).sha  # leaves a connection open, which must not answer on
    hub.close()
    with pytest.raises(httpx2.ConnectError):
        api(hub).model_info(REPO)
    with Hub(root, port=hub.port):
        assert download(hub, tmp_path) == FILES[WEIGHTS]
    hub.close()


def test_the_command_serves_a_directory(root, tmp_path):
    port_file = tmp_path / "port"
    argv = [sys.executable, os.path.join(os.path.dirname(__file__), "hub.py")]
    argv += ["--root", str(root), "--port", "0", "--port-file", str(port_file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{port_file.read_text().strip()}"
            assert HfApi(endpoint=url, token=False).model_info(REPO).id == REPO
        finally:
            process.terminate()
    assert process.returncode == -signal.SIGTERM
