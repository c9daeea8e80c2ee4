"""Hub ids against a local server that speaks the hub's API; and no connection without a hub id."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.ThreadingHTTPServer):
    """One repository, org/model, with branches ``main`` and ``v2``; org/gated asks for a token."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None  # bytes after which one answer breaks off
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def log_message(self, *args):
        pass

    def _json(self, value, status=200, **headers):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, body, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cut_after
            if cut is not None and len(body) > cut:
                self.server.cut_after = None
                self.wfile.write(body[:cut])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Authorization")))
        if path.startswith("/api/models/org/gated"):
            self._json({"error": "gated"}, 403, **{"X-Error-Code": "GatedRepo"})
        elif path in (f"/api/models/org/model/revision/{rev}" for rev in ("main", "v2", COMMIT)) or (
            path == "/api/models/org/model"
        ):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "org/model", "sha": COMMIT, "siblings": siblings})
        elif path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.files.items()
            ]
            self._json(tree)
        elif path.startswith("/api/models/org/model/revision/"):
            self._json({"error": "no revision"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
            self._file(self.server.files[path.rpartition("/")[2]])
        else:
            self._json({"error": "not found"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def _file(self, body):
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._send(body[start:], 206, headers)
        else:
            self._send(body, 200, headers)


@pytest.fixture
def hub(tmp_path):
    weights = tmp_path / "served.safetensors"
    save_file({"layers.0.q_proj.weight": torch.arange(2048.0).reshape(64, 32)}, weights)
    server = _Hub(
        {
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": weights.read_bytes(),
            "pytorch_model.bin": b"never fetched",
            "optimizer.pt": b"never fetched",
            "modeling_evil.py": b"raise SystemExit",
            "README.md": b"never fetched",
        }
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys
from intruscope.errors import IntruscopeError
from intruscope.weights.source import open_model
try:
    source = open_model(sys.argv[1])
    assert "torch" not in sys.modules
    total = {name: float(tensor.read().sum()) for name, tensor in source.tensors.items()}
    print(json.dumps({"revision": source.revision, "config": source.config, "total": total}))
except IntruscopeError as error:
    print(json.dumps({"exit_code": error.exit_code, "text": str(error), "fact": error.fact}))
"""


@pytest.fixture
def ask(hub, tmp_path):
    """Open a name in a fresh process, since the hub's library reads its environment once."""

    def run(name, **env):
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1",
            **env,
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


SUM = float(sum(range(2048)))


def test_a_hub_id_is_downloaded_once_and_then_found_without_the_hub(hub, ask, tmp_path):
    answer = ask("org/model@v2", HF_TOKEN="hf_secret")
    assert answer == {
        "revision": COMMIT,
        "config": {"model_type": "llama"},
        "total": {"layers.0.q_proj.weight": SUM},
    }
    fetched = {path.rpartition("/")[2] for command, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}
    assert {token for _, path, token in hub.requests if "org/model" in path} == {"Bearer hf_secret"}
    hub.requests.clear()
    assert ask("org/model@v2", HF_HUB_OFFLINE="1") == answer
    assert hub.requests == []


def test_a_download_that_breaks_off_is_resumed_or_repeated(hub, ask):
    hub.cut_after = 4000
    first = ask("org/model")
    answer = first if "total" in first else ask("org/model")
    assert answer["total"] == {"layers.0.q_proj.weight": SUM}


def test_the_hubs_refusals_are_one_clear_error(hub, ask):
    for name, exit_code, says in (
        ("org/nothing", 2, "no such folder here and no such public repository"),
        ("org/gated", 2, "gated"),
        ("org/model@v9", 2, "no branch, tag or commit 'v9'"),
    ):
        answer = ask(name)
        assert answer["exit_code"] == exit_code, answer
        assert says in answer["fact"], answer
        assert name in answer["text"]


def test_no_hub_and_no_cache_may_be_a_typing_error(ask):
    answer = ask("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["exit_code"] == 2, answer
    assert "no such folder here, and the hub could not be reached" in answer["fact"]


def test_no_hub_and_half_of_a_copy_is_a_matter_of_the_connection(ask, tmp_path):
    (tmp_path / "cache" / "models--org--model").mkdir(parents=True)
    answer = ask("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["exit_code"] == 4, answer
    assert "copy in the hub's cache is incomplete, and the hub could not be reached" in answer["fact"]


def _local_pair(folder: Path) -> None:
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        save_file({"layers.0.q_proj.weight": torch.ones(4, 3)}, folder / name / "model.safetensors")


def test_a_local_pair_connects_to_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _local_pair(tmp_path)
    pairing = pair_checkpoints(open_model(tmp_path / "base"), open_model(tmp_path / "tuned"))
    pair = pairing.pairs[0]
    assert torch.equal(pair.update.load(pair.base.load()).tuned_OI, torch.ones(4, 3))


def test_a_local_pair_works_without_any_network(tmp_path):
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        pytest.skip("unshare -rn is not usable here")
    _local_pair(tmp_path)
    script = (
        "import sys\n"
        "from intruscope.weights.source import open_model\n"
        "from intruscope.weights.pairing import pair_checkpoints\n"
        "pairing = pair_checkpoints(open_model(sys.argv[1]), open_model(sys.argv[2]))\n"
        "loaded = {'torch', 'huggingface_hub', 'transformers'} & set(sys.modules)\n"
        "print(len(pairing.pairs), sorted(loaded))\n"
    )
    command = [unshare, "-rn", sys.executable, "-c", script, str(tmp_path / "base"), str(tmp_path / "tuned")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 []\n", done.stderr


def test_a_tokenizer_is_fetched_where_it_is_asked_for(hub, ask, tmp_path):
    """Into the same snapshot, and nothing that could run."""
    hub.files |= {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "vocab.txt": b"word"}
    ask("org/model")
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.requests}
    assert "tokenizer.json" not in fetched
    script = (
        "from intruscope.weights.hub import download_model;"
        "print(*sorted(p.name for p in download_model('org/model', with_tokenizer=True)[0].iterdir()))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert done.stdout.split() == expected, done.stderr
