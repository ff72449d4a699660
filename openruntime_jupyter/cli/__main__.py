"""Entry point of `python -m openruntime_jupyter.cli`, which runs `jupyter openruntime` with this interpreter."""

from __future__ import annotations

import sys

from openruntime_jupyter.cli import main

sys.exit(main())
