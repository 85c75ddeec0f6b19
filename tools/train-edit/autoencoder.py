"""The autoencoder: a quarter of each side, eight channels, no attention, so that any size works and costs little."""

import pathlib

import torch
from diffusers import AutoencoderKL

from photos import Photos, held_out
from schedule import Schedule

CROP = 64
BATCH = 16
SCALES = [1, 1, 2, 3]
REPORT_EVERY = 200


def fresh() -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=[24, 48, 64],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=CROP,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    # It starts out nearly sure of its latents: with noise of size one, nothing is learned for a long time.
    with torch.no_grad():
        vae.encoder.conv_out.bias[vae.config.latent_channels :] = -6.0
    return vae


def train(archive: pathlib.Path, out: pathlib.Path, start: pathlib.Path | None, seconds: float, iterations: int | None) -> None:
    torch.manual_seed(0)
    photos = Photos(archive, seed=7)
    vae = AutoencoderKL.from_pretrained(start) if start else fresh()
    vae = vae.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = Schedule(1e-3 if start else 2e-3, seconds, iterations)
    while schedule.advance(optimizer):
        pictures = batch(photos, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        loss = reconstruction(pictures, decoded.float()) + 1e-4 * posterior.kl().mean() / 3 / CROP
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if schedule.iteration % REPORT_EVERY == 0:
            rate = schedule.iteration * BATCH / schedule.elapsed
            print(f"{schedule.elapsed:.0f} s, {schedule.iteration}: {rate:.0f} crops/s, loss {loss.item():.4f}, {quality(vae)}", flush=True)
    vae.eval()
    vae.register_to_config(scaling_factor=1 / spread(vae, photos))
    vae.save_pretrained(out)
    print(f"{out}: {schedule.iteration} iterations, {schedule.iteration * BATCH} crops, {quality(vae)}")


def batch(photos: Photos, count: int) -> torch.Tensor:
    pictures = torch.stack([photos.varied(CROP, SCALES) for _ in range(count)])
    return (pictures * 2 - 1).to(memory_format=torch.channels_last)


def reconstruction(wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """Of the pixels, and of the slopes between neighbours: those keep edges sharp."""
    error = wanted - got
    slopes = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * slopes + 2 * (error**2).mean()


@torch.no_grad()
def spread(vae: AutoencoderKL, photos: Photos) -> float:
    """The latents' standard deviation, which the denoiser wants to be one."""
    return torch.cat([vae.encode(batch(photos, 32)).latent_dist.sample() for _ in range(8)]).std().item()


@torch.no_grad()
def quality(vae: AutoencoderKL) -> str:
    """PSNR of the held-out photos, there and back."""
    cells = []
    for name, photo in held_out().items():
        decoded = vae.decode(vae.encode(photo * 2 - 1).latent_dist.mode()).sample
        error = ((decoded / 2 + 0.5).clamp(0, 1) - photo).square().mean()
        cells.append(f"{name} {-10 * torch.log10(error).item():.1f} dB")
    return ", ".join(cells)
