"""Whatever the umask: the server's user can read what it is handed, and nobody else can write it."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

ANOTHER = 23456
"""A user, as OpenShift makes them up: its group is 0."""


@pytest.fixture
def place():
    top = tempfile.mkdtemp(prefix="modes-")  # pytest's directories are their owner's alone
    os.chmod(top, 0o755)
    try:
        with runs.place(top) as place:
            yield place
    finally:
        shutil.rmtree(top)


def under(umask):
    return ("sh", "-c", f'umask {umask}; exec "$@"', "sh")


def modes(*tops):
    for top in tops:
        for at, directories, files in os.walk(top):
            for name in (".", *directories, *files):
                path = os.path.normpath(os.path.join(at, name))
                if not os.path.islink(path):
                    yield path, os.stat(path).st_mode


@pytest.mark.parametrize("umask", ["000", "002", "022", "027", "077", "0277"])
def test_the_group_reads_and_others_do_not_write(place, umask):
    if umask == "0277" and os.geteuid():
        pytest.skip("root alone writes what its owner may not")
    for top in (place.volume, place.warm):
        os.chmod(top, 0o750)
    done = place.warmed(prefix=under(umask))
    assert done.json["warm"] is True
    seen = dict(modes(place.volume, place.warm))
    assert len(seen) > 20
    for path, mode in seen.items():
        need = 0o050 if stat.S_ISDIR(mode) else 0o040
        assert mode & need == need, (path, oct(mode))
        assert not mode & stat.S_IWOTH, (path, oct(mode))


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user is root's")
def test_another_user_of_group_0_starts_the_server(place):
    for top in (place.volume, place.warm):
        os.chmod(top, 0o750)
    place.warmed(prefix=under("077"))
    os.mkdir(f"{place.top}/bin", 0o755)
    with open(f"{place.top}/bin/vllm", "w", encoding="utf-8") as f:
        f.write('#!/bin/sh\ncat "$2/config.json" && echo started\n')
    os.chmod(f"{place.top}/bin/vllm", 0o755)
    shutil.rmtree(place.engine.top)
    python = shutil.which("python3", path="/usr/bin:/bin")  # this one may be root's alone
    scripts = {"serve": [], "check.py": [python, "-IS"]}
    for script in scripts if python else ["serve"]:
        done = subprocess.run(
            [*scripts[script], f"{place.warm}/handoff/{script}"],
            env={"PATH": f"{place.top}/bin:{os.environ['PATH']}"},
            user=ANOTHER,
            group=0,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, (script, done)
        assert "cannot lock" not in done.stderr
    assert os.stat(f"{place.volume}/v1").st_uid == os.geteuid()


@pytest.mark.parametrize("umask", ["000", "022"])
def test_a_private_key_is_its_owners_alone(tmp_path, umask):
    argv = [*under(umask), *runs.WARMER, "keygen", str(tmp_path / "key")]
    assert runs.finish(runs.spawn(argv, {"PATH": os.defpath, "HOME": str(tmp_path)})).code == 0
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
