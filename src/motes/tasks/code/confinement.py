"""Takes rights from this process, for good, before it runs a program that nobody has read.

    another user     if this process is root: it becomes "nobody", who owns nothing and may signal nobody.
    limits           of memory, processor time, a file's size and open files; no further process or thread.
    Landlock         Linux 5.13 and later: it reads Python's own folders and the system's libraries, writes to its own
                     folder, and sees no other file.
    seccomp          Linux on x86-64 and ARM64: no sockets, no signals, no processes, no other program, no tracing, no
                     namespaces.
    namespaces       Linux on other machines, if this process is root or users may have them: no network device, no
                     shared memory of others.

Each layer is used if the system has it (`available`), and is effective without the others. This module imports nothing
of motes, since the sandbox's own process loads it as a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_UNSHARE_USER, _UNSHARE_NET, _UNSHARE_IPC = 0x10000000, 0x40000000, 0x08000000
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 22, 38


@dataclass(frozen=True)
class Limits:
    """Limits of what a program may use.

    Attributes:
        seconds: of processor time.
        patience: seconds of wall-clock time.
        memory: bytes of address space.
        file_bytes: size of one file.
        total_bytes: size of all files, checked every 50 ms.
        files: number of files, checked every 50 ms.
        open_files: number of files that are open at once.
    """

    seconds: int = 10
    patience: float = 30.0
    memory: int = 1 << 30
    file_bytes: int = 1 << 20
    total_bytes: int = 16 << 20
    files: int = 64
    open_files: int = 32


@dataclass(frozen=True)
class Layers:
    """The layers that this system has, besides the limits."""

    other_user: bool
    landlock: bool
    seccomp: bool

    @property
    def protect_the_user(self) -> bool:
        """Whether a program can neither change files of this user nor end processes of this user."""
        return self.other_user or (self.landlock and self.seccomp)


def available() -> Layers:
    """The layers of this system."""
    linux = sys.platform == "linux"
    return Layers(
        other_user=hasattr(os, "geteuid") and os.geteuid() == 0 and nobody() is not None,
        landlock=linux and _landlock_version() > 0,
        seccomp=linux and platform.machine() in _ARCHITECTURES,
    )


def confine(limits: Limits, *, readable: Iterable[str], writable: str | None) -> None:
    """Put this process under every layer there is. It must have one thread, and all files open that it needs. It may
    read and load libraries from `readable` folders. Raises OSError if a layer that this system has fails."""
    import resource

    layers = available()
    identity = nobody() if layers.other_user else None  # read before the limits, which could prevent that
    if sys.platform == "linux" and not layers.seccomp:
        _unshare(is_root=os.geteuid() == 0)
    values = {"AS": limits.memory, "CPU": limits.seconds, "FSIZE": limits.file_bytes, "NOFILE": limits.open_files}
    for name, value in (values | dict.fromkeys(("CORE", "MEMLOCK", "MSGQUEUE", "NPROC"), 0)).items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # some systems do not have it
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if identity is not None:
        os.setgroups([])
        os.setgid(identity[1])
        os.setuid(identity[0])
    os.umask(0o077)
    if sys.platform == "linux":
        _prctl(_SET_NO_NEW_PRIVS, 1)
        _prctl(_SET_DUMPABLE, 0)  # no process of the same user reads its memory
        _prctl(_SET_PDEATHSIG, 9)
    if layers.landlock:
        _restrict_files(readable, writable)
    if layers.seccomp:
        _restrict_system_calls()


def nobody() -> tuple[int, int] | None:
    """The user and the group that own nothing."""
    try:
        import pwd

        entry = pwd.getpwnam("nobody")
    except (ImportError, KeyError):
        return None
    return entry.pw_uid, entry.pw_gid


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: object) -> int:
    return _check(_libc().syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def _prctl(option: int, argument: object, further: object = None) -> None:
    _check(_libc().prctl(option, argument, further, None, None), f"prctl {option}")


def _check(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def _unshare(*, is_root: bool) -> None:
    """Enter a network without devices, if possible: for machines whose system calls are not listed below."""
    _libc().unshare(_UNSHARE_NET | _UNSHARE_IPC | (0 if is_root else _UNSHARE_USER))


# Landlock: https://docs.kernel.org/userspace-api/landlock.html

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_REMOVE, _MAKE = 1 << 4 | 1 << 5, 1 << 7 | 1 << 8  # folders and files; neither devices, sockets nor links
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of bits of the rights to files, by version; 16 in later versions."""
_RULESET_BYTES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
"""Size of a ruleset, by version; 24 in later versions. Larger ones restrict TCP connections and scopes, too."""


