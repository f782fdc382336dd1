#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vmm-top's numbers of a vmm-linux whose guest leaves a known number of times.

    top.py VMM_LINUX VMM_TOP

The guest is an ELF file with PVH's entry point: it writes 1,234 times to a port and 77 times to an address
where nothing is, reads 55 times from a port, and halts for good.
"""

import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import time

LOAD = 0x100_0000
CODE = bytes.fromhex(
    "b9d2040000"  # mov $1234, %ecx
    "e699"  # 1: out %al, $0x99
    "e2fc"  # loop 1b
    "b937000000"  # mov $55, %ecx
    "e49a"  # 1: in $0x9a, %al
    "e2fc"  # loop 1b
    "b94d000000"  # mov $77, %ecx
    "a2000000d0"  # 1: mov %al, 0xd0000000
    "e2f9"  # loop 1b
    "f4"  # hlt; interrupts are off
)
EXPECTED = {"port_write": 1234, "port_read": 55, "mmio_write": 77, "halt": 1}


def elf():
    """ELF64 with one segment at LOAD and Xen's note of its 32-bit entry point."""
    note = struct.pack("<IIII", 4, 4, 18, 0x006E6558) + struct.pack("<I", LOAD)
    headers = 64 + 2 * 56
    code_at = 0x1000
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, LOAD, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, code_at, LOAD, LOAD, len(CODE), len(CODE), 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, headers, 0, 0, len(note), len(note), 4)
    return (header + load + notes + note).ljust(code_at, b"\0") + CODE


def ask(top, arguments, environment):
    return subprocess.run([top, *arguments], env=environment, capture_output=True, text=True, timeout=20)


def main():
    linux, top = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, XDG_RUNTIME_DIR=folder)
        nobody = ask(top, ["--once"], environment)
        assert nobody.returncode == 1 and "no vmm-linux" in nobody.stderr, nobody
        kernel = pathlib.Path(folder, "kernel")
        kernel.write_bytes(elf())
        machine = subprocess.Popen(
            [linux, "--kernel", str(kernel), "--memory", "64M", "--engine", "soft"],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 20
            while True:
                raw = ask(top, ["--raw", str(machine.pid)], environment)
                seen = dict(re.findall(r'vmm_exit_reason_total{vcpu="0",reason="(\w+)"} (\d+)', raw.stdout))
                # The exit is counted before the vCPU sleeps.
                if seen.get("halt") == "1" and 'vmm_blocking{vcpu="0"} 1\n' in raw.stdout:
                    break
                assert machine.poll() is None, "the machine has ended"
                assert time.monotonic() < deadline, raw
                time.sleep(0.01)
            assert {k: int(v) for k, v in seen.items()} == EXPECTED, seen
            assert 'vmm_exits{vcpu="0"} %d\n' % sum(EXPECTED.values()) in raw.stdout, raw.stdout
            assert 'vmm_io_exits{vcpu="0"} 1289\n' in raw.stdout, raw.stdout
            table = ask(top, ["--once"], environment)
            assert re.search(r"^port_write +1234 ", table.stdout, re.MULTILINE), table
            assert re.search(r"^exits +1367$", table.stdout, re.MULTILINE), table
            many = [subprocess.Popen([top, "--raw"], env=environment, stdout=subprocess.DEVNULL) for _ in range(8)]
            assert all(each.wait(20) == 0 for each in many)
            wrong = ask(top, ["--once", "1"], environment)
            assert wrong.returncode == 1 and "no vmm-linux 1 runs" in wrong.stderr, wrong
        finally:
            machine.kill()
            machine.wait()
        # The socket of one that was killed is left, and is nobody's.
        dead = ask(top, ["--once", str(machine.pid)], environment)
        assert dead.returncode == 1 and "no vmm-linux" in dead.stderr, dead
        shared = pathlib.Path(folder, "vmm")
        shared.chmod(0o755)
        assert "no such folder" in ask(top, [], environment).stderr
    print("as expected")


main()
