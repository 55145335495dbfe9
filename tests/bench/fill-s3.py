"""A cold fill from S3: warmer against s5cmd and the AWS CRT client, in turns, all of it durable.

Every contender is a process of its own from its start to its end, reads the same bucket of a
SeaweedFS on this machine into an empty directory, and counts until every byte is flushed: warmer's
prefill flushes, hashes and seals by itself; after the others their files are flushed. SIZE_MB,
SMALL and ROUNDS make it smaller; WORKERS and BENCH_DIR say how many processes warmer takes and where all write.
"""

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))

import boto3
import s3 as servers
from awscrt import auth, http, s3
from boto3.s3.transfer import TransferConfig
from loopback import tool

SIZE_MB = int(os.environ.get("SIZE_MB", "4096"))
SMALL = int(os.environ.get("SMALL", "2000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
WORKERS = os.environ.get("WORKERS", "")
SHARDS = 8
PREFIX = "bench/model"
FLUSHERS = 8


def make_objects(server, bucket):
    """Put shards that compress badly and small files; returns their bytes."""
    client, block = server.client(), os.urandom(1 << 20)
    sizes = random.Random(0)  # noqa: S311 - sizes, not secrets
    small = {f"assets/{n // 250}/{n:05}.json": sizes.randint(10_000, 50_000) for n in range(SMALL)}
    config = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
    client.put_object(Bucket=bucket, Key=f"{PREFIX}/config.json", Body=config)

    def put(item):
        client.put_object(Bucket=bucket, Key=f"{PREFIX}/{item[0]}", Body=block[: item[1]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, small.items()))
    parts = TransferConfig(multipart_chunksize=64 << 20, max_concurrency=4)
    with tempfile.TemporaryFile(dir=os.environ.get("BENCH_DIR")) as f:
        for number in range(SHARDS if SIZE_MB else 0):
            f.seek(0)
            f.writelines(bytes([number, at % 256]) + block[2:] for at in range(SIZE_MB // SHARDS))
            f.seek(0)
            key = f"{PREFIX}/model-{number + 1:05}-of-{SHARDS:05}.safetensors"
            more = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
            with contextlib.closing(os.fdopen(os.dup(f.fileno()), "rb")) as body:
                client.upload_fileobj(body, bucket, key, ExtraArgs=more, Config=parts)
    shards = SIZE_MB // SHARDS * SHARDS << 20
    return shards + sum(small.values()) + len(config)


def warmer(bucket, top):
    """The command of a prefill without an engine."""
    volume = os.path.join(top, "volume")
    os.makedirs(volume)
    argv = [sys.executable, "-m", "warmer", "prefill", "--json", "--compile", "never"]
    argv += ["--volume", volume, "--warm-dir", os.path.join(top, "warm")]
    argv += ["--workers", WORKERS] if WORKERS else []
    return [*argv, "--model", f"s3://{bucket}/{PREFIX}"]


def s5cmd(bucket, top):
    """The command of s5cmd with what it does by itself: 256 workers, 5 parts of a file at once."""
    return [tool("s5cmd", "s5cmd"), "--log", "error", "cp", f"s3://{bucket}/{PREFIX}/*", f"{top}/"]


def crt(bucket, top):
    return [sys.executable, os.path.abspath(__file__), "--crt", bucket, top]


CONTENDERS = {"warmer": warmer, "s5cmd": s5cmd, "crt": crt}


def crt_child(bucket, top):
    """Fetch everything under the prefix with the AWS CRT client, listed by boto3."""
    pages = boto3.client("s3").get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=bucket, Prefix=f"{PREFIX}/")
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    client = s3.S3Client(
        region=servers.REGION,
        tls_mode=s3.S3RequestTlsMode.DISABLED,
        credential_provider=auth.AwsCredentialsProvider.new_environment(),
    )
    asked = []
    for key in [entry["Key"] for page in found for entry in page["Contents"]]:
        target = os.path.join(top, key.removeprefix(f"{PREFIX}/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        headers = http.HttpHeaders([("host", endpoint)])
        request = http.HttpRequest("GET", f"/{bucket}/{key}", headers)
        made = client.make_request(
            type=s3.S3RequestType.GET_OBJECT, request=request, recv_filepath=target
        )
        asked.append(made.finished_future)
    for future in asked:
        future.result()


def flush(top):
    """Flush every file below a directory, several at a time, and the directories."""

    def one(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    places = [(d, [os.path.join(d, name) for name in names]) for d, _, names in os.walk(top)]
    with ThreadPoolExecutor(FLUSHERS) as pool:
        list(pool.map(one, [path for _, names in places for path in names]))
        list(pool.map(one, [directory for directory, _ in places]))


def holds(top):
    """How many bytes of the model lie below a directory."""
    ours = ("seal.json", "key.json", "handoff", "lock", "refs")
    total = 0
    for directory, _, names in os.walk(top):
        if "volume" in os.listdir(top) and "/files" not in directory:
            continue
        total += sum(
            os.stat(os.path.join(directory, name)).st_size for name in names if name not in ours
        )
    return total


def memory(pid):
    """MB of a process and its children now; what a fork shares with its parent counts once."""
    total = 0.0
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            total = sum(map(memory, f.read().split()))
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            total += sum(int(line.split()[1]) / 1024 for line in f if line.startswith("Pss:"))
    return total


def run(name, bucket, env, size, top):
    """One contender from nothing; returns wall seconds, CPU seconds and peak MB."""
    os.makedirs(top)
    argv = CONTENDERS[name](bucket, top)
    os.sync()  # what the run before left to write is not this one's
    peak = 0.0
    started, mine = time.monotonic(), time.process_time()
    with open(os.path.join(os.path.dirname(top), "said"), "w+b") as said:
        process = subprocess.Popen(argv, env=env, stdout=said, stderr=said)
        ended = (0, 0, None)
        while not ended[0]:
            peak = max(peak, memory(process.pid))
            time.sleep(0.02)
            ended = os.wait4(process.pid, os.WNOHANG)
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        if name != "warmer":
            flush(top)
        wall, mine = time.monotonic() - started, time.process_time() - mine
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    assert holds(top) == size, f"{name} fetched {holds(top)} bytes, expected {size}"
    shutil.rmtree(top)
    return wall, used.ru_utime + used.ru_stime + mine, peak


def main():
    with contextlib.ExitStack() as stack:
        top = stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")))
        server = stack.enter_context(servers.Seaweed())
        bucket = server.bucket()
        size = make_objects(server, bucket)
        env = {"PATH": os.defpath, "HOME": top, "S3_ENDPOINT_URL": server.endpoint}
        env |= server.environment()
        figures = {name: [] for name in CONTENDERS}
        for turn in range(ROUNDS):
            for name in sorted(CONTENDERS, reverse=turn % 2 == 1):
                figures[name].append(run(name, bucket, env, size, os.path.join(top, "to")))
                wall, spent, peak = figures[name][-1]
                print(
                    f"{name:<7} {wall:7.2f} s {size / wall / 1e6:7.0f} MB/s"
                    f" {spent:6.2f} CPU-s {peak:6.0f} MB",
                    flush=True,
                )
    speeds = {n: size / statistics.median(w for w, _, _ in all_) for n, all_ in figures.items()}
    spent = {n: statistics.median(c for _, c, _ in all_) for n, all_ in figures.items()}
    ours = speeds.pop("warmer")
    record = {
        "bench": "fill-s3",
        "ratio": round(ours / max(speeds.values()), 3),
        "others": {name: round(speed) for name, speed in speeds.items()},
        "ours": round(ours),
        "cpu_s_per_gb": {name: round(value / size * 1e9, 3) for name, value in spent.items()},
        "peak_rss_mb": round(max(peak for _, _, peak in figures["warmer"])),
        "model_mb": SIZE_MB,
        "small_files": SMALL,
        "rounds": ROUNDS,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--crt"]:
        crt_child(*sys.argv[2:])
    else:
        main()
