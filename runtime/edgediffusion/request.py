"""What the user asks, and what it means for one bundle."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from edgediffusion.bundle import Bundle, say_size
from edgediffusion.calls import EVERYWHERE, Savings
from edgediffusion.conditioning import LongPrompts, PromptOptions, Syntax
from edgediffusion.errors import RequestError, choices
from edgediffusion.manifest import DEEP
from edgediffusion.noise import NoiseKind, NoiseLayout
from edgediffusion.presets import PRESETS
from edgediffusion.samplers import SAMPLERS
from edgediffusion.start_image import ImageLike, Start, read_start, start_from_recipe
from edgediffusion.text_encoder import check_clip_skip, require_prompt_graphs
from edgediffusion.textual_inversion import (
    Embedding,
    TextualInversion,
    embedding_from_recipe,
    load_embeddings,
)

TINY_DECODER = "vae_tiny_decoder"
STRENGTH = 0.8  # as in diffusers
MAX_STEPS = 1000
MAX_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, or a batch of them; None means the bundle's own default.

    prompt, negative : what to show and what to stay away from; an empty prompt is valid.
    steps : sampler steps, 1 to 1000.
    guidance : scale of classifier-free guidance; at most 1 runs without it.
    seed : an int counts up from image to image; a sequence gives each image its own;
        None draws one and reports it in the result.
    sampler : ddim, euler, ...; see ``edgediffusion.SAMPLERS``.
    schedule : spacing of the noise levels; see ``edgediffusion.schedule.SPACINGS``.
    eta : share of fresh noise at each step, 0 to 1, of the samplers ddim and tcd.
    guidance_rescale : 0 to 1: how far guidance keeps the prediction's spread (Lin et al. 2023,
        arXiv:2305.08891, section 3.4), against oversaturated pictures.
    guidance_interval : noise levels sigma / alpha between which guidance takes part, the upper one
        included; elsewhere a step runs the prompt alone, at about half the time.
    guidance_every : of the calls with guidance, every so many run the negative prompt; those
        between add the difference that it made last, at about half the time. None: 1, always.
    deepcache_interval : every so many calls of the UNet run all of it, those between its two ends
        only; 1 runs all of it always. Needs a bundle exported with ``--deepcache``.
    deepcache_start : calls at the beginning that all run the whole UNet.
    batch : number of pictures. Image i equals the single picture of its seed.
    size : (height, width) in pixels, one of the bundle's.
    decoder : ``full``, the default, or ``tiny``, the small fast one where the bundle has it.
    decoder_tile : (height, width) of a smaller graph of the decoder, by which the picture is made
        tile by tile in less memory; not exact. Bundles get such with ``export --decoder-tile``.
    noise : whose random numbers: ``torch-cpu``, or ``torch-cuda`` for those of a GPU.
    noise_layout : ``per-image``, or ``diffusers-batch`` to draw the batch as one tensor.
    prompt_syntax : ``plain`` takes every character as text, as diffusers does; ``weighted`` reads
        ``(word:1.2)``, ``[word]`` and ``BREAK`` as A1111's web UI does.
    long_prompts : ``truncate`` cuts what the text encoder does not take at once and reports it;
        ``chunks`` adds chunks of 75 tokens, for which the bundle needs graphs.
    clip_skip : how many of the text encoder's last layers to leave out, counted as in diffusers:
        1 is what A1111's web UI calls 2.
    negative_clip_skip : the same for the negative prompt, where diffusers leaves out none and
        A1111's web UI as many as for the prompt.
    embeddings : textual inversions, as files or ``TextualInversion``, that the prompts may name.
    image : a picture to begin from instead of noise alone: a file, or a uint8 array of shape
        (height, width, 3). It must have the shape of the run and is scaled to its size.
    strength : above 0 to 1: how much of the run the picture is given over to; None: 0.8. Of
        ``steps`` steps, ``int(steps * strength)`` are made.
    preset : ``fast``, measured options for less time at a small price in quality; see
        ``edgediffusion.presets.PRESETS``. It fills the fields that are None.
    """

    prompt: str = ""
    negative: str = ""
    steps: int | None = None
    guidance: float | None = None
    seed: int | Sequence[int] | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: float | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    guidance_every: int | None = None
    deepcache_interval: int = 1
    deepcache_start: int = 0
    batch: int = 1
    size: tuple[int, int] | None = None
    decoder: Literal["full", "tiny"] | None = None
    decoder_tile: tuple[int, int] | None = None
    noise: NoiseKind = "torch-cpu"
    noise_layout: NoiseLayout = "per-image"
    prompt_syntax: Syntax = "plain"
    long_prompts: LongPrompts = "truncate"
    clip_skip: int | None = None
    negative_clip_skip: int | None = None
    embeddings: Sequence[TextualInversion | str | os.PathLike[str]] = ()
    image: ImageLike | None = field(default=None, compare=False)
    strength: float | None = None
    preset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request with every default filled in and checked against a bundle."""

    prompt: str
    negative: str
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    sampler: str | None
    schedule: str | None
    eta: float | None
    guidance_rescale: float
    savings: Savings
    size: tuple[int, int]
    decoder: str
    decoder_tile: tuple[int, int]
    noise: NoiseKind
    noise_layout: NoiseLayout
    prompt_options: PromptOptions
    clip_skip: int
    negative_clip_skip: int
    start: Start | None = None

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part (diffusers: guidance_scale > 1)."""
        return self.guidance > 1


