"""Which lines of a backward pass compute which gradient: read from its source, so that it follows changes."""

import ast

from minijepa.explain.operation import source_of

ALLOCATIONS = ("empty", "zeros", "empty_like", "zeros_like")


def gradient_lines(op, inputs):
    """For each of ``inputs`` many inputs, the lines of ``op.backward``'s source, from 0, that compute its gradient.

    If the returned tuple holds a name, these are the lines that write to it, or to a view of it, except the line that
    only allocates the array. Otherwise they are those of the return statement, or all lines if there is none.
    """
    function = ast.parse(source_of(op.backward)).body[0]
    returns = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
    if not returns:  # a lambda
        return [_numbers([function])] * inputs
    returned = max(returns, key=lambda n: n.lineno)
    value, found = returned.value, []
    elements = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == inputs else [value] * inputs
    for element in elements:
        if isinstance(element, ast.IfExp):  # ... if ctx.needs[1] else None
            element = element.body
        named = isinstance(element, ast.Name) and _writes(function, element.id)
        found.append(_numbers(named or [*_writes(function, "dy"), returned]))  # dy = dy / n, say, belongs to it
    return found


def _numbers(statements):
    return sorted({n - 1 for s in statements for n in range(s.lineno, s.end_lineno + 1)})


def _writes(function, name):
    """The statements that write to ``name``, to a view of it (dq of dqkv), or to a block of one, dx_ of dx."""
    names, writes, allocations = {name}, [], []
    for node in sorted((n for n in ast.walk(function) if isinstance(n, ast.stmt)), key=lambda n: n.lineno):
        if isinstance(node, ast.Assign):
            for target, value in _pairs(node):
                if _root(value) in names and not isinstance(value, ast.Name):
                    names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
                elif (_root(target) or "").rstrip("_") in names:
                    (allocations if _allocates(value) else writes).append(node)
        elif isinstance(node, (ast.AugAssign, ast.Expr)):
            target = node.target if isinstance(node, ast.AugAssign) else _written_by_call(node.value)
            if (_root(target) or "").rstrip("_") in names:
                writes.append(node)
    return writes or allocations


def _pairs(assignment):
    """(target, value) of an assignment, one for each element if both sides are tuples."""
    (target,), value = assignment.targets, assignment.value
    both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    return list(zip(target.elts, value.elts)) if both else [(target, value)]


def _allocates(value):
    return isinstance(value, ast.Call) and getattr(value.func, "attr", "") in ALLOCATIONS


def _written_by_call(call):
    """What a call writes to: its ``out=``."""
    return next((k.value for k in getattr(call, "keywords", ()) if k.arg == "out"), None)


def _root(node):
    """The name at the left end of an expression like ``dqkv.reshape(...)[0]``, or None."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
