"""What a container's manifest means in podman's words. What is not understood is refused."""

import base64
import json
import os
import re
import sys
import threading
from pathlib import Path

_CONTAINER = {
    *("name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "volumeMounts"),
    *("resources", "securityContext", "ports", "restartPolicy", "terminationMessagePath"),
    *("terminationMessagePolicy", "startupProbe", "readinessProbe", "livenessProbe", "workingDir"),
}
_SECURITY = {
    *("runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "capabilities"),
    *("allowPrivilegeEscalation", "seccompProfile", "fsGroup", "fsGroupChangePolicy"),
    "supplementalGroups",
}
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_LIMITS = {"memory", "cpu", "nvidia.com/gpu", "ephemeral-storage"}
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9, "": 1}

ENGINE = [sys.prefix, "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/include"]
"""What a stock vLLM image has beyond the base: vLLM itself, and the compiler that it calls."""

_PROVISIONING = threading.Lock()


class RefusedError(Exception):
    """A real kubelet would not start this container."""


class Objects:
    """What a namespace holds besides pods, and where the node keeps volumes.

    Args:
        top: a directory: claims, the node's own paths, and what belongs to one pod.
        documents: manifests; ConfigMaps and Secrets among them are looked up by name.
        account: what pods that ask for it find as their service account's token.
        api: the port that the API server has on the node.
    """

    def __init__(self, top, documents, *, account=None, api=None):
        self.top, self.account, self.api = Path(top), account, api
        self.of = {(d["kind"], d["metadata"]["name"]): d for d in documents}

    def data(self, kind, name, key=None):
        """The data of a ConfigMap or a Secret, decoded."""
        if (kind, name) not in self.of:
            raise RefusedError(f"{kind} {name} not found")
        document = self.of[kind, name]
        data = (
            {k: base64.b64decode(v).decode() for k, v in document.get("data", {}).items()}
            if (kind == "Secret")
            else dict(document.get("data", {}))
        )
        data |= document.get("stringData", {})
        if key is not None and key not in data:
            raise RefusedError(f"{kind} {name} has no key {key}")
        return data if key is None else data[key]

    def claim(self, name):
        """Where a claim's volume lies: as a provisioner makes it, root's alone to write."""
        path = self.top / "claims" / name
        with _PROVISIONING:
            if not path.exists():
                path.mkdir(parents=True)
                path.chmod(0o755)
        return path

    def on_node(self, path):
        """Where a path of the node lies."""
        return self.top / "node" / path.lstrip("/")


def known(given, names, what):
    """Refuse what this kubelet would pass over in silence."""
    if odd := set(given) - names:
        raise NotImplementedError(f"{what}: {sorted(odd)}")


def volume(objects, pod, spec, name):
    """Make one of a pod's volumes; return its directory."""
    (declared,) = (v for v in spec["volumes"] if v["name"] == name)
    kind, how = next((k, v) for k, v in declared.items() if k != "name")
    group = spec.get("securityContext", {}).get("fsGroup")
    path = objects.top / "pods" / pod / name
    if kind == "emptyDir":
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, 0, group or 0)
        path.chmod(0o2777 if group else 0o777)
    elif kind == "persistentVolumeClaim":
        path = objects.claim(how["claimName"])
        if group:
            _give_to(path, group)
    elif kind == "hostPath":
        path = objects.on_node(how["path"])
        if how.get("type") == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
        elif not path.exists():
            raise RefusedError(f"hostPath {how['path']} is not there")
    elif kind in ("configMap", "secret"):
        known(how, {"name", "secretName", "items", "defaultMode"}, kind)
        source = "ConfigMap" if kind == "configMap" else "Secret"
        data = objects.data(source, how.get("name") or how["secretName"])
        items = how.get("items") or [{"key": key, "path": key} for key in data]
        path.mkdir(parents=True, exist_ok=True)
        for item in items:
            (path / item["path"]).write_text(data[item["key"]])
            (path / item["path"]).chmod(how.get("defaultMode", 0o644))
            os.chown(path / item["path"], 0, group or 0)
    else:
        raise NotImplementedError(f"volume: {kind}")
    return path


def _give_to(path, group):
    """Do as a kubelet does with fsGroup: group and setgid on everything, group may write."""
    for at, _, files in os.walk(path):
        for each in [at, *(os.path.join(at, name) for name in files)]:
            if not os.path.islink(each):
                mode = os.stat(each).st_mode & 0o7777
                os.chown(each, -1, group)
                os.chmod(each, mode | 0o060 | ((mode & 0o100) >> 3) | (0o2010 if each == at else 0))


