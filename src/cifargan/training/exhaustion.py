"""How to tell that memory ran out. Needs no torch, so that a command that needs none stays quick."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no memory left; torch has no exception for the host."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
