"""Train the demo checkpoint from nothing: ``python train.py --minutes 90``. See README.md."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from loop import (
    ALONE,
    Budget,
    Losses,
    Stage,
    Team,
    console,
    keep_to_own_cores,
    load,
    log,
    train,
    write_atomically,
)
from networks import (
    DEFAULT,
    SCHEDULER,
    Sizes,
    count,
    make_text_encoder,
    make_tiny,
    make_tokenizer,
    make_unet,
    make_vae,
    save_checkpoint,
)
from numpy.typing import NDArray
from sampling import Models, embedder, interim_score, tokenize
from scenes import (
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Caption,
    Scene,
    draw_caption,
    draw_scene,
    render,
    rng,
    scenes,
)
from torch import Tensor, nn

Pixels = NDArray[np.uint8]

PICTURES, CROPS, CAPTIONS, NOISE, CACHE = range(5)  # what a random stream is for
UNCONDITIONAL: Final = 0.1  # how often the whole caption is dropped, for classifier-free guidance
LATENT_NOISE: Final = 0.2  # the most noise on the latents that the decoders learn from
MIDDLE: Final = (50, 650)  # the times that matter most, and the share of the steps for them alone
MIDDLE_SHARE: Final = 0.8
# The most weight of strong noise. Far more of it (30) starves the times where colours are decided.
MOST_WEIGHT: Final = 6.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run: everything that decides what comes out, besides the machine."""

    folder: Path
    seed: int = 0
    sizes: Sizes = DEFAULT
    device: str = "cpu"
    pictures: int = 16_000
    checks: int = 64
    team: Team = ALONE

    def share(self, batch: int) -> int:
        """What this process takes of a batch."""
        return max(1, batch // self.team.size)


def to_tensor(pictures: Pixels, device: str) -> Tensor:
    """uint8 pictures (N, H, W, 3) as floats from -1 to 1 (N, 3, H, W), channels last in memory."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def generator(*key: int) -> torch.Generator:
    """PyTorch's random numbers for a key."""
    return torch.Generator().manual_seed(int(rng(*key).integers(2**62)))


# ---------------------------------------------------------------------------------- the autoencoder


def corner(scene: Scene, random: np.random.Generator, side: int, grid: int = 1) -> list[int]:
    """Top and left of a window near one of the things, in steps of `grid` pixels."""
    thing = scene.things[random.integers(len(scene.things))]
    centre = np.array([thing.y, thing.x]) + random.uniform(-1, 1, 2) * thing.radius
    steps = np.rint((centre - side / 2) / grid).astype(int)
    return [int(i) for i in np.clip(steps * grid, 0, SIDE - side)]


def crop(scene: Scene, random: np.random.Generator, side: int) -> Pixels:
    """A window of the picture, near one of the things."""
    top, left = corner(scene, random, side)
    return render(scene)[top : top + side, left : left + side]


def picture_batch(settings: Settings, step: int, count: int, side: int) -> Tensor:
    """Fresh training pictures: windows of `side` pixels, or whole."""
    random = rng(settings.seed, PICTURES, step)
    pictures = [crop(draw_scene(random), random, side) for _ in range(count)]
    return to_tensor(np.stack(pictures), settings.device)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels."""
    return x.diff(dim=-1), x.diff(dim=-2)


def reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """Absolute error of pixels and of edges, with a little squared error."""
    gradients = [F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True)]
    return F.l1_loss(output, target) + sum(gradients) + 0.5 * F.mse_loss(output, target)


def vae_stage(settings: Settings, vae: nn.Module, budget: Budget, batch: int = 8) -> Stage:
    """The autoencoder: windows with many edges first, whole pictures for the last third."""

    def losses(step: int, progress: float) -> Losses:
        whole = progress > 0.65
        side, count = (SIDE, batch * 3 // 4) if whole else (SIDE // 2, 2 * batch)
        count = settings.share(count)
        pictures = picture_batch(settings, step, count, side)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(settings.seed, NOISE, step))
        latents = posterior.mean + posterior.std * noise.to(settings.device)
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {
            "picture": reconstruction(vae.decode(latents).sample, pictures),
            "kl": 3e-4 * kl,
        }

    return Stage(
        name="vae",
        networks=nn.ModuleDict({"vae": vae}),
        losses=losses,
        budget=budget,
        rate=2e-3,
        weight_decay=0.0,
        decay=0.995,
    )


def encode_all(settings: Settings, vae: AutoencoderKL) -> Tensor:
    """The training pictures' latents before `standardise`, made once and kept in the state."""
    path = settings.folder / "latents.pt"
    if path.exists():
        return load(path)["latents"]
    parts = []
    with torch.no_grad():
        for start in range(0, settings.pictures, 32):
            stop = min(start + 32, settings.pictures)
            drawn = scenes(settings.seed, start, stop)
            pictures = to_tensor(np.stack([render(scene) for scene in drawn]), settings.device)
            parts.append(vae.encode(pictures).latent_dist.mean.cpu())
            if start % 3200 == 0:
                console.print(f"latents: {start} of {settings.pictures}")
    latents = torch.cat(parts)
    write_atomically(path, {"latents": latents})
    return latents


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions beside it.

    A mean or a scale that differs between channels would stay visible through the strongest noise
    of training, and pure noise has neither. Returns the standardised latents.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    scale = torch.cat([std, torch.ones_like(std)]).to(quant.weight.device)
    shift = torch.cat([-mean / std, -2 * std.log()]).to(quant.weight.device)
    quant.weight /= scale[:, None, None, None]
    quant.bias.copy_(quant.bias / scale + shift)
    post.bias += (post.weight[:, :, 0, 0] * mean.to(post.weight.device)).sum(1)
    post.weight *= std.to(post.weight.device)[None, :, None, None]
    return (latents - mean[:, None, None]) / std[:, None, None]


# -------------------------------------------------------------------------------- the text encoder

SLOTS = ("first", "second", "above", "below", "left of", "right of")
CHOICES = (("", *SHAPES), ("", *COLOURS), ("", *SIZES))


def answers(caption: Caption | None) -> list[int]:
    """What the text encoder must know: the thing in every slot, the relation, the background."""
    if caption is None:
        return [0] * (3 * len(SLOTS) + 2)
    slots = dict(zip(SLOTS, caption.claims, strict=False))
    if caption.relation:
        slots |= {caption.relation: caption.claims[0], INVERSE[caption.relation]: caption.claims[1]}
    row = []
    for slot in SLOTS:
        claim = slots.get(slot)
        words = (claim.shape, claim.colour, claim.size or "") if claim else ("", "", "")
        row += [names.index(word) for names, word in zip(CHOICES, words, strict=True)]
    relation = ("", *RELATIONS).index(caption.relation or "")
    return [*row, relation, CHOICES[1].index(caption.background or "")]


def text_stage(
    settings: Settings, text_encoder: nn.Module, tokenizer: Any, budget: Budget, batch: int = 64
) -> Stage:
    """The text encoder: each position from the end token on must tell all that was said."""
    widths = [len(names) for _ in SLOTS for names in CHOICES] + [
        1 + len(RELATIONS),
        1 + len(COLOURS),
    ]
    head = nn.Linear(settings.sizes.text, sum(widths)).to(settings.device)

    def losses(step: int, progress: float) -> Losses:
        random = rng(settings.seed, CAPTIONS, step)
        captions = [draw_caption(draw_scene(random), random) for _ in range(settings.share(batch))]
        said = [None if random.random() < UNCONDITIONAL else caption for caption in captions]
        ids = tokenize(tokenizer, [str(c or "") for c in said]).to(settings.device)
        hidden = text_encoder(ids).last_hidden_state
        start, stride = int(random.integers(20, 26)), 6  # the longest caption has fewer tokens
        logits = head(torch.cat([hidden[:, start::stride], hidden[:, -1:]], 1)).split(widths, -1)
        target = torch.tensor([answers(c) for c in said], device=settings.device)
        terms = [
            F.cross_entropy(part.transpose(1, 2), column[:, None].expand(-1, part.shape[1]))
            for part, column in zip(logits, target.T, strict=True)
        ]
        return {"attributes": torch.stack(terms).mean()}

    networks = nn.ModuleDict({"text": text_encoder, "head": head})
    return Stage(
        name="text", networks=networks, losses=losses, budget=budget, rate=2e-3, decay=0.99
    )


# ---------------------------------------------------------------------------------------- the UNet


def draw_times(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Spread times evenly, most of them over the middle, where shapes and colours are decided."""
    even = (np.arange(count) + random.random(count)) / count
    everywhere = even * 1000
    middle = MIDDLE[0] + even * (MIDDLE[1] - MIDDLE[0])
    chosen = np.where(random.random(count) < MIDDLE_SHARE, middle, everywhere)
    return np.minimum(chosen, 999).astype(np.int64)


def unet_stage(
    settings: Settings,
    unet: nn.Module,
    latents: Tensor,
    embed: Callable[[list[str]], Tensor],
    budget: Budget,
    batch: int = 48,
) -> Stage:
    """The denoiser, on latents made once; captions are drawn anew for every picture and step."""
    drawn = list(scenes(settings.seed, 0, len(latents)))
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    batch = settings.share(batch)

    def losses(step: int, progress: float) -> Losses:
        random = rng(settings.seed, NOISE, step)
        chosen = random.integers(len(drawn), size=batch)
        texts = [
            "" if random.random() < UNCONDITIONAL else str(draw_caption(drawn[i], random))
            for i in chosen
        ]
        t = torch.from_numpy(draw_times(random, batch))
        noise = torch.randn((batch, *latents.shape[1:]), generator=generator(settings.seed, step))
        alpha = alphas[t][:, None, None, None]
        noisy = alpha.sqrt() * latents[chosen] + (1 - alpha).sqrt() * noise
        output = unet(noisy.to(settings.device), t.to(settings.device), embed(texts)).sample
        error = (output - noise.to(settings.device)).square().mean((1, 2, 3))
        weight = (1 / alphas[t]).clamp(max=MOST_WEIGHT).to(settings.device)
        return {"noise": (weight * error).sum() / weight.sum() * 4}

    networks = nn.ModuleDict({"unet": unet})
    return Stage(
        name="unet", networks=networks, losses=losses, budget=budget, rate=1.2e-3, decay=0.996
    )


# ------------------------------------------------------------------------------------- the decoders


def latent_batch(
    settings: Settings, latents: Tensor, step: int, count: int, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, the same with some noise, and their pictures: windows of `side` pixels, or whole."""
    random = rng(settings.seed, CROPS, step)
    codes, pictures = [], []
    for i in random.integers(len(latents), size=count):
        scene = draw_scene(rng(settings.seed, int(i)))
        top, left = corner(scene, random, side, grid=8)
        codes.append(latents[i][:, top // 8 : (top + side) // 8, left // 8 : (left + side) // 8])
        pictures.append(render(scene)[top : top + side, left : left + side])
    clean = torch.stack(codes)
    level = torch.from_numpy(random.uniform(0, LATENT_NOISE, (count, 1, 1, 1))).float()
    noise = torch.randn(clean.shape, generator=generator(settings.seed, CROPS, step))
    noisy = (clean + level * noise).to(settings.device)
    return clean.to(settings.device), noisy, to_tensor(np.stack(pictures), settings.device)


def decoder_stage(
    settings: Settings, vae: AutoencoderKL, latents: Tensor, budget: Budget, batch: int = 6
) -> Stage:
    """The decoder alone once more, on latents as imperfect as a sampler's."""

    def losses(step: int, progress: float) -> Losses:
        _, noisy, pictures = latent_batch(settings, latents, step, settings.share(batch), SIDE)
        return {"picture": reconstruction(vae.decode(noisy).sample, pictures)}

    networks = nn.ModuleDict({"decoder": vae.decoder, "post": vae.post_quant_conv})
    options: dict[str, float] = {"rate": 7e-4, "decay": 0.99, "weight_decay": 0.0}
    return Stage(name="decoder", networks=networks, losses=losses, budget=budget, **options)


def tiny_stage(
    settings: Settings, tiny: AutoencoderTiny, latents: Tensor, budget: Budget, batch: int = 8
) -> Stage:
    """The small autoencoder: from pictures to the latents of the large one, and back."""

    def losses(step: int, progress: float) -> Losses:
        side, count = (SIDE, batch) if progress > 0.6 else (SIDE // 2, 2 * batch)
        count = settings.share(count)
        clean, noisy, pictures = latent_batch(settings, latents, step, count, side)
        return {
            "picture": reconstruction(tiny.decode(noisy).sample, pictures),
            "latents": 0.1 * F.mse_loss(tiny.encode(pictures).latents, clean),
        }

    networks = nn.ModuleDict({"tiny": tiny})
    options: dict[str, float] = {"rate": 2e-3, "decay": 0.99, "weight_decay": 0.0}
    return Stage(name="tiny", networks=networks, losses=losses, budget=budget, **options)


# ----------------------------------------------------------------------------------- the whole run


def run(settings: Settings, budgets: dict[str, Budget], out: Path, save_every: float = 600) -> None:
    """Train every network in turn, from where the state folder says, and write the checkpoint."""
    torch.manual_seed(settings.seed)
    tokenizer = make_tokenizer(settings.folder / f"tokenizer{settings.team.rank}")
    text_encoder, vae, unet, tiny = (
        make(settings.sizes).to(settings.device, memory_format=torch.channels_last)
        for make in (make_text_encoder, make_vae, make_unet, make_tiny)
    )
    parts = {"text_encoder": text_encoder, "vae": vae, "unet": unet, "tiny": tiny}
    console.print({name: count(part) for name, part in parts.items()}, count(*parts.values()))
    save: dict[str, Any] = {"save_every": save_every, "team": settings.team}

    train(vae_stage(settings, vae, budgets["vae"]), settings.folder, **save)
    train(text_stage(settings, text_encoder, tokenizer, budgets["text"]), settings.folder, **save)
    latents = standardise(vae, encode_all(settings, vae))

    embed = embedder(tokenizer, text_encoder)

    def hand_over(step: int) -> None:
        unet.eval()
        save_checkpoint(out, **parts)
        score = interim_score(Models(unet, vae, embed), settings.checks)
        log(settings.folder, {"stage": "check", "step": step, **score})
        unet.train()

    stage = unet_stage(settings, unet, latents, embed, budgets["unet"])
    train(stage, settings.folder, **save, on_save=hand_over)
    train(decoder_stage(settings, vae, latents, budgets["decoder"]), settings.folder, **save)
    train(tiny_stage(settings, tiny, latents, budgets["tiny"]), settings.folder, **save)
    if settings.team.rank == 0:
        save_checkpoint(out, **parts)


def join_team() -> Team:
    """Meet the other processes if ``torchrun`` started several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    dist.init_process_group("gloo")
    keep_to_own_cores(dist.get_rank(), size)
    return Team(dist.get_rank(), size)


def main(
    state: Path = Path("~/.cache/edgediffusion-train"),
    out: Path = Path(__file__).parent / "checkpoint",
    vae_minutes: float = 25,
    text_minutes: float = 3,
    unet_minutes: float = 56,
    decoder_minutes: float = 5,
    tiny_minutes: float = 5,
    seed: int = 0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    save_minutes: float = 10,
) -> None:
    """Train the demo checkpoint; a run that was broken off goes on from its state folder."""
    minutes = {"vae": vae_minutes, "text": text_minutes, "unet": unet_minutes}
    minutes |= {"decoder": decoder_minutes, "tiny": tiny_minutes}
    budgets = {name: Budget(minutes=value) for name, value in minutes.items()}
    settings = Settings(folder=state.expanduser(), seed=seed, device=device, team=join_team())
    run(settings, budgets, out, 60 * save_minutes)


if __name__ == "__main__":
    typer.run(main)
