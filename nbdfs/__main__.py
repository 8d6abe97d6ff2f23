"""The `nbdfs` command, and ``python -m nbdfs``."""

import sys


def main() -> int:
    """Run the command; give its exit status.

    A Ctrl-C that comes while it is loaded ends it at once: an exception in the middle of an import may be lost.
    """
    try:
        import os
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until the command runs, see nbdfs.cli.main
    except KeyboardInterrupt:
        return 130
    from nbdfs.cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
