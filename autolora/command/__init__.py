"""`autolora attack`, `show` and `verify`: what a command line needs around the library.

Not here: what is computed (attacks/, export/).
May import: threat, common, data, backbones, corruptions, export, attacks.
"""
