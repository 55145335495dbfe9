"""Podman on this machine, a base image without a registry, and warmer's image on top of it.

The base stands for a stock vLLM image: this machine's CPython at its own prefix, the libraries that it
links to, and a shell. The engine itself is too large to be copied: containers mount it (`kubelet.py`).
"""

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).parents[2]
LOCK = TOP / "deploy/docker/requirements.txt"
PLACE = Path(os.environ.get("WARMER_E2E_DIR") or TOP / ".e2e")
"""Where images and containers are kept between runs; `make clean` removes it."""

PACKAGES = ("podman", "runc", "catatonit", "netavark")
BASE, IMAGE = "localhost/warmer-e2e-base:latest", "localhost/warmer-e2e:latest"
TOOLS = (
    *("sh", "cat", "cp", "env", "find", "flock", "grep", "head", "id", "ln", "ls", "chmod"),
    *("mkdir", "mv", "rm", "sed", "sleep", "touch", "true", "xargs", "dirname", "uname"),
)
_LEFT_OUT = ("test", "idlelib", "turtledemo", "site-packages", "__pycache__", "ensurepip")
_CONTAINERS = """\
[containers]
default_ulimits = ["nofile={nofile}:{nofile}", "nproc={nproc}:{nproc}"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{place}/root"
runroot = "{place}/run"
"""


def missing():
    """Why containers cannot be had here; empty where they can."""
    if os.geteuid() != 0:
        return "containers are root's here"
    if shutil.which("podman") is None and shutil.which("apt-get") is None:
        return "there is neither podman nor apt-get to install it with"
    return ""


def set_up():
    """Install and configure podman, once per machine; everything it keeps is below `PLACE`."""
    if any(shutil.which(name) is None for name in ("podman", "runc")):
        apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *words], env=apt, check=True)
    PLACE.mkdir(exist_ok=True)
    limits = {
        "nofile": min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1 << 20),
        "nproc": min(resource.getrlimit(resource.RLIMIT_NPROC)[1], 1 << 14) % (1 << 64),
    }
    (PLACE / "containers.conf").write_text(_CONTAINERS.format(**limits))
    (PLACE / "storage.conf").write_text(_STORAGE.format(place=PLACE))
    os.environ["CONTAINERS_CONF"] = str(PLACE / "containers.conf")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(PLACE / "storage.conf")


def podman(*words, check=True, **how):
    """Run podman; return its finished process."""
    how = {"capture_output": True, "text": True} | how
    done = subprocess.run(["podman", *words], **how)
    assert not check or done.returncode == 0, f"podman {' '.join(words)}:\n{done.stderr}"
    return done


def size(image):
    """Bytes of an image, all its layers together."""
    return int(podman("image", "inspect", "--format", "{{.Size}}", image).stdout)


def base():
    """Import the base image, once; the engine of this environment is on its PATH."""
    wanted = f"{sys.version} {sys.prefix} {_stamp(Path(__file__))}"
    if _label(BASE, "made-of") != wanted:
        places = (
            f"{sys.base_prefix}/bin",
            "/usr/local/bin",
            f"{sys.prefix}/bin",
            "/usr/bin",
            "/bin",
        )
        path = ":".join(dict.fromkeys(places))
        with tempfile.TemporaryDirectory(dir=PLACE) as top:
            archive = Path(top, "base.tar")
            with tarfile.open(archive, "w") as tar:
                _fill(tar)
            changes = (f"ENV PATH={path}", f"LABEL made-of={wanted!r}".replace("'", '"'))
            words = [word for change in changes for word in ("--change", change)]
            podman("import", "--quiet", *words, str(archive), BASE)
    return BASE


def warmer():
    """Build warmer's image as its Dockerfile says, from wheels: containers have no network here."""
    sources = [TOP / "pyproject.toml", TOP / "Dockerfile", *(TOP / "entrypoints").iterdir()]
    sources += [TOP / "deploy/docker/install.sh", LOCK, *sorted((TOP / "warmer").rglob("*.py"))]
    wanted = f"{_label(BASE, 'made-of')} {max(_stamp(path) for path in sources)} {len(sources)}"
    if _label(IMAGE, "made-of") != wanted:
        wheels = _wheels()
        arguments = {"BASE_IMAGE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        words = [word for n, v in arguments.items() for word in ("--build-arg", f"{n}={v}")]
        words += ["--network", "none", "--pull=never", "--volume", f"{wheels}:/wheels:ro"]
        podman("build", *words, "--label", f"made-of={wanted}", "--tag", IMAGE, str(TOP))
    return IMAGE


def _wheels():
    """Fetch the wheels that the lock names, once per lock; pip compares their hashes."""
    stamp = PLACE / "wheels" / f"of-{_stamp(LOCK)}"
    if not stamp.exists():
        shutil.rmtree(stamp.parent, ignore_errors=True)
        stamp.parent.mkdir()
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        words = [
            "--only-binary=:all:",
            "--require-hashes",
            "--dest",
            str(stamp.parent),
            "-r",
            str(LOCK),
        ]
        subprocess.run([*pip, *words], check=True)
        stamp.touch()
    return stamp.parent


def _stamp(path):
    return path.stat().st_mtime_ns


def _label(image, name):
    done = podman(
        *("image", "inspect", "--format", f'{{{{index .Labels "{name}"}}}}', image), check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _fill(tar):
    """Write the base's root into a tar."""
    for name in ("tmp", "dev", "proc", "sys", "etc", "run", "root", "var"):
        _directory(tar, name, 0o1777 if name == "tmp" else 0o755)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            tar.add(f"/{name}")
    _text(tar, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    _text(tar, "etc/group", "root:x:0:\n")
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(prefix)}))
    python = prefix / "bin" / version
    programs = [python, *(Path(shutil.which(tool)) for tool in TOOLS)]
    tar.add(stdlib, filter=lambda i: None if Path(i.name).name in _LEFT_OUT else i)
    tar.add(sysconfig.get_path("include"))  # what the engine compiles includes Python.h
    import pip  # noqa: PLC0415 - that of this environment, as a vLLM image has one

    tar.add(Path(pip.__file__).parent, arcname=stdlib / "site-packages" / "pip")
    for program in programs:
        tar.add(os.path.realpath(program), arcname=program)
    _link(tar, prefix / "bin" / "python3", version)
    shared = {line for binary in [*programs, *stdlib.rglob("*.so")] for line in _libraries(binary)}
    for library in sorted(shared):
        tar.add(os.path.realpath(library), arcname=library)


def _libraries(binary):
    done = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
    words = (word for line in done.stdout.splitlines() for word in line.split())
    # Where /lib is a link to /usr/lib, a file below it would take the link's place.
    return {
        os.path.join(os.path.realpath(os.path.dirname(w)), os.path.basename(w))
        for w in words
        if w.startswith("/")
    }


def _entry(tar, name, kind, mode):
    entry = tarfile.TarInfo(str(name).lstrip("/"))
    entry.type, entry.mode, entry.mtime = kind, mode, int(time.time())
    return entry


def _directory(tar, name, mode):
    tar.addfile(_entry(tar, name, tarfile.DIRTYPE, mode))


def _link(tar, name, target):
    entry = _entry(tar, name, tarfile.SYMTYPE, 0o777)
    entry.linkname = target
    tar.addfile(entry)


def _text(tar, name, text):
    import io  # noqa: PLC0415

    entry = _entry(tar, name, tarfile.REGTYPE, 0o644)
    entry.size = len(text.encode())
    tar.addfile(entry, io.BytesIO(text.encode()))
