"""The rendered handoff (`warmer.handoff.render`), run by real shells with a stub for vllm."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import handed
import runs

from warmer import families, freedoms, loaders, ranks, wanted
from warmer.handoff import write
from warmer.handoff.assemble import hand_off
from warmer.handoff.render import Handoff, Harvest, Piece, as_json
from warmer.layout import HANDOFF_FILES, Volume, WarmDir
from warmer.loaders import Loader
from warmer.model import Key
from warmer.observe.crashes import Crashes

STUB = """#!/bin/sh
printf '%s\\0' "$@" >"$OUT/argv"
env -0 >"$OUT/env"
"""
HOSTILE = [
    *("", " ", "two  words ", "it's", '"', "'\"'", "$(touch pwned)", "`touch pwned`", "$HOME"),
    *("a\nb", "ends\n", "\n", "\t", "\r", "\\", "a\\nb", "*", "~", "!x", "a;b", "a&b", "a|b", ">x"),
    *("-n", "--", "#x", "%s", "{a,b}", "{version}", "[a]", "(x)", "ünï", "=", "a=b", "\x01\x7f"),
]
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]


class Pod:
    """A server's container: a handoff, a directory with a stub vllm, and an environment."""

    def __init__(self, top, name="warm"):
        self.top = top
        self.warm = WarmDir(str(top / name))
        self.bin = self.stub(top / "bin" / "vllm")
        self.env = {"PATH": f"{self.bin}:{os.defpath}", "HOME": str(top), "OUT": str(top)}

    def stub(self, path):
        path.parent.mkdir(parents=True)
        path.write_text(STUB)
        path.chmod(0o755)
        return str(path.parent)

    def write(self, **changed):
        plain = {"model_path": "/warm/models/x", "model_files": "/v/x", "served_name": "org/x"}
        write.write(self.warm, Handoff(**plain | {"env": {}, "argv": [], "pieces": []} | changed))

    def serve(self, *words, shell=None, env=None):
        """Run `serve`; return its standard error and what the stub saw."""
        script = os.path.join(self.warm.handoff, "serve")
        prefix = {None: [], "busybox": ["busybox", "sh"]}.get(shell, [shell])
        done = subprocess.run(
            [*prefix, script, *words],
            env=self.env | (env or {}),
            cwd=self.top,
            capture_output=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        assert not (self.top / "pwned").exists()
        argv = (self.top / "argv").read_bytes().split(b"\0")[:-1]
        seen = (self.top / "env").read_bytes().split(b"\0")[:-1]
        seen = dict(os.fsdecode(pair).split("=", 1) for pair in seen)
        return done.stderr.decode(), [os.fsdecode(word) for word in argv], seen


@pytest.fixture
def pod(tmp_path):
    return Pod(tmp_path)


@pytest.mark.parametrize("shell", [None, *SHELLS])
def test_hostile_values_reach_vllm_as_they_are(pod, shell):
    env = {f"VLLM_H{n}": value for n, value in enumerate(HOSTILE)}
    pod.write(env=env, argv=[f"--x{n}={v}" for n, v in enumerate(HOSTILE)] + HOSTILE)
    said, argv, seen = pod.serve(*HOSTILE, shell=shell)
    assert argv[:2] == ["serve", "/warm/models/x"]
    assert argv[2:] == [f"--x{n}={v}" for n, v in enumerate(HOSTILE)] + HOSTILE + HOSTILE
    assert {name: seen.get(name) for name in env} == env
    assert said == ""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["a b", "it's", '"$(touch pwned)"', "ü;x", "-n"])
def test_a_warm_dir_with_a_hostile_name_works(tmp_path, shell, name):
    pod = Pod(tmp_path, name)
    pod.write(env={"X": "1"}, model_path=f"{pod.warm.root}/models/x")
    _, argv, seen = pod.serve(shell=shell)
    assert argv == ["serve", f"{pod.warm.root}/models/x"]
    assert seen["X"] == "1"


