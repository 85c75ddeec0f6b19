"""One job in diffusers, in a process of its own: what a person's script does. Prints the steps' end times as JSON."""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")


def main() -> None:
    order = json.loads(sys.argv[1])
    import torch

    torch.set_num_threads(order["threads"])
    torch.set_grad_enabled(False)
    import diffusers
    from PIL import Image

    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(order["model"], torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    ends = []
    call = dict(order["call"], generator=torch.Generator().manual_seed(order["seed"]))
    if order["input"]:
        call["image"] = Image.open(order["input"]).convert("RGB")

    def note(_pipe, _step, _timestep, values):
        ends.append(time.monotonic())
        return values

    pipe(**call, callback_on_step_end=note).images[0].save(order["output"])
    print(json.dumps(ends))


main()
