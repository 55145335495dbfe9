"""System calls that the kernel answers with an error: a seccomp filter on this process."""

import ctypes
import os
import platform
import struct

_X86 = platform.machine() == "x86_64"
FCNTL, PWRITE, FSYNC = (72, 18, 74) if _X86 else (25, 68, 82)  # asm/unistd.h
FIRST, SECOND = 16, 24  # where struct seccomp_data holds an argument


def refuse(call, error, *, argument=FIRST, value=None):
    """Make the kernel answer a system call of this process with an error.

    For ever, so in a child; only calls whose argument has that value, if one is given. Threads
    that run already are filtered too.
    """
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ, BPF_RET
    filters = [(load, 0, 0, 0), (equal, 0, 3 if value is not None else 1, call)]
    if value is not None:
        filters += [(load, 0, 0, argument), (equal, 0, 1, value)]
    filters += [(answer, 0, 0, 0x50000 | error), (answer, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    number = 317 if _X86 else 277  # seccomp(2): SECCOMP_SET_MODE_FILTER, with FLAG_TSYNC
    assert libc.syscall(number, 1, 1, program) == 0, os.strerror(ctypes.get_errno())