def plan_request(request: Request, bundle: Bundle) -> Plan:
    """Fill in the preset and the bundle's defaults, and check the request; raises RequestError."""
    request = _with_preset(request)
    defaults = bundle.manifest.defaults
    steps = defaults.steps if request.steps is None else request.steps
    guidance = defaults.guidance if request.guidance is None else request.guidance
    sampler = defaults.sampler if request.sampler is None else request.sampler
    _check_text(request)
    _check_count("steps", steps, MAX_STEPS)
    _check_count("batch", request.batch, MAX_BATCH)
    if not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
        raise RequestError(f"guidance must be a finite number, got {guidance!r}")
    if sampler is not None and sampler not in SAMPLERS:
        raise RequestError(f"unknown sampler {sampler!r}: {choices(sampler, SAMPLERS)}")
    _check_choice("noise_layout", request.noise_layout, get_args(NoiseLayout))
    _check_choice("noise", request.noise, get_args(NoiseKind))
    _check_share("guidance_rescale", request.guidance_rescale)
    if request.eta is not None:
        _check_share("eta", request.eta)
    size, decoder = _size(request.size, bundle), _decoder(request.decoder or "full", bundle)
    return Plan(
        prompt=request.prompt,
        negative=request.negative,
        steps=steps,
        guidance=float(guidance),
        seeds=_seeds(request),
        sampler=sampler,
        schedule=request.schedule,
        eta=request.eta,
        guidance_rescale=float(request.guidance_rescale),
        savings=_savings(request, bundle),
        size=size,
        decoder=decoder,
        decoder_tile=_decoder_tile(request.decoder_tile, decoder, size, bundle),
        noise=request.noise,
        noise_layout=request.noise_layout,
        prompt_options=plan_prompts(
            bundle, request.prompt_syntax, request.long_prompts, request.embeddings
        ),
        clip_skip=check_clip_skip("clip_skip", request.clip_skip, bundle),
        negative_clip_skip=check_clip_skip(
            "negative_clip_skip", request.negative_clip_skip, bundle
        ),
        start=_start(request, size, bundle),
    )


def plan_prompts(
    bundle: Bundle,
    syntax: Syntax,
    long_prompts: LongPrompts,
    embeddings: Sequence[TextualInversion | str | os.PathLike[str]],
) -> PromptOptions:
    """Check how prompts are to be read and load their embeddings; raises RequestError."""
    _check_choice("prompt_syntax", syntax, get_args(Syntax))
    _check_choice("long_prompts", long_prompts, get_args(LongPrompts))
    loaded: tuple[Embedding, ...] = ()
    if embeddings:
        graphs = require_prompt_graphs(bundle, "textual-inversion embeddings")
        tables = [next(t for t in g.inputs if t.name == "extra_embeddings") for g in graphs]
        slots = min(table.shape[0] for table in tables)
        loaded = load_embeddings(embeddings, [table.shape[1] for table in tables], slots)
    return PromptOptions(syntax=syntax, long_prompts=long_prompts, embeddings=loaded)


def request_from_recipe(recipe: dict[str, Any]) -> Request:
    """Build the request that makes a picture again from the JSON in its PNG."""
    known = {field.name for field in fields(Request)}
    chosen = {name: value for name, value in recipe.items() if name in known}
    for name in ("size", "decoder_tile"):
        if isinstance(chosen.get(name), list):
            chosen[name] = tuple(chosen[name])
    if isinstance(chosen.get("guidance_interval"), list):
        low, high = chosen["guidance_interval"]  # JSON has no infinity: null
        chosen["guidance_interval"] = (low, math.inf if high is None else high)
    chosen["embeddings"] = tuple(map(embedding_from_recipe, chosen.get("embeddings", ())))
    chosen["image"] = start_from_recipe(chosen.get("image"))
    return Request(**chosen)


def _with_preset(request: Request) -> Request:
    """Fill fields that are None."""
    if request.preset is None:
        return request
    _check_choice("preset", request.preset, list(PRESETS))
    preset = PRESETS[request.preset]
    chosen = {name: value for name, value in preset.items() if getattr(request, name) is None}
    return replace(request, **chosen, preset=None)


def _check_text(request: Request) -> None:
    for name in ("prompt", "negative"):
        value = getattr(request, name)
        if not isinstance(value, str):
            raise RequestError(f"{name} must be a string, got {type(value).__name__}")


