"""Kernels are code: with trusted keys, only what one of them signed is ever unpacked."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import fakeengine
import runs

from warmer import trust
from warmer.cli import options
from warmer.errors import IntegrityError
from warmer.fill import forked, restore
from warmer.layout import Volume, WarmDir
from warmer.model import Key
from warmer.trust import ANYBODY

KERNELS = ("compile",)
"""What the engine of these tests has: a CPU's."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Paths of two private keys."""
    top = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        trust.generate(str(top / name))
    return str(top / "one"), str(top / "two")


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory):
    """A place whose pieces nobody signed."""
    with runs.place(tmp_path_factory.mktemp("unsigned")) as place:
        place.warmed()
        yield place


@pytest.fixture(scope="module")
def signed(tmp_path_factory, keys):
    with runs.place(tmp_path_factory.mktemp("signed")) as place:
        place.warmed("--signing-key", keys[0])
        yield place


def another_pod(place, tmp_path):
    """A pod with an empty warm dir at the same path, on a copy of the volume."""
    volume = f"{tmp_path}/volume"
    shutil.copytree(place.volume, volume, symlinks=True)
    shutil.rmtree(place.warm)
    os.mkdir(place.warm)
    return place.but(volume=volume)


def trusting(key):
    return ("--trusted-keys", f"{key}.pub")


def judged(place, *options):
    """What plan says of each kernel kind that is not ready, and its exit status."""
    done = place.run("plan", "--json", *options)
    plan = done.json
    steps = {step["kind"]: step for step in plan["steps"] if step["kind"] in KERNELS}
    return done.code, steps, plan["without"]


def seals(place, kind):
    return [json.loads(Path(top, "seal.json").read_bytes()) for top in place.generations(kind)]


def test_what_a_job_signed_is_restored_by_pods_that_trust_its_key(signed, keys, tmp_path):
    pod = another_pod(signed, tmp_path)
    starts = len(pod.engine.starts)
    done = pod.warmed(*trusting(keys[0]))
    assert done.json["warm"] is True
    assert set(pod.verdicts().values()) == {"sealed"}
    assert len(pod.engine.starts) == starts
    assert pod.run("check", "--deep").code == 0
    assert pod.run("plan", *trusting(keys[0])).code == 0, "the second plan is empty"


def test_every_kernel_piece_is_signed_and_the_key_is_named(signed, keys):
    name = trust.key_id(next(iter(trust.load(keys[0], None).keys.values())))
    for kind in KERNELS:
        (record,) = seals(signed, kind)
        assert list(record["signatures"]) == [name]


def test_pods_that_trust_anybody_use_signed_pieces_too(signed, tmp_path):
    pod = another_pod(signed, tmp_path)
    assert pod.warmed("--compile", "never").json["warm"] is True


@pytest.mark.parametrize("which", ["unsigned", "another key"])
def test_what_nobody_trusted_signed_is_foreign_and_is_not_unpacked(
    unsigned, signed, keys, tmp_path, which
):
    pod = another_pod(unsigned if which == "unsigned" else signed, tmp_path)
    starts = len(pod.engine.starts)
    code, steps, without = judged(pod, *trusting(keys[1]))
    assert (code, steps) == (0, {}), "nothing here may fill it"
    assert set(without) == set(KERNELS)
    for why in without.values():
        assert "foreign" in why and "not trusted" in why and "--signing-key" in why
    done = pod.warmed(*trusting(keys[1]))
    assert done.json["warm"] is False
    assert {pod.verdicts()[kind] for kind in KERNELS} == {"foreign"}
    assert not [name for kind in KERNELS for name in runs.listing(f"{pod.warm}/cache/{kind}")]
    assert len(pod.engine.starts) == starts
    before = runs.published(pod.volume)
    result = pod.run("prefill", "--json", *trusting(keys[1]), "--on-miss", "kernels=fail")
    runs.failed(result, 1, "not-warm", "not trusted")
    assert runs.published(pod.volume) == before


def test_a_signer_builds_anew_beside_what_is_not_trusted(unsigned, keys, tmp_path):
    pod = another_pod(unsigned, tmp_path)
    (planted,) = pod.generations("compile")
    code, steps, _ = judged(pod, "--signing-key", keys[0])
    assert code == 1
    assert {step["action"] for step in steps.values()} == {"build"}
    assert {step["verdict"] for step in steps.values()} == {"foreign"}
    starts = len(pod.engine.starts)
    pod.warmed("--signing-key", keys[0])
    assert len(pod.engine.starts) == starts + 1
    for kind in KERNELS:
        first, second = seals(pod, kind)
        assert "signatures" not in first
        assert list(second["signatures"])
    assert os.path.isdir(planted), "it is another's, and stays"
    assert pod.run("plan", *trusting(keys[0])).code == 0


