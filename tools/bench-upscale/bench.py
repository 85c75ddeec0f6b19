#!/usr/bin/env python3
"""Measures the worker's upscalers: their quality, and their speed and memory beside Python PyTorch.

Quality: photographs are scaled down (bicubic), upscaled by the worker and compared with the originals: PSNR of the
luma, with a border of `scale` pixels left out. Speed: the worker's whole process, from its start to the finished file,
and the same network in Python PyTorch doing the same, in turns, with as many threads. Both decode and encode PNG.

Needs a release build of the worker and, in the Python that runs this: torch 2.13.0, safetensors, numpy, pillow,
scikit-image. PyTorch is a tool of this script alone. Prints Markdown.

usage: bench.py WORKER [--quality] [--speed] [--rounds N] [--threads N] [--cases MODEL:INPUT …]
"""

import argparse
import importlib.util
import json
import os
import pathlib
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
PHOTOS = ["astronaut", "chelsea", "coffee", "rocket"]
# PSNR-Y measured when the packs were made, with PyTorch in f32 on whole pictures.
EXPECTED = {
    "bicubic x2": [31.71, 35.18, 30.59, 32.35],
    "span-x2": [36.67, 37.21, 34.54, 36.62],
    "span-x2-ch52": [36.72, 37.22, 34.58, 36.67],
    "waifu2x-photo": [35.51, 36.55, 33.24, None],
    "bicubic x4": [26.84, 31.42, 27.29, 29.99],
    "span-x4": [30.32, 32.44, 29.55, 31.33],
    "span-x4-ch52": [30.44, 32.45, 29.59, 31.40],
}
TOLERANCE = 0.05
PROTOCOL = 1
CASES = ["span-x2:512x512", "span-x4:512x512", "waifu2x-photo:512x512", "span-x2:1024x768", "waifu2x-photo:1024x768"]