def test_the_handoffs_environment_wins_over_the_containers_and_the_rest_stays(pod):
    pod.write(env={"VLLM_A": "built"}, argv=["--max-model-len", "512"])
    said, argv, seen = pod.serve("--port", "1", env={"VLLM_A": "other", "HF_TOKEN": "hf_mine"})
    assert (seen["VLLM_A"], seen["HF_TOKEN"]) == ("built", "hf_mine")
    assert argv[2:] == ["--max-model-len", "512", "--port", "1"]
    assert said == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_it_warns_of_each_variable_the_kernels_were_built_without_and_starts_all_the_same(
    pod, shell
):
    pod.write(env={"VLLM_BUILT": "1"}, known=freedoms.FREE_VARIABLES)
    quiet = {"VLLM_BUILT": "2", "VLLM_PORT": "80", "OTHER": "1", "MY_VLLM_X": "1"}
    assert pod.serve(shell=shell, env=quiet)[0] == ""
    services = {"VLLM_X_PORT": "tcp://10.0.0.9:80", "VLLM_X_SERVICE_PORT": "80"}
    unknown = {"VLLM_NEW": "a b", "VLLM_BUIL": "", "VLLM_NIXL_SIDE_CHANNEL_PORT": "5601"}
    said, argv, seen = pod.serve(shell=shell, env=quiet | services | unknown)
    assert sorted(line.split()[1] for line in said.splitlines()) == sorted(unknown)
    assert all(line.startswith("warmer: ") for line in said.splitlines())
    assert (argv[0], seen["VLLM_NEW"]) == ("serve", "a b")


def test_without_vllm_on_the_path_the_handoffs_own_command_runs(pod):
    directory = pod.stub(pod.top / "my venv" / "python")
    (pod.top / "my venv" / "ninja").symlink_to("/bin/true")
    pod.write(command=(f"{directory}/python", "-m", "vllm it's"), argv=["--x", "a b"])
    _, argv, seen = pod.serve("y z", env={"PATH": os.defpath})
    assert argv == ["-m", "vllm it's", "serve", "/warm/models/x", "--x", "a b", "y z"]
    assert seen["PATH"] == f"{os.defpath}:{directory}", "its tools, such as ninja, are beside it"


@pytest.mark.parametrize("command", [("vllm",), ("/opt/venv/bin/vllm",)], ids=["bare", "absolute"])
def test_the_current_directory_never_gets_onto_the_path(pod, command):
    pod.write(command=command)
    _, _, seen = pod.serve()
    assert all(part.startswith("/") for part in seen["PATH"].split(":")), seen["PATH"]


# --- what a pod's environment may hold ------------------------------------------------------------


def started(pod, environment, vllm="0.32.0"):
    """Hand off for a pod with this environment and vLLM, as `prefill` would."""
    s = handed.situation(pod.top, stack=dataclasses.replace(handed.STACK, vllm=vllm))
    settings = dataclasses.replace(s.settings, environment=environment)
    how = wanted.start(settings, s.host, handed.MODEL, s.warm, configured={})
    os.makedirs(s.model_files, exist_ok=True)
    hand_off(dataclasses.replace(s, settings=settings, how=how), {})


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["VLLM_A.B", "VLLM_A-B", "VLLM_A B", "VLLM_A;touch pwned;B"])
def test_a_variable_with_a_name_no_shell_takes_never_denies_a_start(pod, shell, name):
    started(pod, {name: "1", "VLLM_GOOD": "2"})
    _, argv, seen = pod.serve(shell=shell, env={name: "1"})
    assert argv[0] == "serve"
    assert seen["VLLM_GOOD"] == "2"


@pytest.mark.parametrize(("vllm", "free"), [("0.26.0", False), ("0.31.9", False), ("0.32.0", True)])
def test_it_warns_of_what_this_very_vllm_would_compile_for(pod, vllm, free):
    """Before 0.32 the level of the log decides what is compiled (docs/perturbations.md)."""
    level = "VLLM_LOGGING_LEVEL"
    started(pod, {}, vllm)
    said = pod.serve(env={level: "DEBUG", "VLLM_PORT": "80"})[0]
    assert (level in said, len(said.splitlines())) == (not free, int(not free))
    started(pod, {level: "DEBUG"}, vllm)
    said, _, seen = pod.serve()
    assert (said, seen.get(level)) == ("", None if free else "DEBUG")


