"""What every room needs and none owns: files, downloads, processes, memory of the allocator, statistics.

Not here: anything that knows a network.
May import: nothing of ours.
"""
