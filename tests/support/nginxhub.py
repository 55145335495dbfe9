"""A Hub of finished files behind nginx, for benchmarks: the server is not what is measured.

What `hubrepo` says of a repository is written to files once; nginx serves them and the repository's
own by sendfile, with the headers which `huggingface_hub` reads. Nothing can go wrong on purpose: for
that there is `hub`, which also serves where no nginx is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from hubrepo import read_commit, siblings, tree

_CONFIG = """
daemon off; master_process off; worker_processes 1; error_log {out}/error.log; pid {out}/pid;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; sendfile_max_chunk 1m; tcp_nopush on; tcp_nodelay on;
  keepalive_requests 1000000; etag off; default_type application/octet-stream;
  client_body_temp_path {out}/b; proxy_temp_path {out}/p; fastcgi_temp_path {out}/f;
  uwsgi_temp_path {out}/u; scgi_temp_path {out}/s;
  map_hash_max_size 65536; map_hash_bucket_size 256;
  map $uri $hub_etag {{
{etags}
  }}
  map $uri $hub_size {{
{sizes}
  }}
  # An empty value sends no header.
  map $hub_size $hub_linked {{ default $hub_etag; "" ""; }}
  server {{
    listen 127.0.0.1:{port};
    location ~ ^/api/models/{repo}(/revision/[^/]+)?$ {{
      default_type application/json; alias {out}/info.json;
    }}
    location ~ ^/api/models/{repo}/tree/[^/]+$ {{
      default_type application/json; alias {out}/tree.json;
    }}
    location ~ ^/{repo}/resolve/[^/]+/(.+)$ {{
      alias {top}/$1;
      add_header X-Repo-Commit {sha}; add_header ETag $hub_etag;
      add_header X-Linked-ETag $hub_linked; add_header X-Linked-Size $hub_size;
    }}
  }}
}}
"""


@contextlib.contextmanager
def serve(root, repo):
    """Serve one repository under a root, by nginx where there is one; yields URL, commit, server."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    with tempfile.TemporaryDirectory() as out:
        serving = _nginx(program, root, repo, out) if program else _python(root, out)
        argv, port_file = serving
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            port = _answering(process, port_file)
            sha = read_commit(os.path.join(root, repo)).sha
            yield f"http://127.0.0.1:{port}", sha, "nginx" if program else "hub.py"
        finally:
            process.terminate()
            process.wait(10)


def _python(root, out):
    server = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hub.py")
    file = os.path.join(out, "port")
    return [sys.executable, server, "--root", root, "--port-file", file], file


def _nginx(program, root, repo, out):
    commit = read_commit(os.path.join(root, repo))
    info = {"_id": "1", "id": repo, "modelId": repo, "sha": commit.sha, "private": False}
    info |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    listed = {"info": info | {"siblings": siblings(commit, blobs=True)}}
    listed["tree"] = tree(commit, "", recursive=True)
    for name, value in listed.items():
        with open(os.path.join(out, f"{name}.json"), "w", encoding="utf-8") as stream:
            json.dump(value, stream)
    etags, sizes = ['default "";'], ['default "";']
    for path, file in commit.files.items():
        for revision in (commit.sha, "main"):
            uri = f'"/{repo}/resolve/{revision}/{path}"'
            etags.append(f"{uri} '\"{file.etag}\"';")
            if file.pointer_size is not None:
                sizes.append(f"{uri} {file.size};")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    filled = {"out": out, "port": port, "repo": repo, "top": os.path.join(root, repo)}
    filled |= {"sha": commit.sha, "etags": "\n".join(etags), "sizes": "\n".join(sizes)}
    config, file = os.path.join(out, "nginx.conf"), os.path.join(out, "port")
    with open(config, "w", encoding="utf-8") as stream:
        stream.write(_CONFIG.format(**filled))
    with open(file, "w", encoding="ascii") as stream:
        stream.write(str(port))
    return [program, "-p", out, "-e", os.path.join(out, "error.log"), "-c", config], file


def _answering(process, port_file):
    deadline = time.monotonic() + 600  # the Python one hashes everything first
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError, ValueError), open(port_file, encoding="ascii") as stream:
            port = int(stream.read())
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        time.sleep(0.02)
    raise AssertionError("the server does not answer")
