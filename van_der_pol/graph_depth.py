"""How deep a graph autograd has recorded."""


def graph_depth(tensor):
    """Number of autograd nodes on the longest path behind a tensor (leaves not counted)."""
    depth, stack = {}, [tensor.grad_fn]
    while stack:
        node = stack[-1]
        parents = [parent for parent, _ in node.next_functions if parent and type(parent).__name__ != "AccumulateGrad"]
        missing = [parent for parent in parents if parent not in depth]
        if missing:
            stack += missing
        else:
            depth[node] = 1 + max((depth[parent] for parent in parents), default=0)
            stack.pop()
    return depth[tensor.grad_fn]
