"""Images on their way to the network: batches, augmentation, images of many sizes.

Not here: reading folders of images (stages/dataset/, command/).
May import: common.
"""