def _check_count(name: str, value: object, largest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise RequestError(f"{name} must be a whole number from 1 to {largest}, got {value!r}")


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RequestError(f"{name} must be a number from 0 to 1, got {value!r}")


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RequestError(f"unknown {name} {value!r}: {choices(str(value), known)}")


def _start(request: Request, size: tuple[int, int], bundle: Bundle) -> Start | None:
    if request.image is None:
        if request.strength is not None:
            raise RequestError("strength is for image to image: pass image=, too, or leave it out")
        return None
    if "vae_encoder" not in bundle.manifest.components:
        raise RequestError(
            f"bundle {bundle.manifest.name} has no VAE encoder, which image needs: export it again"
        )
    strength = STRENGTH if request.strength is None else request.strength
    return read_start(request.image, strength, size)


def _savings(request: Request, bundle: Bundle) -> Savings:
    every = 1 if request.guidance_every is None else request.guidance_every
    _check_count("guidance_every", every, MAX_STEPS)
    _check_count("deepcache_interval", request.deepcache_interval, MAX_STEPS)
    start = request.deepcache_start
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise RequestError(f"deepcache_start must be a whole number of at least 0, got {start!r}")
    if request.deepcache_interval > 1 and DEEP not in bundle.variants("unet"):
        raise RequestError(
            f"bundle {bundle.manifest.name} has no graphs for deepcache_interval "
            f"{request.deepcache_interval}: leave it at 1, or export again with --deepcache"
        )
    return Savings(
        guidance_interval=_interval(request.guidance_interval),
        guidance_every=every,
        deepcache_interval=request.deepcache_interval,
        deepcache_start=start,
    )


def _interval(interval: Sequence[float] | None) -> tuple[float, float]:
    if interval is None:
        return EVERYWHERE
    numbers = isinstance(interval, Sequence) and all(isinstance(n, int | float) for n in interval)
    if not numbers or len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise RequestError(
            "guidance_interval must be two noise levels sigma / alpha, the lower one first and at "
            f"least 0, got {interval!r}"
        )
    return float(interval[0]), float(interval[1])


def _seeds(request: Request) -> tuple[int, ...]:
    seed = secrets.randbits(32) if request.seed is None else request.seed
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = tuple(seed)
    else:
        seeds = tuple(_seed(seed) + i for i in range(request.batch))
    for value in seeds:
        _seed(value)
    if len(seeds) != request.batch:
        raise RequestError(
            f"got {len(seeds)} seeds for a batch of {request.batch}: pass one for each image, "
            "or one int to count up from"
        )
    return seeds


def _seed(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise RequestError(f"a seed is a whole number from 0 to 2**64 - 1, got {value!r}")
    return value


def _size(size: tuple[int, int] | None, bundle: Bundle) -> tuple[int, int]:
    sizes = bundle.manifest.sizes
    if size is None:
        return sizes[0]
    if tuple(size) not in sizes:
        have = ", ".join(map(say_size, sizes))
        raise RequestError(
            f"bundle {bundle.manifest.name} has no graphs for {say_size(size)}; it has {have}. "
            f"Ask for one of these, or export again with --size {say_size(size)}"
        )
    return size


def _decoder(decoder: str, bundle: Bundle) -> str:
    _check_choice("decoder", decoder, ("full", "tiny"))
    component = {"full": "vae_decoder", "tiny": TINY_DECODER}[decoder]
    if component not in bundle.manifest.components:
        raise RequestError(
            f"bundle {bundle.manifest.name} has no {decoder} decoder: its checkpoint had no "
            "vae_tiny folder at export; use decoder='full'"
        )
    return component


def decoder_tiles(decoder: str, size: tuple[int, int], bundle: Bundle) -> list[tuple[int, int]]:
    """Return the sizes of a decoder's graphs that are no larger than a picture, small ones first.

    The last one is the picture's own.
    """
    graphs = bundle.manifest.components[decoder].graphs
    fitting = {g.size for g in graphs if g.size and g.size[0] <= size[0] and g.size[1] <= size[1]}
    return sorted(fitting, key=lambda tile: (tile[0] * tile[1], tile))


def _decoder_tile(
    tile: Sequence[int] | None, decoder: str, size: tuple[int, int], bundle: Bundle
) -> tuple[int, int]:
    """The size of the decoder's graph: the picture's own, where no tile was asked for."""
    known = decoder_tiles(decoder, size, bundle)
    chosen = size if tile is None else tuple(tile)
    if chosen not in known:
        have = ", ".join(map(say_size, known))
        raise RequestError(
            f"bundle {bundle.manifest.name} has no {decoder} graph for tiles of "
            f"{'x'.join(map(str, chosen))} in a picture of {say_size(size)}; it has {have}. Ask "
            "for one of these, or export again with --decoder-tile"
        )
    return chosen
