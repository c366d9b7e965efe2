"""Raw images to splits, and what is expected of them: the rooms behind prepare and validate.

Not here: what the network is given during training (autolora/data/).
May import: autolora, stages.common.
"""
