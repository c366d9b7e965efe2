"""Images on their way to the network: batches, augmentation, images of many sizes.

Not here: reading folders and image files (stages/dataset/).
May import: common.
"""
