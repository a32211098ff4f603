"""The genuine ``wandb agent``, against a server in this process that knows the four questions it asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TINY_FIRST_STAGE

GUIDE = Path(__file__).parents[2] / "docs" / "configuration.md"
CHOSEN = {"optim.lr": 1.5e-05, "optim.betas": [0.5, 0.9], "trainer": {"max_steps": 2, "limit_val_batches": None}}


class Server(ThreadingHTTPServer):
    """A sweep of one trial: its yaml, and the commands of successive heartbeats."""

    def __init__(self, sweep: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sweep, self.asked = sweep, list[str]()
        self.beats: list[dict[str, Any]] = []

    def answer(self, asked: str, variables: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(asked)
        if asked == "Viewer":
            teams = {"edges": [{"node": {"name": "me"}}]}
            who = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "admin": False}
            return {"viewer": {**who, "name": "me", "teams": teams}}
        if asked == "SweepWithRuns":
            return {"project": {"sweep": {"id": "1", "name": "trials", "config": self.sweep, "runs": {"edges": []}}}}
        if asked == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        assert asked == "Heartbeat", asked
        running = json.loads(variables["runState"])
        self.beats.append(running)
        args = {name: {"value": value} for name, value in CHOSEN.items()}
        trial = {"type": "run", "run_id": "trial", "args": args, "program": yaml.safe_load(self.sweep)["program"]}
        commands = [trial] if len(self.beats) == 1 else [] if running else [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


class Handler(BaseHTTPRequestHandler):
    """Speaks GraphQL as far as it is asked; takes no interest in telemetry."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply: dict[str, Any] = {}
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            name = asked.get("operationName") or asked["query"].split("(")[0].split()[-1]
            reply = {"data": self.server.answer(name, asked.get("variables") or {})}
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def advised() -> dict[str, Any]:
    """The sweep that the documentation advises."""
    (block,) = (text for text in GUIDE.read_text().split("```yaml\n") if text.startswith("# sweep.yaml"))
    sweep: dict[str, Any] = yaml.safe_load(block.partition("```")[0])
    return sweep


@pytest.fixture
def server(pictures: Path, tmp_path: Path) -> Iterator[Server]:
    """Of the advised sweep, but for what makes it small and keeps its run off the network."""
    sweep, tiny = advised(), [text for text in TINY_FIRST_STAGE if not text.startswith("trainer.max_steps")]
    replaced = {"logger=wandb": "logger=csv", "runs=runs/sweep": f"runs={tmp_path}/runs"}
    command = [replaced.get(text, text) for text in sweep["command"] if not text.startswith("experiment=")]
    at = command.index("${args}")
    sweep["command"] = [*command[:at], "data=image_folder", f"data.root={pictures}", *tiny, *command[at:]]
    with Server(yaml.safe_dump(sweep)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.mark.slow
def test_an_agent_starts_what_the_documentation_advises(server: Server, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    ldm = tmp_path / "bin" / "ldm"
    ldm.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\nexec {sys.executable} -m ldm_lightning "$@"\n')
    ldm.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment = {
        **{name: value for name, value in kept.items() if not name.startswith("WANDB_")},
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(GUIDE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(tmp_path),
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "WANDB_API_KEY": 40 * "a",
    }
    command = [sys.executable, "-m", "wandb", "agent", "me/project/trials"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (tmp_path / "given").exists(), f"{done.stderr}\n{server.asked}"
    given = (tmp_path / "given").read_text().strip()
    assert given.endswith(
        "--optim.lr=1.5e-05 --optim.betas=[0.5, 0.9] --trainer={'max_steps': 2, 'limit_val_batches': None}"
    )
    config = yaml.safe_load((tmp_path / "runs" / "trial" / "config.yaml").read_text())
    assert (float(config["optim"]["lr"]), config["optim"]["betas"]) == (1.5e-05, [0.5, 0.9])
    assert (config["trainer"]["max_steps"], config["trainer"]["limit_val_batches"]) == (2, None)
    assert (tmp_path / "runs" / "trial" / "export" / "manifest.json").is_file()
    assert server.beats[1] == {"trial": True}  # the agent saw it run
    assert done.returncode == 0, done.stderr
