"""Drives the real `atelier-worker` over its socket, as the daemon does."""

import json
import os
import pathlib
import socket
import struct
import subprocess
from typing import Any

PROTOCOL = 1
# As a name that serves for any job here: one runs at a time.
JOB = "01JD0000000000000000000000"


class JobFailed(Exception):
    """What the worker says of a job that it could not do."""


class Worker:
    """A worker process. `end` must be called; it gives what the process has used."""

    def __init__(self, program: pathlib.Path, threads: int, offload: str = "auto", memory_budget: int | None = None) -> None:
        ours, theirs = socket.socketpair()
        # What its service sets.
        settings = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        # It brings its own libraries; the stand-ins of the reference are none of its business.
        settings.pop("LD_LIBRARY_PATH", None)
        self.process = subprocess.Popen([program], stdin=theirs, stderr=subprocess.DEVNULL, env=settings)
        theirs.close()
        self.stream = ours.makefile("rwb")
        ours.close()
        hello = {"device": "cpu", "threads": threads, "memory_budget": memory_budget, "offload": offload}
        self.send({"type": "hello", "protocol": PROTOCOL, **hello})
        ready = self.receive()
        if ready["type"] != "ready":
            raise RuntimeError(f"the worker said {ready} instead of being ready")

    def send(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.stream.write(struct.pack("<I", len(body)) + body)
        self.stream.flush()

    def receive(self) -> dict[str, Any]:
        head = self.stream.read(4)
        if len(head) < 4:
            raise RuntimeError(f"the worker has ended with {self.process.wait()}")
        (length,) = struct.unpack("<I", head)
        return json.loads(self.stream.read(length))

    def run(
        self,
        kind: str,
        model: pathlib.Path,
        family: str,
        params: dict[str, Any],
        work_dir: pathlib.Path,
        inputs: list[pathlib.Path] = [],
        on_event=lambda event: None,
        checkpoint_interval_ms: int = 10_000,
    ) -> tuple[list[pathlib.Path], dict[str, Any]]:
        """The finished files, and the last event. `on_event` sees every event before it."""
        work_dir.mkdir(parents=True)
        self.send({
            "type": "run", "job": JOB, "attempt": 1, "crashes": 0, "kind": kind,
            "models": [{"id": model.name, "family": family, "path": str(model)}], "model_given": True, "parts": [],
            "params": params, "inputs": [str(path) for path in inputs], "mask": None,
            "work_dir": str(work_dir), "checkpoint_interval_ms": checkpoint_interval_ms,
            "output": {"format": "png", "quality": 90, "gps": "keep"}, "max_pixels": 179_000_000,
        })  # fmt: skip
        while True:
            event = self.receive()
            if event["type"] == "finished":
                return [work_dir / output["file"] for output in event["outputs"]], event
            if event["type"] in ("failed", "stopped"):
                raise JobFailed(json.dumps(event.get("error", event)))
            on_event(event)

    def end(self):
        self.send({"type": "shutdown"})
        return usage_of(self.process)


def usage_of(process: subprocess.Popen):
    """Waits for the process, and gives what it has used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"a process ended with {process.returncode}")
    return usage
