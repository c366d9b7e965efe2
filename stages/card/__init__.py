"""The robustness card: one HTML page from the evidence, its sections, charts and strips of examples.

Not here: a number that is not in the evidence.
May import: autolora, stages.common, stages.evidence.
"""
