"""Keep freed memory in glibc's heap (mallopt)."""

import ctypes

# Options of glibc's malloc.h, and glibc's defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_RETURN = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 1024}


def keep_freed_memory(enabled: bool = True) -> bool:
    """Let malloc keep large freed blocks for the next allocation, or return them to the system again.

    By default glibc maps every block above 32 MiB and unmaps it when it is freed, so the kernel clears its pages again
    for each activation of each batch. With this option the process keeps its peak memory until it ends. The results of
    computations do not change.

    Returns:
        Whether it was done; False if malloc is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library; on Windows CDLL(None) fails
        return False
    return all(mallopt(option, value) == 1 for option, value in (_KEEP if enabled else _RETURN).items())
