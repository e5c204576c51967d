# SPDX-License-Identifier: BSD-2-Clause-Patent
"""The switch of an emulated box, as the command that labgrid's ExternalPowerDriver calls.

It imports nothing that takes time: `python -m hvtools.lab.power SOCKET BOX on|off`.
"""

import os
import socket
import sys
from pathlib import Path


def ask(path: Path, line: str) -> str:
    """Send a line to the rack that listens at `path`, and give what it answers."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)  # an address holds 107 characters (unix(7))
    with socket.socket(socket.AF_UNIX) as rack:
        rack.connect(f"/proc/self/fd/{folder}/{path.name}")
        rack.sendall(f"{line}\n".encode())
        return rack.makefile().readline().strip()


def main() -> int:
    """Switch a box; 0 when it is done."""
    try:
        answer = ask(Path(sys.argv[1]), " ".join(sys.argv[2:]))
    except (IndexError, OSError) as error:
        answer = f"the rack does not answer: {error}"
    if answer != "ok":
        print(f"power: {answer or 'the rack is gone'}", file=sys.stderr)
    return answer != "ok"


if __name__ == "__main__":
    sys.exit(main())
