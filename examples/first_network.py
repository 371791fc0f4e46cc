"""Two spirals, told apart by a network of three layers: python -m examples.first_network (a second)"""

import numpy as np

from minijepa import Parameter, Tape, ops

rng = np.random.default_rng(0)
labels = np.arange(400) % 2  # two classes, each a spiral; turn: how far along it a point lies
turn = 3 * np.pi * np.sqrt(rng.random(400))
points = (turn / 5 * [np.cos(turn + np.pi * labels), np.sin(turn + np.pi * labels)]).T

sizes = [2, 32, 32, 2]
weights = [Parameter(rng.standard_normal((n, m)) / np.sqrt(m)) for m, n in zip(sizes, sizes[1:])]
biases = [Parameter(np.zeros(n)) for n in sizes[1:]]

for step in range(2001):
    with Tape() as tape:  # operations are recorded only in here
        x = ops.linear(points, weights[0], biases[0]).tanh()
        x = ops.linear(x, weights[1], biases[1]).tanh()
        logits = ops.linear(x, weights[2], biases[2])
        loss = ops.cross_entropy(logits, labels)
    tape.backward(loss)
    for p in weights + biases:
        p.data -= 0.5 * p.grad  # gradient descent
        p.zero_grad()
    if step % 500 == 0:
        right = (logits.data.argmax(axis=1) == labels).mean()
        print(f"step {step:4}   loss {loss.item():.3f}   {right:.1%} right")
