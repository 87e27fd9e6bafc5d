"""A session of ONNX Runtime whose inputs and outputs keep their buffers on the device.

A graph of CUDA calls, once captured, reads and writes the addresses that it was captured with. So
the buffers are made once, and a call copies all inputs into them and the outputs out of them. A
guided step of Stable Diffusion 1.5 at 512x512 in fp16 moves 64 KiB of latents each way, and 231 KiB
of text states up (SDXL: 616 KiB). The states are the same in each step, and whether it pays to look
before copying them only a GPU can tell: benchmarks/gpu.py holds calls to ``replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgediffusion.engine import Arithmetic
from edgediffusion.manifest import GraphSpec, TensorSpec

GRAPH_ID: Final = "gpu_graph_id"
NO_CAPTURE: Final = "-1"
"""The id under which a call is neither captured nor replayed."""

Array = NDArray[np.generic]
Explain = Callable[[Exception], Exception]


class BoundBackend:
    """A session bound to buffers of ``place`` (``cpu`` or ``cuda``), which this object owns.

    explain : turns what ONNX Runtime raises into the error that the caller gets.
    """

    build: None = None
    """cuDNN times its kernels at each opening, and none of that is kept."""

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        arithmetic: Arithmetic,
        place: str,
        explain: Explain,
    ) -> None:
        self.arithmetic = arithmetic
        self._explain = explain
        self._session = session
        self._binding = session.io_binding()
        self._inputs = {each.name: self._buffer(each, place) for each in spec.inputs}
        self._outputs = [self._buffer(each, place) for each in spec.outputs]
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for tensor, value in zip(spec.outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(tensor.name, value)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Compute all outputs; the arrays are the caller's."""
        return self._run(inputs, None)

    def replay(self) -> None:
        """Compute on what the buffers hold, and leave the outputs there."""
        with self._explained():
            self._session.run_with_iobinding(self._binding, None)

    def warm_up(self, *, capture: bool) -> None:
        """Run once on zeros, so that kernels are chosen and memory is taken; then capture.

        The run before is one of its own: cuDNN's search for the fastest kernels and the growing of
        the arena must not be captured.
        """
        zeros = {name: np.zeros_like(value.numpy()) for name, value in self._inputs.items()}
        first = ort.RunOptions()
        first.add_run_config_entry(GRAPH_ID, NO_CAPTURE)
        self._run(zeros, first)
        if capture:
            self._run(zeros, None)

    def rest(self) -> None:
        """Buffers stay where they are: a captured run works in them."""

    def close(self) -> None:
        """Free the buffers and the session."""
        self._inputs.clear()
        self._outputs.clear()
        del self._binding, self._session

    def _run(self, inputs: Mapping[str, Array], options: ort.RunOptions | None) -> list[Array]:
        with self._explained():
            for name, array in inputs.items():
                self._inputs[name].update_inplace(array)
            self._session.run_with_iobinding(self._binding, options)
            return [np.array(value.numpy()) for value in self._outputs]

    def _buffer(self, tensor: TensorSpec, place: str) -> Any:
        with self._explained():
            return ort.OrtValue.ortvalue_from_shape_and_type(
                list(tensor.shape), np.dtype(tensor.dtype).type, place, 0
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise self._explain(error) from error
