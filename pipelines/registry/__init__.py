"""The registry as promotion and deployment see it: versions, gates, the decision log, Triton's model repository.

Not here: registering a version (stages/register.py).
May import: stages, autolora.
"""
