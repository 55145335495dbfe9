"""A model in a directory that changes, or that links elsewhere, is refused: never half of each."""

import os
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import runs

from warmer import prefill, settings, urls
from warmer.errors import SourceError
from warmer.fill import weights
from warmer.fill.sources.directory import Directory


@pytest.fixture
def place(tmp_path):
    with runs.place(tmp_path) as place:
        yield place.but(model=f"file://{tmp_path}/hub/{runs.REPO}")


def overwrite(path):
    with open(path, "r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.write(b"2" * size)


@pytest.mark.parametrize("when", ["before its copy", "after its copy"])
def test_a_directory_that_is_overwritten_during_the_copy_is_refused(place, monkeypatch, when):
    top = place.model.removeprefix("file://")
    open_range = Directory.open
    copied = []

    def opened(self, model, file, start, end):
        reader = open_range(self, model, file, start, end)
        close = reader.close

        def closed():
            close()
            copied.append(file.path)
            if len(copied) == 1:
                others = sorted(set(os.listdir(top)) - {file.path}, key=largest)
                overwrite(f"{top}/{others[0] if when == 'before its copy' else file.path}")

        reader.close = closed
        return reader

    def largest(name):
        return -os.stat(f"{top}/{name}").st_size

    monkeypatch.setattr(Directory, "open", opened)
    monkeypatch.setattr(weights, "_CONNECTIONS", 1)
    chosen = settings.Settings(
        volume=place.volume,
        warm_dir=place.warm,
        model=urls.parse_model(place.model),
        compile="never",
        vllm=place.engine.vllm,
    )
    with pytest.raises(SourceError) as refused:
        prefill.prefill(chosen)
    assert refused.value.reason == "source-changed"
    runs.nothing_lost(place, {})
    assert not os.path.exists(f"{place.warm}/handoff/handoff.json")

    monkeypatch.setattr(Directory, "open", open_range)
    assert prefill.prefill(chosen).left.empty, "once it stays still, it is copied"


def test_a_linked_sub_directory_is_refused_and_a_linked_file_is_read(place, tmp_path):
    top = place.model.removeprefix("file://")
    os.mkdir(tmp_path / "pooling")
    (tmp_path / "pooling" / "config.json").write_text("{}")
    os.symlink(tmp_path / "pooling", f"{top}/1_Pooling")
    error = place.fails(4, "linked-directory", "1_Pooling")
    assert error["hint"]
    os.unlink(f"{top}/1_Pooling")
    os.symlink(tmp_path / "pooling" / "config.json", f"{top}/pooling.json")
    place.warmed()
    (generation,) = place.generations("weights")
    assert not os.path.islink(f"{generation}/files/pooling.json")
    assert "pooling.json" in runs.listing(f"{generation}/files")