def test_a_value_that_is_no_utf_8_gets_through(pod):
    started(pod, {"VLLM_A": os.fsdecode(b"caf\xe9")})
    assert os.fsencode(pod.serve()[2]["VLLM_A"]) == b"caf\xe9"


def test_a_servers_own_api_key_is_no_reason_to_warn(pod):
    """It is where warmer itself says that the key belongs, and vLLM does not hash it."""
    started(pod, {})
    assert pod.serve(env={"VLLM_API_KEY": "k"})[0] == ""


def test_no_secret_of_the_pod_is_in_the_handoff(pod):
    secrets = {"HF_TOKEN": "planted1", "VLLM_API_KEY": "planted2", "VLLM_X_PASSWORD": "planted3"}
    started(pod, secrets | {"VLLM_GOOD": "2"})
    texts = [path.read_text() for path in Path(pod.warm.handoff).iterdir()]
    assert len(texts) == len(HANDOFF_FILES)
    assert any("VLLM_GOOD" in text for text in texts)
    assert not any("planted" in text for text in texts)


# --- starts that crash ----------------------------------------------------------------------------


def kernels(pod, *, more_env=None, **changed):
    """Hand kernels off whose starts all end before they are ready: the stub's server never is."""
    restored = pod.warm.restored("jit")
    piece = Piece("jit", "d" * 64, "sealed", "", 1, "/v/j/1", 5, "e" * 64, restored)
    env = {"A_CACHE": f"{pod.warm.cache}/jit/it's $HOME", "B": "2", "HF_HUB_OFFLINE": "1"}
    bytecode = {"PYTHONDONTWRITEBYTECODE": "1"}
    more = {"warm": pod.warm, "crashes": str(pod.top / "volume's crashes"), "pieces": [piece]}
    pod.write(env=env | bytecode | (more_env or {}), **more | changed)


def unwatched(pod):
    """Wait until nothing holds the record of the last start, as after a container's end."""
    warm = Crashes(Volume(str(pod.top / "v")), pod.warm)
    runs.eventually(lambda: runs.unwatched(pod.warm.root))
    return warm.last(Key.known("jit", "d" * 64), [1])


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["warm", "a b", "it's", '"$(touch pwned)"', "ü;x", "-n"])
def test_every_shell_starts_without_the_kernels_after_two_crashes(tmp_path, shell, name):
    pod = Pod(tmp_path, name)
    kernels(pod)
    for count in (0, 1):
        said, argv, seen = pod.serve("--port", "1", shell=shell)
        assert (said, seen["A_CACHE"]) == ("", f"{pod.warm.cache}/jit/it's $HOME")
        assert unwatched(pod) == count
    for _ in range(2):
        said, argv, seen = pod.serve("--port", "1", "it's", shell=shell)
        assert "twice" in said
        assert seen["A_CACHE"].startswith(f"{pod.warm.cold}/")
        assert seen["A_CACHE"].endswith("/jit/it's $HOME")
        assert (seen["B"], argv[-1]) == ("2", "it's")
        assert not seen.keys() & {"HF_HUB_OFFLINE", "PYTHONDONTWRITEBYTECODE"}
        unwatched(pod)
    told = os.listdir(pod.top / "volume's crashes")
    assert {name.partition(".")[0] for name in told} == {f"jit-{'d' * 64}-1"}
    assert len(told) == 2


@pytest.mark.parametrize("shell", SHELLS)
def test_a_container_without_python_and_flock_starts_all_the_same(pod, shell):
    kernels(pod, use=f"{pod.warm.root}/use", uses=str(pod.top))
    Path(pod.warm.use).write_text("0123456789abcdef boot\n")
    (pod.top / "few").mkdir()
    for tool in ("sh", "env", "sed"):
        (pod.top / "few" / tool).symlink_to(shutil.which(tool))
    for _ in range(3):
        path = {"PATH": f"{pod.bin}:{pod.top}/few"}
        said, argv, seen = pod.serve("--port", "1", shell=shutil.which(shell), env=path)
        assert said == "warmer: no python3 here: starts that crash are not counted\n"
        assert (argv[0], seen["A_CACHE"]) == ("serve", f"{pod.warm.cache}/jit/it's $HOME")
    assert not os.path.exists(pod.warm.starts)


