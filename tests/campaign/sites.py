"""What the episodes of one worker share: images, models, servers, and paths that all pods see."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import sys
from pathlib import Path

import truth

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import fakeengine
import hubrepo
from server import free_port
from services import Services

SECRETS = {
    "HF_TOKEN": "hf_PLANTEDplantedPLANTEDplanted",
    "VLLM_API_KEY": "sk-planted-api-key",
    "DEPLOY_PASSWORD": "planted-password-of-the-pod",
}
FLEET = (
    ("0.32.0", "NVIDIA H200", "9.0"),
    ("0.32.0", "NVIDIA L40S", "8.9"),
    ("0.31.1", "NVIDIA H200", "9.0"),
    ("0.31.1", "NVIDIA L40S", "8.9"),
)
"""(vLLM, GPU, its compute capability)."""
PODS = 3


@dataclasses.dataclass(frozen=True)
class Model:
    """A model: its URI, its name, and whether the hub has it, or a bucket."""

    uri: str
    name: str
    source: str


class Site:
    """A worker's.

    Args:
        top: a directory of its own.
        s3: what is told of an S3 server: see `campaign.bucket`.
    """

    def __init__(self, top, *, s3):
        self.top, self.hub = top, f"{top}/hub"
        self.warm, self.engine, self.home = (f"{top}/{name}" for name in ("warm", "engine", "home"))
        for path in (self.warm, self.home):
            os.mkdir(path)
        self.images, self.truth = [], truth.Truth(secrets=tuple(SECRETS.values()))
        for number, (version, gpu, capability) in enumerate(FLEET):
            made = {"torch": "2.13.0+cu130", "cuda": "13.0", "gpu": f"{gpu}, {capability}"}
            fakeengine.make_engine(self.engine, version=version, **made)
            os.rename(self.engine, f"{top}/image-{number}")
            self.images.append(f"{top}/image-{number}")
            self.truth.targets[f"{version}\t{gpu}"] = _target(self.images[-1]).hex()
        os.mkdir(self.engine)
        self.ports = [free_port() for _ in range(PODS)]
        self._s3 = s3
        self.bucket, self.secret, keys = s3["bucket"], s3["secret"], s3["environment"]
        self.services = Services(top, hub=self.hub, s3=s3["endpoint"])
        self.aws = keys | {"AWS_ENDPOINT_URL": self.services.s3}
        self.models = []
        for number, size in enumerate((20_000, 40_000, 90_000, 3_000_000)):
            repo = f"org/m{number}"
            self.truth.models[repo] = make_model(f"{self.hub}/{repo}", number, size)
            sha = hubrepo.read_commit(f"{self.hub}/{repo}").sha
            self.models.append(Model(f"hf://{repo}@{sha}", repo, "hub"))
        for name, files in s3["models"].items():
            self.truth.models[name] = files
            self.models.append(Model(f"s3://{name}", name, "s3"))

    def port(self, number):
        return self.ports[number]

    def spared(self):
        return {self.services.process.pid}

    def session(self):
        """Get credentials of S3 that last for a second: variables."""
        import boto3  # noqa: PLC0415

        sts = boto3.client("sts", endpoint_url=self._s3["endpoint"], **_keys(self.aws))
        asked = {"RoleArn": self._s3["role"], "RoleSessionName": "pod"}
        got = sts.assume_role(**asked)["Credentials"]
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
        variables = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return {var: got[name] for var, name in zip(variables, names, strict=True)}

    def close(self):
        self.services.close()


def _keys(variables):
    return {
        "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
        "region_name": variables["AWS_REGION"],
    }


def make_model(top, number, size):
    """Write a small model; return path → sha256."""
    data = random.Random(number).randbytes(size)  # noqa: S311 - weights
    files = {"config.json": b"{}", "tokenizer/vocab.json": data[:99]}
    half = size // 2
    files |= {"model-00001-of-00002.safetensors": data[:half]}
    files |= {"model-00002-of-00002.safetensors": data[half:]}
    for path, content in files.items():
        target = Path(top, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def _target(image):
    site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    paths = (f"{image}/{site}/vllm/_version.py", f"{image}/bin/nvidia-smi")
    return b"".join(Path(path).read_bytes() for path in paths)
