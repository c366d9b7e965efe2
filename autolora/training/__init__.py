"""The method: fine-tuning loop, learner, objectives, controllers, the low-rank branch, the dial, resuming.

Not here: AutoAttack, and PGD itself (attacks/pgd.py); how training uses it is attack.py and single_step.py.
May import: threat, common, data, backbones, attacks.
"""
