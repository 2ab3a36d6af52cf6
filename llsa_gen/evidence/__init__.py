# SPDX-License-Identifier: Apache-2.0
"""Evidence from a machine with a GPU: correctness, speed and tuning in one run within a time budget, as one record."""
