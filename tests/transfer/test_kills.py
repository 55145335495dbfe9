"""kill -9 at random instants, fifty times: what had arrived is not fetched again, the end is whole."""

import os
import signal

import pytest
from scripted import KEY, Scripted, fill, published, seeded, stagings
from volumes import assert_invariants, run_child

from warmer.fill import weights
from warmer.fill.locks.file import FileLock
from warmer.layout import Volume

KILLS = 50
CONNECTIONS = 8


class Logged(Scripted):
    """Writes what was read into a file that outlives the process, and dies after `last` bytes."""

    def __init__(self, contents, log):
        super().__init__(contents)
        self.last = None
        self._log = log
        self._sink = -1

    def begin(self, last):
        self.last = last
        self._sink = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.reading = self._note

    def _note(self, path, at):
        os.writev(self._sink, [f"{path} {at} {self._read(path, at)}\n".encode()])
        if self.last is not None and self.delivered >= self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _read(self, path, at):
        end = next(
            end for p, start, end in reversed(self.opened) if p == path and start <= at < end
        )
        return min(end - at, 16 << 10)

    def told(self):
        """(path, bytes) of every read of every process."""
        with open(self._log, encoding="ascii") as stream:
            rows = [line.split() for line in stream]
        return [(path, int(count)) for path, _, count in rows]


@pytest.mark.parametrize("seed", [1, 2])
def test_fifty_kills_cost_a_part_of_each_connection_each(tmp_path, small_parts, monkeypatch, seed):
    monkeypatch.setattr(weights, "_CONNECTIONS", CONNECTIONS)
    chance = seeded(seed)
    contents = {"model.safetensors": chance.randbytes(600 * small_parts + 5)}
    contents |= {f"part-{n}": chance.randbytes(chance.randrange(8 * small_parts)) for n in range(6)}
    contents["empty"] = b""
    log = str(tmp_path / "log")
    volume = tmp_path / "volume"
    volume.mkdir()
    source = Logged(contents, log)

    def run(last):
        source.begin(last)
        grant = FileLock(Volume(str(volume)), me="a test").try_acquire(KEY)
        fill(source, volume, grant=grant)
        grant.release()

    kills = 0
    finished = set()
    while kills < KILLS:
        known = len(source.told()) if os.path.exists(log) else 0
        if chance.random() < 0.5:
            last = chance.randrange(12 * small_parts)
            killed = run_child(lambda last=last: run(last))
        else:
            n = chance.randrange(1, 90)
            killed = run_child(lambda: run(None), kill_before=n)
        assert killed, "it was to be killed before its end; make the model larger"
        kills += 1
        asked = {path for path, _ in source.told()[known:]} if os.path.exists(log) else set()
        assert not asked & finished, "finished files are not fetched again"
        for name in stagings(volume):
            top = f"{volume}/v1/staging/{name}/files"
            finished |= set(os.listdir(top)) if os.path.isdir(top) else set()
        assert published(volume) == {}
    assert finished, "some file was finished by a process that was killed later"
    known = len(source.told())
    assert not run_child(lambda: run(None))
    assert not {path for path, _ in source.told()[known:]} & finished
    assert published(volume) == contents
    assert stagings(volume) == []
    assert_invariants(volume)
    size = sum(map(len, contents.values()))
    again = sum(count for _, count in source.told()) - size
    assert 0 <= again <= kills * CONNECTIONS * small_parts
