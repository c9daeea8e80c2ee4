"""Where a fine-tune forgot: its forgetting and its gain split exactly over the parts of its update.

This folder differentiates losses along the straight path from base to tuned weights. It writes no model.
"""

from __future__ import annotations
