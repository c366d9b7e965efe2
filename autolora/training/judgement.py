"""What is made of an epoch: what is right on the validation images, whether its state is kept, what the rate does."""

from __future__ import annotations

import copy

from torch import Tensor

from autolora.training.controllers import Measured, Verdict
from autolora.training.learner import Learner
from autolora.training.measuring import clean_hits, robust_hits, training_hits, withstood
from autolora.training.resume import RunState
from autolora.training.single_step import collapsed

WATCHED = 32  # training images on which the single step is compared with ten


def judge_epoch(learner: Learner, done: RunState) -> tuple[Tensor | None, Tensor | None, str]:
    """Look at the validation images where the controller wants it, and do what it says: what was right, the event."""
    epoch, controller = done.epoch, learner.controller
    if learner.attacker.reach < 1 or not controller.wants(epoch):  # states are compared under the whole threat alone
        event = act(learner, done, controller.observe(Measured(epoch, done.steps, 0.0, None)))
        return None, None, look_on_the_way(learner) or event
    clean = clean_hits(learner)
    robust = robust_hits(learner) if learner.method.attacked else None
    right = (clean if robust is None else robust).tolist()
    if learner.attacker.single and collapsed(done.kept, right, *withstood(learner, WATCHED)):
        return clean, robust, give_up_single(learner, done, right)
    verdict = controller.observe(Measured(epoch, done.steps, sum(right) / len(right), tuple(right)))
    if verdict.best:
        done.kept = right
    harder = "" if verdict.stop or epoch == learner.settings.epochs else vary(learner, clean)
    return clean, robust, "+".join(filter(None, [act(learner, done, verdict), harder]))


def act(learner: Learner, done: RunState, verdict: Verdict) -> str:
    if verdict.best:
        done.best, done.best_epoch = copy.deepcopy(learner.state()), done.epoch
    if verdict.restore:
        learner.load(done.best)
    done.stopped = verdict.stop
    return verdict.event


def vary(learner: Learner, clean: Tensor) -> str:
    """Where training images are learnt by heart, the next ones are harder."""
    variety = learner.variety
    return "harder" if variety.watches and variety.becomes_harder(training_hits(learner), clean) else ""


def look_on_the_way(learner: Learner) -> str:
    """While eps grows: no state is kept yet that could come back, so on with PGD-10 from here."""
    attacker = learner.attacker
    if attacker.reach in (0, 1) or not attacker.single or not collapsed((), (), *withstood(learner, WATCHED)):
        return ""
    attacker.single = False
    return "collapsed"


def give_up_single(learner: Learner, done: RunState, right: list[bool]) -> str:
    """Catastrophic overfitting: back to the kept state, and on with PGD-10."""
    verdict = learner.controller.observe(Measured(done.epoch, done.steps, 0.0, None))
    done.stopped = verdict.stop
    learner.attacker.single = False
    if done.best:
        learner.load(done.best)
    else:
        done.best, done.best_epoch, done.kept = copy.deepcopy(learner.state()), done.epoch, right
    return "+".join(filter(None, ["collapsed", verdict._replace(best=False, restore=False).event]))
