"""CUDA as ONNX Runtime has it: its options, and whether it works here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnxruntime as ort

from shoal_server.inference.onnx_session import CPU_PROVIDER, Provider, brief

CUDA_PROVIDER = "CUDAExecutionProvider"

# Bits of the provider's option `sdpa_kernel`: all kernels of attention but cuDNN's (8).
# On Hopper and later the runtime would prefer that one, which makes a plan for every
# shape of a batch, once in every thread, while the callers of that batch wait.
_ATTENTION_WITHOUT_PLANS = 1 | 2 | 4 | 16 | 32 | 64


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """What ONNX Runtime's CUDA provider is told; see the settings of these names."""

    memory_limit_bytes: int | None
    arena_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"]
    cudnn_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]
    tf32: bool
    cudnn_attention: bool = False

    def for_gpu(self, index: int) -> dict[str, str]:
        """Options of the provider for one GPU."""
        options = {
            "device_id": str(index),
            "arena_extend_strategy": self.arena_strategy,
            "cudnn_conv_algo_search": self.cudnn_search,
            "use_tf32": "1" if self.tf32 else "0",
            # Else sums over a token's channels are kept in fp16 where the graph is.
            "enable_skip_layer_norm_strict_mode": "1",
        }
        if not self.cudnn_attention:
            options["sdpa_kernel"] = str(_ATTENTION_WITHOUT_PLANS)
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options

    def providers(self, index: int) -> list[Provider]:
        """What a session on one GPU is opened with."""
        return [(CUDA_PROVIDER, self.for_gpu(index)), CPU_PROVIDER]


def cuda_problem() -> str:
    """Why CUDA sessions can not be opened; empty when they can.

    The provider being compiled in says nothing of its libraries: only a session
    tells, so a graph of one node is opened.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()  # finds CUDA and cuDNN where pip put them
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            _graph_of_one_node(), sess_options=options, providers=[CUDA_PROVIDER]
        )
    except Exception as error:  # ONNX Runtime raises many unrelated types
        return f"ONNX Runtime can not use CUDA: {brief(error)}"
    if CUDA_PROVIDER not in session.get_providers():
        return "ONNX Runtime's CUDA libraries did not load (CUDA or cuDNN of another version?)"
    return ""


def _graph_of_one_node() -> bytes:
    # Only now: importing it takes longer than a server without GPUs should wait.
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_model(
        helper.make_graph([node], "probe", [value], [output]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    serialized: bytes = graph.SerializeToString()
    return serialized