@pytest.mark.parametrize("status", [0, 1, 2, 70, 137])
def test_a_python_that_does_not_work_never_denies_the_kernels(pod, status):
    kernels(pod)
    python = Path(pod.bin, "python3")
    python.write_text(f"#!/bin/sh\nexit {status}\n")
    python.chmod(0o755)
    for _ in range(3):
        assert pod.serve("--port", "1")[2]["A_CACHE"].startswith(f"{pod.warm.cache}/")


def lever(pod, *names, **changed):
    """Hand kernels off with levers; the stub's own Python tells that `start.py` was given to it."""
    python = pod.top / "python"
    python.write_text('#!/bin/sh\nexport STARTED="$1 $3" RECORD="$2"\nshift 3\nexec "$@"\n')
    python.chmod(0o755)
    command = (f"{pod.bin}/vllm",)
    kernels(pod, levers=names, interpreter=str(python), command=command, **changed)


FORK = "VLLM_WORKER_MULTIPROC_METHOD"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["warm", "it's", '"$(touch pwned)"', "-n"])
def test_every_shell_starts_without_levers_after_a_crash_and_says_so(tmp_path, shell, name):
    pod = Pod(tmp_path, name)
    lever(pod, "fork", "imports", "read-ahead")
    said, argv, seen = pod.serve("--port", "1", "it's", shell=shell)
    assert (said, argv[-1], seen[FORK]) == ("", "it's", "fork")
    assert seen["STARTED"] == f"{pod.warm.handoff}/start.py {pod.warm.notes}"
    assert seen["RECORD"].rpartition("-")[0].startswith(f"--record={pod.warm.starts}/")
    unwatched(pod)
    said, argv, seen = pod.serve("--port", "1", "it's", shell=shell)
    assert said.startswith("warmer: a start crashed: now without fork, imports\nhint: ")
    assert argv[-1] == "it's"
    assert seen["A_CACHE"] == f"{pod.warm.cache}/jit/it's $HOME", "the kernels are the same"
    assert not {FORK, "STARTED"} & seen.keys()
    assert unwatched(pod) == 1
    assert not (pod.top / "volume's crashes").exists(), "one crash may be a lever's"
    said, _, seen = pod.serve("--port", "1", shell=shell)
    assert "twice" in said
    assert seen["A_CACHE"].startswith(f"{pod.warm.cold}/")
    assert not {FORK, "STARTED"} & seen.keys()
    runs.eventually(lambda: len(runs.listing(str(pod.top / "volume's crashes"))) == 2)


@pytest.mark.parametrize(
    ("names", "said"), [(("fork",), "fork"), (("imports",), "imports"), (("bytecode",), None)]
)
def test_what_is_said_to_be_gone_had_been_there(pod, names, said):
    lever(pod, *names)
    pod.serve("--port", "1")
    unwatched(pod)
    expected = f"warmer: a start crashed: now without {said}\n" if said else ""
    assert pod.serve("--port", "1")[0].partition("hint: ")[0] == expected
    unwatched(pod)


PLAN = "VLLM_ENABLE_STARTUP_PLAN"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "planned"),
    [
        ([], True),
        (["--port", "1", "--host=::", "--api-key", "it's", "--served-model-name", "a", "b"], True),
        (["--gpu-memory-utilization", "0.5"], False),
        (["--port", "1", "--gpu_memory_utilization=0.5"], False),
        (["--gpu-mem", "0.5"], False),
        (["--config", "x.yaml"], False),
        (["--load-format", "instanttensor"], False),
        (["--limit-mm-per-prompt", '{"image": 9}', "--port", "1"], False),
        (["-O3"], False),
    ],
    ids=str,
)
def test_a_plan_of_memory_is_for_the_flags_it_was_measured_with(pod, shell, words, planned):
    """vLLM's fingerprint of a plan has no memory limit in it: 0.26, v1/worker/startup_plan.py."""
    pod.write(env={PLAN: "1"}, argv=["--gpu-memory-utilization", "0.9"])
    said, argv, seen = pod.serve(*words, shell=shell)
    assert (said, argv[4:]) == ("", words)
    assert seen.get(PLAN) == ("1" if planned else None)


