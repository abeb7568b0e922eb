"""Memory that is kept between batches."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from cifargan import malloc

LARGE_BLOCK = """
import ctypes
import sys
from cifargan.malloc import keep_freed_memory
if sys.argv[1:]:
    assert keep_freed_memory()
if "back" in sys.argv:
    assert keep_freed_memory(False)
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_size_t, [ctypes.c_size_t]
address = malloc(2**26)
ends = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
print(any(int(begin, 16) <= address < int(end, 16) for begin, end in ends))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("arguments", "on_heap"), [([], "False"), (["keep"], "True"), (["keep", "back"], "False")])
def test_large_blocks_come_from_the_heap_that_is_kept(arguments: list[str], on_heap: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", LARGE_BLOCK, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.strip() == on_heap


@pytest.mark.parametrize("error", [AttributeError, TypeError, OSError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert malloc.keep_freed_memory() is False
