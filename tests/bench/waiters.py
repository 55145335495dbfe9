"""Many who wait for one key, as threads with the real lock code in a few processes.

An owner has the key. Each waiter claims it as a prefill does: it opens the lock, looks whether the
piece is there, and asks the lock now and then. Pods of a cluster do not come within a millisecond: these
come over some seconds. When all have waited for a while, the questions to the lock's service, the looks
and the CPU are counted. Then the piece is there and the owner lets go: how long until the last waiter knows?
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "support"), HERE]

PROCESSES = 4
COMING = float(os.environ.get("COMING", "10"))
"""Seconds over which they come."""
WAITED = float(os.environ.get("WAITED", "40"))
"""Seconds that all have waited before anything is counted."""
WHILE = float(os.environ.get("WAITING", "12"))
"""Seconds for which it is counted."""
DIGEST = "ab" * 32


def measure(name, count, top):
    """Have so many wait on a lock of this sort; returns what it took."""
    with contextlib.ExitStack() as stack:
        volume = f"{top}/waiting-{name}-{count}"
        os.makedirs(volume)
        url, env, asked = _service(name, stack, volume)
        piece = f"{volume}/there"
        owner = _start(["own", volume, url, piece], env)
        assert owner.stdout.readline() == b"mine\n"
        each = [count // PROCESSES + (n < count % PROCESSES) for n in range(PROCESSES)]
        some = [_start(["wait", volume, url, piece, str(n)], env) for n in each if n]
        for one in some:
            assert one.stdout.readline() == b"waiting\n", one.wait()
        time.sleep(WAITED)
        _tell(some)
        before, began = asked(), time.monotonic()
        time.sleep(WHILE)
        _tell(some)
        questions, took = asked() - before, time.monotonic() - began
        released = time.monotonic()
        _tell([owner])
        told = [json.loads(one.communicate()[0]) for one in some]
        owner.communicate()
    assert all(one["granted"] == 0 for one in told), "the piece was there"
    looked = sum(one["looks"] for one in told)
    spent = sum(one["cpu"] for one in told)
    return {
        "waiters": count,
        "opened_s": round(max(one["opened"] for one in told), 1),
        "known_s": round(max(one["last"] for one in told) - released, 3),
        "asked_per_s": round((questions or sum(one["asked"] for one in told)) / took, 1),
        "looks_per_s": round(looked / took, 1),
        "cpu_ms_per_s": round(1000 * spent / count / took, 2),
    }


def _tell(processes):
    for one in processes:
        one.stdin.write(b"\n")
        one.stdin.flush()


def _start(words, env):
    argv = [sys.executable, os.path.abspath(__file__), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(argv, env=os.environ | env, **pipes)


def _service(name, stack, volume):
    """Start a lock's service: what --lock is, its variables, and what counts questions."""
    if name == "file":
        return "file", {}, lambda: 0  # the kernel's; the waiters count
    if name == "k8s":
        from leases import LeaseServer  # noqa: PLC0415 - each process imports its own

        server = stack.enter_context(LeaseServer(namespaces={"warm"}))
        config = str(server.kubeconfig(f"{volume}/kubeconfig"))
        return "k8s://warm/bench", {"KUBECONFIG": config}, lambda: len(server.requests)
    from s3 import Seaweed  # noqa: PLC0415 - each process imports its own

    store = stack.enter_context(Seaweed())
    bucket = f"locks-{secrets.token_hex(4)}"
    store.bucket(bucket)
    return f"s3://{bucket}/bench", store.environment(), lambda: 0


def _lock(volume, url, me):
    from warmer.fill.locks.registry import open_lock  # noqa: PLC0415 - each process imports its own
    from warmer.layout import Volume  # noqa: PLC0415 - each process imports its own
    from warmer.urls import parse_lock  # noqa: PLC0415 - each process imports its own

    return open_lock(parse_lock(url), volume=Volume(volume), me=me)


def _share_sessions():
    """Have one session of boto3 for all pods of this process: each has some 8 MB and 0.3 s of CPU otherwise.

    A pod still has a client, and connections, of its own.
    """
    import boto3  # noqa: PLC0415 - each process imports its own

    session, mutex = boto3.session.Session(), threading.Lock()

    class Shared:
        def client(self, *words, **named):
            with mutex:
                return session.client(*words, **named)

    boto3.session.Session = Shared


def own(volume, url, piece):
    """Hold the key until a line comes; then the piece is there, and the key is free."""
    from warmer.model import Key  # noqa: PLC0415 - each process imports its own

    grant = _lock(volume, url, "the owner").try_acquire(Key.known("weights", DIGEST))
    print("mine", flush=True)
    sys.stdin.readline()
    with open(piece, "wb"):
        pass
    grant.release()


def wait(volume, url, piece, count):
    """Wait with so many threads, each a pod; prints when the last knew, and what it cost."""
    import structlog  # noqa: PLC0415 - as above

    from warmer.fill.claim import Claims  # noqa: PLC0415 - each process imports its own
    from warmer.model import Key  # noqa: PLC0415 - each process imports its own

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if url.startswith("s3://"):
        _share_sessions()
    counts = {"looks": 0, "asked": 0, "granted": 0}
    mutex = threading.Lock()
    last, longest = [0.0], [0.0]
    met = set()

    def counted(name):
        with mutex:
            counts[name] += 1

    def filled():
        counted("looks")
        return os.path.exists(piece)

    def pod(number):
        try:
            waiting(number)
        except BaseException:  # noqa: BLE001 - as stampede.py's
            traceback.print_exc()
            os._exit(1)  # or those who count on it would wait for ever

    def waiting(number):
        time.sleep(COMING * number / len(threads))
        began = time.monotonic()

        def opened():
            lock = _lock(volume, url, f"pod {number}")
            with mutex:
                longest[0] = max(longest[0], time.monotonic() - began)
            real = lock.try_acquire

            def ask(key):
                found = real(key)
                with mutex:
                    counts["asked"] += 1
                    met.add(number)
                return found

            lock.try_acquire = ask
            return lock

        with Claims(opened).claim(Key.known("weights", DIGEST), wait=600, filled=filled) as grant:
            if grant is not None:
                counted("granted")
            with mutex:
                last[0] = max(last[0], time.monotonic())

    threads = [threading.Thread(target=pod, args=(n,)) for n in range(int(count))]
    for thread in threads:
        thread.start()
    while len(met) < len(threads):
        time.sleep(0.05)
    print("waiting", flush=True)
    sys.stdin.readline()
    with mutex:
        counts.update(looks=0, asked=0)
    began = time.process_time()
    sys.stdin.readline()
    with mutex:
        found = dict(counts)
    cpu = time.process_time() - began
    for thread in threads:
        thread.join()
    found |= {"granted": counts["granted"], "last": last[0], "cpu": cpu, "opened": longest[0]}
    print(json.dumps(found))


if __name__ == "__main__":
    {"own": own, "wait": wait}[sys.argv[1]](*sys.argv[2:])
