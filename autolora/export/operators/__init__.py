"""ONNX's operators as small torch functions: inputs in the order of the standard, attributes by their names.

Not here: the graph that calls them (torch_copy.py).
May import: nothing of ours.
"""
