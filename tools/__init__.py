# SPDX-License-Identifier: Apache-2.0
"""Scripts around the generator; a package so that tests can import what stands beside them."""
