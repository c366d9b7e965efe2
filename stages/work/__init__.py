"""What `.work` holds, and what of it may go: progress, decoded images, downloads.

Not here: who writes there (stages.common.runner names the folders).
May import: autolora, stages.common.
"""
