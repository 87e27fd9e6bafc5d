"""Prompt to picture: encode the text, denoise the latents, decode them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgediffusion.bundle import Bundle
from edgediffusion.calls import EVERYWHERE, plan_calls
from edgediffusion.conditioning import LongPrompts, Syntax
from edgediffusion.denoiser import Denoiser
from edgediffusion.engine import Engine, EngineOptions
from edgediffusion.errors import Cancelled, EdgeDiffusionError, RequestError
from edgediffusion.image import require_finite, require_picture, to_pixels
from edgediffusion.manifest import PLAIN, variant_name
from edgediffusion.memory_limit import MemoryLimit, plan_memory
from edgediffusion.noise import NoiseSource, noise_source
from edgediffusion.options import read_config
from edgediffusion.request import TINY_DECODER, Plan, Request, plan_prompts, plan_request
from edgediffusion.residency import Residency, Residents, check_residency
from edgediffusion.result import Embeddings, Result, Step
from edgediffusion.samplers import trajectory
from edgediffusion.schedule import Schedule, schedule_from_config
from edgediffusion.start_image import encode_start
from edgediffusion.text_conditions import Reading, TextEncoders, silence, unet_rows
from edgediffusion.text_encoder import States, check_clip_skip
from edgediffusion.textual_inversion import TextualInversion
from edgediffusion.tiled_decoding import decode_all
from edgediffusion.timing import Stopwatch
from edgediffusion.unet import Unet

Float = NDArray[np.float32]


class Pipeline:
    """A bundle made ready to run on one device.

    Graphs load when they are first needed, and stay as the residency says, at most until ``close``.
    Calls from several threads queue; ``cancel`` may be called from any thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        options: EngineOptions,
        residency: str | None = None,
        max_memory: str | int | None = None,
    ) -> None:
        from edgediffusion.auto import Chooser  # it loads ONNX Runtime, which importing us must not

        self.bundle = bundle
        self._limit = None if max_memory is None else MemoryLimit.of(max_memory, residency)
        self._devices = Chooser(bundle, device, options, limited=self._limit is not None)
        self._residents = Residents(self._devices.open, check_residency(residency or "all", bundle))
        self._texts = TextEncoders(bundle, self._text_graph)
        self._streams: weakref.WeakSet[Generator[Step]] = weakref.WeakSet()
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._cancelled = threading.Event()

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int = 0,
        residency: str | None = None,
        max_memory: str | int | None = None,
    ) -> Self:
        """Open a bundle by path or name (None: the demo) on ``device``.

        residency : what stays in memory. ``all`` that was loaded, the default; ``one`` component
            at a time, loaded anew for each picture; ``stream``: also the UNet part by part, loaded
            anew at each step, for bundles that were exported with ``--split``.
        max_memory : the most bytes that the process shall take, like ``2GB``. Each request then
            gets the residency, and if need be the decoder's tiles, that stay within it, by an
            estimate for device ``cpu``; one that cannot is a RequestError.

        Raises a BundleError for a bundle that is missing or damaged, DeviceError for a device
        that cannot run it, RequestError for a residency that it cannot have.
        """
        options = EngineOptions(threads=threads)
        return cls(Bundle.open(bundle), device, options, residency, max_memory)

    @property
    def device(self) -> str:
        """The device that runs the graphs; ``a+b`` where ``auto`` had to take two."""
        return self._devices.device

    @property
    def device_reason(self) -> str:
        """Why it is this device: what ``auto`` chose by, proved, and passed over."""
        return self._devices.reason

    def generate(self, request: Request) -> Result:
        """Make the pictures of ``request``. Raises Cancelled after ``cancel``."""
        result = None
        for step in self.stream(request):
            result = step.result
        assert result is not None, "the last step carries the result"
        return result

    def stream(self, request: Request) -> Iterator[Step]:
        """Make the pictures of ``request``, yielding each step; the last one has ``.result``.

        Leaving the loop early abandons the run. The request is checked here, not at the first
        step.
        """
        plan = plan_request(request, self.bundle)
        residency = self._residents.residency
        if self._limit is not None:
            tiled = request.decoder_tile is not None
            memory = plan_memory(self.bundle, plan, self._limit, tiled=tiled)
            plan, residency = replace(plan, decoder_tile=memory.tile), memory.residency
        schedule = schedule_from_config(
            self.bundle.manifest.scheduler,
            steps=plan.steps,
            sampler=plan.sampler,
            spacing=plan.schedule,
            strength=plan.start.strength if plan.start else 1.0,
            **self._sampler_options(plan),
        )
        steps = self._run(plan, schedule, residency)
        self._streams.add(steps)
        return steps

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_syntax: Syntax = "plain",
        long_prompts: LongPrompts = "truncate",
        clip_skip: int | None = None,
        embeddings: Sequence[TextualInversion | str | os.PathLike[str]] = (),
    ) -> Embeddings:
        """Return the text embeddings of ``texts``, computed one by one.

        The options mean what they mean in ``Request``.
        """
        if isinstance(texts, str) or not texts:
            raise RequestError("embed takes a list of at least one text, e.g. embed(['a circle'])")
        options = plan_prompts(self.bundle, prompt_syntax, long_prompts, embeddings)
        skip = check_clip_skip("clip_skip", clip_skip, self.bundle)
        with self._my_turn():
            readings = [self._texts.read(text, options) for text in texts]
            chunks = max(reading.chunks for reading in readings)
            states = self._texts.encode(readings, chunks, [skip] * len(readings))
        hidden = np.concatenate([each.hidden for each in states])
        pooled = np.concatenate([each.pooled for each in states])
        return Embeddings(hidden, pooled, tuple(reading.dropped for reading in readings))

    def engine(
        self,
        component: str,
        batch: int = 1,
        size: tuple[int, int] | None = None,
        watch: Stopwatch | None = None,
        variant: str = PLAIN,
    ) -> Engine:
        """Return the graph of a component, loaded when needed and kept as the residency says.

        For benchmarks and tools; it is not guarded against a run in another thread.
        """
        spec = self.bundle.graph(component, batch=batch, size=size, variant=variant)
        return self._residents.get(spec, watch)

    def cancel(self) -> None:
        """Make the run in progress, if any, raise Cancelled at its next step."""
        self._cancelled.set()

    def close(self) -> None:
        """Free all graphs; abandons unfinished streams, waits for a call in progress."""
        for steps in list(self._streams):
            with suppress(ValueError):  # it is running in another thread: the lock waits for it
                steps.close()
        with self._my_turn():
            self._residents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sampler_options(self, plan: Plan) -> dict[str, Any]:
        """Fill in what the sampler wants to know besides the configuration."""
        known = read_config(self.bundle.manifest.scheduler, plan.sampler, {}).options
        options: dict[str, Any] = {}
        if plan.eta is not None or "eta" in known:  # diffusers' pipelines pass 0 to tcd, too
            options["eta"] = plan.eta or 0.0
        if "noise_sampler_seed" in known and known["noise_sampler_seed"] is None:
            alone = plan.noise_layout == "diffusers-batch"
            options["noise_sampler_seed"] = plan.seeds[0] if alone else plan.seeds
        if "noise_sampler_kind" in known:
            options["noise_sampler_kind"] = plan.noise
        return options

    def _run(self, plan: Plan, schedule: Schedule, residency: Residency) -> Generator[Step]:
        with self._my_turn():
            self._cancelled.clear()
            watch = Stopwatch()
            self._residents.begin(residency, {plan.size, plan.decoder_tile})
            states, truncated = self._encode(plan, watch)
            denoiser = self._denoiser(plan, schedule, states, watch)
            noise = noise_source(plan.seeds, plan.noise_layout, plan.noise)
            latent = self.bundle.manifest.latent
            sides = (side // latent.downsampling for side in plan.size)
            shape = (len(plan.seeds), latent.channels, *sides)
            start = self._encode_start(plan, noise, watch)
            steps = trajectory(schedule, denoiser, noise(shape), rng=noise, start=start)
            for state in watch.each(steps):
                self._check_cancelled()
                step = Step(
                    index=state.index,
                    total=state.total,
                    sigma=state.sigma,
                    latents=state.latents,
                    denoised=state.denoised,
                    _latent=latent,
                    _decode=partial(self._preview, plan.size),
                )
                if state.index + 1 < state.total:
                    yield step
            images = self._decode(plan, state.latents, watch)
            self._residents.rest()
            result = Result(
                images=images,
                latents=state.latents,
                request=_filled_in(plan, schedule),
                seeds=plan.seeds,
                truncated=truncated,
                dropped_options=schedule.dropped,
                device=self.device,
                arithmetic=self._devices.arithmetic,
                device_reason=self.device_reason,
                residency=residency,
                bundle=self.bundle.manifest.name,
                bundle_sha256=self.bundle.sha256,
                timings=watch.timings(unet_ms=denoiser.engine_ms),
            )
            yield replace(step, result=result)

    def _encode(self, plan: Plan, watch: Stopwatch) -> tuple[list[States], dict[str, str]]:
        """Return the states of the prompts, the negative one first, and what of them was cut."""
        conditioning = self.bundle.manifest.conditioning
        silent = plan.guided and not plan.negative and conditioning.zero_empty_negative
        texts = {"negative": plan.negative} if plan.guided and not silent else {}
        texts |= {"prompt": plan.prompt}
        skips = {"negative": plan.negative_clip_skip, "prompt": plan.clip_skip}
        with watch("tokenize"):
            readings = {
                name: self._texts.read(text, plan.prompt_options) for name, text in texts.items()
            }
        chunks = max(reading.chunks for reading in readings.values())
        self._check_chunks(chunks, readings)
        asked = [skips[name] for name in readings]
        states = self._texts.encode([*readings.values()], chunks, asked, watch)
        for each in states:
            for made in (each.hidden, each.pooled):
                require_finite(made, "text_encoder", "from the prompt")
        if silent:
            states = [silence(states[0]), *states]
        return states, {name: each.dropped for name, each in readings.items() if each.dropped}

    def _check_chunks(self, chunks: int, readings: dict[str, Reading]) -> None:
        variants = self.bundle.variants("unet")
        if variant_name(chunks=chunks) in variants:
            return
        most = max(n for n in range(1, chunks) if variant_name(chunks=n) in variants)
        longest = max(readings, key=lambda name: readings[name].chunks)
        raise RequestError(
            f"the {longest} takes {chunks} chunks of the text encoder, bundle "
            f"{self.bundle.manifest.name} has UNet graphs for at most {most}: make it shorter, use "
            f"long_prompts='truncate', or export again with --chunks {chunks}"
        )

    def _denoiser(
        self, plan: Plan, schedule: Schedule, states: Sequence[States], watch: Stopwatch
    ) -> Denoiser:
        levels = [row.level for row in schedule.rows]
        calls = plan_calls(levels, plan.savings, guided=len(states) == 2)
        chunks = states[0].hidden.shape[1] // self.bundle.manifest.tokenizer.length
        unets = {}
        for kind in dict.fromkeys(call.kind for call in calls):
            variant = variant_name(kind, chunks)
            counts = {2 if call.guided else 1 for call in calls if call.kind == kind}
            unets[kind] = Unet(
                {
                    batch: self.engine("unet", batch, plan.size, watch, variant)
                    for batch in self._unet_batches(counts, plan, variant)
                }
            )
        rows = unet_rows(states, plan.size, self.bundle.manifest.conditioning.recipe)
        return Denoiser(unets, calls, rows, plan.guidance, plan.guidance_rescale)

    def _unet_batches(self, counts: set[int], plan: Plan, variant: str) -> set[int]:
        """Choose graphs for calls of these many rows: two rows go through batch 1 if need be."""
        batches = self.bundle.batches("unet", plan.size, variant)
        chosen = {count if count in batches else 1 for count in counts}
        if not chosen <= batches:
            raise RequestError(
                f"bundle {self.bundle.manifest.name} has UNet graphs of batch "
                f"{', '.join(map(str, sorted(batches)))} only, a step without guidance needs "
                "batch 1: raise guidance above 1, leave guidance_interval and guidance_every out, "
                "or export again with --batch 1"
            )
        return chosen

    def _encode_start(self, plan: Plan, noise: NoiseSource, watch: Stopwatch) -> Float | None:
        """Bring the picture to begin from, if any, into the latents: one for each image."""
        if plan.start is None:
            return None
        engine = self.engine("vae_encoder", 1, plan.size, watch)
        count = len(plan.seeds)
        draws = 1 if plan.noise_layout == "diffusers-batch" else count
        with watch("vae_encoder"):
            start = encode_start(plan.start, engine, self.bundle.manifest.latent, noise, draws)
        return np.repeat(start, count // draws, axis=0)

    def _decode(self, plan: Plan, latents: Float, watch: Stopwatch) -> NDArray[np.uint8]:
        engine = self.engine(plan.decoder, 1, plan.decoder_tile, watch)
        latent = self.bundle.manifest.latent
        if plan.decoder == "vae_decoder":
            latents = latents / np.float32(latent.scaling_factor) + np.float32(latent.shift_factor)
        with watch(plan.decoder):
            decoded = decode_all(engine, latents)
        require_finite(decoded, plan.decoder, "from finite latents")
        images = to_pixels(decoded)
        require_picture(images, plan.decoder)
        return images

    def _preview(self, size: tuple[int, int], denoised: Float) -> NDArray[np.uint8]:
        """Decode a step's prediction with the tiny decoder."""
        residency = self._residents.residency
        if residency != "all":
            raise RequestError(
                "preview('tiny') keeps the tiny decoder in memory beside the UNet, which residency "
                f"{residency!r} has no room for: use preview(), or residency 'all'"
            )
        return to_pixels(decode_all(self.engine(TINY_DECODER, 1, size), denoised))

    def _text_graph(self, component: str, variant: str, watch: Stopwatch | None) -> Engine:
        return self.engine(component, watch=watch, variant=variant)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the run was cancelled")

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Queue for the pipeline; a call inside one's own unfinished stream is an error."""
        me = threading.get_ident()
        if self._owner == me:
            raise EdgeDiffusionError(
                "this thread is still inside a stream() of this pipeline: finish or close it "
                "before the next call, or open a second Pipeline"
            )
        with self._turn:
            self._owner = me
            try:
                yield
            finally:
                self._owner = None


def _filled_in(plan: Plan, schedule: Schedule) -> Request:
    interval = plan.savings.guidance_interval
    return Request(
        prompt=plan.prompt,
        negative=plan.negative,
        steps=plan.steps,
        guidance=plan.guidance,
        seed=plan.seeds[0] if len(plan.seeds) == 1 else plan.seeds,
        sampler=schedule.sampler,
        schedule=plan.schedule,
        batch=len(plan.seeds),
        size=plan.size,
        decoder_tile=None if plan.decoder_tile == plan.size else plan.decoder_tile,
        decoder="full" if plan.decoder == "vae_decoder" else "tiny",
        eta=plan.eta,
        guidance_rescale=plan.guidance_rescale,
        guidance_interval=None if interval == EVERYWHERE else interval,
        guidance_every=plan.savings.guidance_every,
        deepcache_interval=plan.savings.deepcache_interval,
        deepcache_start=plan.savings.deepcache_start,
        noise=plan.noise,
        noise_layout=plan.noise_layout,
        prompt_syntax=plan.prompt_options.syntax,
        long_prompts=plan.prompt_options.long_prompts,
        clip_skip=plan.clip_skip or None,
        negative_clip_skip=plan.negative_clip_skip or None,
        image=plan.start.origin if plan.start else None,
        strength=plan.start.strength if plan.start else None,
        embeddings=tuple(
            TextualInversion(each.file, each.name, each.sha256)
            for each in plan.prompt_options.embeddings
        ),
    )
