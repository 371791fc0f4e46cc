"""The finite-difference oracle: does a backward pass compute the derivative of its forward pass?

    from minijepa import gradcheck  # the function
    gradcheck(ops.softmax, np.random.randn(3, 5))   # the largest error, or GradcheckError with a report

``python -m minijepa.gradcheck`` runs it on every operation, on the awkward inputs of ``cases.py``.
"""

from minijepa.gradcheck.check import compare_gradients, gradcheck, gradient_error, numeric_gradient