def test_a_plan_of_memory_is_for_the_environment_it_was_measured_in(pod):
    pod.write(env={PLAN: "1"}, known=freedoms.FREE_VARIABLES)
    assert pod.serve(env={"VLLM_PORT": "80", "OTHER": "1"})[2][PLAN] == "1"
    assert PLAN not in pod.serve(env={"VLLM_USE_V2_MODEL_RUNNER": "0"})[2]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_start_after_one_that_crashed_has_no_plan_of_memory(pod, shell):
    kernels(pod, levers=("startup-plan",), more_env={PLAN: "1"})
    assert pod.serve("--port", "1", shell=shell)[2][PLAN] == "1"
    unwatched(pod)
    for said in ("a start crashed: now without startup-plan\n", "twice"):
        told, _, seen = pod.serve("--port", "1", shell=shell)
        assert said in told
        assert PLAN not in seen
        unwatched(pod)


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "offline"),
    [
        (["--port", "1", "--tokenizer-mode", "slow", "--seed", "2"], True),
        (["--spec-model", "o/d"], False),
        (["-sc.model=o/d"], False),
        (["--lora_modules", "a=o/d"], False),
        (["--lora-m", "a=o/d"], False),
        (["--hf-c", "o/d"], False),
        (["--tokenizer=o/t", "--port", "1"], False),
    ],
    ids=str,
)
def test_what_serve_is_told_of_in_other_repositories_may_be_fetched(pod, shell, words, offline):
    pod.write(env=OFFLINE)
    said, _, seen = pod.serve(*words, shell=shell)
    assert (said, OFFLINE.keys() & seen.keys()) == ("", OFFLINE.keys() if offline else set())
    assert pod.serve(*words, shell=shell, env={"HF_HUB_OFFLINE": "1"})[2]["HF_HUB_OFFLINE"] == "1"


MEASURED = ("--model-loader-extra-config", '{"enable_multithread_load":true,"x":"it\'s"}')


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_loads_as_was_measured_until_a_start_crashes(pod, shell):
    lever(pod, "loader", loader=Loader("x", MEASURED, environment={"A_BACKEND": "BUFFERED"}))
    said, argv, seen = pod.serve("--port", "1", "--x", "it's", shell=shell)
    assert (said, argv[2:]) == ("", ["--port", "1", "--x", "it's", *MEASURED])
    assert seen["A_BACKEND"] == "BUFFERED"
    unwatched(pod)
    said, argv, seen = pod.serve("--port", "1", shell=shell)
    assert said.startswith("warmer: a start crashed: now without loader\n")
    assert argv[2:] == ["--port", "1"]
    assert "A_BACKEND" not in seen


@pytest.mark.parametrize(
    "own",
    [
        ["--load-format", "dummy"],
        ["--load_format=dummy"],
        ["--load-form", "dummy"],
        ["--safetensors-load-strategy=lazy"],
        ["--safetensors_load_strategy", "lazy"],
        ["--model_loader-extra-config", "{}"],
        ["--config", "/c.yaml"],
        ["--quantization=bitsandbytes"],
        ["-sc.model", "o/d"],
        ["--spec-model", "o/d"],
        ["--tensor_parallel_size", "2"],
        ["--te=2"],
        ["--pi", "2"],
        ["--quant", "fp8"],
        ["-dp", "2"],
    ],
    ids=str,
)
@pytest.mark.parametrize("shell", SHELLS)
def test_who_tells_serve_how_to_load_has_chosen(pod, shell, own):
    lever(pod, "loader", loader=Loader("x", MEASURED, environment={"A_BACKEND": "BUFFERED"}))
    _, argv, seen = pod.serve("--port", "1", *own, shell=shell)
    assert argv[2:] == ["--port", "1", *own]
    assert "A_BACKEND" not in seen