def environment(objects, container, facts):
    """The variables of a container: name → value.

    Args:
        objects: where ConfigMaps and Secrets are.
        container: its manifest.
        facts: the downward API: field path → value.
    """
    found = {}
    for source in container.get("envFrom", ()):
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                name = "ConfigMap" if kind == "configMap" else "Secret"
                found |= objects.data(name, reference["name"])
    for entry in container.get("env", ()):
        value = entry.get("value", "")
        if where := entry.get("valueFrom"):
            value = _value_from(objects, where, facts)
        if value is not None:
            found[entry["name"]] = _expand(str(value), found)
    return found


def _value_from(objects, where, facts):
    if "fieldRef" in where:
        return facts[where["fieldRef"]["fieldPath"]]
    for kind in ("ConfigMap", "Secret"):
        if reference := where.get(kind[0].lower() + kind[1:] + "KeyRef"):
            try:
                return objects.data(kind, reference["name"], reference["key"])
            except RefusedError:
                if reference.get("optional"):
                    return None
                raise
    raise NotImplementedError(f"valueFrom: {where}")


def _expand(text, env):
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda m: env.get(m[1], m[0]), text)


def quantity(text):
    """A quantity of bytes, as Kubernetes writes them."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()
    return int(float(number) * _UNITS[unit])


def run(objects, pod, spec, container, facts, *, image, message, engine):
    """The words after `podman run` for one container.

    Args:
        objects: of the namespace.
        pod: the pod's name.
        spec: of the pod.
        container: its manifest.
        facts: the downward API.
        image: what its image is here.
        message: the file that its termination message is read from.
        engine: paths that the image would have, and this machine has.
    """
    known(container, _CONTAINER, container["name"])
    env = environment(objects, container, facts)
    account = objects.account if spec.get("automountServiceAccountToken", True) else None
    if objects.api:
        env |= {"KUBERNETES_SERVICE_HOST": facts["status.hostIP"]}
        env |= {"KUBERNETES_SERVICE_PORT": str(objects.api)}
    words = ["--pull=never", "--passwd=false", "--pod", pod]
    words += [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
    words += _security(spec, container)
    limits = container.get("resources", {}).get("limits", {})
    known(limits, _LIMITS, "limits")
    if "memory" in limits:
        most = str(quantity(limits["memory"]))
        words += ["--memory", most, "--memory-swap", most]
    for mount in container.get("volumeMounts", ()):
        known(mount, {"name", "mountPath", "readOnly", "subPath"}, "volumeMounts")
        source = volume(objects, pod, spec, mount["name"])
        if "subPath" in mount:
            source = source / mount["subPath"]
            source.mkdir(parents=True, exist_ok=True)
        mode = "ro" if mount.get("readOnly") else "rw"
        words += ["--volume", f"{source}:{mount['mountPath']}:{mode}"]
    message.touch()
    message.chmod(0o666)
    at = container.get("terminationMessagePath", "/dev/termination-log")
    words += ["--volume", f"{message}:{at}:rw"]
    if account:
        words += ["--volume", f"{account}:{_ACCOUNT}:ro"]
    words += [word for path in engine for word in ("--volume", f"{path}:{path}:ro")]
    if "workingDir" in container:
        words += ["--workdir", container["workingDir"]]
    command = [_expand(word, env) for word in container.get("command", ())]
    arguments = [_expand(str(word), env) for word in container.get("args", ())]
    if command:
        words += ["--entrypoint", json.dumps(command)]
    return [*words, image, *arguments]


def _security(spec, container):
    whole, own = spec.get("securityContext", {}), container.get("securityContext", {})
    known({**whole, **own}, _SECURITY, "securityContext")
    merged = {**whole, **own}
    words = []
    if (user := merged.get("runAsUser")) is not None:
        words += ["--user", f"{user}:{merged.get('runAsGroup', 0)}"]
    if merged.get("runAsNonRoot") and user == 0:
        raise RefusedError("container has runAsNonRoot and image will run as root")
    for group in [
        *merged.get("supplementalGroups", ()),
        *([merged["fsGroup"]] * ("fsGroup" in merged)),
    ]:
        words += ["--group-add", str(group)]
    if merged.get("readOnlyRootFilesystem"):
        words += ["--read-only", "--read-only-tmpfs=false"]
    if own.get("allowPrivilegeEscalation") is False:
        words += ["--security-opt", "no-new-privileges"]
    for each in own.get("capabilities", {}).get("drop", ()):
        words += ["--cap-drop", each]
    return words
