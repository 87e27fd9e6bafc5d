"""What the steps of one export share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgediffusion.manifest import DEEP, SHALLOW, TEXT_ENCODERS, GraphSpec, Precision, Recipe
from edgediffusion.tokenizer import Tokenizer
from edgediffusion_export.architecture import check_decoder_tile, check_size, check_tiles
from edgediffusion_export.bundle import Staging
from edgediffusion_export.graphs import DECODERS, NETWORKS_OF, Network, graph_specs
from edgediffusion_export.options import INT8, ExportOptions
from edgediffusion_export.plans import check_target, plan_groups
from edgediffusion_export.source import Checkpoint
from edgediffusion_export.tiling import tiled

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Hears what is done next, how many steps are done, and how many there are."""

_OWN_STEPS = 1
_STEPS_PER_NETWORK = 3
_STEPS_PER_GRAPH = 2


class Job:
    """One export: what was asked, the checkpoint, where files go, and what flows between networks.

    tokenizers : the runtime's, of this checkpoint's text encoders by name.
    token_ids : the golden prompts as each text encoder gets them.
    text_rows : what the text encoders make of them, by the UNet's inputs; it is measured with that.
    embedding_scale : the root mean square of the latest text encoder's token embeddings.
    deep_scale : the root mean square of the features that DeepCache keeps.
    latent_rgb : the fit for previews, once the VAE encoder was there.
    done : how many steps are behind; a network that is exported again sets it back.
    """

    def __init__(
        self,
        options: ExportOptions,
        checkpoint: Checkpoint,
        staging: Staging,
        progress: Progress | None = None,
    ) -> None:
        self.options = options
        self.checkpoint = checkpoint
        self.architecture = checkpoint.architecture
        self.staging = staging
        self.sizes = tuple(dict.fromkeys(options.sizes or (self.architecture.default_size,)))
        for size in self.sizes:
            check_size(size, self.architecture)
            check_tiles(size, options.attention_tiles, self.architecture)
        for tile in options.decoder_tiles:
            check_decoder_tile(tile, self.sizes, self.architecture)
        self.networks = tuple(
            _wanted(network, options)
            for network in NETWORKS_OF[checkpoint.family]
            if network.part in checkpoint.parts
        )
        self.tokenizers: dict[str, Tokenizer] = {}
        self.token_ids: dict[str, list[NDArray[np.int64]]] = {}
        self.text_rows: dict[str, Floats] = {}
        self.embedding_scale = 0.0
        self.deep_scale = 0.0
        self.latent_rgb: tuple[tuple[float, float, float], ...] = ()
        self._progress = progress or (lambda what, done, total: None)
        self.done = 0
        graphs = sum(len(self.specs(network, "fp32")) for network in self.networks)
        per_network = _STEPS_PER_NETWORK * len(self.networks)
        check_target(options)
        self.plan_groups = plan_groups(options)
        own = _OWN_STEPS + (options.precision == INT8)
        per_graph = _STEPS_PER_GRAPH + bool(self.plan_groups)
        self._total = own + per_network + per_graph * graphs

    def specs(self, network: Network, precision: Precision) -> list[GraphSpec]:
        """The graphs that a network gets."""
        batches = sorted(set(self.options.batches))
        tiles = self.options.decoder_tiles if network.name in DECODERS else ()
        sizes = tuple(dict.fromkeys((*self.sizes, *tiles)))
        return list(
            graph_specs(network, self.architecture, sizes, batches, precision, self.options.chunks)
        )

    def tokenize(self, text: str, encoder: str) -> NDArray[np.int64]:
        """The ids of a text as a text encoder gets them."""
        return self.tokenizers[encoder].encode(text).ids

    def text_encoders(self) -> list[Network]:
        """Those networks that read prompts, in order."""
        return [network for network in self.networks if network.name in TEXT_ENCODERS]

    @property
    def recipe(self) -> Recipe:
        """How the text reaches the UNet."""
        return "clip" if len(self.architecture.texts) == 1 else "clip-pair"

    def begin(self, what: str) -> None:
        """Tell the caller what happens next."""
        self._progress(what, self.done, self._total)
        self.done += 1


def _wanted(network: Network, options: ExportOptions) -> Network:
    """Leave out the graphs that nobody asked for, and cut the UNet's attention into tiles."""
    if not options.deepcache:
        kept = tuple(other for other in network.other if other.name not in (DEEP, SHALLOW))
        network = replace(network, other=kept)
    if network.name != "unet" or options.attention_tiles == 1:
        return network
    kinds = [replace(n, call=tiled(n.call, options.attention_tiles)) for n in network.other]
    return replace(network, call=tiled(network.call, options.attention_tiles), other=tuple(kinds))
