"""A model as Stable Diffusion 1.5 in shape and a third of its size, with random weights: what it draws is noise, what it costs
is real. 390 M parameters, 780 MB in f16."""

import pathlib

import clip_tokenizer
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_WIDTH = 768
CORPUS = ["a photo of a lighthouse above the sea, soft morning light, highly detailed"]


def make(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer.make(CORPUS, merges=200)
    last = len(tokenizer) - 1
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=8,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
        projection_dim=TEXT_WIDTH,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(192, 384, 768, 768),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(64, 128, 256, 256),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    parts = [vae, unet, pipe.text_encoder]
    print(f"mid-size: {sum(p.numel() for part in parts for p in part.parameters()) / 1e6:.0f} M parameters", flush=True)
    pipe.to(torch.float16).save_pretrained(folder)
