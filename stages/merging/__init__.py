"""What the dial turns between, and on what it is judged: the rooms behind merge.

Not here: how networks are mixed (autolora/training/{dial,soup,criticality}.py).
May import: autolora, stages.common, stages.estimate.
"""
