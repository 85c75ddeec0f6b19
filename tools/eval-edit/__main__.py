"""Measures the built-in editor on photos that it has never seen: PSNR to the exact edit, through Atelier's worker and
through diffusers, at 256 pixels and at full resolution with the guided transfer; and whether each figure is within 0.3 dB of
the one that was measured when the model was trained.

An edit that Atelier does without the network (`engine: classic`) must only not be worse.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

import diffusers
import numpy as np
import skimage.data
import torch
import transformers
from PIL import Image
from worker import JobFailed, Worker

import guided

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "train-edit"))
from edits import EDITS

SMALL, FULL = 256, 512
STEPS, SEED = 6, 0
ALLOWED = 0.3
# What is asked for, the exact edit, and the PSNR at 256 pixels, and at full resolution with the transfer, that were measured
# when the model was trained; None where none was.
FIGURES = [
    ("make it black and white", "black and white", 28.8, 33.1),
    ("make it look like an old photo", "sepia", 28.7, 31.5),
    ("invert the colors", "invert", 27.1, 30.0),
    ("make it night", "night", 32.2, 34.6),
    ("make it warmer", "warmer", 27.4, 30.5),
    ("tint it blue", "blue", 29.5, 32.5),
    ("more vibrant colors", "vivid", None, 28.6),
    ("keep it as it is", "nothing", 28.0, 31.8),
    ("blur the image", "blur", 33.0, 28.7),
    ("make it a pencil sketch", "sketch", 19.3, 20.4),
    ("posterize the image", "posterize", 19.5, None),
    ("a cold winter day", "colder", 27.8, None),
    ("paint everything in red", "red", 28.8, None),
    ("turn this picture into greyscale", "black and white", 17.6, None),
]


def photos(side: int) -> list[Image.Image]:
    """The three held-out photos, square."""
    astronaut, coffee, chelsea = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    squares = [astronaut, coffee[:400, 60:460], chelsea[:300, 50:350]]
    return [Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC) for square in squares]


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def psnr(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return 10 * np.log10(1 / ((got - wanted).square().mean().item() + 1e-6))


class Reference:
    """The model in diffusers, and the transfer as it was when the figures were measured."""

    def __init__(self, model: pathlib.Path) -> None:
        self.pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(model, safety_checker=None)
        self.pipe.set_progress_bar_config(disable=True)

    def edit(self, prompt: str, photo: Image.Image) -> torch.Tensor:
        scales = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
        seed = torch.Generator().manual_seed(SEED)
        return tensor(self.pipe(prompt, image=photo, num_inference_steps=STEPS, generator=seed, **scales).images[0])

    def edit_full(self, prompt: str, photo: Image.Image) -> torch.Tensor:
        small = photo.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
        return guided.transfer(tensor(small), self.edit(prompt, small), tensor(photo))


class Atelier:
    """The model in the worker; says which engine ran."""

    def __init__(self, program: pathlib.Path, model: pathlib.Path, threads: int, scratch: pathlib.Path) -> None:
        self.worker = Worker(program, threads)
        self.model, self.scratch, self.count = model, scratch, 0

    def edit(self, prompt: str, photo: Image.Image, detail: str) -> tuple[torch.Tensor, str]:
        self.count += 1
        source = self.scratch / f"{self.count}.png"
        photo.save(source)
        params = {"prompt": prompt, "steps": STEPS, "seed": SEED, "guidance_scale": 1.0, "image_guidance_scale": 1.0, "detail": detail}
        folder = self.scratch / f"job-{self.count}"
        files, event = self.worker.run("edit", self.model, "instruct_pix2_pix", params, folder, [source])
        return tensor(Image.open(files[0])), event["manifest"].get("engine") or (event["result"] or {}).get("engine") or "network"


def row(atelier: Atelier, reference: Reference, prompt: str, edit: str, side: int, figure: float | None) -> tuple[list[str], bool]:
    """One line of the table, and whether it is good."""
    ours, theirs, untouched, engines = [], [], [], set()
    for photo in photos(side):
        wanted = EDITS[edit](tensor(photo))
        untouched.append(psnr(tensor(photo), wanted))
        theirs.append(psnr(reference.edit(prompt, photo) if side == SMALL else reference.edit_full(prompt, photo), wanted))
        try:
            picture, engine = atelier.edit(prompt, photo, "none" if side == SMALL else "auto")
            engines.add(engine)
            ours.append(psnr(picture, wanted))
        except JobFailed as error:
            return [prompt, f"{np.mean(untouched):.1f}", "", f"{np.mean(theirs):.1f}", f"FAILED: {error}", "", "NO"], False
    value, engine = float(np.mean(ours)), ", ".join(sorted(engines))
    # The figures are rounded to a tenth.
    if figure is None:
        verdict, good = "no figure", True
    elif engine == "classic":
        good = value >= figure - ALLOWED
        verdict = "yes, exact" if good else "NO"
    else:
        good = abs(value - figure) <= ALLOWED + 0.05 or value > figure
        verdict = ("yes" if abs(value - figure) <= ALLOWED + 0.05 else "yes, better") if good else "NO"
    expected = "" if figure is None else f"{figure:.1f}"
    return [prompt, f"{np.mean(untouched):.1f}", expected, f"{np.mean(theirs):.2f}", f"{value:.2f}", engine, verdict], good


def main() -> int:
    parser = argparse.ArgumentParser(prog="eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker", type=pathlib.Path, help="the release build of atelier-worker")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "tiny-edit", metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    reference = Reference(arguments.model)
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        atelier = Atelier(arguments.worker.resolve(), arguments.model.resolve(), arguments.threads, pathlib.Path(scratch))
        for side, title, figures in [
            (SMALL, f"{SMALL} × {SMALL} pixels", [(prompt, edit, small) for prompt, edit, small, _ in FIGURES]),
            (FULL, f"{FULL} × {FULL} pixels, guided transfer", [(prompt, edit, full) for prompt, edit, _, full in FIGURES if full]),
        ]:
            print(f"### {title}: mean PSNR to the exact edit over three photos, dB\n")
            print(f"| instruction | untouched | figure | diffusers | Atelier | engine | within {ALLOWED} dB |")
            print("| --- | --- | --- | --- | --- | --- | --- |")
            for prompt, edit, figure in figures:
                cells, right = row(atelier, reference, prompt, edit, side, figure)
                good &= right
                print("| " + " | ".join(cells) + " |", flush=True)
            print()
        atelier.worker.end()
    print("All figures are met." if good else "NOT all figures are met.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
