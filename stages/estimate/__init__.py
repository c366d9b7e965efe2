"""How long a pipeline will take, how much memory and disk: said before anything runs, and by each long stage.

Not here: the work itself. Nothing that a stage writes depends on what is said here.
May import: autolora, stages.common, stages.dataset.
"""