class Worker:
    """A worker process, driven over its protocol."""

    def __init__(self, program, threads):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen([program], stdin=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        self.stream = ours.makefile("rwb")
        ours.close()
        hello = {"type": "hello", "protocol": PROTOCOL, "device": "cpu", "threads": threads, "memory_budget": None}
        self.send(hello)
        self.ready = self.receive()
        assert self.ready["type"] == "ready", self.ready

    def send(self, message):
        body = json.dumps(message).encode()
        self.stream.write(struct.pack("<I", len(body)) + body)
        self.stream.flush()

    def receive(self):
        (length,) = struct.unpack("<I", self.stream.read(4))
        return json.loads(self.stream.read(length))

    def upscale(self, picture, folder, models, params, given=True):
        folder.mkdir()
        families = {"SPAN": "span", "UpConv7": "up_conv7"}
        refs = []
        for name in models:
            family = families[json.loads((MODELS / name / "config.json").read_text())["_class_name"]]
            refs.append({"id": name, "family": family, "path": str(MODELS / name)})
        self.send({
            "type": "run", "job": "01JD0000000000000000000000", "attempt": 1, "crashes": 0, "kind": "upscale",
            "models": refs, "model_given": given, "params": params, "inputs": [str(picture)], "mask": None,
            "work_dir": str(folder), "checkpoint_interval_ms": 10_000,
            "output": {"format": "png", "quality": 90, "gps": "keep"}, "max_pixels": 179_000_000,
        })  # fmt: skip
        while True:
            event = self.receive()
            if event["type"] == "finished":
                return folder / event["outputs"][0]["file"], event
            assert event["type"] not in ("failed", "stopped"), event

    def end(self):
        """Asks it to end, and gives what the process has used."""
        self.send({"type": "shutdown"})
        return usage_of(self.process)


def usage_of(process):
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.returncode
    return usage


def reference():
    """The networks in PyTorch, as the fixtures' script has them."""
    path = ROOT / "tools/fixtures/worker_networks.py"
    spec = importlib.util.spec_from_file_location("worker_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytorch(pack, picture, out, threads, layout):
    """What the worker does, in PyTorch: the process that the speed is compared with."""
    import numpy as np
    import torch
    from PIL import Image

    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    networks = reference()
    config, weights = networks.load(pack)
    x = torch.tensor(np.asarray(Image.open(picture).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    x = x.contiguous()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
        weights = {
            name: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
            for name, tensor in weights.items()
        }
    start = time.monotonic()
    y = networks.NETWORKS[config["_class_name"]](config, weights, x)
    print(f"{time.monotonic() - start:.3f}")
    pixels = (y[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(out)


def psnr(a, b, border):
    import numpy as np

    def luma(picture):
        pixels = np.asarray(picture).astype(np.float64)[border:-border, border:-border]
        return 16 + pixels @ np.array([65.481, 128.553, 24.966]) / 255

    return 10 * np.log10(255**2 / np.mean((luma(a) - luma(b)) ** 2))


def quality(program, threads, scratch):
    import skimage.data
    from PIL import Image

    worker = Worker(program, threads)
    print("### Quality: PSNR-Y in dB, with the difference from the expected figure\n")
    print("| model | " + " | ".join(PHOTOS) + " |\n| --- |" + " --- |" * len(PHOTOS))
    worst = 0.0
    for name, expected in EXPECTED.items():
        scale = 4 if "x4" in name else 2
        cells = []
        for photo, figure in zip(PHOTOS, expected):
            original = Image.fromarray(getattr(skimage.data, photo)()[..., :3])
            width, height = (side - side % 8 for side in original.size)
            original = original.crop((0, 0, width, height))
            small = original.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
            if name.startswith("bicubic"):
                result = small.resize((width, height), Image.Resampling.BICUBIC)
            else:
                small.save(scratch / "small.png")
                folder = scratch / f"{name}-{photo}"
                file, _ = worker.upscale(scratch / "small.png", folder, [name], {"scale": scale})
                result = Image.open(file)
            value = psnr(result, original, scale)
            if figure is None:
                cells.append(f"{value:.2f}")
            else:
                worst = max(worst, abs(value - figure))
                cells.append(f"{value:.2f} ({value - figure:+.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"\nThe largest difference is {worst:.3f} dB; {TOLERANCE} dB are allowed.\n")
    degraded(worker, scratch)
    worker.end()
    return worst <= TOLERANCE + 0.005  # the expected figures are rounded


def degraded(worker, scratch):
    """What denoise = auto makes of clean, compressed and noisy pictures."""
    import numpy as np
    import skimage.data
    from PIL import Image

    everything = sorted(folder.name for folder in MODELS.iterdir() if (folder / "config.json").exists())
    print("### denoise = auto at scale 2: PSNR-Y in dB\n")
    print("| photo | source | chosen | auto | SPAN | bicubic |\n| --- | --- | --- | --- | --- | --- |")
    for photo in PHOTOS[:3]:
        original = Image.fromarray(getattr(skimage.data, photo)()[..., :3])
        width, height = (side - side % 8 for side in original.size)
        original = original.crop((0, 0, width, height))
        small = original.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
        noise = np.random.RandomState(0).randn(height // 2, width // 2, 3) * 8
        noisy = Image.fromarray((np.asarray(small).astype(float) + noise).clip(0, 255).astype(np.uint8))
        small.save(scratch / "clean.png")
        small.save(scratch / "jpeg q60.jpg", quality=60)
        noisy.save(scratch / "noise 8.png")
        for file in ["clean.png", "jpeg q60.jpg", "noise 8.png"]:
            source = scratch / file
            stem = f"{photo}-{source.stem}"
            auto, event = worker.upscale(source, scratch / f"auto-{stem}", everything, {}, given=False)
            span, _ = worker.upscale(source, scratch / f"span-{stem}", ["span-x2"], {})
            bicubic = Image.open(source).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            cells = [f"{psnr(picture, original, 2):.2f}" for picture in (Image.open(auto), Image.open(span), bicubic)]
            print(f"| {photo} | {source.stem} | {event['model']} | " + " | ".join(cells) + " |", flush=True)
    print()


def speed(program, threads, rounds, scratch, cases):
    import skimage.data
    from PIL import Image

    astronaut = Image.fromarray(skimage.data.astronaut())
    astronaut.save(scratch / "512x512.png")
    large = Image.new("RGB", (1024, 768))
    for at in [(0, 0), (512, 0), (0, 512), (512, 512)]:
        large.paste(astronaut, at)
    large.save(scratch / "1024x768.png")
    contenders = ["worker", "pytorch", "pytorch channels_last"]
    print(f"### Speed and memory: the whole process, {threads} threads, {rounds} rounds in turns\n")
    print("Wall and CPU in seconds (median), peak resident memory in MiB. Job: of the worker, from the request to the")
    print("finished file; of PyTorch, the network alone. Ratios are the worker's to PyTorch's.\n")
    print("| network | input | | wall | CPU | peak RSS | job | wall ratio | CPU ratio | RSS ratio | job ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    good = True
    for pack, size in (case.split(":") for case in cases):
        runs = {contender: [] for contender in contenders}
        for number in range(rounds):
            # The first of a round gains or loses by what came before: take turns at that too.
            for contender in contenders[number % 3 :] + contenders[: number % 3]:
                folder = scratch / f"{pack}-{size}-{number}"
                runs[contender].append(measure(contender, program, pack, scratch / f"{size}.png", folder, threads))
        medians = {name: [statistics.median(column) for column in zip(*values)] for name, values in runs.items()}
        for contender in contenders:
            wall, cpu, rss, job = medians[contender]
            cells = [""] * 4
            if contender != "worker":
                cells = [f"{ours / theirs:.2f}" for ours, theirs in zip(medians["worker"], medians[contender])]
                good &= contender != "pytorch" or (float(cells[0]) <= 1.0 and float(cells[2]) <= 0.7)
            row = [pack, size, contender, f"{wall:.2f}", f"{cpu:.2f}", f"{rss:.0f}", f"{job:.2f}", *cells]
            print("| " + " | ".join(row) + " |", flush=True)
    print("\nAgainst PyTorch as it comes: " + ("wall ≤ 1.0 and RSS ≤ 0.7 everywhere." if good else "NOT within 1.0 and 0.7."))
    return good


def measure(contender, program, pack, picture, folder, threads):
    scale = 4 if "x4" in pack else 2
    start = time.monotonic()
    if contender == "worker":
        worker = Worker(program, threads)
        begun = time.monotonic()
        worker.upscale(picture, folder, [pack], {"scale": scale})
        job = time.monotonic() - begun
        usage = worker.end()
    else:
        layout = contender.partition(" ")[2] or "contiguous"
        command = [sys.executable, __file__, "--pytorch", pack, picture, folder.with_suffix(".png"), str(threads), layout]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        job = float(process.stdout.read())
        usage = usage_of(process)
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, job


def main():
    if sys.argv[1:2] == ["--pytorch"]:
        pack, picture, out, threads, layout = sys.argv[2:]
        return pytorch(pack, picture, out, int(threads), layout)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worker", type=pathlib.Path, help="the release build of atelier-worker")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="MODEL:INPUT")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    both = args.quality == args.speed
    # What the worker's service sets; for both alike.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        if both or args.quality:
            good &= quality(args.worker.resolve(), args.threads, pathlib.Path(scratch))
        if both or args.speed:
            good &= speed(args.worker.resolve(), args.threads, args.rounds, pathlib.Path(scratch), args.cases)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
