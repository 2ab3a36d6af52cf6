# SPDX-License-Identifier: Apache-2.0
"""The parts of ``tools/fuzz.py`` and ``tools/soak.py``: long searches for a wrong number.

cases (what is computed) → checks (what must hold) → drawn by hypothesis (fuzz) or listed to cover all pairs (soak).
"""
