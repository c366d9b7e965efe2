"""What every stage needs: params.yaml, an error that reads well, progress, several processes.

Not here: anything that only one stage does.
May import: autolora.
"""