def test_what_prefill_was_told_leaves_the_measured_loader_alone(pod):
    """Whether it may be used with that was decided there: one rank that is written out is one."""
    lever(pod, "loader", loader=Loader("x", MEASURED), argv=["-tp", "1", "--quantization", "fp8"])
    assert pod.serve("--port", "1")[1][-2:] == list(MEASURED)
    assert pod.serve("--port", "1", "-tp", "2")[1][-2:] == ["-tp", "2"]


def test_who_set_a_loaders_variable_has_decided_what_it_is(pod):
    lever(pod, "loader", loader=Loader("x", MEASURED, environment={"A_BACKEND": "BUFFERED"}))
    assert pod.serve("--port", "1", env={"A_BACKEND": "MMAP"})[2]["A_BACKEND"] == "MMAP"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "forked"),
    [
        (["-tp", "2"], True),
        (["--distributed-executor-backend", "ray"], False),
        (["--pipeline-parallel-size=2"], False),
        (["--pi", "2"], False),
        (["--data-p", "2"], False),
        (["-pp", "2"], False),
        (["--data_parallel_size", "2"], False),
        (["--nnodes", "2"], False),
        (["--config", "/c.yaml"], False),
    ],
    ids=str,
)
def test_processes_are_forked_only_as_was_measured_whatever_serve_is_told(
    pod, shell, words, forked
):
    lever(pod, "fork", argv=["-dcp", "1"])
    assert (pod.serve("--port", "1", *words, shell=shell)[2].get(FORK) == "fork") is forked


@pytest.mark.parametrize("spell", [str, lambda flag: f"--{flag[2:].replace('-', '_')}"], ids="-_")
def test_what_prefill_looks_for_in_its_own_flags_serve_looks_for_in_its_own(pod, spell):
    """The script has no tables: its patterns hold all that is in them."""
    lever(pod, "fork", "loader", loader=Loader("x", MEASURED), more_env=OFFLINE)
    afar = {flag for flag in ranks.SPREAD if flag != ranks.TENSOR} | {ranks.LAUNCHER}
    lone = {*ranks.SPREAD, *loaders.UNMEASURED}
    for flag in {*afar, *lone, *families.OTHER_REPOSITORIES, "--seed"}:
        shutil.rmtree(pod.warm.starts, ignore_errors=True)  # none of them has crashed
        _, argv, seen = pod.serve("--port", "1", spell(flag), "x")
        assert (FORK in seen) is (flag not in afar), flag
        assert (MEASURED[0] in argv) is (flag not in lone), flag
        if flag in (*families.OTHER_REPOSITORIES, "--seed"):  # others may be abbreviated alike
            assert bool(OFFLINE.keys() & seen.keys()) is (flag == "--seed"), flag


def test_who_chose_how_processes_begin_has_chosen(pod):
    lever(pod, "fork")
    assert pod.serve("--port", "1", env={FORK: "spawn"})[2][FORK] == "spawn"


@pytest.mark.parametrize("words", [("--port", "0"), ("--headless",)], ids=str)
def test_a_start_whose_crash_would_not_count_has_no_levers(pod, words):
    lever(pod, "fork", "imports")
    said, _, seen = pod.serve(*words)
    assert "no port is known" in said
    assert not {FORK, "STARTED"} & seen.keys()


def test_a_start_without_kernels_has_no_levers(pod):
    lever(pod, "fork", "imports", pieces=[])
    assert not {FORK, "STARTED"} & pod.serve("--port", "1")[2].keys()


def test_where_the_python_of_the_build_is_not_there_vllm_runs_all_the_same(pod):
    lever(pod, "fork", "imports")
    (pod.top / "python").unlink()
    said, argv, seen = pod.serve("--port", "1")
    assert (said, argv[0], seen[FORK], "STARTED" in seen) == ("", "serve", "fork", False)