def _landlock_version() -> int:
    try:
        return _system_call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def _restrict_files(readable: Iterable[str], writable: str | None) -> None:
    """Allow no other files than these and three devices; in later versions no connections, no signals to others."""
    version = _landlock_version()
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    ruleset = struct.pack("=QQQ", rights, 0b11, 0b11)[: _RULESET_BYTES.get(version, 24)]
    descriptor = _system_call(_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), ctypes.c_uint32(0))
    paths = dict.fromkeys(readable, _EXECUTE | _READ_FILE | _READ_DIR)
    paths |= dict.fromkeys(("/dev/null", "/dev/zero", "/dev/urandom"), _READ_FILE | _WRITE_FILE | _TRUNCATE)
    if writable is not None:
        paths[writable] = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _REMOVE | _MAKE
    for path, granted in paths.items():
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # it does not exist, or this user cannot reach it
            continue
        if not stat.S_ISDIR(os.fstat(folder).st_mode):
            granted &= ~_READ_DIR
        rule = struct.pack("=Qi", granted & rights, folder)
        _system_call(_ADD_RULE, ctypes.c_int(descriptor), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        os.close(folder)
    _system_call(_RESTRICT_SELF, ctypes.c_int(descriptor), ctypes.c_uint32(0))
    os.close(descriptor)


# seccomp: https://docs.kernel.org/userspace-api/seccomp_filter.html

_ARCHITECTURES: Mapping[str, tuple[int, int]] = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's constant for a machine, and the column with its numbers of system calls below."""
_FORBIDDEN: Mapping[str, tuple[int, int]] = {
    # name: (x86-64, ARM64); -1: it does not exist there
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "perf_event_open": (298, 241),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "setrlimit": (160, 164),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    # calls that Landlock allows the owner of a file, at least in its first versions
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1),
    "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "truncate": (76, 45),
    "link": (86, -1), "linkat": (265, 37),
    "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "io_setup": (206, 0),
}  # fmt: skip
_FORBIDDEN_ARGUMENTS: Mapping[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "fcntl": ((72, 25), (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX: the kernel signals in a process's name
    "ioctl": ((16, 29), (0x8901, 0x8902, 0x5412)),  # FIOSETOWN, SIOCSPGRP: the same; TIOCSTI: types on a terminal
}
"""System calls that are forbidden with some values of their second argument."""
_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_KILL, _ALLOW, _DENY = 0x80000000, 0x7FFF0000, 0x00050001  # the last: EPERM


def _restrict_system_calls() -> None:
    architecture, column = _ARCHITECTURES[platform.machine()]
    program = [
        (_LOAD, 0, 0, 4), (_EQUALS, 1, 0, architecture), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL),  # another numbering of x86-64's calls
    ]  # fmt: skip
    for number in (pair[column] for pair in _FORBIDDEN.values()):
        if number >= 0:
            program += [(_EQUALS, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for numbers, requests in _FORBIDDEN_ARGUMENTS.values():
        checks = [(_LOAD, 0, 0, 24)]
        for request in requests:
            checks += [(_EQUALS, 0, 1, request), (_RETURN, 0, 0, _DENY)]
        program += [(_EQUALS, 0, len(checks) + 1, numbers[column]), *checks, (_RETURN, 0, 0, _ALLOW)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    description = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    _prctl(_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(description)))
