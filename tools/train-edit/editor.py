"""The UNet and the text encoder, trained together on latents of photos before and after an edit."""

import pathlib
import random
from dataclasses import dataclass

import clip_tokenizer
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from edits import EDITS, ask, corpus
from photos import Photos
from schedule import Schedule

CROP = 64
BATCH = 32
SCALES = [1, 2, 3, 4]
CONTEXT = 24
WIDTH = 96
LAST_TIMESTEP = 999
REPORT_EVERY = 200
# At the last step there is nothing but noise (zero terminal SNR): the edit begins there, so it is seen more often.
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@dataclass
class Pairs:
    """Latents of photos, those of the photos edited, and which edit it was."""

    before: torch.Tensor
    after: torch.Tensor
    edits: list[str]


def fresh(vocabulary: int, channels: int) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    # Attention looks at the text only: the cost is linear in the pixels, and any size works.
    unet = UNet2DConditionModel(
        sample_size=CROP // 4,
        in_channels=2 * channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        only_cross_attention=True,
        mid_block_only_cross_attention=True,
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        projection_dim=WIDTH,
    )
    return unet, CLIPTextModel(text)


def train(
    archive: pathlib.Path,
    vae_folder: pathlib.Path,
    out: pathlib.Path,
    start: pathlib.Path | None,
    pool: int,
    seconds: float,
    iterations: int | None,
) -> None:
    torch.manual_seed(0)
    chance = random.Random(0)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().requires_grad_(False)
    if start:
        tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
        unet = UNet2DConditionModel.from_pretrained(start / "unet")
        encoder = CLIPTextModel.from_pretrained(start / "text_encoder")
    else:
        tokenizer = clip_tokenizer.make(corpus(), merges=600, length=CONTEXT)
        unet, encoder = fresh(len(tokenizer), vae.config.latent_channels)
    unet = unet.to(memory_format=torch.channels_last).train()
    encoder.train()
    pairs = encode_pairs(vae, Photos(archive, seed=11), pool, chance)
    print(f"{len(pairs.edits)} pairs, {sum(p.numel() for p in [*unet.parameters(), *encoder.parameters()]) / 1e6:.2f} M parameters", flush=True)
    parameters = [*unet.parameters(), *encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = Schedule(1e-3, seconds, iterations, warm_up=100, floor=0.03)
    noise = DDPMScheduler(**NOISE)
    average = [parameter.detach().clone() for parameter in parameters]
    total = 0.0
    while schedule.advance(optimizer):
        loss = step_loss(unet, encoder, tokenizer, noise, vae.config.scaling_factor, pairs, chance, schedule.iteration)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        total += loss.item()
        follow(average, parameters, schedule.iteration)
        if schedule.iteration % REPORT_EVERY == 0:
            rate = schedule.iteration * BATCH / schedule.elapsed
            print(f"{schedule.elapsed:.0f} s, {schedule.iteration}: {rate:.0f} samples/s, loss {total / REPORT_EVERY:.4f}", flush=True)
            total = 0.0
    with torch.no_grad():
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)
    save(vae, encoder.eval(), tokenizer, unet.eval(), out)
    print(f"{out}: {schedule.iteration} iterations, {schedule.iteration * BATCH} samples in {schedule.elapsed:.0f} s")


@torch.no_grad()
def encode_pairs(vae: AutoencoderKL, photos: Photos, pool: int, chance: random.Random) -> Pairs:
    """The whole pool at once: encoding it anew for each sample would take most of the time."""
    names = list(EDITS)
    before, after, edits = [], [], []
    vae = vae.to(memory_format=torch.channels_last)
    for _ in range(0, pool, 64):
        chosen = [chance.choice(names) for _ in range(64)]
        sources = [photos.crop(CROP, SCALES) for _ in chosen]
        pictures = torch.stack(sources + [EDITS[name](source) for name, source in zip(chosen, sources)])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode((pictures * 2 - 1).to(memory_format=torch.channels_last)).latent_dist.mode().half()
        before.append(latents[:64])
        after.append(latents[64:])
        edits += chosen
    return Pairs(torch.cat(before), torch.cat(after), edits)


def step_loss(unet, encoder, tokenizer, noise, scaling: float, pairs: Pairs, chance: random.Random, iteration: int) -> torch.Tensor:
    chosen = [chance.randrange(len(pairs.edits)) for _ in range(BATCH)]
    # The photo comes as it is, what is to be made of it scaled: so InstructPix2Pix has it.
    source, wanted = pairs.before[chosen].float(), pairs.after[chosen].float() * scaling
    prompts = [ask(pairs.edits[index], chance) for index in chosen]
    ids = tokenizer(prompts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
    drawn = torch.randn_like(wanted)
    timesteps = torch.randint(0, LAST_TIMESTEP + 1, (BATCH,))
    if iteration % 2 == 0:
        timesteps = torch.where(torch.rand(BATCH) < 0.3, LAST_TIMESTEP, timesteps)
    noisy = noise.add_noise(wanted, drawn, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = encoder(ids).last_hidden_state
        both = torch.cat([noisy, source], 1).to(memory_format=torch.channels_last)
        predicted = unet(both, timesteps, hidden).sample
    return F.mse_loss(predicted.float(), noise.get_velocity(wanted, drawn, timesteps))


@torch.no_grad()
def follow(average: list[torch.Tensor], parameters: list[torch.Tensor], iteration: int) -> None:
    """A moving average of the weights, every other iteration; it is what is kept."""
    if iteration % 2 == 0:
        decay = min(0.999, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay**2)


def save(vae, encoder, tokenizer, unet, out: pathlib.Path) -> None:
    pipe = StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out)
