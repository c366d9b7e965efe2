"""The learning-rate rule of the paper over a whole list of validation accuracies, recomputed from scratch each time."""


def decisions(accuracies, epochs, released=False):
    """[(epoch, event, rate of the next epoch)] of the checkpoints; ends where training stops."""
    rate, halved_before, out = 0.01, None, []
    checks = [e for e in range(5, epochs) if (e - 5) % 4 == 0]
    for i, check in enumerate(checks):
        if check > len(accuracies):
            break
        window = range(check - 3, check + 1)  # the last four epochs
        improved = sum(accuracies[e - 1] > accuracies[e - 2] for e in window)
        one = improved < 0.75 * 4
        two = False
        if i > 0:
            best_now, best_then = max(accuracies[:check]), max(accuracies[: checks[i - 1]])
            two = (released or not halved_before) and best_now <= best_then
        halved_before = one or two
        if halved_before:
            rate /= 2
            best_here = accuracies[check - 1] > max(accuracies[: check - 1])
            out.append((check, "halved" if best_here else "halved+restored", rate))
        if rate < 1e-5:
            return [*out, (check, "stop", rate)]
    return out
