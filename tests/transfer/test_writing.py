"""How files are written: past the page cache or into it, and little memory whatever their size."""

import os
import resource
import subprocess
import sys
import textwrap

import pytest
from pages import cached, ext4, ramfs
from scripted import Scripted, descriptors, fill, published, seeded, stagings, transfer

from warmer.errors import VolumeError
from warmer.fill import partial
from warmer.settings import Writing

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, as root alone may")
HERE = os.path.dirname(os.path.abspath(__file__))
GIB = 1 << 30


@pytest.fixture
def disk(tmp_path):
    with ext4(tmp_path / "disk") as path:
        yield path


@root
def test_direct_writes_are_right_at_unaligned_tails_and_leave_the_page_cache_alone(
    disk, small_parts
):
    chance = seeded(1)
    sizes = (0, 1, 4095, 4096, 4097, 16384 * 3 + 4096, small_parts + 1, 9 * small_parts + 4097)
    source = Scripted({f"{size}": chance.randbytes(size) for size in sizes})
    # One connection: nothing comes early, so that nothing is read back.
    transfer(source, disk, connections=1, direct=True)
    for path, data in source.contents.items():
        assert cached(f"{disk}/files/{path}") <= 8192, f"{path}: its tail alone"
        with open(f"{disk}/files/{path}", "rb") as stream:
            assert stream.read() == data


@root
def test_direct_writes_are_right_out_of_order(disk, small_parts):
    chance = seeded(2)
    source = Scripted({f"{n}": chance.randbytes(7 * small_parts + n * 1000) for n in range(5)})
    fill(source, disk, writing=Writing(direct=True))
    assert published(disk) == source.contents


@root
@pytest.mark.parametrize("there", [((0, 5000),), ((1, 2), (70_000, 80_001)), ((4096, 8192),)])
def test_direct_writes_are_right_around_gaps_that_are_not_aligned(disk, small_parts, there):
    source = Scripted({"a": seeded(3).randbytes(5 * small_parts + 17)})
    (file,) = source.listed
    left = partial.Partial(disk, file, Writing())
    for start, end in there:
        left.write(memoryview(source.contents["a"])[start:end], start)
        left.written((start, end))
    left.close()
    done = transfer(source, disk, present={"a": there}, direct=True)
    with open(f"{disk}/files/a", "rb") as stream:
        assert stream.read() == source.contents["a"]
    assert done["a"].sha256 == file.digests["sha256"]
    assert source.delivered == file.size - partial.total(there)


@root
def test_a_filesystem_that_refuses_direct_writes_is_named(tmp_path, small_parts):
    source = Scripted({"a": bytes(small_parts)})
    with ramfs(tmp_path / "ramfs") as volume:
        with pytest.raises(VolumeError) as caught:
            fill(source, volume, writing=Writing(direct=True))
        error = caught.value
        assert (error.reason, error.exit_code) == ("no-direct", 6)
        assert "O_DIRECT" in error.message
        assert "--direct" in error.hint
        assert source.opened == [], "before the first byte"
        assert stagings(volume) == []
        assert [path for path in descriptors() if path.startswith(volume)] == []
        fill(source, volume)
        assert published(volume) == source.contents, "without it, it is a filesystem as any"


@root
def test_what_was_written_stays_in_the_page_cache_unless_it_is_not_wanted(disk, small_parts):
    source = Scripted({"a": seeded(4).randbytes(20 * small_parts)})
    transfer(source, f"{disk}/kept")
    transfer(source, f"{disk}/dropped", keep_cached=False)
    assert cached(f"{disk}/kept/files/a") == 20 * small_parts
    assert cached(f"{disk}/dropped/files/a") == 0


@root
def test_no_page_is_left_after_a_whole_fill_that_does_not_want_them(disk, small_parts):
    source = Scripted({f"{n}": seeded(n).randbytes(9 * small_parts + n) for n in range(4)})
    fill(source, disk, writing=Writing(keep_cached=False))
    found = [
        os.path.join(at, name)
        for at, _, names in os.walk(f"{disk}/v1/pieces")
        for name in names
        if at.endswith("/files")
    ]
    assert len(found) == 4
    assert sum(map(cached, found)) == 0
    assert published(disk) == source.contents


# The zeros that a disk would have to hold become holes; all else is the real thing.
_CHILD = """
    import json, os, sys
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/../support"]
    from scripted import KEY, ABSENT, seeded
    from volumes import Granted
    from warmer.fill import weights
    from warmer.fill.progress import Lines
    from scripted import MODEL, seeded
    from warmer.fill.sources import SourceFile
    from warmer.fill.sources.retry import Retrying
    from warmer.layout import Volume
    from warmer.settings import Writing

    class Zeros:
        digests = {}

        def files(self, model):
            return tuple(SourceFile(f"{n}.safetensors", 4 << 30) for n in range(4))

        def describe(self, model, file):
            return file

        def open(self, model, file, start, end):
            return self

        def readinto(self, buffer):
            return len(buffer)

        def close(self):
            pass

    os.pwrite = lambda descriptor, data, at: len(data)
    source = Retrying(Zeros(), budget=0)
    done = weights.fill(
        Volume(sys.argv[2]), KEY, model=MODEL, source=source, wanted=source.files(MODEL),
        held=ABSENT, after=0, grant=Granted(), meter=Lines("weights"), places=(), writing=Writing(),
    )
    with open("/proc/self/status", encoding="ascii") as stream:
        (peak,) = [line.split()[1] for line in stream if line.startswith("VmHWM")]
    print(json.dumps([done.fetched, int(peak) << 10]))
"""


def test_a_model_of_16_gb_takes_less_than_300_mb_of_memory(tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    argv = [sys.executable, "-c", textwrap.dedent(_CHILD), HERE, str(volume)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetched, peak = map(int, done.stdout.splitlines()[-1].strip("[]").split(","))
    assert fetched == 16 * GIB
    assert peak <= 300_000_000
    assert peak > resource.getpagesize()
