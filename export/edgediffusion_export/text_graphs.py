"""What the graphs of CLIP's text encoders trace: their states, and one pooled vector a text.

Stable Diffusion 1 and 2 take the last layer's states behind the final norm; SDXL takes those of the
layer before, as they are. Counted from there, ``skip_states[:, n]`` are the states without the
last n layers.
"""

from __future__ import annotations

from typing import Any

import torch


def encode_text(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's states of a CLIPTextModel, and the pooled vector."""
    out = model(input_ids=input_ids)
    return out.last_hidden_state, out.pooler_output


def encode_penultimate(model: Any, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states that enter the last layer, and the pooled vector, projected if the model does."""
    out = model(input_ids=input_ids, output_hidden_states=True)
    return out.hidden_states[-2], out.text_embeds if _projects(model) else out.pooler_output


def encode_prompt(
    model: Any, input_ids: torch.Tensor, extra: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The text encoder with rows of ``extra`` for ids below 0, and the states of all layers.

    Each state is the final norm of what the encoder gives without its last n layers.
    """
    states = _layer_by_layer(model, input_ids, extra)
    skipped = [_text(model).final_layer_norm(each) for each in reversed(states)]
    return torch.stack(skipped, dim=1), _pool(model, skipped[0], input_ids)


def encode_prompt_penultimate(
    model: Any, input_ids: torch.Tensor, extra: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for SDXL: without the norm, and beginning before the last layer."""
    states = _layer_by_layer(model, input_ids, extra)
    pooled = _pool(model, _text(model).final_layer_norm(states[-1]), input_ids)
    return torch.stack(states[-2::-1], dim=1), pooled


def _layer_by_layer(model: Any, input_ids: torch.Tensor, extra: torch.Tensor) -> list[torch.Tensor]:
    """What CLIPTextModel.forward does, which takes ids only: what enters, and each layer's states.

    Row i of ``extra`` stands in for id -1 - i.
    """
    text = _text(model)
    rows = torch.where(input_ids < 0, -1 - input_ids, 0)
    learned = torch.nn.functional.embedding(rows, extra)
    token = text.embeddings.token_embedding(_known(input_ids))
    hidden = text.embeddings(
        inputs_embeds=torch.where((input_ids < 0).unsqueeze(-1), learned, token)
    )
    count = input_ids.shape[-1]
    causal = torch.full((count, count), float("-inf"), dtype=hidden.dtype).triu(1)[None, None]
    states = [hidden]
    for layer in text.encoder.layers:
        made = layer(hidden, causal)
        hidden = made[0] if isinstance(made, tuple) else made
        states.append(hidden)
    return states


def _pool(model: Any, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    pooled = states[:, _end(model, _known(input_ids))[0]]
    projected: torch.Tensor = model.text_projection(pooled) if _projects(model) else pooled
    return projected


def _end(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Where a text ends, which CLIPTextModel pools. Files of before 2023 say 2 for the largest."""
    end = model.config.eos_token_id
    return (ids if end == 2 else (ids == end)).int().argmax(dim=-1)


def _known(ids: torch.Tensor) -> torch.Tensor:
    """The ids with a token in place of each row from outside."""
    return torch.where(ids < 0, 0, ids)


def _text(model: Any) -> Any:
    """The layers: in a wrapper of models that project, and of earlier versions of transformers."""
    return getattr(model, "text_model", model)


def _projects(model: Any) -> bool:
    return hasattr(model, "text_projection")
