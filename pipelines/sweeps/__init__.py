"""A grid of rebuilds: its cells, the table of results with paired tests, its record in MLflow.

Not here: the flow that runs it (pipelines/sweep.py).
May import: pipelines.workspace, pipelines.execution, stages, autolora.
"""
