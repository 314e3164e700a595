"""`python -m fastvideo.entrypoints.cli`, the same as `fastvideo`."""

import sys

from fastvideo.entrypoints.cli.main import main

sys.exit(main())
