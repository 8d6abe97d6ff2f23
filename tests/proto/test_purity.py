"""The protocol package does no I/O: it works in a process where nothing that could is imported."""

import subprocess
import sys

from tests.conftest import ROOT


def test_proto_imports_neither_io_nor_trio() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import nbdfs.nbd.proto.handshake, nbdfs.nbd.proto.transmission, nbdfs.nbd.proto.replies\n"
        "import nbdfs.nbd.proto.client_handshake\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(done.stdout.split())
    assert "nbdfs" in imported
    assert not imported & {"trio", "socket", "_socket", "ssl", "select", "selectors", "asyncio", "subprocess"}
