"""DeepCache: the UNet as two graphs, of which the second takes most of its work from the first.

Ma et al. 2023, arXiv:2312.00858: between two steps the features deep inside the UNet hardly change.
The ``deep`` graph computes everything and gives out, beside the prediction, what enters the last
layer of the last up block; the ``shallow`` graph takes that in place of all the work that leads
there, and computes that layer and the two ends of the network anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def added_conditions(*pooled_and_size: torch.Tensor) -> dict[str, torch.Tensor]:
    """Name what SDXL's UNet takes besides text states; others take nothing."""
    return dict(zip(("text_embeds", "time_ids"), pooled_and_size, strict=False))


def denoise_deep(
    unet: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    *pooled_and_size: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What UNet2DConditionModel.forward computes, and the features before its last layer.

    Returns the prediction and features of shape (batch, width of the first block, h, w).
    """
    embedding, hidden = _enter(unet, sample, timestep, text, pooled_and_size)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, outputs = _run(block, hidden, embedding, text)
        skips += outputs
    if unet.mid_block is not None:
        hidden = _run(unet.mid_block, hidden, embedding, text)
    *blocks, last = unet.up_blocks
    for block in blocks:
        taken = tuple(skips[-len(block.resnets) :])
        del skips[-len(block.resnets) :]
        hidden = _run(block, hidden, embedding, text, res_hidden_states_tuple=taken)
    for layer in range(len(last.resnets) - 1):
        hidden = _layer(last, layer, torch.cat([hidden, skips.pop()], dim=1), embedding, text)
    return _leave(unet, hidden, skips.pop(), embedding, text), hidden


def denoise_shallow(
    unet: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    *others: torch.Tensor,
) -> torch.Tensor:
    """The same, with the features that `denoise_deep` gave at an earlier step as the last input."""
    *pooled_and_size, features = others
    embedding, skip = _enter(unet, sample, timestep, text, pooled_and_size)
    return _leave(unet, features, skip, embedding, text)


def _enter(
    unet: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    pooled_and_size: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedding of the timestep, and the first convolution, whose output is the last skip."""
    embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
    added = unet.get_aug_embed(
        emb=embedding,
        encoder_hidden_states=text,
        added_cond_kwargs=added_conditions(*pooled_and_size),
    )
    return embedding if added is None else embedding + added, unet.conv_in(sample)


def _leave(
    unet: Any,
    hidden: torch.Tensor,
    skip: torch.Tensor,
    embedding: torch.Tensor,
    text: torch.Tensor,
) -> torch.Tensor:
    """The last layer and all that comes after it."""
    last = unet.up_blocks[-1]
    joined = torch.cat([hidden, skip], dim=1)
    hidden = _layer(last, len(last.resnets) - 1, joined, embedding, text)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    predicted: torch.Tensor = unet.conv_out(hidden)
    return predicted


def _layer(
    block: Any, index: int, hidden: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """One layer of a block: a ResNet, and a transformer where the block has them."""
    hidden = block.resnets[index](hidden, embedding)
    if _reads_text(block):
        hidden = block.attentions[index](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return hidden


def _run(
    block: Any, hidden: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor, **more: Any
) -> Any:
    if _reads_text(block):
        more["encoder_hidden_states"] = text
    return block(hidden, temb=embedding, **more)


def _reads_text(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))
