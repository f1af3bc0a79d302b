"""Runs inside the new process, before the code: gives up rights, then becomes a fresh interpreter.

As root it becomes another user; an interpreter that lies in a folder closed to that user is shown to it, read-only, at
another place of a private mount namespace. Started as `python -I -S launcher.py JSON`; imports the standard library
only. Ends with code 125 when a step is not permitted, so that nothing runs with more rights than asked for.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

__all__ = ["main"]

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWIPC = (
    0x00020000,
    0x10000000,
    0x40000000,
    0x20000000,
    0x08000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
REFUSED = 125


def main(argument: str) -> None:
    settings = json.loads(argument)
    libc = ctypes.CDLL(None, use_errno=True)
    if settings["show"]:
        _show(libc, *(path.encode() for path in settings["show"]))
    if settings["user"]:
        os.setgroups([])
        os.setresgid(settings["user"], settings["user"], settings["user"])
        os.setresuid(settings["user"], settings["user"], settings["user"])
    _need(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0, "parent-death signal")
    _need(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges")
    if settings["namespaces"]:
        _need(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC) == 0, "namespaces")
        _wait_for_child()  # the first child is process 1 of the new namespace; when it ends, all in there end
        _wait_for_child()  # its child runs the code, since process 1 cannot be stopped by most signals
    for name, value in settings["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    os.execve(settings["python"], [settings["python"], "-I", "-S", settings["code"]], settings["environment"])


def _show(libc: ctypes.CDLL, source: bytes, place: bytes) -> None:
    """Mount a folder read-only at another place, for this process and its children alone."""
    _need(libc.unshare(CLONE_NEWNS) == 0, "mount namespace")
    _need(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0, "private mounts")
    _need(libc.mount(source, place, None, MS_BIND, None) == 0, "bind mount")
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV
    _need(libc.mount(None, place, None, flags, None) == 0, "read-only mount")


def _need(done: bool, what: str) -> None:
    if not done:
        print(f"sandbox: {what} not permitted", file=sys.stderr)
        os._exit(REFUSED)


def _wait_for_child() -> None:
    """Fork; the parent waits and ends as the child ended, the child goes on."""
    child = os.fork()
    if child == 0:
        return
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        _need(False, str(error))
