"""A trained model as it is committed: an ordinary folder of diffusers, in f16."""

import json
import pathlib

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline


def export(model: pathlib.Path, out: pathlib.Path) -> None:
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(model, safety_checker=None)
    pipe.to(torch.float16).save_pretrained(out)
    for path in out.rglob("*.json"):
        value = json.loads(path.read_text())
        # Where it lay on the machine that trained it.
        if isinstance(value, dict) and value.pop("_name_or_path", None):
            path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")
