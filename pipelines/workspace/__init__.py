"""Where a rebuild works: git worktrees, DVC's graph, results carried home, code of older revisions.

Not here: Prefect.
May import: pipelines.execution, stages, autolora.
"""
