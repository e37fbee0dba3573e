"""What ONNX Runtime's CUDA provider is told, and how it is found out whether it works."""

from __future__ import annotations

import pytest

from shoal_server.inference.cuda import CUDA_PROVIDER, CudaOptions, cuda_problem
from shoal_server.inference.onnx_session import CPU_PROVIDER
from tests.running import without_gpu

from .graphs import CUDA

_CUDNN_ATTENTION = 8  # its bit in `sdpa_kernel`


def test_options_are_what_the_runtime_calls_them() -> None:
    """Each setting under ONNX Runtime's name for it; no limit is no option."""
    options = CUDA.for_gpu(2)
    assert options["device_id"] == "2"
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["use_tf32"] == "0"
    assert "gpu_mem_limit" not in options
    limited = CudaOptions(1 << 30, "kNextPowerOfTwo", "DEFAULT", tf32=True).for_gpu(0)
    assert limited["gpu_mem_limit"] == str(1 << 30)
    assert limited["use_tf32"] == "1"


@pytest.mark.parametrize("wanted", [False, True])
def test_attention_that_plans_for_each_shape_must_be_asked_for(wanted: bool) -> None:
    """Without it some kernel is left; with it the runtime chooses among all."""
    options = CudaOptions(
        None, "kSameAsRequested", "HEURISTIC", tf32=False, cudnn_attention=wanted
    ).for_gpu(0)
    if wanted:
        assert "sdpa_kernel" not in options
    else:
        assert int(options["sdpa_kernel"]) > 0
        assert int(options["sdpa_kernel"]) & _CUDNN_ATTENTION == 0


def test_what_cuda_can_not_run_the_cpu_runs() -> None:
    """The GPU comes first, and nodes without a kernel there have another provider."""
    assert CUDA.providers(1) == [(CUDA_PROVIDER, CUDA.for_gpu(1)), CPU_PROVIDER]


@without_gpu
def test_the_cpu_build_says_that_it_has_no_cuda() -> None:
    """A session is tried; the runtime would otherwise fall back without a word."""
    assert cuda_problem() != ""
