"""Pre-trained backbones: the classifier around them, loading, foreign checkpoints, what a network's layers are.

Not here: training them.
May import: threat, common.
"""
