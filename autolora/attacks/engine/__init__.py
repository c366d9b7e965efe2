"""What runs the attacks: the network as they see it, slots that stay full, draws, progress, quicker copies.

Not here: an attack, or a word about robustness.
May import: common, data, backbones, export.
"""
