"""Starts the daemon with the stand-in worker on folders of its own, for the client tests."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

PROGRAM = pathlib.Path(os.environ["ATELIER_PROGRAM"])
PATIENCE = 60
TOKEN = "a-token-for-tests"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Daemon:
    def __init__(self, root, token=False):
        self.root = pathlib.Path(root)
        self.port = free_port()
        self.token = TOKEN if token else None
        self.base = f"http://127.0.0.1:{self.port}"
        self.process = None
        for model in ["fake", "sdxl"]:
            folder = self.root / "models" / model
            folder.mkdir(parents=True)
            (folder / "config.json").write_text('{"_class_name":"AtelierFake"}')
        worker = [str(PROGRAM.with_name("atelier-fake-worker")), "--steps", "4", "--step-ms", "1"]
        lines = [
            "[server]",
            f'listen = "127.0.0.1:{self.port}"',
            "[paths]",
            f"data = {json.dumps(str(self.root / 'data'))}",
            f"models = [{json.dumps(str(self.root / 'models'))}]",
            "[inbox]",
            "enabled = false",
            f"dir = {json.dumps(str(self.root / 'inbox'))}",
            "[worker]",
            f"command = {json.dumps(worker)}",
        ]
        if token:
            (self.root / "tokens").write_text(f"tests:{TOKEN}\n")
            lines.insert(1, f"tokens_file = {json.dumps(str(self.root / 'tokens'))}")
        (self.root / "config.toml").write_text("\n".join(lines) + "\n")

    def start(self):
        log = (self.root / "daemon.log").open("ab")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER")}
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "--config", self.root / "config.toml"],
            cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.base}/readyz", timeout=5).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the daemon did not start:\n" + (self.root / "daemon.log").read_text())
            time.sleep(0.02)

    def stop(self, how=signal.SIGTERM):
        if self.process:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            self.process = None

    def get(self, path):
        request = urllib.request.Request(self.base + path)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def jobs(self, prompt=None):
        """All jobs, newest first, or those with this prompt."""
        jobs = self.get("/api/v1/jobs?limit=200")["jobs"]
        return [job for job in jobs if prompt is None or job["params"].get("prompt") == prompt]

    def until(self, prompt, status):
        """The job with this prompt, once it has this status."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for job in self.jobs(prompt):
                if job["status"] == status:
                    return job
            time.sleep(0.02)
        raise AssertionError(f"no job {prompt!r} became {status}: {self.jobs(prompt)}")


@contextlib.contextmanager
def daemon(**options):
    with tempfile.TemporaryDirectory(prefix="atelier-clients-") as root:
        running = Daemon(root, **options)
        try:
            running.start()
            yield running
        finally:
            running.stop()


def photo(size=(64, 48), mode="RGB"):
    """A small picture that is the same everywhere."""
    from PIL import Image

    picture = Image.new("RGB", size)
    picture.putdata([(x * 3 % 256, y * 5 % 256, (x + y) % 256) for y in range(size[1]) for x in range(size[0])])
    return picture.convert(mode)


def png(picture):
    import io

    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