def test_what_reads_ahead_is_told_what_and_for_whom_and_inherits_no_lock(pod):
    """The lock of `warmer gc` goes on as descriptor 9: it must end with the server."""
    lever(pod, "read-ahead", read_ahead=5, use=f"{pod.warm.root}/use", uses=str(pod.top))
    Path(pod.warm.use).write_text("0123456789abcdef boot\n")
    (pod.top / "0123456789abcdef.live").touch()
    python = Path(pod.bin, "python3")
    real = shutil.which("python3")
    python.write_text(
        "#!/bin/sh\n"
        f'case "$2" in *ahead.py) ;; *) exec {real} "$@" ;; esac\n'
        '{ printf "%s\\n" "$@"; ls -l /proc/self/fd; } >"$OUT/ahead.new"\n'
        'mv "$OUT/ahead.new" "$OUT/ahead"\n'
    )
    python.chmod(0o755)
    Path(pod.bin, "vllm").write_text(
        f'{STUB}echo $$ >"$OUT/pid"\nls -l /proc/self/fd >"$OUT/fds"\n'
    )
    pod.serve("--port", "1")
    runs.eventually((pod.top / "ahead").exists)
    words = (pod.top / "ahead").read_text().splitlines()
    assert words[:2] == ["-IS", f"{pod.warm.handoff}/ahead.py"]
    assert words[2] == (pod.top / "pid").read_text().strip()
    assert words[3:7] == ["5", pod.warm.notes, "", "/v/x"]
    assert ".live" in (pod.top / "fds").read_text(), "the server holds the lock"
    assert not [line for line in words if ".live" in line]


def test_other_kernels_begin_with_no_crashes(pod):
    kernels(pod)
    for _ in range(2):
        pod.serve("--port", "1")
        unwatched(pod)
    restored = pod.warm.restored("jit")
    kernels(pod, pieces=[Piece("jit", "d" * 64, "sealed", "", 2, "/v", 5, "f" * 64, restored)])
    assert pod.serve("--port", "1")[0] == ""
    unwatched(pod)
    assert len(os.listdir(pod.warm.starts)) == 1, "what was told of the others is done with"


# --- handoff.json ---------------------------------------------------------------------------------


def test_the_shape_of_the_record_never_changes(pod):
    pieces = [
        Piece("weights", "a" * 64, "sealed", "", 2, "/v/w/2", 10, "b" * 64),
        Piece("compile", "c" * 64, "absent", "no room"),
        Piece(
            "jit", "d" * 64, "sealed", "", 1, "/v/j/1", 5, "e" * 64, "/warm/cache/jit.restored.json"
        ),
    ]
    pod.write(env={"B": "2", "A": "1"}, argv=("--x", "ü"), pieces=pieces)
    written = json.loads(Path(pod.warm.handoff, "handoff.json").read_text(encoding="utf-8"))
    assert written.pop("by").startswith("warmer ")
    missing = {"generation": 0, "directory": "", "bytes": 0, "seal_sha256": "", "restored": None}
    whole = {"verdict": "sealed", "reason": ""}
    weights = {"generation": 2, "directory": "/v/w/2", "bytes": 10, "seal_sha256": "b" * 64}
    jit = {"generation": 1, "directory": "/v/j/1", "bytes": 5, "seal_sha256": "e" * 64}
    assert written == {
        "schema_version": 1,
        "model_path": "/warm/models/x",
        "model_files": "/v/x",
        "served_name": "org/x",
        "env": {"A": "1", "B": "2"},
        "argv": ["--x", "ü"],
        "levers": [],
        "loader": [],
        "crashed": "",
        "pieces": [
            {"kind": "weights", "key": "a" * 64, "restored": None} | whole | weights,
            {"kind": "compile", "key": "c" * 64, "verdict": "absent", "reason": "no room"}
            | missing,
            {"kind": "jit", "key": "d" * 64, "restored": "/warm/cache/jit.restored.json"}
            | whole
            | jit,
        ],
    }
    assert list(written["env"]) == ["A", "B"]


