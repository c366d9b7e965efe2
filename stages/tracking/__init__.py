"""MLflow: the client, the live run during training, the run that mirrors the files, the model as it is served.

Not here: promotion and deployment (pipelines/registry/).
May import: autolora, stages.common, stages.evidence, stages.card.
"""