def test_bytes_that_are_swapped_together_with_their_seal_are_not_trusted(signed, keys, tmp_path):
    pod = another_pod(signed, tmp_path)
    (top,) = pod.generations("compile")
    seal = json.loads(Path(top, "seal.json").read_bytes())
    target = next(f for f in seal["files"] if f["path"].endswith(".tar.zst"))
    data = b"anything at all, of another hash"
    Path(top, target["path"]).write_bytes(data)
    target |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    Path(top, "seal.json").write_text(json.dumps(seal))
    _, _, without = judged(pod, *trusting(keys[0]))
    assert "not one of what it states" in without["compile"]


def test_a_signed_piece_does_not_stand_for_another_key(signed, keys, tmp_path):
    pod = another_pod(signed, tmp_path)
    serve = ("--max-model-len", "256")
    before = pod.run("plan", "--json", *trusting(keys[0]), serve=serve).json
    (top,) = pod.generations("compile")
    wanted = next(p for p in before["pieces"] if p["kind"] == "compile")["key"]
    place = f"{pod.volume}/v1/pieces/compile/{wanted}/1"
    shutil.copytree(top, place)
    seal = json.loads(Path(place, "seal.json").read_bytes())
    Path(place, "seal.json").write_text(json.dumps(seal | {"key": wanted}))
    after = pod.run("plan", "--json", *trusting(keys[0]), serve=serve).json
    assert "not one of what it states" in after["without"]["compile"]


def test_what_is_swapped_after_the_look_is_refused_at_the_restore(unsigned, keys, tmp_path):
    (top,) = unsigned.generations("compile")
    digest = top.split("/")[-2]
    warm = WarmDir(f"{tmp_path}/warm")
    readers = trust.load(None, f"{keys[0]}.pub")
    key = Key.known("compile", digest)
    with pytest.raises(IntegrityError) as caught:
        restore.restore(Volume(unsigned.volume), warm, key, 1, trust=readers)
    assert (caught.value.reason, caught.value.exit_code) == ("signature-rejected", 5)
    assert "no signature" in caught.value.message
    assert not os.path.exists(warm.tree("compile"))


def test_a_base_whose_unsigned_needs_were_edited_is_set_aside_where_it_is_corrupt(
    signed, keys, tmp_path
):
    pod = another_pod(signed, tmp_path)
    (top,) = pod.generations("compile")
    seal = json.loads(Path(top, "seal.json").read_bytes())
    Path(top, "seal.json").write_text(json.dumps(seal | {"needs": {"compile": 99}}))
    (archive,) = Path(top).glob("*.tar.zst")
    runs.flip(str(archive))
    done = pod.warmed("--signing-key", keys[0])
    assert done.json["warm"] is True, done
    assert [Path(path).name for path in pod.generations("compile")] == ["2"]
    assert pod.run("plan", *trusting(keys[0])).code == 0


def test_kernels_from_before_keys_were_asked_for_are_gone_though_the_prefill_fails(
    unsigned, keys, tmp_path
):
    pod = another_pod(unsigned, tmp_path)
    pod.warmed("--compile", "never")
    tree = f"{pod.warm}/cache/compile"
    assert [names for _, _, names in os.walk(tree) if names]
    assert os.path.exists(f"{pod.warm}/handoff/handoff.json")
    fails = ("--on-miss", "kernels=fail")
    result = pod.run("prefill", "--json", *trusting(keys[0]), *fails)
    runs.failed(result, 1, "not-warm", "not trusted")
    assert not os.path.exists(tree)
    assert not os.path.exists(f"{tree}.restored.json")
    assert not os.path.exists(f"{pod.warm}/handoff/handoff.json")
    assert pod.run("check").code == 1


def test_a_trusted_tree_is_left_alone_by_the_next_prefill(signed, keys, tmp_path):
    pod = another_pod(signed, tmp_path)
    pod.warmed(*trusting(keys[0]))
    paths = (f"{pod.warm}/cache/compile", f"{pod.warm}/handoff/handoff.json")
    before = [os.stat(path).st_ino for path in paths]
    pod.warmed(*trusting(keys[0]))
    assert [os.stat(path).st_ino for path in paths] == before


def test_gc_reads_whose_kernels_count(signed, keys):
    argv = [*runs.WARMER, "gc", "--volume", signed.volume, "--dry-run", "--json"]
    good = runs.finish(runs.spawn([*argv, *trusting(keys[0])], signed.env()))
    assert good.code == 0, good
    env = signed.env({"WARMER_TRUSTED_KEYS": " "})
    runs.failed(runs.finish(runs.spawn(argv, env)), 2, "empty-key", "WARMER_TRUSTED_KEYS")


