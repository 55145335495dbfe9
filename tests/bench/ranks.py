"""Two ranks on the real engine: a cold fill, the archives in a new pod, and proof that each rank hit.

Then the same with one rank's compiled code taken away, where there is such (on CPUs vLLM names no file by
its rank): `check` must name the rank. MODEL, SERVE, WORK, RESUME as for `levers`; TP is the number of ranks (2).
It needs TP GPUs, or the CPU build, whose ranks share the processors. Exit status 1: not every rank hit.

    TP=2 make bench NAME=ranks
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), os.path.join(HERE, "..", "demo")]

from demo import Demo, read_log
from server import Server
from tinymodel import make_tiny_llama

from warmer import ranks
from warmer.listen import Address, Listener
from warmer.report import spans, table

TP = int(os.environ.get("TP", "2"))
SERVE = shlex.split(os.environ.get("SERVE", "--max-model-len 512"))


def serve(demo, log):
    """A start by the handoff: seconds, its log, what its spans told, its answer, what it added."""
    before = demo.tree()
    script = os.path.join(demo.warm_dir, "handoff", "serve")
    env = demo.env | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    with Listener(Address("127.0.0.1", 0)) as listener:
        argv = [script, "--otlp-traces-endpoint", listener.url]
        with Server(argv, log=log, env=env) as server:
            ready = server.wait_ready(1200)
            answer = server.complete(demo.handoff()["served_name"], tokens=4)
            listener.wait(60)
        told = spans.read(listener.spans())
    added = sorted(demo.tree().members.keys() - before.members.keys())
    return ready, read_log(log), told, answer["choices"][0]["token_ids"], added


def main():
    work = os.environ.get("WORK") or tempfile.mkdtemp()
    volume, resume = os.path.join(work, "volume"), "RESUME" in os.environ
    if resume:
        shutil.move(volume, f"{volume}.filled")
    else:
        shutil.rmtree(work, ignore_errors=True)
        if "MODEL" not in os.environ:
            make_tiny_llama(os.path.join(work, "tiny"))
    model = os.environ.get("MODEL", f"file://{work}/tiny")
    demo = Demo(work, model, {}, [*SERVE, "--tensor-parallel-size", str(TP)])
    if resume:
        os.rmdir(volume)
        shutil.move(f"{volume}.filled", volume)
    if not shutil.which("nvidia-smi"):  # one processor for each rank, and none is there to be kept
        demo.env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with contextlib.redirect_stdout(sys.stderr):
        cold_log = os.path.join(work, "cold.log")
        if not resume:
            demo.warmer("prefill", "--on-miss", "kernels=fail")
            built = next(e.path for e in os.scandir(os.path.join(demo.warm_dir, "logs")))
            shutil.copy(built, cold_log)
        demo.new_pod()
        restored = demo.warmer("prefill")
        demo.warmer("check")
    owned = ranks.ranked(demo.tree().members)
    cold = read_log(cold_log)
    ready, warm, told, tokens, added = serve(demo, os.path.join(work, "warm.log"))
    total = {"ready": (cold.total_s, restored + ready), "restore": (None, restored)}
    print(table.render(table.compare(cold, warm, extra=total)))
    against = [f"{len(added)} files were added, {added[0]} first"] if added else []
    if warm.cache == "rebuilt" or (warm.cache == "hit") != bool(owned):
        against.append(f"the log says: {warm.cache}")
    if len(warm.ranks) != TP:
        against.append(f"got lines of {len(warm.ranks)} ranks, expected {TP}")
    built = list(demo.answered())
    if not built or tokens != built[: len(tokens)]:
        against.append(f"it completed {tokens}, the cold start {built}")
    if len(told.ranks) != TP:
        against.append(f"got spans of {len(told.ranks)} ranks, expected {TP}")
    if owned:
        lost = owned[-1]
        os.unlink(os.path.join(demo.warm_dir, "cache", "compile", lost))
        with contextlib.redirect_stdout(sys.stderr):
            demo.warmer("check", expect=1)  # it names the rank
            demo.warmer("prefill")
            demo.warmer("check")
    for reason in against:
        print(f"NOT A HIT: {reason}")
    record = {
        "bench": "ranks",
        "tensor_parallel": TP,
        "cold_s": round(cold.total_s, 2),
        "warm_s": round(restored + ready, 2),
        "engine_init_s": [cold.phases["engine_init"], warm.phases["engine_init"]],
        "connect_s": warm.phases.get("distributed"),
        "ranks": {rank.name: rank.cache for rank in warm.ranks},
        "rank_files": owned,
        "spans": {rank.name: dict(rank.phases) for rank in told.ranks},
        "completion": tokens,
        "hit": not against,
    }
    print(json.dumps(record))
    return 1 if against else 0


if __name__ == "__main__":
    sys.exit(main())
