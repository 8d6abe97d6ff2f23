"""``python -m nbdfs``."""

import sys

from nbdfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
