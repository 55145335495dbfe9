"""A kubelet in small: one pod of a rendered manifest, run by podman as Kubernetes would run it.

Init containers one after the other, tried again with growing back-off; native sidecars before the main
containers; exec and HTTP probes with their real words; SIGTERM, the grace period, SIGKILL; memory limits;
termination messages. Each pod has an address of its own. `hurry` divides waits, never time limits.
"""

import itertools
import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import cables
from images import podman
from words import ENGINE, run

_NUMBERS = itertools.count(1)
_BACK_OFF, _LONGEST = 10.0, 300.0
"""Seconds before the first restart, doubled by each, and their most (KEP-4603 names them)."""
_KEPT = 4096
_KILLED = 137


@dataclass
class Ended:
    """One run of a container that is over."""

    code: int
    oom: bool
    message: str
    log: str
    seconds: float
    ended: float = field(default_factory=time.monotonic)

    @property
    def note(self):
        """The termination message, which must be JSON."""
        return json.loads(self.message)


@dataclass
class Status:
    """What is known of one container."""

    runs: list = field(default_factory=list)
    waits: list = field(default_factory=list)
    name: str = ""
    began: float = 0.0
    ready: bool = False
    probes: list = field(default_factory=list)
    latest: str = ""


class Pod:
    """One pod, started at once.

    Args:
        objects: `words.Objects` of its namespace.
        spec: the pod's spec, as rendered.
        images: image as the manifest names it → image here.
        name: of the pod; by default a new one.
        hurry: by how much waits between probes and restarts are shorter than the manifest says.
        engine: paths of this machine that stand for what a stock vLLM image has.
    """

    def __init__(self, objects, spec, images, *, name=None, hurry=1.0, engine=ENGINE):
        number = next(_NUMBERS)
        self.objects, self.spec, self.images = objects, spec, images
        self.name = name or f"pod-{number}"
        self.hurry, self.engine = hurry, engine
        self.address = cables.pod(number)
        self.status, self.phase, self.failure = {}, "Pending", None
        self._stopping = threading.Event()
        self._threads, self._changed = [], threading.Condition()
        podman("pod", "create", "--name", self.name, "--hostname", self.name, *_ALONE)
        podman("pod", "start", self.name)
        self._connect(number)
        self._start(self._live)

    def wait(self, condition, timeout=60.0, what=None):
        """Wait until `condition(self)` holds; a failure inside is raised here."""
        deadline = time.monotonic() + timeout
        while not (found := condition(self)):
            if self.failure is not None:
                raise self.failure
            assert time.monotonic() < deadline, f"{what or condition}: {self.told()}"
            time.sleep(0.02)
        return found

    def told(self):
        """What a person would want to know of a pod that does not do what it should."""
        lines = [f"{self.name} {self.phase}"]
        for name, s in self.status.items():
            ends = [f"{e.code}: {e.message[-300:]}" for e in s.runs]
            lines += [f"{name}: ready {s.ready}, ended {ends}, probes {s.probes[-2:]}"]
            lines += self.log(name).splitlines()[-15:] if s.latest else []
        return "\n".join(lines)

    def wait_ready(self, timeout=120.0):
        """Wait until every main container is ready."""
        names = [c["name"] for c in self.spec["containers"]]
        ready = lambda pod: all(n in pod.status and pod.status[n].ready for n in names)  # noqa: E731
        self.wait(ready, timeout, "ready")
        return self

    def wait_ended(self, container, runs=1, timeout=60.0):
        """Wait until a container has ended so often; return its last run."""
        over = lambda pod: container in pod.status and len(pod.status[container].runs) >= runs  # noqa: E731
        self.wait(over, timeout, f"end of {container}")
        return self.status[container].runs[runs - 1]

    def wait_running(self, container, timeout=60.0):
        """Wait until a container runs; return podman's name of it."""
        return self.wait(
            lambda pod: container in pod.status and pod.status[container].name, timeout, container
        )

    def execute(self, container, *argv):
        """Run a command inside a container."""
        return podman("exec", self.wait_running(container), *argv, check=False)

    def inspect(self, container):
        """What podman knows of the container's present or latest run."""
        return json.loads(podman("inspect", self.status[container].latest).stdout)[0]

    def log(self, container):
        """What the container has said so far."""
        done = podman("logs", self.status[container].latest, check=False)
        return done.stdout + done.stderr

    def get(self, path, port=8000, data=None, key=None):
        """Ask a container of the pod over HTTP, with its API key: status and body."""
        url = f"http://{self.address}:{port}{path}"
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.read()

    def kill(self, container, signal="KILL"):
        """Send a signal to the container's first process."""
        podman("kill", "--signal", signal, self.wait_running(container))

    def terminate(self, grace=None):
        """End the pod as a deletion does; return the seconds it took."""
        if grace is None:
            grace = self.spec.get("terminationGracePeriodSeconds", 30)
        started = time.monotonic()
        self._stopping.set()
        mains = [c["name"] for c in self.spec["containers"]]
        sidecars = [c["name"] for c in self.spec.get("initContainers", ()) if _sidecar(c)]
        first = [n for n in self.status if n not in sidecars]
        for names in (sorted(first, key=mains.count), reversed(sidecars)):
            for name in names:
                if name in self.status and self.status[name].name:
                    podman("stop", "--time", str(int(grace)), self.status[name].name, check=False)
        for thread in self._threads:
            thread.join(60)
        return time.monotonic() - started

    def remove(self):
        """End it at once and remove everything of it but its volumes on claims and the node."""
        self._stopping.set()
        podman("pod", "rm", "--force", "--time", "0", self.name, check=False)
        subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)
        for thread in self._threads:
            thread.join(60)

    def _start(self, target, *words):
        def guarded():
            try:
                target(*words)
            except BaseException as exc:  # noqa: BLE001 - raised where the test waits
                if not self._stopping.is_set():
                    self.failure = exc

        thread = threading.Thread(target=guarded, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _connect(self, number):
        """Give the pod's network namespace one end of a cable."""
        infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", self.name).stdout
        pid = podman("inspect", "--format", "{{.State.Pid}}", infra.strip()).stdout.strip()
        self._link = cables.cable(number)
        ip = ["ip"]
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        for words in (
            [*ip, "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", pid],
            [*ip, "addr", "add", f"{self.host}/30", "dev", self._link],
            [*ip, "link", "set", self._link, "up"],
            [*inside, "addr", "add", f"{self.address}/30", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ):
            subprocess.run(words, check=True, capture_output=True)

    @property
    def host(self):
        """The node's address, seen from the pod."""
        return self.address[:-1] + "1"

    def _live(self):
        restart = self.spec.get("restartPolicy", "Always")
        for container in self.spec.get("initContainers", ()):
            if _sidecar(container):
                self._start(self._keep, container, "Always")
                started = lambda pod, n=container["name"]: pod.status[n].name  # noqa: E731
                self.wait(lambda pod, n=container["name"]: n in pod.status, 60)
                self.wait(started, 60)
            elif not self._keep(container, "OnFailure" if restart != "Never" else "Never"):
                self.phase = "Failed"
                return
        self.phase = "Running"
        for container in self.spec["containers"]:
            self._start(self._keep, container, restart)

    def _keep(self, container, restart):
        """Run a container, and again as its policy says; whether its last run went well."""
        status = self.status.setdefault(container["name"], Status())
        tries = 0
        while True:
            ended = self._run(container, status, tries)
            status.runs.append(ended)
            if self._stopping.is_set():
                return ended.code == 0
            if restart == "Never" or (restart == "OnFailure" and ended.code == 0):
                return ended.code == 0
            wait = min(_BACK_OFF * 2**tries, _LONGEST)
            status.waits.append(wait)
            if self._stopping.wait(wait / self.hurry):
                return False
            tries += 1

    def _run(self, container, status, tries):
        full = f"{self.name}-{container['name']}-{tries}"
        aside = self.objects.top / "runs" / full
        aside.mkdir(parents=True)
        message = aside / "termination-log"
        facts = {
            "metadata.name": self.name,
            "metadata.namespace": "default",
            "metadata.uid": f"uid-of-{self.name}",
            "spec.nodeName": "node",
            "status.podIP": self.address,
            "status.hostIP": self.host,
        }
        image = self.images[container["image"]]
        started = time.monotonic()
        words = run(
            *(self.objects, self.name, self.spec, container, facts),
            image=image,
            message=message,
            engine=self.engine,
        )
        done = podman("run", "--detach", "--name", full, *words, check=False, cwd=aside)
        status.latest = full
        if done.returncode:
            return Ended(128, False, done.stderr.strip(), "", 0.0)
        over = threading.Event()
        status.began, status.name = time.monotonic(), full
        probing = threading.Thread(target=self._probe, args=(container, status, over), daemon=True)
        probing.start()
        code = int(podman("wait", full).stdout)
        over.set()
        status.name, status.ready = "", False
        log = podman("logs", full)
        # podman 4.3 looks for conmon's word in another directory than conmon leaves it in.
        killed = code == _KILLED and (aside / "oom").exists()
        text = message.read_bytes()[:_KEPT].decode()
        if not text and code and container.get("terminationMessagePolicy", "File") != "File":
            text = "\n".join((log.stdout + log.stderr).splitlines()[-80:])[-2048:]
        probing.join(30)
        seconds = time.monotonic() - started
        return Ended(code, killed, text, log.stdout + log.stderr, seconds)

    def _probe(self, container, status, over):
        """Ask a container's probes, the first of them until it has started."""
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        startup, readiness, liveness = (container.get(kind) for kind in kinds)
        if startup and not self._until(startup, "startup", status, over):
            return
        if not readiness:
            status.ready = True
        if liveness:
            threading.Thread(
                target=self._until, args=(liveness, "liveness", status, over, True), daemon=True
            ).start()
        while readiness and not over.is_set():
            status.ready = self._ask(readiness, "readiness", status)
            over.wait(readiness.get("periodSeconds", 10) / self.hurry)

    def _until(self, probe, kind, status, over, forever=False):
        """Ask until it succeeds (or as long as it does); one that fails too often ends the run."""
        failures = 0
        over.wait(probe.get("initialDelaySeconds", 0) / self.hurry)
        while not over.is_set():
            if self._ask(probe, kind, status):
                failures = 0
                if not forever:
                    return True
            elif (failures := failures + 1) >= probe.get("failureThreshold", 3):
                podman("stop", status.name, check=False)
                return False
            over.wait(probe.get("periodSeconds", 10) / self.hurry)
        return False

    def _ask(self, probe, kind, status):
        limit = probe.get("timeoutSeconds", 1)
        started = time.monotonic()
        if "exec" in probe:
            words = ["podman", "exec", status.name, *probe["exec"]["command"]]
            try:  # podman itself needs a while
                done = subprocess.run(words, capture_output=True, text=True, timeout=limit + 5)
                code, said = done.returncode, done.stdout + done.stderr
            except subprocess.TimeoutExpired:
                code, said = -1, "timed out"
        else:
            how = probe["httpGet"]
            code, said = self._http(how.get("path", "/"), how["port"], limit)
        status.probes.append((kind, code, said, time.monotonic() - started))
        return code == 0

    def _http(self, path, port, limit):
        number = port if isinstance(port, int) else self._port(port)
        try:
            with urllib.request.urlopen(
                f"http://{self.address}:{number}{path}", timeout=limit
            ) as r:
                return (0 if r.status < 400 else 1), str(r.status)
        except (OSError, urllib.error.HTTPError) as exc:
            return 1, str(exc)

    def _port(self, name):
        every = [*self.spec.get("initContainers", ()), *self.spec["containers"]]
        (number,) = (
            p["containerPort"] for c in every for p in c.get("ports", ()) if p.get("name") == name
        )
        return number


_ALONE = ("--network", "none", "--share", "net,ipc,uts")


def _sidecar(container):
    return container.get("restartPolicy") == "Always"
