"""The files that are a model's evidence, the key by which they are known, and the canaries asked of a deployed file.

Not here: the card that shows them, the registry that keeps them.
May import: autolora, stages.common.
"""
