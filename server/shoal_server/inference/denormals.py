"""Numbers too small to matter, at the price of ordinary ones.

Attention gives masked places e^-88 in place of nothing, a number below float32's normal
range, and x86 CPUs take a hundred times as long for a product with such a one as for any
other. A batch of texts of unlike length is full of them: with denormals a run of 16 texts of 6
to 256 tokens takes 1.4 times as long (docs/performance.md). Counted as zero they change no
bit of a vector: they are added to numbers that are 10^30 times as large.
"""

from __future__ import annotations

import ctypes
import platform
import sys

# fenv_t of Linux on x86-64 (glibc, musl): seven words of the x87 unit, then MXCSR.
_WORDS, _MXCSR = 8, 7
_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 1 << 15, 1 << 6


def flush_denormals() -> None:
    """From now on, this thread counts denormal numbers as zero, where it is known how.

    It holds for the thread alone. ONNX Runtime does the same for threads of its own
    (`session.set_denormal_as_zero`), but not for those that call it.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return  # other CPUs are not known to be slow at them
    try:
        library = ctypes.CDLL("libm.so.6")
        state = (ctypes.c_uint32 * _WORDS)()
        if library.fegetenv(ctypes.byref(state)) == 0:
            state[_MXCSR] |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
            library.fesetenv(ctypes.byref(state))
    except (OSError, AttributeError):  # another C library
        return
