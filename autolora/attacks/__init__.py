"""The attacks, one file each, readable next to the papers; AutoAttack, its report, its checks, the eps curve.

Not here: what runs them (engine/), and what becomes of a report (stages/evaluate.py).
May import: threat, common, data, backbones, corruptions, export.
"""
