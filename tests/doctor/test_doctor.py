"""`warmer doctor` alone: on real filesystems, and with real lock services."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import doctors
import leases
import runs
import s3
import volumes

from warmer import trust
from warmer.doctor import writers
from warmer.doctor.findings import Finding, exit_code
from warmer.doctor.locking import KEY
from warmer.fill.locks.registry import open_lock
from warmer.layout import Volume
from warmer.model import Key
from warmer.urls import parse_lock

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    volume = tmp_path_factory.mktemp("healthy")
    return volume, doctors.examine(volume)


def test_on_a_disk_nothing_is_wrong(healthy):
    _, result = healthy
    assert (result.code, doctors.not_ok(result)) == (0, {}), result
    assert tuple(doctors.found(result)) == doctors.ALONE
    assert result.json["schema_version"] == 1


def test_an_empty_volume_is_empty_again(healthy):
    volume, _ = healthy
    assert os.listdir(volume) == []


def test_what_was_on_the_volume_stays(tmp_path):
    (tmp_path / "v1" / "locks").mkdir(parents=True)
    (tmp_path / "v1" / "locks" / "a.lock").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    assert doctors.examine(tmp_path).code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_top_that_somebody_else_made_stays(tmp_path):
    (tmp_path / "v1").mkdir()
    assert doctors.examine(tmp_path).code == 0
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "v1"]


def test_the_table_has_a_row_for_each_finding_and_a_line_for_each_hint(tmp_path):
    (tmp_path / "v1" / "doctor" / "0123").mkdir(parents=True)  # so that there is a hint
    env = {"PATH": os.defpath, "HOME": "/nonexistent"}
    argv = [*runs.WARMER, "doctor", "--volume", str(tmp_path)]
    result = runs.finish(runs.spawn(argv, env), timeout=doctors.TIMEOUT)
    assert result.code == 0, result
    lines = result.out.splitlines()
    names = [line[6:26].strip() for line in lines if not line.startswith(" ")]
    assert tuple(names) == (*doctors.ALONE, "leftovers")
    (row,) = (n for n, line in enumerate(lines) if line.startswith("warn  leftovers "))
    assert lines[row].endswith("v1/doctor: 0123")
    assert lines[row + 1].endswith(f"rm -r {tmp_path}/v1/doctor")


@root
def test_a_volume_that_cannot_be_written_is_6(tmp_path):
    with runs.read_only(str(tmp_path)):
        result = doctors.examine(tmp_path)
    findings = doctors.found(result)
    assert result.code == 6
    assert (findings["writable"]["verdict"], findings["trials"]["verdict"]) == ("fail", "skip")
    assert "Read-only file system" in findings["writable"]["found"]
    assert "writable" in findings["writable"]["hint"]
    assert os.listdir(tmp_path) == []


@root
def test_a_volume_on_which_nothing_may_be_run_is_warned_about_and_that_alone(tmp_path):
    with runs.mounted(str(tmp_path), ["-t", "tmpfs", "-o", "noexec,size=64m,mode=755", "tmpfs"]):
        result = doctors.examine(tmp_path)
        assert os.listdir(tmp_path) == []
    assert (result.code, doctors.not_ok(result)) == (0, {"exec": "warn"}), result


@root
def test_a_full_volume_is_6_and_says_so(tmp_path):
    with runs.tmpfs(str(tmp_path / "full"), "1m") as volume:
        with pytest.raises(OSError, match="No space"):
            Path(volume, "filler").write_bytes(bytes(2 << 20))
        result = doctors.examine(volume)
        assert os.listdir(volume) == ["filler"]
    findings = doctors.found(result)
    assert result.code == 6
    assert findings["free"]["verdict"] == "warn"
    assert findings["fsync"]["verdict"] == "fail"
    assert "free space" in findings["fsync"]["hint"]


@root
def test_few_free_inodes_are_warned_about(tmp_path):
    with runs.mounted(str(tmp_path), ["-t", "tmpfs", "-o", "size=2g,nr_inodes=500", "tmpfs"]):
        free = doctors.found(doctors.examine(tmp_path))["free"]
    assert free["verdict"] == "warn"
    assert " inodes" in free["found"]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--volume", "/nonexistent/volume"), 6, "missing"),
        (("--volume", "relative"), 2, "relative-path"),
        (("--volume", "/tmp", "--lock", "redis://here"), 2, "bad-lock"),
        (("--volume", "/tmp", "--timeout", "soon"), 2, "usage"),
    ],
)
def test_a_wrong_word_is_an_error_and_no_table(options, code, reason):
    argv = [*runs.WARMER, "doctor", "--json", *options]
    result = runs.finish(runs.spawn(argv, {"PATH": os.defpath}))
    assert (result.code, result.json["error"]["reason"]) == (code, reason), result


def test_variables_are_options(tmp_path):
    env = {"WARMER_VOLUME": str(tmp_path), "WARMER_JSON": "1", "WARMER_LOCK": "nonsense"}
    result = runs.finish(runs.spawn([*runs.WARMER, "doctor"], env))
    assert (result.code, "nonsense" in result.err) == (2, True), result


# --- locks at a service --------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    with leases.LeaseServer() as server:
        yield server, {"KUBECONFIG": server.kubeconfig(tmp_path / "kubeconfig")}


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


def test_a_lease_is_granted_refused_and_granted_again(cluster, volume):
    server, env = cluster
    for epoch in (2, 4):
        result = doctors.examine(volume, "--lock", "k8s://warm/models", env=env)
        finding = doctors.found(result)["--lock k8s"]
        assert (result.code, finding["verdict"]) == (0, "ok"), result
        assert f"(epoch {epoch})" in finding["found"]
    assert len(server.leases) == 1, "one record, however often a doctor comes"


@pytest.mark.parametrize("trouble", ["down", "denied", "no-namespace", "no-cluster"])
def test_a_lease_that_cannot_be_had_is_4(cluster, volume, trouble):
    server, env = cluster
    url = "k8s://elsewhere/models" if trouble == "no-namespace" else "k8s://warm/models"
    if trouble == "down":
        server.down()
    if trouble == "denied":
        server.tokens[server.token] = {"get"}
    if trouble == "no-cluster":
        env = {}
    result = doctors.examine(volume, "--lock", url, env=env)
    assert (result.code, doctors.not_ok(result)) == (4, {"--lock k8s": "fail"}), result
    assert "token-of-the-pod" not in result.out + result.err


def test_the_key_of_a_doctor_that_was_killed_is_waited_for(cluster, volume, monkeypatch):
    _, env = cluster
    monkeypatch.setenv("KUBECONFIG", env["KUBECONFIG"])
    url = "k8s://warm/models?lease=3"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            lock = open_lock(parse_lock(url), volume=Volume(str(volume)), me="killed")
            status = 0 if lock.try_acquire(KEY).epoch == 1 else 1
        finally:
            os._exit(status)  # its record stays as it is
    assert os.waitpid(pid, 0)[1] == 0
    result = doctors.examine(volume, "--lock", url, env=env)
    finding = doctors.found(result)["--lock k8s"]
    assert (result.code, finding["verdict"]) == (0, "ok"), result
    assert "(epoch 3)" in finding["found"]


def test_a_bucket_that_obeys_conditions_keeps_a_lock(volume):
    server = s3.seaweed()
    url = f"s3://{server.bucket()}/models"
    result = doctors.examine(volume, "--lock", url, env=server.environment())
    assert (result.code, doctors.not_ok(result)) == (0, {}), result
    assert doctors.found(result)["--lock s3"]["verdict"] == "ok"


def test_a_bucket_that_ignores_conditions_is_4(volume):
    server = s3.rclone()
    url = f"s3://{server.bucket()}/models"
    result = doctors.examine(volume, "--lock", url, env=server.environment())
    assert (result.code, doctors.not_ok(result)) == (4, {"--lock s3": "fail"}), result
    assert "412" in doctors.found(result)["--lock s3"]["found"]
    assert server.secret_key not in result.out + result.err


@root
def test_the_lock_is_tried_even_where_the_volume_fails(cluster, volume):
    _, env = cluster
    with runs.read_only(str(volume)):
        result = doctors.examine(volume, "--lock", "k8s://warm/models", env=env)
    assert (result.code, doctors.found(result)["--lock k8s"]["verdict"]) == (6, "ok"), result


def test_of_several_failures_the_volumes_counts_first_then_the_locks():
    failed = {part: Finding("x", "fail", "", "", part) for part in ("partner", "lock", "volume")}
    codes = [exit_code([failed["partner"]]), exit_code([failed["partner"], failed["lock"]])]
    assert [*codes, exit_code(failed.values())] == [3, 4, 6]
    assert exit_code([Finding("x", verdict, "") for verdict in ("ok", "warn", "skip")]) == 0


@root
@pytest.mark.parametrize(
    ("owner", "mode", "who"),
    [
        ((0, 0), 0o755, None),
        ((0, 0), 0o2775, None),
        ((1234, 0), 0o755, "user 1234"),
        ((0, 4321), 0o2775, "group 4321"),
        ((0, 4321), 0o2755, None),
        ((0, 0), 0o1777, "everybody"),
        ((1234, 4321), 0o777, "everybody, group 4321, user 1234"),
    ],
)
@pytest.mark.parametrize("below", ["", "v1/pieces/compile"])
def test_who_else_may_write_is_told(tmp_path, owner, mode, who, below):
    place = tmp_path / below
    place.mkdir(parents=True, exist_ok=True)
    os.chown(place, *owner)
    place.chmod(mode)
    found = writers.others(Volume(str(tmp_path)))
    if who is None:
        assert (found.verdict, found.found) == ("ok", "this user, this group and root alone")
    else:
        assert (found.verdict, found.found) == ("warn", f"{who} may write too")
        assert "keygen" in found.hint


def test_signed_kernels_make_up_for_other_writers(tmp_path):
    volume = Volume(str(tmp_path / "volume"))
    trust.generate(str(tmp_path / "key"))
    me = trust.load(str(tmp_path / "key"), None)
    key = Key("compile", {"of": "this test"})
    volumes.fill(volume, key, trust=me)
    os.chmod(volume.root, 0o777)
    assert writers.others(volume).verdict == "ok"
    assert "1 kernel pieces looked at are signed" in writers.others(volume).found
    volumes.fill(volume, key, after=1)
    assert writers.others(volume).verdict == "warn", "the newest is not signed"
