# SPDX-License-Identifier: Apache-2.0
"""The parts of ``tools/train_pixels.py``: a small diffusion transformer on single pixels, trained with LLSA.

photos → crops as tokens in Morton order → flow matching with a transformer → held-out losses, curves, samples.
"""
