"""The optimizers' directions by hand, in float64.

Each: gradient, parameter, weight decay (0: masked), memory, step from 1 -> direction.
"""

import numpy as np

B1, B2, EPSILON, MOMENTUM, RMS_DECAY = 0.8, 0.95, 1e-3, 0.7, 0.6


def adam(g, memory, t):
    memory["m"] = B1 * memory.get("m", 0) + (1 - B1) * g
    memory["v"] = B2 * memory.get("v", 0) + (1 - B2) * g**2
    return memory["m"] / (1 - B1**t) / (np.sqrt(memory["v"] / (1 - B2**t)) + EPSILON)


def adamw(g, p, decay, memory, t):
    return adam(g, memory, t) + decay * p


def lamb(g, p, decay, memory, t):
    u = adam(g, memory, t) + decay * p
    return u * np.linalg.norm(p) / np.linalg.norm(u) if decay else u


def lion(g, p, decay, memory, t):
    m = memory.get("m", 0)
    memory["m"] = B2 * m + (1 - B2) * g
    return np.sign(B1 * m + (1 - B1) * g) + decay * p


def sgd(g, p, decay, memory, t):
    memory["m"] = (g + decay * p) + MOMENTUM * memory.get("m", 0)
    return memory["m"]


def nesterov(g, p, decay, memory, t):
    return (g + decay * p) + MOMENTUM * sgd(g, p, decay, memory, t)


def rmsprop(g, p, decay, memory, t):
    g = g + decay * p
    memory["v"] = RMS_DECAY * memory.get("v", 0) + (1 - RMS_DECAY) * g**2
    memory["m"] = g / np.sqrt(memory["v"] + EPSILON) + MOMENTUM * memory.get("m", 0)
    return memory["m"]


def adafactor(g, p, decay, memory, t):
    keep = 1 - t**-0.8
    if g.ndim == 2 and min(g.shape) >= 128:  # rows and columns only
        memory["row"] = keep * memory.get("row", 0) + (1 - keep) * (g**2).mean(1)
        memory["column"] = keep * memory.get("column", 0) + (1 - keep) * (g**2).mean(0)
        v = np.outer(memory["row"], memory["column"]) / memory["row"].mean()
    else:
        v = memory["v"] = keep * memory.get("v", 0) + (1 - keep) * g**2
    u = g / np.sqrt(v)
    return u / max(1, np.sqrt((u**2).mean())) + decay * p


def muon(g, p, decay, memory, t):
    if not decay or g.shape == (131, 137):  # a bias; the head, which Adam has by default
        return adamw(g, p, decay, memory, t)
    memory["m"] = MOMENTUM * memory.get("m", 0) + (1 - MOMENTUM) * g
    x = (memory["m"] / (1 - MOMENTUM**t)).reshape(-1, g.shape[-1])
    x = x / np.linalg.norm(x)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return 0.2 * np.sqrt(max(x.shape)) * x.reshape(g.shape) + decay * p


FORMULAS = [adamw, lamb, lion, sgd, nesterov, rmsprop, adafactor, muon]
