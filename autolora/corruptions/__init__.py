"""Common corruptions, Hendrycks' fifteen at five severities, each a function of (seed, image id).

Not here: what a network makes of them (attacks/corrupted.py).
May import: common.
"""
