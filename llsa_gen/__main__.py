# SPDX-License-Identifier: Apache-2.0
"""``python -m llsa_gen`` is the command ``llsa-gen``."""

from llsa_gen.cli import main

if __name__ == "__main__":
    main()
