"""The method: fine-tuning loop, learner, objectives, controllers, the low-rank branch, the dial, resuming.

Not here: AutoAttack; the attack inside training is attacks/pgd.py.
May import: threat, common, data, backbones, attacks.
"""
