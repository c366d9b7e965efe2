"""Common corruptions, Hendrycks' fifteen at five severities, each a function of (seed, image id).

Not here: what a network makes of them (attacks/under_corruptions.py).
May import: common.
"""
