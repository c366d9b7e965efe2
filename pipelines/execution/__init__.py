"""How a stage of DVC is run: commands, work pools, GPU slots, what happens when a process or a machine dies.

Not here: the flows themselves.
May import: autolora.
"""