def test_the_record_and_the_scripts_say_the_same(pod):
    env = {f"VLLM_H{n}": value for n, value in enumerate(HOSTILE)}
    handoff = Handoff("/m", "/f", "n", env=env, argv=HOSTILE, pieces=[])
    write.write(pod.warm, handoff)
    _, argv, seen = pod.serve()
    record = as_json(handoff)
    assert argv == ["serve", record["model_path"], *record["argv"]]
    assert {name: seen[name] for name in record["env"]} == record["env"]


def note(pod):
    return json.loads(Path(pod.warm.server).read_text())


def noting(pod, **changed):
    """Write a handoff whose starts are noted by this very Python."""
    Path(pod.warm.root).mkdir(exist_ok=True)
    (pod.top / "c.yaml").write_text("port: 1\n")
    factors = {f"file.{pod.top}/c.yaml": "digest", "file./no/such.yaml": "digest", "engine.a": "1"}
    keys = {"compile": Key("compile", factors)}
    harvest = Harvest("", keys, interpreter=sys.executable)
    pod.write(warm=pod.warm, known=freedoms.FREE_VARIABLES, harvest=harvest, **changed)
    return json.loads(Path(pod.warm.keys).read_text())["handoff"]


@pytest.mark.parametrize("shell", [None, *SHELLS])
def test_how_a_server_was_started_is_noted_in_names_and_numbers(tmp_path, shell):
    pod = Pod(tmp_path, "it's here")
    identity = noting(pod, env={"VLLM_GOOD": "1"})
    quiet = {"VLLM_GOOD": "2", "VLLM_LOGGING_LEVEL": "x", "X": "VLLM_NO=1"}
    err, _, _ = pod.serve(shell=shell, env=quiet | {"VLLM_X_SERVICE_HOST": "1.2.3.4"})
    found = note(pod)
    engine, files = found.pop("engine"), found.pop("files")
    digest = hashlib.sha256(b"port: 1\n").hexdigest()
    assert files == {f"{pod.top}/c.yaml": digest, "/no/such.yaml": None}
    clean = {"schema_version": 1, "handoff": identity, "extra": 0, "unknown": [], "cold": False}
    assert (found, err) == (clean | {"first": True}, "")
    assert engine["command"] == f"{pod.bin}/vllm"
    assert engine["interpreter"] is None, "the stub is a shell's"
    assert engine["python"] == ".".join(map(str, sys.version_info[:3]))
    env = {"VLLM_BAD": "planted", "TORCHINDUCTOR_X": "planted", "OMP_NUM_THREADS": "3"}
    err, argv, _ = pod.serve("--api-key", "planted", shell=shell, env=env)
    assert argv[-2:] == ["--api-key", "planted"]
    assert sorted(note(pod).pop("unknown")) == sorted(env)
    assert (note(pod)["extra"], note(pod)["first"]) == (2, False)
    assert "planted" not in Path(pod.warm.server).read_text()
    assert err.count("\n") == 1 and "VLLM_BAD" in err, "of others, nobody was told before"
    left = {name for name in os.listdir(pod.warm.root) if name.startswith("serve")}
    assert left == {"served", "server.json"}


@pytest.mark.parametrize("shell", [None, *SHELLS])
def test_a_note_that_cannot_be_written_keeps_no_server_from_starting(pod, shell):
    noting(pod)
    os.mkdir(pod.warm.server)
    err, argv, _ = pod.serve(shell=shell)
    assert argv[0] == "serve"
    assert "not harvested" in err
    assert os.listdir(pod.warm.server) == []


def test_an_image_without_the_python_of_the_keys_notes_nothing_and_counts_as_a_start(pod):
    noting(pod)
    pod.serve()
    pod.write(warm=pod.warm, harvest=Harvest("", interpreter="/no/python"))
    assert pod.serve()[0] == ""
    assert not os.path.exists(pod.warm.server), "the note of another server is no note of this one"
    noting(pod)
    pod.serve()
    assert note(pod)["first"] is False


def test_another_handoff_is_another_identity(pod):
    pod.write()
    first = Path(pod.warm.keys).read_text()
    pod.write()
    assert Path(pod.warm.keys).read_text() == first
    pod.write(argv=["--seed", "1"])
    assert json.loads(Path(pod.warm.keys).read_text())["handoff"] not in first
