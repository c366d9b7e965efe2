"""Around an attack: which images, what lies around the evaluation, the exported file and its variants under attack.

Not here: the attacks themselves (autolora/attacks/).
May import: autolora.
"""
