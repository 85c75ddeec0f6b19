"""What memory costs and what it takes, by jobs of the real worker, each in a fresh process, in turns; every ratio is of two
neighbours in time, and the median of them is what counts. Memory is the process's largest resident set. Prints Markdown.

offload: a mid-size model of random weights as a whole, by phase, and block by block.
checkpoints: the same model, with a checkpoint after every step that may have one, and with none.
vae: a VAE of a quarter of the usual width under a UNet that costs next to nothing, a large picture as a whole and in bands.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image
from worker import Worker

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
MODELS = ROOT / "third_party" / "bench-diffusion"
NEVER_MS, ALWAYS_MS = 3_600_000, 0


@dataclasses.dataclass(frozen=True)
class Way:
    """One of the ways that are compared; the first is what the others are held to."""

    name: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    offload: str = "none"
    checkpoint_interval_ms: int = NEVER_MS


@dataclasses.dataclass(frozen=True)
class Bench:
    model: str
    side: int
    steps: int
    ways: list[Way]


BENCHES = {
    "offload": Bench("mid-size", 256, 4, [Way("none"), Way("phase", offload="phase"), Way("block", offload="block")]),
    "checkpoints": Bench("mid-size", 256, 12, [Way("never"), Way("always", checkpoint_interval_ms=ALWAYS_MS)]),
    "vae": Bench("vae", 1024, 1, [Way("whole", {"tiling": False}), Way("bands", {"tiling": True})]),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds from the first step to the finished file, the process's own seconds, MiB, how many checkpoints, and the picture."""

    seconds: float
    cpu: float
    rss: float
    checkpoints: int
    picture: np.ndarray


def run(program: pathlib.Path, bench: Bench, way: Way, folder: pathlib.Path, threads: int) -> Run:
    begun, checkpoints = None, 0

    def note(event: dict[str, Any]) -> None:
        nonlocal begun, checkpoints
        if event["type"] == "progress" and event["phase"] == "run" and begun is None:
            begun = time.monotonic()
        checkpoints += event["type"] == "checkpointed"

    worker = Worker(program, threads, offload=way.offload, memory_budget=1 << 40)
    params = {"prompt": "a photo of a lighthouse", "seed": 0, "steps": bench.steps, "guidance_scale": 1.0, "preview_every": 0}
    params |= {"width": bench.side, "height": bench.side} | way.params
    model = MODELS / bench.model
    interval = way.checkpoint_interval_ms
    files, _ = worker.run("generate", model, "stable_diffusion", params, folder, [], note, checkpoint_interval_ms=interval)
    seconds = time.monotonic() - begun
    usage = worker.end()
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, checkpoints, np.asarray(Image.open(files[0]).convert("RGB")).astype(int))


def measure(name: str, program: pathlib.Path, rounds: int, threads: int, scratch: pathlib.Path) -> None:
    bench = BENCHES[name]
    runs: dict[str, list[Run]] = {way.name: [] for way in bench.ways}
    # One more than counts: the first reads the files from the disk.
    for number in range(rounds + 1):
        for way in bench.ways if number % 2 == 0 else bench.ways[::-1]:
            made = run(program, bench, way, scratch / f"{name}-{way.name}-{number}", threads)
            if number > 0:
                runs[way.name].append(made)
    first = runs[bench.ways[0].name]
    for way, of_way in runs.items():
        middle = lambda what: statistics.median(getattr(run, what) for run in of_way)
        ratio = lambda what: statistics.median(getattr(ours, what) / getattr(theirs, what) for ours, theirs in zip(of_way, first))
        worst = max(int(np.abs(ours.picture - theirs.picture).max()) for ours, theirs in zip(of_way, first))
        cells = [f"{middle('seconds'):.2f}", f"{ratio('seconds'):.2f}", f"{middle('cpu'):.1f}", f"{ratio('cpu'):.2f}"]
        cells += [f"{middle('rss'):.0f}", f"{ratio('rss'):.2f}", f"{middle('checkpoints'):.0f}", f"{worst} / 255"]
        print(f"| {name} | {bench.side} | {way} | " + " | ".join(cells) + " |", flush=True)


def make(model: str) -> None:
    """In a process of its own, since torch is not needed for the rest."""
    folder = MODELS / model
    if not (folder / "model_index.json").exists():
        code = f"import {model.replace('-', '_')} as made, pathlib; made.make(pathlib.Path({str(folder)!r}))"
        place = ROOT / "tools" / "bench-diffusion" if model == "mid-size" else HERE
        subprocess.run([sys.executable, "-c", code], check=True, cwd=place)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker", type=pathlib.Path, help="a build of atelier-worker")
    parser.add_argument("--benches", nargs="+", default=list(BENCHES), choices=list(BENCHES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, {arguments.rounds} rounds in turns; seconds are from the first step to the file.\n")
    print("| | pixels | | seconds | ratio | CPU, s | ratio | peak memory, MiB | ratio | checkpoints | pictures differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.benches:
            make(BENCHES[name].model)
            measure(name, arguments.worker.resolve(), arguments.rounds, arguments.threads, pathlib.Path(scratch))


if __name__ == "__main__":
    main()
