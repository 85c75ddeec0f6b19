"""Trains a small InstructPix2Pix for photographic looks, from photos alone, on a CPU. README.md tells the whole way."""

import argparse
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")

import diffusers
import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    photos = commands.add_parser("photos", help="gathers photos into one archive")
    photos.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDER", help="searched with all folders below")
    photos.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.npz")

    vae = commands.add_parser("vae", help="trains the autoencoder")
    edit = commands.add_parser("edit", help="trains the UNet and the text encoder, and saves the whole model")
    edit.add_argument("--vae", type=pathlib.Path, required=True, metavar="FOLDER", help="what `train vae` has made")
    edit.add_argument("--pool", type=int, default=8000, help="pairs to learn from (8000)")
    for command in (vae, edit):
        command.add_argument("--photos", type=pathlib.Path, required=True, metavar="FILE.npz", help="what `train photos` has made")
        command.add_argument("--start", type=pathlib.Path, metavar="FOLDER", help="go on from an earlier run's result")
        command.add_argument("--seconds", type=float, required=True, help="how long to train")
        command.add_argument("--iterations", type=int, help="end earlier, after so many")
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER")

    export = commands.add_parser("export", help="writes the model in f16, as it is committed")
    export.add_argument("model", type=pathlib.Path, metavar="FOLDER", help="what `train edit` has made")
    export.add_argument("--out", type=pathlib.Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(getattr(arguments, "threads", 2))
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "photos":
        import photos

        photos.collect(arguments.folders, arguments.out)
    elif arguments.command == "vae":
        import autoencoder

        autoencoder.train(arguments.photos, arguments.out, arguments.start, arguments.seconds, arguments.iterations)
    elif arguments.command == "edit":
        import editor

        editor.train(
            arguments.photos,
            arguments.vae,
            arguments.out,
            arguments.start,
            arguments.pool,
            arguments.seconds,
            arguments.iterations,
        )
    else:
        import export

        export.export(arguments.model, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