def test_a_signing_key_in_the_environment_reaches_nothing_that_is_written(keys, tmp_path):
    with open(keys[0], encoding="ascii") as f:
        text = f.read()
    secret = text.splitlines()[1]
    echo = f"{tmp_path}/env.json"
    with runs.place(tmp_path) as place:
        env = {"WARMER_SIGNING_KEY": text, "FAKE_ENGINE": "echo-env", "FAKE_ENGINE_ENV": echo}
        done = place.warmed(env=env)
        assert secret not in done.out + done.err
        assert secret not in Path(echo).read_text(encoding="utf-8")
        for top in (place.volume, place.warm, f"{place.top}/home"):
            for at, _, names in os.walk(top):
                for name in names:
                    with open(os.path.join(at, name), "rb") as stream:
                        assert secret.encode() not in stream.read(), name
        wrong = place.run("plan", env={"WARMER_SIGNING_KEY": text.replace("PRIVATE", "OTHER")})
        assert wrong.code == 2
        assert secret not in wrong.out + wrong.err


def test_no_process_that_warmer_asks_of_the_machine_is_given_the_signing_key(keys, tmp_path):
    """Neither the engine's Python nor nvidia-smi; and what is asked is what is shown here."""
    with open(keys[0], encoding="ascii") as f:
        text = f.read()
    with runs.place(tmp_path) as place:
        cuda = fakeengine.make_engine(tmp_path / "cuda", torch="2.13.0+cu130", cuda="13.0")
        asked = []
        for path in (cuda.python, f"{cuda.bin}/nvidia-smi"):
            os.rename(path, f"{path}.real")
            asked.append(Path(f"{path}.asked"))
            Path(path).write_text(f'#!/bin/sh\nenv >{path}.asked\nexec {path}.real "$@"\n')
            os.chmod(path, 0o755)
        env = {"WARMER_SIGNING_KEY": text, "SHOWN": "yes", "PATH": f"{cuda.bin}:{os.defpath}"}
        done = place.but(engine=cuda).run("plan", "--json", env=env)
        assert done.code == 1, done
        for path in asked if not os.path.exists("/dev/nvidiactl") else asked[:1]:
            said = path.read_text()
            assert "SHOWN=yes" in said
            assert "WARMER_" not in said
            assert text.splitlines()[1] not in said


def test_a_worker_is_not_given_the_signing_key(keys, tmp_path, monkeypatch):
    with open(keys[0], encoding="ascii") as f:
        monkeypatch.setenv("WARMER_SIGNING_KEY", f.read())
    monkeypatch.setenv("SHOWN", "yes")
    values = {"volume": "/v", "warm_dir": "/w", "model": "org/x", "signing_key": keys[0]}
    settings = options.read(values)
    assert settings.trust.signing

    def main():
        os.write(1, json.dumps(dict(os.environ)).encode())

    child = forked.fork(main, settings.environment)
    said = json.loads(child.reports.read())
    assert child.wait(10) == 0
    child.close()
    assert said["SHOWN"] == "yes"
    assert "WARMER_SIGNING_KEY" not in said


def test_a_signing_key_that_readers_would_not_trust_is_2(unsigned, keys):
    options = ("--signing-key", keys[0], *trusting(keys[1]))
    runs.failed(unsigned.run("plan", "--json", *options), 2, "untrusted-key")


def test_keygen_says_what_it_made_and_replaces_nothing(tmp_path):
    argv = [*runs.WARMER, "keygen", "--json", str(tmp_path / "key")]
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    made = runs.finish(runs.spawn(argv, env))
    assert made.code == 0, made
    assert set(made.json) == {"schema_version", "key", "private", "public"}
    loaded = trust.load(made.json["private"], made.json["public"])
    assert list(loaded.keys) == [made.json["key"]]
    again = runs.finish(runs.spawn(argv, env))
    runs.failed(again, 2, "key-exists", compared=True)
    argv[-1] = str(tmp_path / "nowhere" / "key")
    runs.failed(runs.finish(runs.spawn(argv, env)), 6, "missing", compared=False)


@pytest.mark.parametrize("name", ["WARMER_TRUSTED_KEYS", "WARMER_SIGNING_KEY"])
def test_an_empty_variable_does_not_mean_that_anybody_is_trusted(unsigned, name):
    for value in ("", " \n"):
        done = unsigned.run("plan", "--json", env={name: value})
        runs.failed(done, 2, "empty-key", name)


def test_a_key_in_a_config_file_that_is_no_word_is_not_shown(unsigned, keys, tmp_path):
    with open(keys[0], encoding="ascii") as f:
        text = f.read()
    config = tmp_path / "warmer.yaml"
    config.write_text(json.dumps({"signing-key": [text]}))
    done = unsigned.run("plan", "--json", "--config", str(config))
    assert done.code == 2
    assert text.splitlines()[1] not in done.out + done.err


def test_a_seal_of_another_format_at_the_restore_is_5(signed, tmp_path):
    pod = another_pod(signed, tmp_path)
    (top,) = pod.generations("compile")
    seal = json.loads(Path(top, "seal.json").read_bytes())
    Path(top, "seal.json").write_text(json.dumps(seal | {"schema_version": 99}))
    key = Key.known("compile", top.split("/")[-2])
    with pytest.raises(IntegrityError) as caught:
        restore.restore(Volume(pod.volume), WarmDir(f"{tmp_path}/warm"), key, 1, trust=ANYBODY)
    assert caught.value.reason == "foreign-seal"
