"""What the C library does with memory that tensors on the CPU have given back."""

import ctypes

# glibc's malloc.h, and what it starts with.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_GIVE_BACK = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 128 * 1024}


def keep_freed_memory(enabled: bool = True) -> bool:
    """Let malloc keep large blocks that were freed for those that come next, or give them back again.

    Left to itself, glibc maps every block above 32 MiB anew and unmaps it when it is freed, so that the kernel clears
    each page again for each activation of each batch. Kept, the process holds on to its peak until it ends. Computes
    the same numbers.

    Returns:
        Whether it was done: not where malloc is not glibc's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # another C library, which has none; Windows has no program to ask
        return False
    options = _KEEP if enabled else _GIVE_BACK
    return all(mallopt(option, value) == 1 for option, value in options.items())
