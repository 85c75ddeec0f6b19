"""Measures one job in Atelier's worker and in diffusers: the same folder, prompt, steps, seed and threads, each in a fresh
process. In turns, in one run; every ratio is of two neighbours in time, and the median of them is what counts, so that a
machine that is busy with other things is busy with both.

Step: between the ends of two steps, the median of a run. Whole job: from the start of the process to its end, the picture
written. Memory: the largest resident set. Asked of Atelier: step <= 1.0, whole job <= 0.9, memory <= 0.8 of diffusers'.
Prints Markdown.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from worker import Worker, usage_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
JOB = pathlib.Path(__file__).resolve().parent / "job.py"
MID_SIZE = ROOT / "third_party" / "bench-diffusion" / "mid-size"
ASKED = {"step": 1.0, "job": 0.9, "rss": 0.8}
SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: pathlib.Path
    family: str
    kind: str
    side: int
    # A job's parameters, and the same in diffusers' words.
    params: dict[str, Any]
    call: dict[str, Any]


def cases(steps: int) -> list[Case]:
    prompt = "a photo of a lighthouse above the sea"
    return [
        Case(
            "tiny-edit",
            ROOT / "models" / "tiny-edit",
            "instruct_pix2_pix",
            "edit",
            512,
            {
                "prompt": "make it night",
                "steps": steps,
                "guidance_scale": 1.0,
                "image_guidance_scale": 1.0,
                "width": 512,
                "height": 512,
                "detail": "none",
            },
            {"prompt": "make it night", "num_inference_steps": steps, "guidance_scale": 1.0, "image_guidance_scale": 1.0},
        ),
        Case(
            "mid-size",
            MID_SIZE,
            "stable_diffusion",
            "generate",
            256,
            {"prompt": prompt, "steps": steps, "guidance_scale": 5.0, "width": 256, "height": 256},
            {"prompt": prompt, "num_inference_steps": steps, "guidance_scale": 5.0, "width": 256, "height": 256},
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds, seconds, and MiB."""

    step: float
    job: float
    rss: float


def between(ends: list[float]) -> float:
    return statistics.median(after - before for before, after in zip(ends, ends[1:]))


def atelier(case: Case, program: pathlib.Path, photo: pathlib.Path, folder: pathlib.Path, threads: int) -> tuple[Run, pathlib.Path]:
    start, ends = time.monotonic(), {}

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["phase"] == "run":
            ends.setdefault(event["step"], time.monotonic())

    worker = Worker(program, threads)
    # diffusers makes no previews.
    params = case.params | {"seed": SEED, "preview_every": 0}
    inputs = [photo] if case.kind == "edit" else []
    files, _ = worker.run(case.kind, case.model, case.family, params, folder, inputs, note)
    usage = worker.end()
    marks = [when for step, when in sorted(ends.items()) if step > 0]
    return Run(between(marks), time.monotonic() - start, usage.ru_maxrss / 1024), files[0]


def reference(case: Case, photo: pathlib.Path, folder: pathlib.Path, threads: int) -> tuple[Run, pathlib.Path]:
    folder.mkdir()
    output = folder / "output.png"
    order = {
        "model": str(case.model), "call": case.call, "seed": SEED, "threads": threads,
        "input": str(photo) if case.kind == "edit" else None, "output": str(output),
    }  # fmt: skip
    start = time.monotonic()
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    process = subprocess.Popen([sys.executable, JOB, json.dumps(order)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=settings)
    text = process.stdout.read()
    usage = usage_of(process)
    elapsed = time.monotonic() - start
    return Run(between(json.loads(text)), elapsed, usage.ru_maxrss / 1024), output


def difference(ours: pathlib.Path, theirs: pathlib.Path) -> int:
    """The largest, of 255: it is only fair to compare the times of the same picture."""
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (ours, theirs))
    return int(np.abs(a - b).max()) if a.shape == b.shape else 255


def measure(case: Case, program: pathlib.Path, rounds: int, threads: int, scratch: pathlib.Path) -> bool:
    photo = scratch / f"{case.name}.png"
    Image.fromarray(skimage.data.astronaut()).resize((case.side, case.side)).save(photo)
    runs: dict[str, list[Run]] = {"atelier": [], "diffusers": []}
    worst = 0
    # One more than counts: the first of each reads the files from the disk.
    for number in range(rounds + 1):
        pictures = {}
        for name in sorted(runs, reverse=number % 2 == 1):
            folder = scratch / f"{case.name}-{name}-{number}"
            if name == "atelier":
                run, pictures[name] = atelier(case, program, photo, folder, threads)
            else:
                run, pictures[name] = reference(case, photo, folder, threads)
            if number > 0:
                runs[name].append(run)
        worst = max(worst, difference(pictures["atelier"], pictures["diffusers"]))
    good = True
    for name, of_name in runs.items():
        cells = [f"{statistics.median(getattr(run, what) for run in of_name):.{digits}f}" for what, digits in [("step", 3), ("job", 2), ("rss", 0)]]
        print(f"| {case.name} | {case.side} | {name} | " + " | ".join(cells) + " | |", flush=True)
    cells = []
    for what, asked in ASKED.items():
        ratios = [getattr(ours, what) / getattr(theirs, what) for ours, theirs in zip(runs["atelier"], runs["diffusers"])]
        ratio = statistics.median(ratios)
        good &= ratio <= asked
        cells.append(f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, asked {asked})")
    print(f"| {case.name} | {case.side} | ratio | " + " | ".join(cells) + f" | {worst} / 255 |", flush=True)
    return good and worst <= 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker", type=pathlib.Path, help="the release build of atelier-worker")
    parser.add_argument("--cases", nargs="+", default=["tiny-edit", "mid-size"], choices=["tiny-edit", "mid-size"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if "mid-size" in arguments.cases and not (MID_SIZE / "model_index.json").exists():
        # In a process of its own: what is left of it would count as ours.
        subprocess.run([sys.executable, "-c", f"import mid_size, pathlib; mid_size.make(pathlib.Path({str(MID_SIZE)!r}))"], check=True, cwd=JOB.parent)
    print(f"{arguments.threads} threads, {arguments.steps} steps, f16 files computed in f32, {arguments.rounds} rounds in turns.\n")
    print("| model | pixels | | step, s | whole job, s | peak memory, MiB | pictures differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(arguments.steps):
            if case.name in arguments.cases:
                good &= measure(case, arguments.worker.resolve(), arguments.rounds, arguments.threads, pathlib.Path(scratch))
    print("\nAll that is asked is met." if good else "\nNOT all that is asked is met.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
