"""A pod serves weights from a read-only mount for longer than gc keeps uses; another node runs gc."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import guest
from fakeengine import make_engine
from nodes import VOLUME, Node, serve

WARMER = [sys.executable, "-m", "warmer"]
CASES = {"4.1": "", "4.0": "", "3": "nolock"}
MODEL = Path("/run/model")
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}


def ran(process):
    """What a command said, and its code."""
    out = process.communicate()[0].decode()
    return process.returncode, out


def age(node, place):
    """Let a month pass since anything was published or recorded."""
    node.call("find", f"{place}/v1", "-type", "f", "-exec", "touch", "-d", "30 days ago", "{}", "+")


def main():
    serve()
    MODEL.mkdir()
    (MODEL / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (MODEL / "model.safetensors").write_bytes(os.urandom(100_000))
    engine = make_engine("/run/engine")
    pods = {vers: (Node(f"pod-{vers}"), Node(f"keeper-{vers}")) for vers in CASES}
    for vers, (pod, keeper) in pods.items():
        place = f"{VOLUME}/{vers}"
        warm = f"/run/warm-{vers}"
        os.mkdir(warm)
        pod.mount(vers, CASES[vers])
        keeper.mount(vers, CASES[vers])
        keeper.call("mkdir", place)
        fill = [*WARMER, "prefill", "--volume", place, "--warm-dir", warm, "--compile", "never"]
        fill += ["--model", f"file://{MODEL}", "--vllm", engine.vllm]
        code, _ = ran(pod.run(*fill, **PIPES))
        pod.umount()
        pod.mount(vers, ",".join(filter(None, ("ro", CASES[vers]))))
        server = pod.run("env", "PATH=/usr/bin:/bin", f"{warm}/handoff/serve")
        deadline = time.monotonic() + 60
        while os.fsencode(engine.vllm) not in Path(f"/proc/{server.pid}/cmdline").read_bytes():
            if time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        age(keeper, place)
        collect = [*WARMER, "gc", "--volume", place, "--json"]
        running = ran(keeper.run(*collect, **PIPES))
        server.kill()
        server.wait()
        age(keeper, place)
        ended = ran(keeper.run(*collect, **PIPES))
        guest.result(
            case=vers,
            filled=code,
            running=(running[0], json.loads(running[1])),
            ended=(ended[0], json.loads(ended[1])),
        )


main()
